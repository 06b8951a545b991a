/* How a convolution's sum becomes an output value: shared by the convolution kernels.
 *
 * X_T, W_T and Y_T are the element types of x, w and y. One of
 *   OUTPUT_FLOAT       y = activation(sum + residual)
 *   OUTPUT_INTEGER     y = sum, wrapping
 *   OUTPUT_QUANTIZED   y = saturate(round_half_even(float(sum) * multiplier) + y_zero), to [Y_LOW, Y_HIGH]
 * is defined. Integer sums are kept unsigned, because those wrap by definition.
 */
#include "quatrefoil/activation.h"

#ifdef UNROLL_LOOPS
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

#ifdef OUTPUT_FLOAT
typedef float SUM_T;
typedef float BIAS_T;
#define PRODUCT(a, b) ((a) * (b))
#define IN_T float
#define CENTRED(value) (value)
#else
typedef uint SUM_T;
typedef int BIAS_T;
#define PRODUCT(a, b) ((uint)((int)(a) * (int)(b)))
#define IN_T short
#define CENTRED(value) ((short)((value) - x_zero))
#endif

static inline Y_T finish(SUM_T sum, float multiplier, int y_zero, int code, float alpha, float beta) {
#if defined(OUTPUT_FLOAT)
  return qf_activation(code, alpha, beta, sum);
#elif defined(OUTPUT_INTEGER)
  return as_int(sum);
#else
  /* float(sum) times multiplier is rounded once; the clamp and the addition are exact */
  float scaled = rint((float)as_int(sum) * multiplier);
  return (Y_T)(convert_int(clamp(scaled, (float)(Y_LOW - y_zero), (float)(Y_HIGH - y_zero))) + y_zero);
#endif
}
