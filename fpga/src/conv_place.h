/* The outputs of a convolution of any shape over three axes at one place, LANES channels of one group: what a work-item of
 * conv_ndrange.cl computes. An input value is read once for all channels. Sizes are arguments.
 *
 *   x [batch][C][D][H][W], w [blocks][taps][C / groups][LANES], a group's last block filled up with zeros,
 *   bias [M] or null, multiplier [M] (quantized) or null, residual and y [batch][M][D'][H'][W']
 *
 * WEIGHT_SPACE and BIAS_SPACE are the address spaces of w and of bias.
 */
#include "conv_output.h"
#include "conv_sizes.h"

static inline void conv_place(
    __global const X_T* restrict x, WEIGHT_SPACE const W_T* restrict w, BIAS_SPACE const BIAS_T* restrict bias,
    __global const float* restrict multiplier, __global const Y_T* restrict residual, __constant const int* restrict g,
    int x_zero, int y_zero, int code, float alpha, float beta, __global Y_T* restrict y, int place, int block, int n) {
  int places = g[OUT_D] * g[OUT_H] * g[OUT_W];
  int group_in = g[IN_CHANNELS] / g[GROUPS], group_out = g[OUT_CHANNELS] / g[GROUPS];
  int group_blocks = (group_out + LANES - 1) / LANES;
  int group = block / group_blocks, first = block % group_blocks * LANES;
  int lanes = min(LANES, group_out - first), channel = group * group_out + first;
  int d = place / (g[OUT_H] * g[OUT_W]) * g[STRIDE_D] - g[PAD_D];
  int h = place / g[OUT_W] % g[OUT_H] * g[STRIDE_H] - g[PAD_H];
  int v = place % g[OUT_W] * g[STRIDE_W] - g[PAD_W];
  int plane = g[IN_D] * g[IN_H] * g[IN_W];
  __global const X_T* image = x + (n * g[GROUPS] + group) * group_in * plane;
  w += block * (g[KERNEL_D] * g[KERNEL_H] * g[KERNEL_W]) * group_in * LANES;

  SUM_T sum[LANES];
  for (int lane = 0; lane < LANES; lane++) sum[lane] = bias && lane < lanes ? (SUM_T)bias[channel + lane] : 0;
  for (int round = 0; round < REUSE; round++)
    for (int kd = 0; kd < g[KERNEL_D]; kd++)
      for (int kh = 0; kh < g[KERNEL_H]; kh++)
        for (int kw = 0; kw < g[KERNEL_W]; kw++) {
          int from_d = d + kd * g[DILATION_D], from_h = h + kh * g[DILATION_H], from_w = v + kw * g[DILATION_W];
          if (from_d < 0 || from_d >= g[IN_D] || from_h < 0 || from_h >= g[IN_H] || from_w < 0 || from_w >= g[IN_W])
            continue;
          __global const X_T* from = image + (from_d * g[IN_H] + from_h) * g[IN_W] + from_w;
          int before = ((kd * g[KERNEL_H] + kh) * g[KERNEL_W] + kw) * group_in;
          for (int c = FIRST_CHANNEL(round, before); c < group_in; c += REUSE) {
            IN_T value = CENTRED(from[c * plane]);
            for (int lane = 0; lane < LANES; lane++)
              sum[lane] = ADD(sum[lane], value, w[(before + c) * LANES + lane]);
          }
        }
  for (int lane = 0; lane < lanes; lane++) {
    int m = channel + lane, at = (n * g[OUT_CHANNELS] + m) * places + place;
    SUM_T total = sum[lane];
    if (residual) total += (SUM_T)residual[at];
    y[at] = finish(total, multiplier ? multiplier[m] : 0.0f, y_zero, code, alpha, beta);
  }
}
