/* Convolution as a stream of pixels through a shift register: conv, conv_integer, qlinear_conv and fixed_conv over
 * two axes.
 *
 * The image arrives row by row, padding made on the way, one pixel of all channels an iteration. A shift register
 * holds the last (EXTENT_H - 1) rows and EXTENT_W pixels, so that a window's taps are always at the same places and
 * every input value is read from memory once (Bosi, Bois and Savaria, Reconfigurable pipelined 2-D convolvers, IEEE
 * TVLSI 1999). Weights are copied onto the chip first. LANES output channels work in parallel.
 *
 *   x        [batch][HEIGHT][WIDTH][CHANNELS]
 *   w        [BLOCKS][KERNEL_H][KERNEL_W][GROUP_IN][LANES], a group's last block filled up with zeros
 *   bias     [OUT_CHANNELS] or null; multiplier [OUT_CHANNELS] (quantized) or null
 *   residual, y   [batch][OUT_H][OUT_W][OUT_CHANNELS]
 *
 * A block is LANES output channels of one group; depthwise convolution is one group of CHANNELS outputs whose lane
 * reads its own channel. Sizes are compile-time constants.
 */
#include "conv_output.h"

#define EXTENT_H ((KERNEL_H - 1) * DILATION_H + 1)
#define EXTENT_W ((KERNEL_W - 1) * DILATION_W + 1)
#define ROWS ((OUT_H - 1) * STRIDE_H + EXTENT_H)
#define COLUMNS ((OUT_W - 1) * STRIDE_W + EXTENT_W)
#define PIXELS ((EXTENT_H - 1) * COLUMNS + EXTENT_W)
#define BLOCK_WEIGHTS (KERNEL_H * KERNEL_W * GROUP_IN * LANES)

#ifdef DEPTHWISE
#define LINE_CHANNELS (BLOCKS * LANES)
#define TAP(i, j, c, lane) lines[(i) * DILATION_H * COLUMNS + (j) * DILATION_W][block * LANES + (lane)]
#else
#define LINE_CHANNELS CHANNELS
#define TAP(i, j, c, lane) lines[(i) * DILATION_H * COLUMNS + (j) * DILATION_W][group * GROUP_IN + (c)]
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void conv_line_buffer(
    __global const X_T* restrict x, __global const W_T* restrict w, __global const BIAS_T* restrict bias,
    __global const float* restrict multiplier, __global const Y_T* restrict residual, int batch, int x_zero, int y_zero,
    int code, float alpha, float beta, __global Y_T* restrict y) {
  __local W_T weights[BLOCKS * BLOCK_WEIGHTS];
  IN_T lines[PIXELS][LINE_CHANNELS];

  for (int i = 0; i < BLOCKS * BLOCK_WEIGHTS; i++) weights[i] = w[i];
  for (int i = 0; i < PIXELS; i++)
    for (int c = 0; c < LINE_CHANNELS; c++) lines[i][c] = 0;

  for (int n = 0; n < batch; n++)
    for (int row = 0; row < ROWS; row++)
      for (int column = 0; column < COLUMNS; column++) {
        UNROLL
        for (int i = 0; i < PIXELS - 1; i++)
          UNROLL
          for (int c = 0; c < LINE_CHANNELS; c++) lines[i][c] = lines[i + 1][c];
        int h = row - PAD_H, v = column - PAD_W;
        int inside = h >= 0 && h < HEIGHT && v >= 0 && v < WIDTH;
        UNROLL
        for (int c = 0; c < CHANNELS; c++)
          lines[PIXELS - 1][c] = inside ? CENTRED(x[((n * HEIGHT + h) * WIDTH + v) * CHANNELS + c]) : 0;

        int from_h = row - (EXTENT_H - 1), from_w = column - (EXTENT_W - 1);
        if (from_h < 0 || from_w < 0 || from_h % STRIDE_H || from_w % STRIDE_W) continue;
        int pixel = (n * OUT_H + from_h / STRIDE_H) * OUT_W + from_w / STRIDE_W;

        for (int block = 0; block < BLOCKS; block++) {
          int group = block / GROUP_BLOCKS;
          int first = block % GROUP_BLOCKS * LANES;
          SUM_T sum[LANES];
          UNROLL
          for (int lane = 0; lane < LANES; lane++)
            sum[lane] = bias && first + lane < GROUP_OUT ? (SUM_T)bias[group * GROUP_OUT + first + lane] : 0;
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
                    sum[lane] = ADD(sum[lane], TAP(i, j, c, lane),
                                    weights[block * BLOCK_WEIGHTS + (before + c) * LANES + lane]);
              }
          for (int lane = 0; lane < LANES && first + lane < GROUP_OUT; lane++) {
            int m = group * GROUP_OUT + first + lane;
            SUM_T total = sum[lane];
            if (residual) total += (SUM_T)residual[pixel * OUT_CHANNELS + m];
            y[pixel * OUT_CHANNELS + m] = finish(total, multiplier ? multiplier[m] : 0.0f, y_zero, code, alpha, beta);
          }
        }
      }
}
