// The vectors of one instruction set, and the float functions that kernels need on them.
//
// Every source in this folder is compiled once per instruction set (setup.py: INSTRUCTION_SETS); QF_ISA names the
// set: portable, v2, v3 or v4 (the x86-64 levels). One algorithm body serves all of them: it is written against
// vfloat (LANES floats, GCC vector extensions) and the register budget below.
//
// Everything here and in the kernels lives in an anonymous namespace and no standard-library template is used:
// otherwise the linker could merge an inline function compiled for AVX-512 into the portable kernels.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "quatrefoil/activation.h"

#define QF_INLINE inline __attribute__((always_inline))
#define QF_UNROLL _Pragma("GCC unroll 64")
#define QF_JOIN_(a, b) a##_##b
#define QF_JOIN(a, b) QF_JOIN_(a, b)
// The exported name of a kernel: conv_direct becomes conv_direct_v3 in the v3 objects.
#define QF_EXPORT(name) QF_JOIN(name, QF_ISA)

namespace {

// Whose instructions a vector takes. v4's vectors also work on a processor without AVX-512, out of what the compiler
// makes of them (setup.py: QUATREFOIL_EMULATE_V4): so they can be tested.
#if defined(QF_ISA_V4) && defined(__AVX512F__)
#define QF_AVX512
#elif defined(__SSE2__) && !defined(QF_ISA_V4) && !defined(QF_ISA_V3)
#define QF_SSE2
#endif

#if defined(QF_ISA_V4)
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#elif defined(QF_ISA_V3)
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#else
constexpr int LANES = 4;
constexpr int REGISTERS = 16;
#endif

// Of whole numbers: a / b rounded up, for a from 0 and b from 1.
QF_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
QF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// value, brought into 0 to most.
QF_INLINE int clamped(int64_t value, int64_t most) { return int(value < 0 ? 0 : value > most ? most : value); }

typedef float vfloat __attribute__((vector_size(LANES * 4)));
typedef int32_t vint __attribute__((vector_size(LANES * 4)));
typedef float vfloat_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

QF_INLINE vfloat broadcast(float x) { return x - (vfloat){}; }
QF_INLINE vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
QF_INLINE void store(float* p, vfloat v) { *reinterpret_cast<vfloat_unaligned*>(p) = v; }

// Which lanes of a vector in memory may be touched.
#if defined(QF_AVX512)
typedef __mmask16 lanemask;
QF_INLINE lanemask lanes_between(int first, int last) { return (__mmask16)((1u << last) - (1u << first)); }
#else
typedef vint lanemask;
QF_INLINE lanemask lanes_between(int first, int last) {
  vint lane;
  QF_UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
  return (lane >= first) & (lane < last);
}
#endif

// The lanes of the mask from memory, the others 0; only the mask's lanes are touched.
QF_INLINE vfloat load_masked(const float* p, lanemask mask) {
#if defined(QF_AVX512)
  return (vfloat)_mm512_maskz_loadu_ps(mask, p);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_maskload_ps(p, (__m256i)mask);
#else
  vfloat v = {};
  for (int i = 0; i < LANES; i++)
    if (mask[i]) v[i] = p[i];
  return v;
#endif
}

// Lanes first to last (0 <= first <= last <= LANES) from p + lane, the others 0.
QF_INLINE vfloat load_between(const float* p, int first, int last) { return load_masked(p, lanes_between(first, last)); }

// The first n lanes from memory, the others 0; memory behind them is not touched.
QF_INLINE vfloat load_first(const float* p, int n) { return load_between(p, 0, n); }

QF_INLINE void store_masked(float* p, vfloat v, lanemask mask) {
#if defined(QF_AVX512)
  _mm512_mask_storeu_ps(p, mask, (__m512)v);
#elif defined(QF_ISA_V3)
  _mm256_maskstore_ps(p, (__m256i)mask, (__m256)v);
#else
  for (int i = 0; i < LANES; i++)
    if (mask[i]) p[i] = v[i];
#endif
}

QF_INLINE void store_first(float* p, vfloat v, int n) { store_masked(p, v, lanes_between(0, n)); }

// Every second element of the 2 * LANES in a, b: those at even and at odd places.
QF_INLINE vfloat even_lanes(vfloat a, vfloat b) {
  vint places;
  QF_UNROLL for (int i = 0; i < LANES; i++) places[i] = 2 * i;
  return __builtin_shuffle(a, b, places);
}
QF_INLINE vfloat odd_lanes(vfloat a, vfloat b) {
  vint places;
  QF_UNROLL for (int i = 0; i < LANES; i++) places[i] = 2 * i + 1;
  return __builtin_shuffle(a, b, places);
}

// Two vectors in one: each four lanes of the result take lanes A and B of a's four, then lanes C and D of b's, in the
// order a, b, a, b where INTERLEAVED. One instruction where the instruction set has it.
template <int A, int B, int C, int D, bool INTERLEAVED>
QF_INLINE vfloat merge_fours(vfloat a, vfloat b) {
  vint places;
  QF_UNROLL for (int i = 0; i < LANES; i += 4) {
    places[i] = i + A;
    places[i + (INTERLEAVED ? 2 : 1)] = i + B;
    places[i + (INTERLEAVED ? 1 : 2)] = LANES + i + C;
    places[i + 3] = LANES + i + D;
  }
  return __builtin_shuffle(a, b, places);
}

// Blocks of BLOCK lanes change places between vectors BLOCK apart, then larger blocks likewise.
template <int BLOCK>
QF_INLINE void transpose_blocks(vfloat (&rows)[LANES]) {
  if constexpr (BLOCK < LANES) {
    vint low, high;
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      low[i] = i & BLOCK ? LANES + i - BLOCK : i;
      high[i] = i & BLOCK ? LANES + i : i + BLOCK;
    }
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      if (i & BLOCK) continue;
      const vfloat a = rows[i], b = rows[i + BLOCK];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + BLOCK] = __builtin_shuffle(a, b, high);
    }
    transpose_blocks<2 * BLOCK>(rows);
  }
}

