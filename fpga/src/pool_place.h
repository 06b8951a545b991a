/* One output of a pool of any shape over three axes: its taps in row-major order; taps on padding are skipped.
 *
 *   x [planes][D][H][W], y and indices [planes][D'][H'][W']; g holds the sizes
 */
#include "pool_window.h"

enum {
  PLANES,
  IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W, KERNEL_D, KERNEL_H, KERNEL_W,
  STRIDE_D, STRIDE_H, STRIDE_W, DILATION_D, DILATION_H, DILATION_W, PAD_D, PAD_H, PAD_W, PAD_END_D, PAD_END_H, PAD_END_W
};

/* The first tap of a window that begins at `start` to lie at 0 or beyond, and the first to lie at `limit` or beyond. */
static inline int first_tap(int start, int dilation) { return start >= 0 ? 0 : (dilation - 1 - start) / dilation; }

static inline int end_tap(int start, int dilation, int taps, int limit) {
  return start >= limit ? 0 : min(taps, (limit - start + dilation - 1) / dilation);
}

static inline void pool_place(
    __global const X_T* restrict x, __constant const int* restrict g, int p, int count_pads, int column_major,
    __global Y_T* restrict y, __global long* restrict indices, int plane, int od, int oh, int ow) {
  int out = ((plane * g[OUT_D] + od) * g[OUT_H] + oh) * g[OUT_W] + ow;
  int start_d = od * g[STRIDE_D] - g[PAD_D];
  int start_h = oh * g[STRIDE_H] - g[PAD_H];
  int start_w = ow * g[STRIDE_W] - g[PAD_W];
  int first_d = first_tap(start_d, g[DILATION_D]), end_d = end_tap(start_d, g[DILATION_D], g[KERNEL_D], g[IN_D]);
  int first_h = first_tap(start_h, g[DILATION_H]), end_h = end_tap(start_h, g[DILATION_H], g[KERNEL_H], g[IN_H]);
  int first_w = first_tap(start_w, g[DILATION_W]), end_w = end_tap(start_w, g[DILATION_W], g[KERNEL_W], g[IN_W]);
  window_t window;
  open(&window);
  for (int kd = first_d; kd < end_d; kd++)
    for (int kh = first_h; kh < end_h; kh++) {
      int d = start_d + kd * g[DILATION_D], h = start_h + kh * g[DILATION_H];
      int row = (d * g[IN_H] + h) * g[IN_W];
      for (int kw = first_w; kw < end_w; kw++) {
        int place = row + start_w + kw * g[DILATION_W];
        add(&window, x[plane * (g[IN_D] * g[IN_H] * g[IN_W]) + place], place, p);
      }
      close_row(&window);
    }
  COUNT_T count = (COUNT_T)max(end_d - first_d, 0) * (COUNT_T)max(end_h - first_h, 0) * (COUNT_T)max(end_w - first_w, 0);
  if (count_pads)
    count = (COUNT_T)end_tap(start_d, g[DILATION_D], g[KERNEL_D], g[IN_D] + g[PAD_END_D]) *
            (COUNT_T)end_tap(start_h, g[DILATION_H], g[KERNEL_H], g[IN_H] + g[PAD_END_H]) *
            (COUNT_T)end_tap(start_w, g[DILATION_W], g[KERNEL_W], g[IN_W] + g[PAD_END_W]);
  y[out] = result(&window, count, p);
#ifdef WITH_INDICES
  indices[out] = index_of(plane, window.place, g[IN_D], g[IN_H], g[IN_W], column_major);
#endif
}
