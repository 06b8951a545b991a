// The activation functions of recurrent layers in double precision, and their derivatives (activation.h has the floats).
#pragma once

#include <math.h>

#include "rnn.h"
#include "simd.h"

namespace {

inline double sigmoid_of(double x) {
  const double e = exp(-fabs(x));
  return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

inline double clipped(double x, double bound) { return x < -bound ? -bound : x > bound ? bound : x; }

inline double apply(const RnnFunction& f, double x) {
  switch (f.code) {
    case QF_RELU: return x < 0 ? 0 : x;
    case QF_LEAKY_RELU: return x < 0 ? f.alpha * x : x;
    case QF_SIGMOID: return sigmoid_of(x);
    case QF_TANH_FUNCTION: return tanh(x);
    case QF_HARD_SIGMOID: {
      const double y = f.alpha * x + f.beta;
      return y < 0 ? 0 : y > 1 ? 1 : y;
    }
    case QF_ELU: return x < 0 ? f.alpha * expm1(x) : x;
    case QF_SOFTSIGN: return x / (1 + fabs(x));
    case QF_SOFTPLUS: return (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
    case QF_AFFINE: return f.alpha * x + f.beta;
    case QF_THRESHOLDED_RELU: return x <= f.alpha ? 0 : x;
    case QF_SCALED_TANH: return f.alpha * tanh(f.beta * x);
    default: return x;
  }
}

inline double slope(const RnnFunction& f, double x) {
  switch (f.code) {
    case QF_RELU: return x > 0 ? 1 : 0;
    case QF_LEAKY_RELU: return x > 0 ? 1 : f.alpha;
    case QF_SIGMOID: return sigmoid_of(x) * (1 - sigmoid_of(x));
    case QF_TANH_FUNCTION: return 1 - tanh(x) * tanh(x);
    case QF_HARD_SIGMOID: return f.alpha * x + f.beta > 0 && f.alpha * x + f.beta < 1 ? f.alpha : 0;
    case QF_ELU: return x > 0 ? 1 : f.alpha * exp(x);
    case QF_SOFTSIGN: return 1 / ((1 + fabs(x)) * (1 + fabs(x)));
    case QF_SOFTPLUS: return sigmoid_of(x);
    case QF_AFFINE: return f.alpha;
    case QF_THRESHOLDED_RELU: return x > f.alpha ? 1 : 0;
    case QF_SCALED_TANH: return f.alpha * f.beta * (1 - tanh(f.beta * x) * tanh(f.beta * x));
    default: return 1;
  }
}

}  // namespace