// Transposes LANES vectors: rows[i][j] becomes rows[j][i]. First 4x4 within each four lanes, then blocks of lanes.
QF_INLINE void transpose(vfloat (&rows)[LANES]) {
  QF_UNROLL for (int i = 0; i < LANES; i += 4) {
    const vfloat low01 = merge_fours<0, 1, 0, 1, true>(rows[i], rows[i + 1]);
    const vfloat high01 = merge_fours<2, 3, 2, 3, true>(rows[i], rows[i + 1]);
    const vfloat low23 = merge_fours<0, 1, 0, 1, true>(rows[i + 2], rows[i + 3]);
    const vfloat high23 = merge_fours<2, 3, 2, 3, true>(rows[i + 2], rows[i + 3]);
    rows[i] = merge_fours<0, 1, 0, 1, false>(low01, low23);
    rows[i + 1] = merge_fours<2, 3, 2, 3, false>(low01, low23);
    rows[i + 2] = merge_fours<0, 1, 0, 1, false>(high01, high23);
    rows[i + 3] = merge_fours<2, 3, 2, 3, false>(high01, high23);
  }
  transpose_blocks<4>(rows);
}

QF_INLINE vfloat select(vint mask, vfloat yes, vfloat no) { return mask ? yes : no; }

// max and min that let a NaN in x through, as the scalar functions of activation.h do. The instructions return their
// second operand when one of the two is NaN. (GCC 12 warns about its own header for the forms without a mask.)
QF_INLINE vfloat at_least(vfloat x, vfloat low) {
#if defined(QF_AVX512)
  return (vfloat)_mm512_maskz_max_ps(0xFFFF, (__m512)low, (__m512)x);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_max_ps((__m256)low, (__m256)x);
#else
  return x < low ? low : x;
#endif
}
QF_INLINE vfloat at_most(vfloat x, vfloat high) {
#if defined(QF_AVX512)
  return (vfloat)_mm512_maskz_min_ps(0xFFFF, (__m512)high, (__m512)x);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_min_ps((__m256)high, (__m256)x);
#else
  return x > high ? high : x;
#endif
}

// e^x with an error below 2 units in the last place on [-87, 88.7]; below it 2e-38, above it infinity; NaN stays.
// Cody-Waite reduction to [-ln 2 / 2, ln 2 / 2] and the polynomial of Cephes' expf (Moshier).
QF_INLINE vfloat exponential(vfloat x) {
  const vfloat inside = at_most(at_least(x, broadcast(-87.0f)), broadcast(88.7f));
  const vfloat shifted = inside * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
  const vfloat n = shifted - 12582912.0f;
  const vint exponent = ((vint)shifted - 0x4B400000) << 23;
  const vfloat r = inside - n * 0.693359375f + n * 2.12194440e-4f;
  vfloat p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const vfloat result = (vfloat)((vint)p + exponent);
  return x <= broadcast(88.7f) ? result : x + __builtin_inff();  // a NaN's payload may have upset the exponent
}

