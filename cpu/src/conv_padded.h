// Rows of x with the zeros of their padding around them, so that a convolution's inner loops read every tap by plain
// vector loads: a buffer in the first-level cache takes a few rows (lines) at a time. Columns are parted by the phases
// of the stride, so that what one tap reads for neighbouring outputs are neighbours in memory, whatever the stride and
// the dilation. A line is copied once and read by every tap and output channel.
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

struct PaddedRows {
  int64_t stride, lead, pad, width;  // along a row of x; lead: the place of its first column, whole vectors
  int64_t start;                     // the same in floats of a line
  int64_t phase, pitch;              // floats of one phase, and from line to line
  lanemask tail[2];                  // what whole steps leave of a row

  QF_INLINE explicit PaddedRows(const ConvShape& s) : stride(s.strides[2]), pad(s.pads[2]), width(s.input[2]) {
    lead = divide_up(pad, stride * LANES) * stride * LANES;
    start = lead / stride;
    const int64_t reach = lead - pad + (s.kernel[2] - 1) * s.dilations[2];
    const int64_t read = divide_up(reach / stride + divide_up(s.output[2], LANES) * LANES, LANES);
    const int64_t written = start / LANES + divide_up(width, stride * LANES);
    phase = LANES * (read > written ? read : written);
    // An odd number of vectors, so that neighbouring lines do not meet in the same sets of the cache.
    pitch = stride * phase + (stride * phase / LANES % 2 == 0 ? LANES : 0);
    const int left = int(width % (stride == 2 ? 2 * LANES : LANES));
    tail[0] = lanes_between(0, clamped(left, LANES));
    tail[1] = lanes_between(0, clamped(left - LANES, LANES));
  }

  // Where in a line a tap (counted in columns of x) of output 0 lies; the next output's is the next float.
  QF_INLINE int64_t place(int64_t tap) const {
    const int64_t at = lead - pad + tap;
    return at % stride * phase + at / stride;
  }

  QF_INLINE void clear(float* lines, int64_t count) const {
    for (int64_t i = 0; i < count * pitch; i += LANES) store(lines + i, (vfloat){});
  }

  // Rows into lines that are clear or hold other rows. ahead: how far behind a row in memory lies what is copied later.
  QF_INLINE void copy(const float* row, int64_t count, float* lines, int64_t ahead) const {
    if (stride == 1)
      copy_rows(row, count, lines, ahead);
    else if (stride == 2)
      part_rows(row, count, lines, ahead);
    else
      for (; count > 0; count--, row += width, lines += pitch)
        for (int64_t part = 0; part < stride; part++)
          for (int64_t from = part, at = start + part * phase; from < width; from += stride, at++)
            lines[at] = row[from];
  }

 private:
  // Members are copied first: for all the compiler knows, the vectors stored might change them.
  QF_INLINE void copy_rows(const float* row, int64_t count, float* lines, int64_t ahead) const {
    const int64_t width = this->width, pitch = this->pitch;
    const lanemask tail = this->tail[0];
    float* to = lines + start;
    for (; count > 0; count--, row += width, to += pitch) {
      int64_t i = 0;
      for (; i + 2 * LANES <= width; i += 2 * LANES) {
        __builtin_prefetch(row + i + ahead, 0, 2);
        const vfloat a = load(row + i), b = load(row + i + LANES);
        store(to + i, a);
        store(to + i + LANES, b);
      }
      if (i + LANES <= width) {
        store(to + i, load(row + i));
        i += LANES;
      }
      if (i < width) store(to + i, load_masked(row + i, tail));
    }
  }

  QF_INLINE void part_rows(const float* row, int64_t count, float* lines, int64_t ahead) const {
    const int64_t width = this->width, pitch = this->pitch, phase = this->phase;
    const lanemask low = tail[0], high = tail[1];
    float* to = lines + start;
    for (; count > 0; count--, row += width, to += pitch) {
      int64_t i = 0;
      for (; i + 2 * LANES <= width; i += 2 * LANES) {
        __builtin_prefetch(row + i + ahead, 0, 2);
        vfloat even, odd;
        load_parted(row + i, even, odd);
        store(to + i / 2, even);
        store(to + phase + i / 2, odd);
      }
      if (i == width) continue;
      const vfloat a = load_masked(row + i, low), b = load_masked(row + i + LANES, high);
      store(to + i / 2, even_lanes(a, b));
      store(to + phase + i / 2, odd_lanes(a, b));
    }
  }
};

}  // namespace
