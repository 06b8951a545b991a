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
  template <ByteOrder ORDER>
  QF_INLINE vuint bytes(vuint a, vuint b, vuint c, vuint d, vfloat multiplier) const {
    auto scaled = [&](vuint sums) { return __builtin_convertvector((vint)sums, vfloat) * multiplier; };
    return (vuint)pack_bytes<ORDER>(scaled(a), scaled(b), scaled(c), scaled(d), zero) ^ flip;
  }

  // The same with a multiplier for each sum.
  template <ByteOrder ORDER>
  QF_INLINE vuint bytes(const vuint (&sums)[4], const vfloat (&multipliers)[4]) const {
    vfloat scaled[4];
    QF_UNROLL for (int i = 0; i < 4; i++) scaled[i] = __builtin_convertvector((vint)sums[i], vfloat) * multipliers[i];
    return (vuint)pack_bytes<ORDER>(scaled[0], scaled[1], scaled[2], scaled[3], zero) ^ flip;
  }

  // Writes N / 2 rows of one channel, `step` bytes apart: two vectors each, which hold the even and the odd columns
  // where TURNS.
  template <bool TURNS, int N>
  QF_INLINE void write_rows(const vuint (&sums)[N], vfloat multiplier, void* y, int64_t step) const {
    static_assert(N % 4 == 0, "two rows fill a vector of bytes");
    if (wanted) {
      QF_UNROLL for (int i = 0; i < N; i += 4) {
        constexpr ByteOrder ORDER = TURNS ? ByteOrder::TURNS : ByteOrder::SEQUENCE;
        const vuint rows = bytes<ORDER>(sums[i], sums[i + 1], sums[i + 2], sums[i + 3], multiplier);
        memcpy((char*)y + i / 2 * step, &rows, sizeof rows / 2);
        memcpy((char*)y + (i / 2 + 1) * step, (const char*)&rows + sizeof rows / 2, sizeof rows / 2);
      }
    } else {
      vuint first, second;
      QF_UNROLL for (int i = 0; i < LANES; i++) {
        first[i] = TURNS ? i % 2 * LANES + i / 2 : i;
        second[i] = first[i] + (TURNS ? LANES / 2 : LANES);
      }
      QF_UNROLL for (int i = 0; i < N; i += 2) {
        char* to = (char*)y + i / 2 * step;
        store_words(to, __builtin_shuffle(sums[i], sums[i + 1], first));
        store_words(to + sizeof first, __builtin_shuffle(sums[i], sums[i + 1], second));
      }
    }
  }
};

}  // namespace
