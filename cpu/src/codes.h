// Weights by a codebook: they stay codes in memory and become floats just before they are used (Han, Mao and Dally, "Deep
// compression", 2016). For weights that do not fit into a cache, what is read shrinks to an eighth or a quarter.
//
// Codes of 4 bits, for up to 16 entries: bytes of a register select bytes of the table, one of the four bytes of a float
// at a time, which are then brought together: 12 shuffles for four vectors, which take longer than the multiplications.
// With AVX-512 a permutation does it at once. Codes of 8 bits: each float is loaded from the table, 1 KB in the first cache;
// with AVX-512's permutations of bytes (VBMI), half of the vectors take the four bytes of a float from tables of 256 bytes in
// registers, for which the ports of loads are free.
//
// A panel of codes is what rnn_product.h's panels are, [k][column][lane], in units of UNIT vectors, padded to whole units
// for every column: STEP values of k at a time. Within a unit, a code's place is the one that decoding leaves in order.
#pragma once

#include "lookup.h"
#include "rnn_product.h"

namespace {

constexpr int UNIT = 8;  // vectors
constexpr int STEP = 8;  // values of k whose vectors are whole units, whatever the number of columns
constexpr int AHEAD_BYTES = 1024;  // of codes that are asked for before they are needed
constexpr int SEVERAL = 3;         // rows from which on decoded weights are stored for all of them

constexpr int64_t bytes_of_unit(int bits) { return UNIT * LANES * bits / 8; }

// A panel's bytes.
constexpr int64_t bytes_of_codes(int bits, int64_t depth, int64_t columns) {
  return (depth + STEP - 1) / STEP * columns * STEP / UNIT * bytes_of_unit(bits);
}

// Entries of a codebook as decoders take it: padded with anything.
constexpr int64_t entries_of(int bits) { return int64_t(1) << bits; }

template <int BITS>
struct Decoder;

template <>
struct Decoder<4> {
#if defined(QF_AVX512)
  __m512 table;
  QF_INLINE explicit Decoder(const float* book) : table(_mm512_loadu_ps(book)) {}
  // Four vectors of a unit: its first half, or its second one.
  template <int HALF>
  QF_INLINE void decode(const uint8_t* unit, vfloat (&out)[4]) const {
    const __m512i words = _mm512_loadu_si512(unit);
    QF_UNROLL for (int i = 0; i < 4; i++)
      out[i] = (vfloat)_mm512_maskz_permutexvar_ps(0xFFFF, _mm512_maskz_srli_epi32(0xFFFF, words, 4 * (4 * HALF + i)), table);
  }
#elif defined(QF_ISA_V3) || (defined(QF_SSE2) && defined(__SSSE3__))
#define QF_CODES_BY_BYTES
#if defined(QF_ISA_V3)
  typedef __m256i bytes;
  QF_INLINE static bytes everywhere(__m128i x) { return _mm256_broadcastsi128_si256(x); }
  QF_INLINE static bytes chosen(bytes table, bytes codes) { return _mm256_shuffle_epi8(table, codes); }
  QF_INLINE static bytes low8(bytes a, bytes b) { return _mm256_unpacklo_epi8(a, b); }
  QF_INLINE static bytes high8(bytes a, bytes b) { return _mm256_unpackhi_epi8(a, b); }
  QF_INLINE static vfloat low16(bytes a, bytes b) { return (vfloat)_mm256_unpacklo_epi16(a, b); }
  QF_INLINE static vfloat high16(bytes a, bytes b) { return (vfloat)_mm256_unpackhi_epi16(a, b); }
  QF_INLINE static bytes nibbles(bytes x, int half) {
    return _mm256_and_si256(half ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
  }
  QF_INLINE static bytes all(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const bytes*>(from)); }
#else
  typedef __m128i bytes;
  QF_INLINE static bytes everywhere(__m128i x) { return x; }
  QF_INLINE static bytes chosen(bytes table, bytes codes) { return _mm_shuffle_epi8(table, codes); }
  QF_INLINE static bytes low8(bytes a, bytes b) { return _mm_unpacklo_epi8(a, b); }
  QF_INLINE static bytes high8(bytes a, bytes b) { return _mm_unpackhi_epi8(a, b); }
  QF_INLINE static vfloat low16(bytes a, bytes b) { return (vfloat)_mm_unpacklo_epi16(a, b); }
  QF_INLINE static vfloat high16(bytes a, bytes b) { return (vfloat)_mm_unpackhi_epi16(a, b); }
  QF_INLINE static bytes nibbles(bytes x, int half) { return _mm_and_si128(half ? _mm_srli_epi16(x, 4) : x, _mm_set1_epi8(15)); }
  QF_INLINE static bytes all(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const bytes*>(from)); }
#endif
  bytes plane[4];  // the first bytes of the entries, the second ones, …
  QF_INLINE explicit Decoder(const float* book) {
    const __m128i by_place = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m128i part[4];
    QF_UNROLL for (int i = 0; i < 4; i++)
      part[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(book + 4 * i)), by_place);
    const __m128i low01 = _mm_unpacklo_epi32(part[0], part[1]), low23 = _mm_unpacklo_epi32(part[2], part[3]);
    const __m128i high01 = _mm_unpackhi_epi32(part[0], part[1]), high23 = _mm_unpackhi_epi32(part[2], part[3]);
    plane[0] = everywhere(_mm_unpacklo_epi64(low01, low23)), plane[1] = everywhere(_mm_unpackhi_epi64(low01, low23));
    plane[2] = everywhere(_mm_unpacklo_epi64(high01, high23)), plane[3] = everywhere(_mm_unpackhi_epi64(high01, high23));
  }
  template <int HALF>
  QF_INLINE void decode(const uint8_t* unit, vfloat (&out)[4]) const {
    const bytes codes = nibbles(all(unit), HALF);
    const bytes b0 = chosen(plane[0], codes), b1 = chosen(plane[1], codes);
    const bytes b2 = chosen(plane[2], codes), b3 = chosen(plane[3], codes);
    const bytes low01 = low8(b0, b1), low23 = low8(b2, b3), high01 = high8(b0, b1), high23 = high8(b2, b3);
    out[0] = low16(low01, low23), out[1] = high16(low01, low23);
    out[2] = low16(high01, high23), out[3] = high16(high01, high23);
  }
