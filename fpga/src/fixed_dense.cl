/* A dense layer in fixed point: y[n][m] = sum over k of x[n][k] w[k][m].
 *
 * TILE sums are kept on the chip while the rows of weights stream past: the innermost loop adds one x times a run of
 * weights to different sums, so that a pipeline never waits for an addition that it has just begun. Rows lie in the
 * order in which they are added, and order[] says which x each of them belongs to.
 *
 *   x [batch][depth], w [depth][width], bias [width] or null, order [depth], y [batch][width]
 */
#include "fixed_sum.h"

#define TILE 64

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void fixed_dense(
    __global const X_T* restrict x, __global const W_T* restrict w, __global const long* restrict bias,
    __global const int* restrict order, int batch, int depth, int width, __global Y_T* restrict y) {
  SUM_T sum[TILE];
  for (int n = 0; n < batch; n++)
    for (int begin = 0; begin < width; begin += TILE) {
      int count = min(TILE, width - begin);
      for (int t = 0; t < count; t++) sum[t] = bias ? (SUM_T)bias[begin + t] : 0;
      for (int k = 0; k < depth; k++) {
        PRODUCT_T value = x[n * depth + order[k]];
        for (int t = 0; t < count; t++) sum[t] = added(sum[t], value * w[k * width + begin + t], DROP);
      }
      for (int t = 0; t < count; t++) y[n * width + begin + t] = fixed_output(sum[t]);
    }
}
