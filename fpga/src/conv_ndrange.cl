/* Convolution of any shape over three axes by many work-items, for devices that want them (processors, GPUs): conv,
 * conv_integer, qlinear_conv, fixed_conv.
 *
 * A work-item computes LANES output channels of one group at one place (conv_place.h); neighbours are neighbouring places,
 * whose inputs lie side by side.
 *   global size: places of y and what fills the last group, blocks of all groups, batch
 */
#define WEIGHT_SPACE __global
#define BIAS_SPACE __global
#include "conv_place.h"

__kernel void conv_ndrange(
    __global const X_T* restrict x, __global const W_T* restrict w, __global const BIAS_T* restrict bias,
    __global const float* restrict multiplier, __global const Y_T* restrict residual, __constant const int* restrict g,
    int x_zero, int y_zero, int code, float alpha, float beta, __global Y_T* restrict y) {
  int place = get_global_id(0);
  if (place >= g[OUT_D] * g[OUT_H] * g[OUT_W]) return;
  conv_place(x, w, bias, multiplier, residual, g, x_zero, y_zero, code, alpha, beta, y, place, get_global_id(1),
             get_global_id(2));
}