#else
  const float* table;
  QF_INLINE explicit Decoder(const float* book) : table(book) {}
  template <int HALF>
  QF_INLINE void decode(const uint8_t* unit, vfloat (&out)[4]) const {
    QF_UNROLL for (int i = 0; i < 4; i++) {
      vfloat v = {};
      for (int lane = 0; lane < LANES; lane++) v[lane] = table[unit[lane * 4 + 2 * HALF + i / 2] >> i % 2 * 4 & 15];
      out[i] = v;
    }
  }
#endif

  // Sets the code of vector `at` of a unit that holds zeros so far.
  static void put(uint8_t* unit, int at, int lane, uint8_t code) {
#if defined(QF_CODES_BY_BYTES)
    unit[lane / 4 * 16 + at % 4 * 4 + lane % 4] |= uint8_t(code << at / 4 * 4);
#else
    unit[lane * 4 + at / 2] |= uint8_t(code << at % 2 * 4);
#endif
  }
};

template <>
struct Decoder<8> {
  const float* table;
#if defined(QF_AVX512) && defined(__AVX512VBMI__)
#define QF_CODES_BY_BOTH
  __m512i plane[4][4];  // bytes of the entries 0 to 63, 64 to 127, …: the first ones, the second ones, …
  QF_INLINE explicit Decoder(const float* book) : table(book) {
    alignas(64) uint8_t every_fourth[64];  // of 128 bytes, twice
    QF_UNROLL for (int i = 0; i < 64; i++) every_fourth[i] = uint8_t(4 * i % 128);
    const __m512i first = _mm512_load_si512(every_fourth);
    QF_UNROLL for (int page = 0; page < 4; page++) {
      const float* from = book + 64 * page;
      QF_UNROLL for (int byte = 0; byte < 4; byte++) {
        const __m512i at = _mm512_or_si512(first, _mm512_set1_epi8(char(byte)));
        const __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(from), at, _mm512_loadu_si512(from + 16));
        const __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(from + 32), at, _mm512_loadu_si512(from + 48));
        plane[byte][page] = _mm512_mask_mov_epi64(low, 0xF0, high);
      }
    }
  }
  QF_INLINE void select(__m512i codes, vfloat (&out)[4]) const {
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    __m512i b[4];
    QF_UNROLL for (int byte = 0; byte < 4; byte++)
      b[byte] = _mm512_mask_mov_epi8(_mm512_permutex2var_epi8(plane[byte][0], codes, plane[byte][1]), upper,
                                     _mm512_permutex2var_epi8(plane[byte][2], codes, plane[byte][3]));
    const __m512i low01 = _mm512_unpacklo_epi8(b[0], b[1]), low23 = _mm512_unpacklo_epi8(b[2], b[3]);
    const __m512i high01 = _mm512_unpackhi_epi8(b[0], b[1]), high23 = _mm512_unpackhi_epi8(b[2], b[3]);
    out[0] = (vfloat)_mm512_unpacklo_epi16(low01, low23), out[1] = (vfloat)_mm512_unpackhi_epi16(low01, low23);
    out[2] = (vfloat)_mm512_unpacklo_epi16(high01, high23), out[3] = (vfloat)_mm512_unpackhi_epi16(high01, high23);
  }
