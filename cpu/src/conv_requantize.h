// int32 sums of a quantised convolution to what it stores: the sums themselves, or int8 / uint8 as ops/conv.py defines
// to the bit: saturate(round_half_even(float32(sum) * multiplier) + zero point).
//
// The product is clamped to what the zero point leaves of the range, which are whole numbers, before it is rounded: the
// order makes no difference, and the value is then small enough to be rounded by adding 1.5 * 2^23. Its low byte is the
// result without the zero point.
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));  // unsigned: sums wrap
typedef uint8_t vbytes __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuint_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef uint32_t vuint_anywhere __attribute__((vector_size(LANES * 4), aligned(1), may_alias));

QF_INLINE vuint load_words(const void* p) { return *(const vuint_anywhere*)p; }
QF_INLINE void store_words(void* p, vuint v) { *(vuint_anywhere*)p = v; }

struct Requantization {
  float low, high;
  uint8_t zero;

  explicit Requantization(const ConvQuantization& q)
      : low(float((q.y_signed ? -128 : 0) - q.y_zero)), high(low + 255), zero(uint8_t(q.y_zero)) {}

  // Words whose low byte is the result without the zero point.
  QF_INLINE vuint rounded(vuint sums, vfloat multiplier) const {
    const vfloat scaled = __builtin_convertvector((vint)sums, vfloat) * multiplier;
    return (vuint)(at_most(at_least(scaled, broadcast(low)), broadcast(high)) + 12582912.0f);
  }

  // Four vectors' results as the four bytes of each lane.
  QF_INLINE vuint bytes(vuint a, vuint b, vuint c, vuint d, vfloat multiplier) const {
    a = rounded(a, multiplier), b = rounded(b, multiplier), c = rounded(c, multiplier), d = rounded(d, multiplier);
    const vuint words = (a & 0xFF) | (b & 0xFF) << 8 | (c & 0xFF) << 16 | d << 24;
    return (vuint)((vbytes)words + zero);
  }
};

// Stores `count` sums of channel m from element `at` of y on. Sums are read in whole vectors.
inline void store_sums(const ConvQuantization& q, const ConvCall& call, const uint32_t* sums, int64_t m, int64_t at,
                       int64_t count) {
  if (!q.multipliers) {
    memcpy((int32_t*)call.y + at, sums, count * sizeof(int32_t));
    return;
  }
  const Requantization requantization(q);
  for (int64_t i = 0; i < count; i += LANES) {
    const vuint rounded = requantization.rounded(load_words(sums + i), broadcast(q.multipliers[m]));
    const int64_t lanes = smaller(LANES, count - i);
    for (int64_t lane = 0; lane < lanes; lane++)
      ((uint8_t*)call.y)[at + i + lane] = uint8_t(rounded[lane] + requantization.zero);
  }
}

}  // namespace
