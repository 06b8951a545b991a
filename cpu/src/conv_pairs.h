// Products of int16 pairs, the arithmetic of the integer kernels: a lane holds two neighbouring values of x or of w
// with their zero points taken off (-255 to 255), and one instruction multiplies both and adds the products (pmaddwd,
// or with the accumulation vpdpwssd). They are exact whatever the values are: the byte product pmaddubsw, which does
// twice as many, saturates at int16.
#pragma once

#include "conv_requantize.h"

namespace {

// low(a) * low(b) + high(a) * high(b) in each lane.
QF_INLINE vuint multiply_pairs(vuint a, vuint b) {
#if defined(QF_AVX512)
  return (vuint)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(QF_ISA_V3)
  return (vuint)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(QF_SSE2)
  return (vuint)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const vint low = ((vint)(a << 16) >> 16) * ((vint)(b << 16) >> 16);
  return (vuint)low + (vuint)(((vint)a >> 16) * ((vint)b >> 16));
#endif
}

// Half a vector from each of two places.
QF_INLINE vuint load_halves(const void* a, const void* b) {
#if defined(QF_AVX512)
  const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)a));
  return (vuint)_mm512_maskz_inserti64x4(0xFF, low, _mm256_loadu_si256((const __m256i*)b), 1);
#elif defined(QF_ISA_V3)
  return (vuint)_mm256_loadu2_m128i((const __m128i*)b, (const __m128i*)a);
#else
  vuint v;
  memcpy(&v, a, sizeof v / 2);
  memcpy((char*)&v + sizeof v / 2, b, sizeof v / 2);
  return v;
#endif
}

// Keeps what was computed before in front of what comes behind: a row's products before its sums. Zen 3 hands products
// and sums unevenly to its pipes as GCC would arrange them: 135 Gop/s of 208, and 165 with this.
QF_INLINE void stay([[maybe_unused]] vuint& v) {
#if defined(QF_AVX512) || defined(QF_ISA_V3) || defined(QF_SSE2)
  asm volatile("" : "+v"(v));
#endif
}

// c[j] += multiply_pairs(a, b[j]).
template <int J>
QF_INLINE void add_products(vuint (&c)[J], vuint a, const vuint (&b)[J]) {
#if defined(QF_ISA_V4_VNNI) && defined(QF_AVX512)
  QF_UNROLL for (int j = 0; j < J; j++) asm("vpdpwssd %2, %1, %0" : "+v"(c[j]) : "v"(a), "v"(b[j]));
#else
  vuint products[J];
  QF_UNROLL for (int j = 0; j < J; j++) products[j] = multiply_pairs(a, b[j]);
  QF_UNROLL for (int j = 0; j < J; j++) stay(products[j]);
  QF_UNROLL for (int j = 0; j < J; j++) {
    c[j] += products[j];
    stay(c[j]);
  }
#endif
}

typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));
typedef uint8_t sixteen_bytes_anywhere __attribute__((vector_size(16), aligned(1), may_alias));
typedef int16_t sixteen_values __attribute__((vector_size(32)));
typedef int16_t sixteen_values_anywhere __attribute__((vector_size(32), aligned(2), may_alias));

// Stores values of x with the zero point taken off. Signed ones are taken as unsigned ones 128 higher.
struct Centring {
  uint8_t flip;
  int16_t zero;

  explicit Centring(const ConvQuantization& q) : flip(q.x_signed ? 128 : 0), zero(int16_t(q.x_zero + flip)) {}
  QF_INLINE int16_t value(uint8_t byte) const { return int16_t((byte ^ flip) - zero); }
  QF_INLINE void store(void* to, sixteen_bytes bytes) const {
    bytes ^= flip;
#if defined(__AVX2__)  // GCC 12 would do it by halves
    const sixteen_values values = (sixteen_values)_mm256_cvtepu8_epi16((__m128i)bytes);
#else
    const sixteen_values values = __builtin_convertvector(bytes, sixteen_values);
#endif
    *(sixteen_values_anywhere*)to = values - zero;
  }
};

// The bytes of a and b by turns: those of the first halves, and of the second.
QF_INLINE sixteen_bytes interleave_low(sixteen_bytes a, sixteen_bytes b) {
  return __builtin_shuffle(a, b, (sixteen_bytes){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
}
QF_INLINE sixteen_bytes interleave_high(sixteen_bytes a, sixteen_bytes b) {
  return __builtin_shuffle(a, b, (sixteen_bytes){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}

}  // namespace
