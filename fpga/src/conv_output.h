/* How a convolution adds, and how its sum becomes an output value: shared by the convolution kernels.
 *
 * X_T, W_T and Y_T are the element types of x, w and y. One of
 *   OUTPUT_FLOAT       y = activation(sum + residual)
 *   OUTPUT_INTEGER     y = sum, wrapping
 *   OUTPUT_QUANTIZED   y = saturate(round_half_even(float(sum) * multiplier) + y_zero), to [Y_LOW, Y_HIGH]
 *   OUTPUT_FIXED       y = sum, cast to Y_FORMAT from Y_DROP more fraction bits, and max(y, 0) with RECTIFIED; the sum
 *                      is that of fixed_sum.h, of products with DROP more fraction bits than the accumulator
 * is defined. Integer sums are kept unsigned, because those wrap by definition. A sum begins with the bias.
 *
 * Kernels add by taps, the last axis fastest, channels innermost, as fixed point wants it. With REUSE they add every
 * REUSE-th product, then every REUSE-th from the second on, and so on: inside a tap whose first product is number
 * `before`, those are the channels FIRST_CHANNEL(first, before), and every REUSE-th from there.
 */
#ifdef OUTPUT_FIXED
#include "fixed_sum.h"
#else
#include "quatrefoil/activation.h"
#endif

#ifndef REUSE
#define REUSE 1
#endif
#define FIRST_CHANNEL(first, before) (((first) + REUSE - (before) % REUSE) % REUSE)

#if defined(OUTPUT_FLOAT)
typedef float SUM_T;
typedef float BIAS_T;
#define ADD(sum, a, b) ((sum) + (a) * (b))
#define IN_T float
#define CENTRED(value) (value)
#elif defined(OUTPUT_FIXED)
typedef long BIAS_T;
#define ADD(sum, a, b) added(sum, (PRODUCT_T)(a) * (PRODUCT_T)(b), DROP)
#define IN_T X_T
#define CENTRED(value) (value)
#else
typedef uint SUM_T;
typedef int BIAS_T;
#define ADD(sum, a, b) ((sum) + (uint)((int)(a) * (int)(b)))
#define IN_T short
#define CENTRED(value) ((short)((value) - x_zero))
#endif

static inline Y_T finish(SUM_T sum, float multiplier, int y_zero, int code, float alpha, float beta) {
#if defined(OUTPUT_FLOAT)
  return qf_activation(code, alpha, beta, sum);
#elif defined(OUTPUT_INTEGER)
  return as_int(sum);
#elif defined(OUTPUT_FIXED)
  return fixed_output(sum);
#else
  /* float(sum) times multiplier is rounded once; the clamp and the addition are exact */
  float scaled = rint((float)as_int(sum) * multiplier);
  return (Y_T)(convert_int(clamp(scaled, (float)(Y_LOW - y_zero), (float)(Y_HIGH - y_zero))) + y_zero);
#endif
}