#else
  QF_INLINE explicit Decoder(const float* book) : table(book) {}
#endif
  template <int HALF>
  QF_INLINE void decode(const uint8_t* unit, vfloat (&out)[4]) const {
#if defined(QF_CODES_BY_BOTH)
    if constexpr (HALF == 0) return select(_mm512_loadu_si512(unit), out);
#endif
    QF_UNROLL for (int i = 0; i < 4; i++) out[i] = looked_up(table, unit + (4 * HALF + i) * LANES);
  }
  static void put(uint8_t* unit, int at, int lane, uint8_t code) {
#if defined(QF_CODES_BY_BOTH)
    if (at < 4) unit[lane / 4 * 16 + at * 4 + lane % 4] = code;
    else
#endif
      unit[at * LANES + lane] = code;
  }
};

// code(k, column, lane) for a panel; what lacks to whole units is entry 0.
template <int BITS, class Code>
void pack_codes(int64_t depth, int64_t columns, const Code& code, uint8_t* to) {
  memset(to, 0, bytes_of_codes(BITS, depth, columns));
  for (int64_t vector = 0; vector < depth * columns; vector++)
    for (int lane = 0; lane < LANES; lane++)
      Decoder<BITS>::put(to + vector / UNIT * bytes_of_unit(BITS), int(vector % UNIT), lane,
                         code(vector / columns, vector % columns, lane));
}

// A unit's vectors one after the other.
template <int BITS>
QF_INLINE void decode_unit(const Decoder<BITS>& decoder, const uint8_t* unit, float* to) {
  vfloat some[4];
  decoder.template decode<0>(unit, some);
  QF_UNROLL for (int i = 0; i < 4; i++) store(to + i * LANES, some[i]);
  decoder.template decode<1>(unit, some);
  QF_UNROLL for (int i = 0; i < 4; i++) store(to + (4 + i) * LANES, some[i]);
}

