/* Pooling over two axes as a stage of a stream (fpga/streams.py): max_pool (with indices), average_pool, lp_pool,
 * fixed_max_pool, fixed_average_pool.
 *
 * A pixel of CHANNELS values comes in, and where it completes a window (line_buffer.h) one goes out. All channels work
 * in parallel. Sizes are compile-time constants. Plane `at.plane * CHANNELS + c` is the one that an index counts by.
 */
#include "pool_window.h"
#include "line_buffer.h"

typedef struct {
  int p, count_pads, column_major;
  cursor_t at;
  X_T lines[PIXELS][CHANNELS];
} stage_t;

static inline void begin(stage_t* s, int p, int count_pads, int column_major) {
  s->p = p;
  s->count_pads = count_pads;
  s->column_major = column_major;
  s->at.row = s->at.column = s->at.plane = 0;
  for (int i = 0; i < PIXELS; i++)
    for (int c = 0; c < CHANNELS; c++) s->lines[i][c] = 0;
}

static inline int wants(const stage_t* s) { return inside(s->at); }

/* Takes a pixel (what x holds, where the stage wants none, is not looked at); whether it gives one. */
static inline int take(
    stage_t* s, const X_T* x, Y_T* y
#ifdef WITH_INDICES
    , long* indices
#endif
) {
  cursor_t at = s->at;
  advance(&s->at);
  if (!reached(at)) return 0;
  UNROLL
  for (int i = 0; i < PIXELS - 1; i++)
    UNROLL
    for (int c = 0; c < CHANNELS; c++) s->lines[i][c] = s->lines[i + 1][c];
  int from_stream = inside(at);
  UNROLL
  for (int c = 0; c < CHANNELS; c++) s->lines[PIXELS - 1][c] = from_stream ? x[c] : 0;
  if (!complete(at)) return 0;

  window_t window[CHANNELS];
  int taps = 0, taps_and_pads = 0;
  UNROLL
  for (int c = 0; c < CHANNELS; c++) open(&window[c]);
  UNROLL
  for (int i = 0; i < KERNEL_H; i++) {
    UNROLL
    for (int j = 0; j < KERNEL_W; j++) {
      int h = at.row - (EXTENT_H - 1) - PAD_H + i * DILATION_H, v = at.column - (EXTENT_W - 1) - PAD_W + j * DILATION_W;
      taps_and_pads += h < HEIGHT + PAD_END_H && v < WIDTH + PAD_END_W;
      if (h < 0 || h >= HEIGHT || v < 0 || v >= WIDTH) continue;
      taps++;
      UNROLL
      for (int c = 0; c < CHANNELS; c++)
        add(&window[c], s->lines[i * DILATION_H * COLUMNS + j * DILATION_W][c], h * WIDTH + v, s->p);
    }
    UNROLL
    for (int c = 0; c < CHANNELS; c++) close_row(&window[c]);
  }
  UNROLL
  for (int c = 0; c < CHANNELS; c++) {
    y[c] = result(&window[c], s->count_pads ? taps_and_pads : taps, s->p);
#ifdef WITH_INDICES
    indices[c] =
        index_of((long)at.plane * CHANNELS + c, window[c].place, 1, HEIGHT, WIDTH, s->column_major);
#endif
  }
  return 1;
}
