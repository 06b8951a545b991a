/* The activation functions of kernels/ops/activations.py for one float, by the same codes.
 *
 * Written in the common subset of C, C++, CUDA C++ and OpenCL C, so that one definition serves every kind of
 * silicon. Before including it, QF_FUNCTION may be set to the qualifiers a function needs (CUDA: __device__), and
 * QF_EXP, QF_EXPM1, QF_LOG1P, QF_TANH, QF_FABS, QF_FMIN, QF_FMAX to the names of the float functions.
 * NaN comes out as NaN.
 */
#ifndef QUATREFOIL_ACTIVATION_H
#define QUATREFOIL_ACTIVATION_H

#ifndef QF_FUNCTION
#define QF_FUNCTION static inline
#endif
#ifndef QF_EXP
#ifdef __OPENCL_VERSION__
#define QF_EXP exp
#define QF_EXPM1 expm1
#define QF_LOG1P log1p
#define QF_TANH tanh
#define QF_FABS fabs
#else
#define QF_EXP expf
#define QF_EXPM1 expm1f
#define QF_LOG1P log1pf
#define QF_TANH tanhf
#define QF_FABS fabsf
#endif
#endif

enum {
  QF_IDENTITY = 0,
  QF_RELU = 1,
  QF_LEAKY_RELU = 2,
  QF_CLIP = 3,
  QF_SIGMOID = 4,
  QF_TANH_FUNCTION = 5,
  QF_HARD_SIGMOID = 6,
  QF_HARD_SWISH = 7,
  QF_ELU = 8,
  QF_SOFTSIGN = 9,
  QF_SOFTPLUS = 10,
  QF_AFFINE = 11,
  QF_THRESHOLDED_RELU = 12,
  QF_SCALED_TANH = 13,
  QF_SWISH = 14
};

QF_FUNCTION float qf_sigmoid(float x) {
  float e = QF_EXP(-QF_FABS(x)); /* never overflows */
  return x >= 0.0f ? 1.0f / (1.0f + e) : e / (1.0f + e);
}

/* min(max(x, low), high) that lets NaN through */
QF_FUNCTION float qf_clip(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

QF_FUNCTION float qf_activation(int code, float alpha, float beta, float x) {
  switch (code) {
    case QF_RELU: return x < 0.0f ? 0.0f : x;
    case QF_LEAKY_RELU: return x < 0.0f ? alpha * x : x;
    case QF_CLIP: return qf_clip(x, alpha, beta);
    case QF_SIGMOID: return qf_sigmoid(x);
    case QF_TANH_FUNCTION: return QF_TANH(x);
    case QF_HARD_SIGMOID: return qf_clip(alpha * x + beta, 0.0f, 1.0f);
    case QF_HARD_SWISH: return x * qf_clip(x / 6.0f + 0.5f, 0.0f, 1.0f);
    case QF_ELU: return x < 0.0f ? alpha * QF_EXPM1(x) : x;
    case QF_SOFTSIGN: return x / (1.0f + QF_FABS(x));
    case QF_SOFTPLUS: return (x > 0.0f ? x : 0.0f) + QF_LOG1P(QF_EXP(-QF_FABS(x)));
    case QF_AFFINE: return alpha * x + beta;
    case QF_THRESHOLDED_RELU: return x <= alpha ? 0.0f : x;
    case QF_SCALED_TANH: return alpha * QF_TANH(beta * x);
    case QF_SWISH: return x * qf_sigmoid(alpha * x);
    default: return x;
  }
}

/* The derivative of qf_activation at x: SLOPES of the same table. At a kink it is that of the flat or shallow side. */
QF_FUNCTION float qf_slope(int code, float alpha, float beta, float x) {
  float y;
  switch (code) {
    case QF_RELU: return x > 0.0f ? 1.0f : 0.0f;
    case QF_LEAKY_RELU: return x > 0.0f ? 1.0f : alpha;
    case QF_CLIP: return x > alpha && x < beta ? 1.0f : 0.0f;
    case QF_SIGMOID: y = qf_sigmoid(x); return y * (1.0f - y);
    case QF_TANH_FUNCTION: y = QF_TANH(x); return 1.0f - y * y;
    case QF_HARD_SIGMOID: y = alpha * x + beta; return y > 0.0f && y < 1.0f ? alpha : 0.0f;
    case QF_HARD_SWISH: return qf_clip(x / 6.0f + 0.5f, 0.0f, 1.0f) + (x > -3.0f && x < 3.0f ? x / 6.0f : 0.0f);
    case QF_ELU: return x > 0.0f ? 1.0f : alpha * QF_EXP(x);
    case QF_SOFTSIGN: y = 1.0f + QF_FABS(x); return 1.0f / (y * y);
    case QF_SOFTPLUS: return qf_sigmoid(x);
    case QF_AFFINE: return alpha;
    case QF_THRESHOLDED_RELU: return x > alpha ? 1.0f : 0.0f;
    case QF_SCALED_TANH: y = QF_TANH(beta * x); return alpha * beta * (1.0f - y * y);
    case QF_SWISH: y = qf_sigmoid(alpha * x); return y + alpha * x * y * (1.0f - y);
    default: return 1.0f;
  }
}

#endif