// P rows, each weight decoded into a register for all of them. U sums for each place, so that none waits for the one before.
template <int BITS, int G, int P>
__attribute__((noinline)) void coded_product(const float* x, int64_t x_row, int64_t count, const uint8_t* panel,
                                             const float* book, const float* from, int64_t from_row, float* out,
                                             int64_t out_row, int last) {
  constexpr int U = G * P >= 4 ? 1 : 4 / (G * P);
  const Decoder<BITS> decoder(book);
  vfloat sums[U][P][G];
  QF_UNROLL for (int u = 0; u < U; u++)
    QF_UNROLL for (int p = 0; p < P; p++)
      QF_UNROLL for (int g = 0; g < G; g++)
        sums[u][p][g] = u ? (vfloat){} : load(from + p * from_row + (g == G - 1 ? last : g) * LANES);
  int64_t k = 0;
  for (; k + STEP <= count; k += STEP)
    QF_UNROLL for (int unit = 0; unit < G; unit++, panel += bytes_of_unit(BITS)) {
      __builtin_prefetch(panel + AHEAD_BYTES);
      const auto add = [&](const vfloat(&weights)[4], int half) __attribute__((always_inline)) {
        QF_UNROLL for (int i = 0; i < 4; i++) {
          const int vector = unit * UNIT + half * 4 + i, at = vector / G, g = vector % G;
          QF_UNROLL for (int p = 0; p < P; p++) sums[at % U][p][g] += x[p * x_row + k + at] * weights[i];
        }
      };
      vfloat weights[4];
      decoder.template decode<0>(panel, weights);
      add(weights, 0);
      decoder.template decode<1>(panel, weights);
      add(weights, 1);
    }
  if (k < count) {
    float some[STEP * G * LANES];
    for (int unit = 0; unit < G; unit++) decode_unit(decoder, panel + unit * bytes_of_unit(BITS), some + unit * UNIT * LANES);
    for (int64_t i = 0; k + i < count; i++)
      QF_UNROLL for (int p = 0; p < P; p++)
        QF_UNROLL for (int g = 0; g < G; g++) sums[0][p][g] += x[p * x_row + k + i] * load(some + (i * G + g) * LANES);
  }
  QF_UNROLL for (int p = 0; p < P; p++)
    QF_UNROLL for (int g = 0; g < G; g++) {
      QF_UNROLL for (int u = 1; u < U; u++) sums[0][p][g] += sums[u][p][g];
      store(out + p * out_row + (g == G - 1 ? last : g) * LANES, sums[0][p][g]);
    }
}

// rnn_product.h's products for a panel of codes: a few rows decode in registers; for several, parts of the panel are decoded
// into the first cache, where all rows pass by.
template <int BITS, int G>
void coded_products(int64_t rows, const float* x, int64_t x_row, int64_t count, const uint8_t* panel, const float* book,
                    const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
  if (rows < SEVERAL) {
    if (rows == 1) coded_product<BITS, G, 1>(x, x_row, count, panel, book, from, from_row, out, out_row, last);
    if (rows == 2) coded_product<BITS, G, 2>(x, x_row, count, panel, book, from, from_row, out, out_row, last);
    return;
  }
  constexpr int64_t PART = PANEL_FLOATS / (G * LANES) / STEP * STEP, FLOATS = PART * G * LANES;
  alignas(64) float part[FLOATS];
  const Decoder<BITS> decoder(book);
  for (int64_t k = 0; k < count; k += PART, from = out, from_row = out_row) {
    const int64_t some = smaller(PART, count - k), units = divide_up(some, STEP) * G * STEP / UNIT;
    for (int64_t unit = 0; unit < units; unit++, panel += bytes_of_unit(BITS)) {
      __builtin_prefetch(panel + AHEAD_BYTES);
      decode_unit(decoder, panel, part + unit * UNIT * LANES);
    }
    rows_product<G, 1>(rows, x + k, x_row, some, part, from, from_row, out, out_row, last);
  }
}

template <int BITS>
void coded_products_of(int columns, int64_t rows, const float* x, int64_t x_row, int64_t count, const uint8_t* panel,
                       const float* book, const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
  const auto products = columns == 1   ? coded_products<BITS, 1>
                        : columns == 2 ? coded_products<BITS, 2>
                        : columns == 3 ? coded_products<BITS, 3>
                                       : coded_products<BITS, 4>;
  products(rows, x, x_row, count, panel, book, from, from_row, out, out_row, last);
}

}  // namespace
