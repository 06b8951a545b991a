/* Convolution and transposed convolution of any shape over three axes: conv, conv_integer, qlinear_conv,
 * fixed_conv, conv_transpose.
 *
 * TILE sums of one output row are kept on the chip while the taps pass by: the innermost loop adds one weight times
 * a run of inputs to different sums, so that a pipeline never waits for an addition that it has just begun. Taps on
 * padding are cut away from the run rather than multiplied. Sizes are arguments: one program an element type.
 *
 *   x [batch][C][D][H][W], w [M][C / groups][taps] (transposed: [C][M / groups][taps]), bias [M] or null,
 *   multiplier [M] (quantized) or null, residual and y [batch][M][D'][H'][W']
 */
#include "conv_output.h"
#include "conv_sizes.h"

#define TILE 64

#ifdef TRANSPOSED
/* The input index whose tap k lands on output o, or -1. */
static inline int tap_source(int o, int k, int stride, int dilation, int pad, int extent) {
  int place = o + pad - k * dilation;
  return place >= 0 && place % stride == 0 && place / stride < extent ? place / stride : -1;
}
#else
/* The input index that tap k of output o reads, or -1 for padding. */
static inline int tap_source(int o, int k, int stride, int dilation, int pad, int extent) {
  int place = o * stride + k * dilation - pad;
  return place >= 0 && place < extent ? place : -1;
}
#endif

/* Adds weight times the inputs of one row to the sums of outputs [begin, begin + TILE) that tap kw reaches. */
static inline void add_row(
    SUM_T* sum, __global const X_T* row, W_T weight, int x_zero, int begin, int end, int kw, __constant const int* g) {
  int shift = kw * g[DILATION_W] - g[PAD_W];
#ifdef TRANSPOSED
  /* output o = i * stride + shift for every input i */
  int stride = g[STRIDE_W];
  int first = begin <= shift ? 0 : (begin - shift + stride - 1) / stride;
  int last = end <= shift ? 0 : min(g[IN_W], (end - shift + stride - 1) / stride);
  for (int i = first; i < last; i++)
    sum[i * stride + shift - begin] = ADD(sum[i * stride + shift - begin], CENTRED(row[i]), weight);
#else
  /* input i = o * stride + shift for every output o */
  int stride = g[STRIDE_W];
  int first = max(begin, shift >= 0 ? 0 : (stride - 1 - shift) / stride);
  int last = g[IN_W] <= shift ? 0 : min(end, (g[IN_W] - shift + stride - 1) / stride);
  if (stride == 1)
    for (int o = first; o < last; o++) sum[o - begin] = ADD(sum[o - begin], CENTRED(row[o + shift]), weight);
  else
    for (int o = first; o < last; o++) sum[o - begin] = ADD(sum[o - begin], CENTRED(row[o * stride + shift]), weight);
#endif
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void conv_direct(
    __global const X_T* restrict x, __global const W_T* restrict w, __global const BIAS_T* restrict bias,
    __global const float* restrict multiplier, __global const Y_T* restrict residual, __constant const int* restrict g,
    int x_zero, int y_zero, int code, float alpha, float beta, __global Y_T* restrict y) {
  SUM_T sum[TILE];
  int group_in = g[IN_CHANNELS] / g[GROUPS], group_out = g[OUT_CHANNELS] / g[GROUPS];
  int taps = g[KERNEL_D] * g[KERNEL_H] * g[KERNEL_W];

  for (int n = 0; n < g[BATCH]; n++)
    for (int m = 0; m < g[OUT_CHANNELS]; m++)
      for (int d = 0; d < g[OUT_D]; d++)
        for (int h = 0; h < g[OUT_H]; h++)
          for (int begin = 0; begin < g[OUT_W]; begin += TILE) {
            int end = min(begin + TILE, g[OUT_W]);
            for (int t = 0; t < TILE; t++) sum[t] = bias ? (SUM_T)bias[m] : 0;
            for (int round = 0; round < REUSE; round++)
              for (int kd = 0; kd < g[KERNEL_D]; kd++)
                for (int kh = 0; kh < g[KERNEL_H]; kh++) {
                  int from_d = tap_source(d, kd, g[STRIDE_D], g[DILATION_D], g[PAD_D], g[IN_D]);
                  int from_h = tap_source(h, kh, g[STRIDE_H], g[DILATION_H], g[PAD_H], g[IN_H]);
                  if (from_d < 0 || from_h < 0) continue;
                  for (int kw = 0; kw < g[KERNEL_W]; kw++) {
                    int tap = (kd * g[KERNEL_H] + kh) * g[KERNEL_W] + kw;
                    for (int c = FIRST_CHANNEL(round, tap * group_in); c < group_in; c += REUSE) {
                      int channel = m / group_out * group_in + c;
#ifdef TRANSPOSED
                      W_T weight = w[(channel * group_out + m % group_out) * taps + tap];
#else
                      W_T weight = w[(m * group_in + c) * taps + tap];
#endif
                      __global const X_T* row =
                          x + (((n * g[IN_CHANNELS] + channel) * g[IN_D] + from_d) * g[IN_H] + from_h) * g[IN_W];
                      add_row(sum, row, weight, x_zero, begin, end, kw, g);
                    }
                  }
                }
            int place = (((n * g[OUT_CHANNELS] + m) * g[OUT_D] + d) * g[OUT_H] + h) * g[OUT_W];
            for (int o = begin; o < end; o++) {
              SUM_T total = sum[o - begin];
              if (residual) total += (SUM_T)residual[place + o];
              y[place + o] = finish(total, multiplier ? multiplier[m] : 0.0f, y_zero, code, alpha, beta);
            }
          }
}