// e^x = power * (1 + rest), where power is a power of two and 1 where rest would lose accuracy against e^x - 1. x in
// [-87, 87] or NaN, which rest keeps. The reduction and the polynomial are those above.
struct Exponential {
  vfloat power, rest;
};
QF_INLINE Exponential split_exponential(vfloat x) {
  const vfloat shifted = x * 1.44269504f + 12582912.0f;
  const vfloat n = shifted - 12582912.0f;
  const vfloat r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vfloat p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return {(vfloat)(((vint)shifted - (0x4B400000 - 127)) << 23), r * r * p + r};
}

QF_INLINE vfloat sigmoid(vfloat x) {
  const Exponential e = split_exponential(at_most(at_least(-x, broadcast(-87.0f)), broadcast(87.0f)));
  return 1.0f / (1.0f + e.power + e.power * e.rest);
}

// (e^2x - 1) / (e^2x + 1) with e^2x - 1 = (power - 1) + power * rest: neither sum cancels, near 0 too.
QF_INLINE vfloat tangent_hyperbolic(vfloat x) {
  const Exponential e = split_exponential(at_most(at_least(x + x, broadcast(-40.0f)), broadcast(40.0f)));
  const vfloat less_one = e.power * e.rest + (e.power - 1.0f);
  return less_one / (less_one + 2.0f);
}

// qf_activation on a vector; functions that are rare go lane by lane through the scalar definition.
QF_INLINE vfloat activate(int code, float alpha, float beta, vfloat x) {
  switch (code) {
    case QF_IDENTITY: return x;
    case QF_RELU: return at_least(x, (vfloat){});
    case QF_LEAKY_RELU: return x < (vfloat){} ? alpha * x : x;
    case QF_CLIP: return at_most(at_least(x, broadcast(alpha)), broadcast(beta));
    case QF_SIGMOID: return sigmoid(x);
    case QF_TANH_FUNCTION: return tangent_hyperbolic(x);
    case QF_HARD_SIGMOID: return at_most(at_least(alpha * x + beta, (vfloat){}), broadcast(1.0f));
    case QF_HARD_SWISH: return x * at_most(at_least(x * (1.0f / 6.0f) + 0.5f, (vfloat){}), broadcast(1.0f));
    case QF_AFFINE: return alpha * x + beta;
    case QF_SCALED_TANH: return alpha * tangent_hyperbolic(beta * x);
    case QF_SWISH: return x * sigmoid(alpha * x);
    default: {
      vfloat y = x;
      for (int lane = 0; lane < LANES; lane++) y[lane] = qf_activation(code, alpha, beta, x[lane]);
      return y;
    }
  }
}

// The 2 * LANES floats from p on, those at even and at odd places.
QF_INLINE void load_parted(const float* p, vfloat& even, vfloat& odd) {
#if defined(QF_ISA_V3)
  // Loaded in halves so that shuffles inside them, which are cheaper than those across, leave all in order.
  const __m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 8), 1);
  const __m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 4)), _mm_loadu_ps(p + 12), 1);
  even = (vfloat)_mm256_shuffle_ps(a, b, 0x88);
  odd = (vfloat)_mm256_shuffle_ps(a, b, 0xDD);
#else
  const vfloat a = load(p), b = load(p + LANES);
  even = even_lanes(a, b);
  odd = odd_lanes(a, b);
#endif
}

// v is computed here, in a register: the compiler may not put it off to where it is used.
QF_INLINE void settle(vfloat& v) {
#if defined(QF_AVX512)
  asm("" : "+v"(v));
#elif defined(QF_ISA_V3) || defined(QF_SSE2)
  asm("" : "+x"(v));
#else
  (void)v;
#endif
}

// exponential, but 0 below -87, where it would stay at 2e-38.
QF_INLINE vfloat exponential_to_zero(vfloat x) { return x < broadcast(-87.0f) ? (vfloat){} : exponential(x); }

