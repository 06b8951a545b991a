// int32 sums of a quantised convolution to what it stores: the sums themselves, or int8 / uint8 as ops/conv.py defines
// to the bit: saturate(round_half_even(float32(sum) * multiplier) + zero point).
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

template <class Y>
QF_INLINE void requantize_row(const int32_t* sums, float multiplier, int zero, Y* y, int64_t count) {
  constexpr int low = Y(-1) < Y(0) ? -128 : 0, high = low + 255;
  for (int64_t i = 0; i < count; i++) {
    // Beyond +-1024 every zero point saturates, and within it the conversion to int is exact.
    float scaled = float(sums[i]) * multiplier;
    scaled = scaled < -1024.0f ? -1024.0f : scaled > 1024.0f ? 1024.0f : scaled;
    const int value = int(__builtin_rintf(scaled)) + zero;
    y[i] = Y(value < low ? low : value > high ? high : value);
  }
}

// Stores `count` sums of channel m from element `at` of y on.
inline void store_sums(const ConvQuantization& q, const ConvCall& call, const int32_t* sums, int64_t m, int64_t at,
                       int64_t count) {
  if (!q.multipliers)
    memcpy((int32_t*)call.y + at, sums, count * sizeof(int32_t));
  else if (q.y_signed)
    requantize_row(sums, q.multipliers[m], q.y_zero, (int8_t*)call.y + at, count);
  else
    requantize_row(sums, q.multipliers[m], q.y_zero, (uint8_t*)call.y + at, count);
}

}  // namespace
