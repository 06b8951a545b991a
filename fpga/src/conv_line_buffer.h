/* Convolution as a stage of a stream (fpga/streams.py): conv, conv_integer, qlinear_conv and fixed_conv over two axes.
 *
 * A pixel of CHANNELS values comes in, and where it completes a window (line_buffer.h) a pixel of OUT_CHANNELS values
 * goes out. Weights lie on the chip. LANES output channels work in parallel.
 *
 *   w        [BLOCKS][KERNEL_H][KERNEL_W][GROUP_IN][LANES], a group's last block filled up with zeros
 *   bias     [OUT_CHANNELS] or null; multiplier [OUT_CHANNELS] (quantized) or null
 *   residual [batch][OUT_H][OUT_W][OUT_CHANNELS] or null
 *
 * A block is LANES output channels of one group; depthwise convolution is one group of CHANNELS outputs whose lane
 * reads its own channel. Sizes are compile-time constants. WEIGHT_SPACE and BIAS_SPACE are the address spaces of w and
 * of bias.
 */
#include "conv_output.h"
#include "line_buffer.h"

#define BLOCK_WEIGHTS (KERNEL_H * KERNEL_W * GROUP_IN * LANES)

#ifdef DEPTHWISE
#define LINE_CHANNELS (BLOCKS * LANES)
#define TAP(i, j, c, lane) s->lines[(i) * DILATION_H * COLUMNS + (j) * DILATION_W][block * LANES + (lane)]
#else
#define LINE_CHANNELS CHANNELS
#define TAP(i, j, c, lane) s->lines[(i) * DILATION_H * COLUMNS + (j) * DILATION_W][group * GROUP_IN + (c)]
#endif

typedef struct {
  WEIGHT_SPACE const W_T* w;
  BIAS_SPACE const BIAS_T* bias;
  __global const float* multiplier;
  __global const Y_T* residual;
  int x_zero, y_zero, code;
  float alpha, beta;
  int made; /* output pixels so far */
  cursor_t at;
  IN_T lines[PIXELS][LINE_CHANNELS];
} stage_t;

static inline void begin(
    stage_t* s, WEIGHT_SPACE const W_T* w, BIAS_SPACE const BIAS_T* bias, __global const float* multiplier,
    __global const Y_T* residual, int x_zero, int y_zero, int code, float alpha, float beta) {
  s->w = w;
  s->bias = bias;
  s->multiplier = multiplier;
  s->residual = residual;
  s->x_zero = x_zero;
  s->y_zero = y_zero;
  s->code = code;
  s->alpha = alpha;
  s->beta = beta;
  s->made = s->at.row = s->at.column = s->at.plane = 0;
  for (int i = 0; i < PIXELS; i++)
    for (int c = 0; c < LINE_CHANNELS; c++) s->lines[i][c] = 0;
}

static inline int wants(const stage_t* s) { return inside(s->at); }

/* Takes a pixel (what x holds, where the stage wants none, is not looked at); whether it gives one. */
static inline int take(stage_t* s, const X_T* x, Y_T* y) {
  cursor_t at = s->at;
  int x_zero = s->x_zero;
  advance(&s->at);
  if (!reached(at)) return 0;
  UNROLL
  for (int i = 0; i < PIXELS - 1; i++)
    UNROLL
    for (int c = 0; c < LINE_CHANNELS; c++) s->lines[i][c] = s->lines[i + 1][c];
  int from_stream = inside(at);
  UNROLL
  for (int c = 0; c < CHANNELS; c++) s->lines[PIXELS - 1][c] = from_stream ? CENTRED(x[c]) : 0;
  if (!complete(at)) return 0;

  for (int block = 0; block < BLOCKS; block++) {
    int group = block / GROUP_BLOCKS;
    int first = block % GROUP_BLOCKS * LANES;
    SUM_T sum[LANES];
    UNROLL
    for (int lane = 0; lane < LANES; lane++)
      sum[lane] = s->bias && first + lane < GROUP_OUT ? (SUM_T)s->bias[group * GROUP_OUT + first + lane] : 0;
    UNROLL
    for (int round = 0; round < REUSE; round++)
      UNROLL
      for (int i = 0; i < KERNEL_H; i++)
        UNROLL
        for (int j = 0; j < KERNEL_W; j++) {
          int before = (i * KERNEL_W + j) * GROUP_IN;
          UNROLL
          for (int c = FIRST_CHANNEL(round, before); c < GROUP_IN; c += REUSE)
            UNROLL
            for (int lane = 0; lane < LANES; lane++)
              sum[lane] = ADD(sum[lane], TAP(i, j, c, lane), s->w[block * BLOCK_WEIGHTS + (before + c) * LANES + lane]);
        }
    for (int lane = 0; lane < LANES && first + lane < GROUP_OUT; lane++) {
      int m = group * GROUP_OUT + first + lane;
      SUM_T total = sum[lane];
      if (s->residual) total += (SUM_T)s->residual[s->made * OUT_CHANNELS + m];
      y[m] = finish(total, s->multiplier ? s->multiplier[m] : 0.0f, s->y_zero, s->code, s->alpha, s->beta);
    }
  }
  s->made++;
  return 1;
}