// Floats as bytes: rounded to whole numbers, halves to the even one, `zero` added, brought into 0 to 255. Their order:
// a, then b, c and d; or a and b by turns, then c and d by turns; or QUADS of a[i], b[i], c[i] and d[i];
// or FOURS, the first four of a, of b, of c and of d, then the next ones.
enum class ByteOrder { SEQUENCE, TURNS, QUADS, FOURS };
template <ByteOrder ORDER>
QF_INLINE vint pack_bytes(vfloat a, vfloat b, vfloat c, vfloat d, int zero) {
#if defined(QF_AVX512) || defined(QF_ISA_V3)
  // What is too small for an int becomes the least one, as it should, but so does what is too large: not beyond here.
  const vfloat most = broadcast(32767.0f);
  a = at_most(a, most), b = at_most(b, most), c = at_most(c, most), d = at_most(d, most);
  // The instructions that pack leave four bytes of each of a, b, c and d together; this orders those sixteen.
  const __m128i within = ORDER == ByteOrder::QUADS
                             ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
                             : _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
#endif
#if defined(QF_AVX512)
  auto whole = [](vfloat x) { return _mm512_maskz_cvtps_epi32(0xFFFF, (__m512)x); };
  const __m512i ab = _mm512_packs_epi32(whole(a), whole(b)), cd = _mm512_packs_epi32(whole(c), whole(d));
  const __m512i offset = _mm512_set1_epi16(int16_t(zero));
  const __m512i bytes = _mm512_packus_epi16(_mm512_adds_epi16(ab, offset), _mm512_adds_epi16(cd, offset));
  if (ORDER == ByteOrder::FOURS) return (vint)bytes;
  const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  if (ORDER == ByteOrder::SEQUENCE) return (vint)_mm512_maskz_permutexvar_epi32(0xFFFF, words, bytes);
  const __m512i shuffled = _mm512_shuffle_epi8(bytes, _mm512_maskz_broadcast_i32x4(0xFFFF, within));
  if (ORDER == ByteOrder::QUADS) return (vint)shuffled;
  return (vint)_mm512_maskz_permutexvar_epi64(0xFF, _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), shuffled);
#elif defined(QF_ISA_V3)
  const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)a), _mm256_cvtps_epi32((__m256)b));
  const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32((__m256)c), _mm256_cvtps_epi32((__m256)d));
  const __m256i offset = _mm256_set1_epi16(int16_t(zero));
  const __m256i bytes = _mm256_packus_epi16(_mm256_adds_epi16(ab, offset), _mm256_adds_epi16(cd, offset));
  if (ORDER == ByteOrder::FOURS) return (vint)bytes;
  const __m256i words = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  if (ORDER == ByteOrder::SEQUENCE) return (vint)_mm256_permutevar8x32_epi32(bytes, words);
  const __m256i shuffled = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(within));
  return (vint)(ORDER == ByteOrder::QUADS ? shuffled : _mm256_permute4x64_epi64(shuffled, 0xD8));
#else
  // Brought into range before they are rounded, which makes no difference, they can be rounded by adding 1.5 * 2^23.
  const vfloat low = broadcast(float(-zero)), high = broadcast(float(255 - zero));
  auto rounded = [&](vfloat x) { return ((vint)(at_most(at_least(x, low), high) + 12582912.0f) + zero) & 0xFF; };
  const vint quads = rounded(a) | rounded(b) << 8 | rounded(c) << 16 | rounded(d) << 24;
  if (ORDER == ByteOrder::QUADS) return quads;
  typedef uint8_t vbytes __attribute__((vector_size(LANES * 4)));
  vbytes order;
  QF_UNROLL for (int i = 0; i < 4 * LANES; i++) {
    const int turn = i % (2 * LANES) / 2 * 4 + i / (2 * LANES) * 2 + i % 2;
    const int four = (i / 16 * 4 + i % 4) * 4 + i % 16 / 4;
    order[i] = uint8_t(ORDER == ByteOrder::TURNS ? turn : ORDER == ByteOrder::FOURS ? four : i % LANES * 4 + i / LANES);
  }
  return (vint)__builtin_shuffle((vbytes)quads, order);
#endif
}

// What merge_fours made of the even or of the odd lanes of two vectors, in their order.
QF_INLINE vfloat in_order(vfloat v) {
  constexpr int PAIRS = LANES / 2;
  typedef double vpairs __attribute__((vector_size(LANES * 4)));
  typedef int64_t vplaces __attribute__((vector_size(LANES * 4)));
  vplaces places;
  QF_UNROLL for (int i = 0; i < PAIRS; i++) places[i] = i < PAIRS / 2 ? 2 * i : 2 * i - PAIRS + 1;
  return (vfloat)__builtin_shuffle((vpairs)v, places);
}

}  // namespace
