/* Pooling of any shape over three axes: max_pool (with indices), average_pool, lp_pool.
 *
 * One output after the other, its taps in row-major order; taps on padding are skipped. Sizes are arguments: one
 * program an operator and element type.
 *
 *   x [planes][D][H][W], y and indices [planes][D'][H'][W']
 */
#include "pool_window.h"

enum {
  PLANES,
  IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W, KERNEL_D, KERNEL_H, KERNEL_W,
  STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, PAD_D, PAD_H, PAD_W, PAD_END_D, PAD_END_H, PAD_END_W
};

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pool_direct(
    __global const X_T* restrict x, __constant const int* restrict g, int p, int count_pads, int column_major,
    __global X_T* restrict y
#ifdef WITH_INDICES
    , __global long* restrict indices
#endif
) {
  int out = 0;
  for (int plane = 0; plane < g[PLANES]; plane++)
    for (int od = 0; od < g[OUT_D]; od++)
      for (int oh = 0; oh < g[OUT_H]; oh++)
        for (int ow = 0; ow < g[OUT_W]; ow++, out++) {
          window_t window;
          int taps = 0, taps_and_pads = 0;
          open(&window);
          for (int kd = 0; kd < g[KERNEL_D]; kd++)
            for (int kh = 0; kh < g[KERNEL_H]; kh++) {
              int d = od * g[STRIDE_D] + kd * g[DILATION_D] - g[PAD_D];
              int h = oh * g[STRIDE_H] + kh * g[DILATION_H] - g[PAD_H];
              int row_counts = d < g[IN_D] + g[PAD_END_D] && h < g[IN_H] + g[PAD_END_H];
              int row_inside = d >= 0 && d < g[IN_D] && h >= 0 && h < g[IN_H];
              for (int kw = 0; kw < g[KERNEL_W]; kw++) {
                int w = ow * g[STRIDE_W] + kw * g[DILATION_W] - g[PAD_W];
                taps_and_pads += row_counts && w < g[IN_W] + g[PAD_END_W];
                if (!row_inside || w < 0 || w >= g[IN_W]) continue;
                taps++;
                int place = (d * g[IN_H] + h) * g[IN_W] + w;
                add(&window, x[plane * (g[IN_D] * g[IN_H] * g[IN_W]) + place], place, p);
              }
              close_row(&window);
            }
          y[out] = result(&window, count_pads ? taps_and_pads : taps, p);
#ifdef WITH_INDICES
          indices[out] = index_of(plane, window.place, g[IN_D], g[IN_H], g[IN_W], column_major);
#endif
        }
}
