// A transposed convolution's phases: places of y that share a remainder by the stride along an axis. Each is a dense
// convolution of x, of stride 1, with the taps that meet it (Shi et al., "Is the deconvolution layer the same as a
// convolutional layer?", 2016). In a transposed ConvShape `output` is x's extent and `input` y's.
#pragma once

#include "conv_epilogue.h"

namespace {

int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

// The taps along one axis that meet the places of y with one remainder.
struct Phase {
  int64_t tap, step, count;    // of the kernel: the first one, from one to the next, and how many
  int64_t first, x_step;       // place of x that the first tap meets at place 0, and from one tap to the next
  int64_t remainder, places;

  Phase() = default;
  Phase(const ConvShape& s, int axis, int64_t remainder) : remainder(remainder) {
    const int64_t stride = s.strides[axis], dilation = s.dilations[axis], lead = remainder + s.pads[axis];
    step = stride / common_divisor(stride, dilation);
    tap = 0;
    while (tap < step && (lead - tap * dilation) % stride) tap++;
    count = tap < step && tap < s.kernel[axis] ? divide_up(s.kernel[axis] - tap, step) : 0;
    first = count ? (lead - tap * dilation) / stride : 0;
    x_step = -step * dilation / stride;
    places = divide_up(s.input[axis] - remainder, stride);
  }
};

// The elements of a and b in turn: the first LANES of them, and the rest.
QF_INLINE vfloat interleave_low(vfloat a, vfloat b) {
  vint places;
  QF_UNROLL for (int i = 0; i < LANES; i++) places[i] = i / 2 + i % 2 * LANES;
  return __builtin_shuffle(a, b, places);
}
QF_INLINE vfloat interleave_high(vfloat a, vfloat b) {
  vint places;
  QF_UNROLL for (int i = 0; i < LANES; i++) places[i] = LANES / 2 + i / 2 + i % 2 * LANES;
  return __builtin_shuffle(a, b, places);
}

// `count` places of a row of y from sums[phase][place]: row[place * phases + phase], of `width` columns in all. room: floats
// from the row's first on that may be written, since what comes behind it is still to be computed; at least the width.
void interleave(const float* sums, int64_t phase_step, int64_t phases, int64_t count, int64_t width, int64_t room,
                const float* residual, const Epilogue& epilogue, float* row) {
  if (phases == 1) {
    for (int64_t i = 0; i < width; i++) row[i] = sums[i];
  } else if (phases == 2) {
    int64_t i = 0;
    const int64_t vectors = room >= divide_up(width, 2 * LANES) * 2 * LANES ? divide_up(width, 2) : width / 2 / LANES * LANES;
    for (; i < vectors; i += LANES) {
      const vfloat even = load(sums + i), odd = load(sums + phase_step + i);
      store(row + 2 * i, interleave_low(even, odd));
      store(row + 2 * i + LANES, interleave_high(even, odd));
    }
    for (; i < width / 2; i++) {
      row[2 * i] = sums[i];
      row[2 * i + 1] = sums[phase_step + i];
    }
    if (width % 2 && i <= width / 2) row[width - 1] = sums[width / 2];
  } else {
    for (int64_t phase = 0; phase < phases; phase++)
      for (int64_t i = 0; i < count && i * phases + phase < width; i++) row[i * phases + phase] = sums[phase * phase_step + i];
  }
  if (residual)
    for (int64_t i = 0; i < width; i++) row[i] += residual[i];
  if (epilogue.clamps || epilogue.later) epilogue.activate_row(row, width);
}

}  // namespace
