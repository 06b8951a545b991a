// Packs the pixels that a convolution's taps read into a panel: one row of `width` values for each (tap, channel), the
// tap outermost. This is im2col, done for a few pixels at a time so that the panel stays in the cache ("implicit GEMM":
// Chetlur et al., cuDNN, 2014). Values that fall on padding are zero.
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

constexpr int MOST_PIXELS = 64;  // the widest panel

// Neighbouring output pixels of one row, at most LANES of them.
struct Segment {
  int lane, count;          // its place in the panel
  int64_t image;            // offset of its image in x
  int64_t depth, row, column;  // where the first tap of its first pixel lies; may be negative
};

struct Segments {
  Segment list[MOST_PIXELS];
  int count = 0;

  // Pixels first to first + width, counted over images and their output places.
  QF_INLINE Segments(const ConvShape& s, int64_t first, int64_t width, int64_t image_step) {
    const int64_t plane = volume(s.output);
    int64_t image = first / plane, place = first % plane;
    int64_t w = place % s.output[2], h = place / s.output[2] % s.output[1], d = place / s.output[2] / s.output[1];
    for (int64_t lane = 0; lane < width;) {
      int64_t n = s.output[2] - w;
      if (n > width - lane) n = width - lane;
      if (n > LANES) n = LANES;
      list[count++] = {int(lane), int(n), image * image_step, d * s.strides[0] - s.pads[0],
                       h * s.strides[1] - s.pads[1], w * s.strides[2] - s.pads[2]};
      lane += n;
      w += n;
      if (w == s.output[2]) {
        w = 0;
        if (++h == s.output[1]) {
          h = 0;
          if (++d == s.output[0]) {
            d = 0;
            image++;
          }
        }
      }
    }
  }
};

// The values row[column + i * stride] for i below count, 0 where that is outside 0 to length.
template <int STRIDE>
QF_INLINE vfloat load_pixels(const float* row, int64_t column, int64_t stride, int64_t length, int count) {
  if (STRIDE == 1)
    return load_between(row + column, clamped(-column, count), clamped(length - column, count));
  if (STRIDE == 2) {
    const int64_t reach = 2 * count - 1;
    const int begin = clamped(-column, reach), end = clamped(length - column, reach);
    const vfloat a = load_between(row + column, clamped(begin, LANES), clamped(end, LANES));
    const vfloat b = load_between(row + column + LANES, clamped(begin - LANES, LANES), clamped(end - LANES, LANES));
    return even_lanes(a, b);
  }
  vfloat v = {};
  for (int i = 0; i < count; i++) {
    const int64_t at = column + i * stride;
    if (at >= 0 && at < length) v[i] = row[at];
  }
  return v;
}

// Fills the panel. x: the group's first channel in the first image. The panel needs LANES floats of room at its end:
// whole vectors are stored, and what they leave behind a segment is overwritten by the next.
template <int STRIDE>
void pack_panel_strided(const ConvShape& s, const Segments& segments, const float* x, float* panel, int64_t width) {
  const int64_t channel = volume(s.input);
  for (int64_t kd = 0; kd < s.kernel[0]; kd++)
    for (int64_t kh = 0; kh < s.kernel[1]; kh++)
      for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
        // What a segment reads is the same for all channels but for the channel's place.
        const float* from[MOST_PIXELS];
        lanemask low[MOST_PIXELS], high[MOST_PIXELS];
        int64_t columns[MOST_PIXELS];
        int counts[MOST_PIXELS];
        for (int i = 0; i < segments.count; i++) {
          const Segment& segment = segments.list[i];
          const int64_t d = segment.depth + kd * s.dilations[0], h = segment.row + kh * s.dilations[1];
          const bool valid = d >= 0 && d < s.input[0] && h >= 0 && h < s.input[1];
          columns[i] = segment.column + kw * s.dilations[2];
          counts[i] = valid ? segment.count : 0;
          from[i] = x + segment.image + (valid ? (d * s.input[1] + h) * s.input[2] : 0) + columns[i];
          const int64_t reach = valid ? (segment.count - 1) * (STRIDE ? STRIDE : 1) + 1 : 0;
          const int begin = clamped(-columns[i], reach), end = clamped(s.input[2] - columns[i], reach);
          low[i] = lanes_between(clamped(begin, LANES), clamped(end, LANES));
          high[i] = lanes_between(clamped(begin - LANES, LANES), clamped(end - LANES, LANES));
        }
        for (int64_t c = 0; c < s.in_channels; c++, panel += width)
          for (int i = 0; i < segments.count; i++) {
            const float* at = from[i] + c * channel;
            vfloat v;
            if (STRIDE == 1)
              v = load_masked(at, low[i]);
            else if (STRIDE == 2)
              v = even_lanes(load_masked(at, low[i]), load_masked(at + LANES, high[i]));
            else
              v = load_pixels<0>(at - columns[i], columns[i], s.strides[2], s.input[2], counts[i]);
            store(panel + segments.list[i].lane, v);
          }
      }
}

inline void pack_panel(const ConvShape& s, const Segments& segments, const float* x, float* panel, int64_t width) {
  if (s.strides[2] == 1)
    pack_panel_strided<1>(s, segments, x, panel, width);
  else if (s.strides[2] == 2)
    pack_panel_strided<2>(s, segments, x, panel, width);
  else
    pack_panel_strided<0>(s, segments, x, panel, width);
}

}  // namespace
