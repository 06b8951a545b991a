// Channels in blocks ("NCHWc"): (N, ceil(C / LANES), D, H, W, LANES), the channels that the last block lacks being zero.
// A pixel's block is one vector, so that a kernel whose vectors are output channels reads and writes it as it is, and
// neighbouring layers hand it on without a change of layout (Zhang et al., "High performance zero-memory overhead
// direct convolutions", 2018; Liu et al., "Optimizing CNN model inference on CPUs", 2019).
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

// A few rows of one block of channels, with padding around them where they reach over the plane's edge.
struct Band {
  int64_t first_row, rows, first_column, columns;  // of the plane; rows and columns outside it are zero
  int64_t row_step = 1, column_step = 1;           // from one row or column of the band to the next
};

// A band out of a plane whose pixels are vectors: x is the block's first pixel.
inline void copy_band(const float* x, int64_t height, int64_t width, const Band& band, float* to) {
  const int64_t step = band.column_step;
  auto columns_before = [&](int64_t column) {
    return column > band.first_column ? smaller(divide_up(column - band.first_column, step), band.columns) : 0;
  };
  const int64_t left = columns_before(0), right = columns_before(width);
  for (int64_t r = 0; r < band.rows; r++, to += band.columns * LANES) {
    const int64_t row = band.first_row + r * band.row_step;
    if (row < 0 || row >= height) {
      memset(to, 0, sizeof(float) * band.columns * LANES);
      continue;
    }
    const float* from = x + (row * width + band.first_column) * LANES;
    for (int64_t c = 0; c < left; c++) store(to + c * LANES, (vfloat){});
    for (int64_t c = left; c < right; c++) store(to + c * LANES, load(from + c * step * LANES));
    for (int64_t c = right; c < band.columns; c++) store(to + c * LANES, (vfloat){});
  }
}

// The same out of plain planes, `channels` of them (at most LANES) that lie `plane` apart (0: one after the other); x is the
// first one. LANES neighbouring pixels of LANES channels are turned at a time, and those of the band's columns stored.
inline void turn_band(const float* x, int64_t height, int64_t width, int64_t channels, const Band& band, float* to,
                      int64_t plane = 0) {
  if (!plane) plane = height * width;
  const int64_t step = band.column_step, columns = (band.columns - 1) * step + 1;
  for (int64_t r = 0; r < band.rows; r++, to += band.columns * LANES) {
    const int64_t row = band.first_row + r * band.row_step;
    if (row < 0 || row >= height) {
      memset(to, 0, sizeof(float) * band.columns * LANES);
      continue;
    }
    for (int64_t c = 0; c < columns; c += LANES) {
      const int64_t column = band.first_column + c;
      const float* from = x + row * width + column;
      const int count = int(smaller(LANES, columns - c));
      vfloat pixels[LANES];
      if (column >= 0 && column + LANES <= width && channels == LANES) {
        QF_UNROLL for (int i = 0; i < LANES; i++) pixels[i] = load(from + i * plane);
      } else {
        const lanemask inside = lanes_between(clamped(-column, count), clamped(width - column, count));
        for (int i = 0; i < LANES; i++) pixels[i] = i < channels ? load_masked(from + i * plane, inside) : (vfloat){};
      }
      transpose(pixels);
      if (step > 1)
        for (int64_t at = divide_up(c, step); at * step < c + count; at++) store(to + at * LANES, pixels[at * step - c]);
      else if (count == LANES)
        QF_UNROLL for (int i = 0; i < LANES; i++) store(to + (c + i) * LANES, pixels[i]);
      else
        for (int i = 0; i < count; i++) store(to + (c + i) * LANES, pixels[i]);
    }
  }
}

}  // namespace
