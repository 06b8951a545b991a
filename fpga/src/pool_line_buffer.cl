/* Pooling over two axes as a stream of pixels through a shift register: max_pool (with indices), average_pool,
 * lp_pool, fixed_max_pool, fixed_average_pool.
 *
 * As in conv_line_buffer.cl: every input is read once, and a window's taps stay at the same places of the register.
 * LANES planes (channels of any sample) run side by side; sizes are compile-time constants.
 *
 *   x [blocks][HEIGHT][WIDTH][LANES], y and indices [blocks][OUT_H][OUT_W][LANES]
 */
#include "pool_window.h"

#define EXTENT_H ((KERNEL_H - 1) * DILATION_H + 1)
#define EXTENT_W ((KERNEL_W - 1) * DILATION_W + 1)
#define ROWS ((OUT_H - 1) * STRIDE_H + EXTENT_H)
#define COLUMNS ((OUT_W - 1) * STRIDE_W + EXTENT_W)
#define PIXELS ((EXTENT_H - 1) * COLUMNS + EXTENT_W)

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pool_line_buffer(
    __global const X_T* restrict x, int blocks, int p, int count_pads, int column_major, __global Y_T* restrict y
#ifdef WITH_INDICES
    , __global long* restrict indices
#endif
) {
  X_T lines[PIXELS][LANES];
  for (int i = 0; i < PIXELS; i++)
    for (int lane = 0; lane < LANES; lane++) lines[i][lane] = 0;

  for (int block = 0; block < blocks; block++)
    for (int row = 0; row < ROWS; row++)
      for (int column = 0; column < COLUMNS; column++) {
        UNROLL
        for (int i = 0; i < PIXELS - 1; i++)
          UNROLL
          for (int lane = 0; lane < LANES; lane++) lines[i][lane] = lines[i + 1][lane];
        int h = row - PAD_H, v = column - PAD_W;
        int inside = h >= 0 && h < HEIGHT && v >= 0 && v < WIDTH;
        UNROLL
        for (int lane = 0; lane < LANES; lane++)
          lines[PIXELS - 1][lane] = inside ? x[((block * HEIGHT + h) * WIDTH + v) * LANES + lane] : 0;

        int from_h = row - (EXTENT_H - 1), from_w = column - (EXTENT_W - 1);
        if (from_h < 0 || from_w < 0 || from_h % STRIDE_H || from_w % STRIDE_W) continue;

        window_t window[LANES];
        int taps = 0, taps_and_pads = 0;
        UNROLL
        for (int lane = 0; lane < LANES; lane++) open(&window[lane]);
        UNROLL
        for (int i = 0; i < KERNEL_H; i++) {
          UNROLL
          for (int j = 0; j < KERNEL_W; j++) {
            int at_h = from_h - PAD_H + i * DILATION_H, at_w = from_w - PAD_W + j * DILATION_W;
            taps_and_pads += at_h < HEIGHT + PAD_END_H && at_w < WIDTH + PAD_END_W;
            if (at_h < 0 || at_h >= HEIGHT || at_w < 0 || at_w >= WIDTH) continue;
            taps++;
            UNROLL
            for (int lane = 0; lane < LANES; lane++)
              add(&window[lane], lines[i * DILATION_H * COLUMNS + j * DILATION_W][lane], at_h * WIDTH + at_w, p);
          }
          UNROLL
          for (int lane = 0; lane < LANES; lane++) close_row(&window[lane]);
        }
        int pixel = (block * OUT_H + from_h / STRIDE_H) * OUT_W + from_w / STRIDE_W;
        UNROLL
        for (int lane = 0; lane < LANES; lane++) {
          y[pixel * LANES + lane] = result(&window[lane], count_pads ? taps_and_pads : taps, p);
#ifdef WITH_INDICES
          indices[pixel * LANES + lane] =
              index_of((long)block * LANES + lane, window[lane].place, 1, HEIGHT, WIDTH, column_major);
#endif
        }
      }
}
