// int32 sums of a quantised convolution to what it stores: the sums themselves, or int8 / uint8 as ops/conv.py defines
// to the bit: saturate(round_half_even(float32(sum) * multiplier) + zero point).
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));  // unsigned: sums wrap
typedef uint32_t vuint_anywhere __attribute__((vector_size(LANES * 4), aligned(1), may_alias));

QF_INLINE vuint load_words(const void* p) { return *(const vuint_anywhere*)p; }
QF_INLINE void store_words(void* p, vuint v) { *(vuint_anywhere*)p = v; }

// A copy of what is needed of ConvQuantization, which stores to y cannot change. Signed bytes are made as unsigned ones
// 128 higher.
struct Requantization {
  bool wanted;
  int zero;
  uint32_t flip;

  explicit Requantization(const ConvQuantization& q)
      : wanted(q.multipliers), zero(q.y_zero + (q.y_signed ? 128 : 0)), flip(q.y_signed ? 0x80808080 : 0) {}

  // The results of four vectors of sums as bytes, in the order of pack_bytes.
  template <bool QUADS>
  QF_INLINE vuint bytes(vuint a, vuint b, vuint c, vuint d, vfloat multiplier) const {
    auto scaled = [&](vuint sums) { return __builtin_convertvector((vint)sums, vfloat) * multiplier; };
    return (vuint)pack_bytes<QUADS>(scaled(a), scaled(b), scaled(c), scaled(d), zero) ^ flip;
  }

  // Writes a row of one channel from element `at` of y on: `count` values of N vectors, and whole vectors where y goes
  // on up to `end` at least.
  template <int N>
  QF_INLINE void write_row(const vuint (&sums)[N], vfloat multiplier, void* y, int64_t at, int64_t count,
                           int64_t end) const {
    if (wanted) {
      auto vector = [&](int i) { return sums[i < N ? i : N - 1]; };
      const vuint row = bytes<false>(vector(0), vector(1), vector(2), vector(3), multiplier);
      if (at + 4 * LANES <= end)
        store_words((uint8_t*)y + at, row);
      else
        memcpy((uint8_t*)y + at, &row, count);
    } else {
      uint32_t row[N * LANES];
      QF_UNROLL for (int i = 0; i < N; i++) store_words(row + i * LANES, sums[i]);
      memcpy((uint32_t*)y + at, row, count * sizeof(uint32_t));
    }
  }
};

}  // namespace
