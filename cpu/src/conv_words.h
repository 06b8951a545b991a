// The words that integer kernels multiply: two int16 values or four bytes of x by as many of w, summed in int32.
#pragma once

#include "conv_pairs.h"

namespace {

typedef uint8_t vbytes __attribute__((vector_size(4 * LANES)));

// The bytes of a and b by turns, or pairs of bytes by turns, within each 16 bytes: of their lower or upper halves.
template <int SIZE, bool UPPER>
QF_INLINE vbytes interleave_within(vbytes a, vbytes b) {
#if defined(QF_AVX512)
  const __m512i x = (__m512i)a, y = (__m512i)b;
  if (SIZE == 1) return (vbytes)(UPPER ? _mm512_unpackhi_epi8(x, y) : _mm512_unpacklo_epi8(x, y));
  return (vbytes)(UPPER ? _mm512_unpackhi_epi16(x, y) : _mm512_unpacklo_epi16(x, y));
#elif defined(QF_ISA_V3)
  const __m256i x = (__m256i)a, y = (__m256i)b;
  if (SIZE == 1) return (vbytes)(UPPER ? _mm256_unpackhi_epi8(x, y) : _mm256_unpacklo_epi8(x, y));
  return (vbytes)(UPPER ? _mm256_unpackhi_epi16(x, y) : _mm256_unpacklo_epi16(x, y));
#else
  vbytes places;
  QF_UNROLL for (int i = 0; i < 4 * LANES; i++) {
    const int within = i % 16, from = within / (2 * SIZE) * SIZE + within % SIZE + (UPPER ? 8 : 0);
    places[i] = uint8_t(i / 16 * 16 + from + (within / SIZE % 2 ? 4 * LANES : 0));
  }
  return __builtin_shuffle(a, b, places);
#endif
}

// Pairs of int16 with their zero points taken off, for all instruction sets.
struct Pairs {
  typedef int16_t Value;
  static constexpr int IN_WORD = 2;
  static uint32_t pack(int16_t weight, int64_t place) { return uint32_t(uint16_t(weight)) << 16 * place; }
  template <int J>
  QF_INLINE static void add(vuint (&c)[J], vuint x, const vuint (&w)[J]) { add_products(c, x, w); }

  const Centring centring;
  explicit Pairs(const ConvQuantization& q) : centring(q) {}
  QF_INLINE void store(Value* to, sixteen_bytes bytes) const { centring.store(to, bytes); }
  QF_INLINE void pad(Value* to, int64_t count) const { memset(to, 0, count * sizeof *to); }
  // The words of two neighbours' bytes: of each 16, four in each of the results.
  QF_INLINE void words(const vbytes (&x)[2], vuint (&to)[4]) const {
    typedef uint16_t vhalves __attribute__((vector_size(4 * LANES)));
    const vbytes flip = centring.flip - (vbytes){}, none = {};
    const vbytes low = interleave_within<1, false>(x[0] ^ flip, x[1] ^ flip);
    const vbytes high = interleave_within<1, true>(x[0] ^ flip, x[1] ^ flip);
    const vhalves zero = uint16_t(centring.zero) - (vhalves){};
    to[0] = (vuint)((vhalves)interleave_within<1, false>(low, none) - zero);
    to[1] = (vuint)((vhalves)interleave_within<1, true>(low, none) - zero);
    to[2] = (vuint)((vhalves)interleave_within<1, false>(high, none) - zero);
    to[3] = (vuint)((vhalves)interleave_within<1, true>(high, none) - zero);
  }
};

#if defined(QF_ISA_V4_VNNI)
// Four bytes: unsigned ones of x (signed ones are taken 128 higher) and signed ones of w, summed exactly. Padding has x's
// zero point as well; what the zero point adds to the sums is taken off with the bias (cpu/conv.py).
struct Quads {
  typedef uint8_t Value;
  static constexpr int IN_WORD = 4;
  static uint32_t pack(int16_t weight, int64_t place) { return uint32_t(uint8_t(weight)) << 8 * place; }
  template <int J>
  QF_INLINE static void add(vuint (&c)[J], vuint x, const vuint (&w)[J]) {
#if defined(QF_AVX512)
    QF_UNROLL for (int j = 0; j < J; j++) asm("vpdpbusd %2, %1, %0" : "+v"(c[j]) : "v"(x), "v"(w[j]));
#else
    for (int j = 0; j < J; j++)
      for (int shift = 0; shift < 32; shift += 8) c[j] += ((x >> shift) & 0xFF) * (vuint)((vint)(w[j] << (24 - shift)) >> 24);
#endif
  }

  const uint8_t flip, zero;
  explicit Quads(const ConvQuantization& q)
      : flip(q.x_signed ? 128 : 0), zero(uint8_t(q.x_zero + (q.x_signed ? 128 : 0))) {}
  QF_INLINE void store(Value* to, sixteen_bytes bytes) const { *(sixteen_bytes_anywhere*)to = bytes ^ flip; }
  QF_INLINE void pad(Value* to, int64_t count) const { memset(to, zero, count); }
  // Two neighbours' bytes by turns.
  struct Turns {
    vbytes low, high;
  };
  QF_INLINE Turns turns(vbytes a, vbytes b) const {
    const vbytes flipped = flip - (vbytes){};
    return {interleave_within<1, false>(a ^ flipped, b ^ flipped), interleave_within<1, true>(a ^ flipped, b ^ flipped)};
  }
  QF_INLINE static void words(const Turns& first, const Turns& second, vuint (&to)[4]) {
    to[0] = (vuint)interleave_within<2, false>(first.low, second.low);
    to[1] = (vuint)interleave_within<2, true>(first.low, second.low);
    to[2] = (vuint)interleave_within<2, false>(first.high, second.high);
    to[3] = (vuint)interleave_within<2, true>(first.high, second.high);
  }
  QF_INLINE void words(const vbytes (&x)[4], vuint (&to)[4]) const { words(turns(x[0], x[1]), turns(x[2], x[3]), to); }
};
#endif

}  // namespace
