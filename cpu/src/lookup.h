// A vector from any places of a table in memory.
#pragma once

#include "simd.h"

namespace {

// Four places at a time from a word of memory, which takes less than loading each.
QF_INLINE int place_of(const uint8_t* p, int at) {
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return uint8_t(word >> 8 * at);
}
QF_INLINE int place_of(const uint16_t* p, int at) {
  uint64_t word;
  memcpy(&word, p, sizeof word);
  return uint16_t(word >> 16 * at);
}
QF_INLINE int place_of(const int32_t* p, int at) { return p[at]; }

#if defined(QF_AVX512)
QF_INLINE __m512i words_of(const uint8_t* p) {
  return _mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
QF_INLINE __m512i words_of(const uint16_t* p) {
  return _mm512_maskz_cvtepu16_epi32(0xFFFF, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
QF_INLINE __m512i words_of(const int32_t* p) { return _mm512_loadu_si512(p); }
#endif

// A lane each of the table at places[lane]. Of 16 lanes a gathering instruction takes a third of the time that loading and
// inserting one by one does; of 8 on many processors it takes longer, and on some it was made slow for the sake of safety.
template <class Place>
QF_INLINE vfloat looked_up(const float* table, const Place* places) {
#if defined(QF_AVX512)
  __mmask16 all = 0xFFFF;
  asm("" : "+Yk"(all));  // were the mask known, the compiler would gather over any register, and wait for what it held
  return (vfloat)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), all, words_of(places), table, 4);
#elif defined(__AVX2__)
  const int32_t* words = reinterpret_cast<const int32_t*>(table);
  const auto four = [&](const Place* p) __attribute__((always_inline)) {
    __m128i v = _mm_cvtsi32_si128(words[place_of(p, 0)]);
    v = _mm_insert_epi32(v, words[place_of(p, 1)], 1);
    v = _mm_insert_epi32(v, words[place_of(p, 2)], 2);
    return _mm_insert_epi32(v, words[place_of(p, 3)], 3);
  };
  vint v;
  QF_UNROLL for (int i = 0; i < LANES; i += 8) {
    const __m256i eight = _mm256_inserti128_si256(_mm256_castsi128_si256(four(places + i)), four(places + i + 4), 1);
    if constexpr (LANES == 8) v = (vint)eight;
    else memcpy(reinterpret_cast<char*>(&v) + 4 * i, &eight, 32);
  }
  return (vfloat)v;
#else
  vfloat v;
  QF_UNROLL for (int i = 0; i < LANES; i++) v[i] = table[places[i]];
  return v;
#endif
}

}  // namespace
