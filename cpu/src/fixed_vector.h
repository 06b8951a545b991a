// Casts of fixed-point integers on vectors: those that networks use in a few instructions, the others lane by lane
// through quatrefoil/fixed.h, which all of them agree with to the last bit.
//
// A vector holds 32-bit or 64-bit lanes. In 32-bit ones sums wrap; who uses them has made sure that nothing is lost.
#pragma once

#include "fixed_kernels.h"
#include "simd.h"

namespace {

typedef int64_t vlong __attribute__((vector_size(LANES * 4)));
typedef uint64_t vulong __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));

template <class V>
struct Lanes;
template <>
struct Lanes<vint> {
  typedef int32_t Element;
  typedef vuint Unsigned;
  static constexpr int COUNT = LANES, BITS = 32;
};
template <>
struct Lanes<vlong> {
  typedef int64_t Element;
  typedef vulong Unsigned;
  static constexpr int COUNT = LANES / 2, BITS = 64;
};

// The vector of an element.
template <class Element>
struct VectorOf;
template <>
struct VectorOf<int32_t> {
  typedef vint V;
};
template <>
struct VectorOf<int64_t> {
  typedef vlong V;
};

template <class V>
QF_INLINE V add(V a, V b) {
  typedef typename Lanes<V>::Unsigned U;
  return (V)((U)a + (U)b);
}

template <class V>
QF_INLINE V shift_up(V v, int by) {
  typedef typename Lanes<V>::Unsigned U;
  return (V)((U)v << by);
}

template <class V>
QF_INLINE V load_vector(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
QF_INLINE V fill_lanes(typename Lanes<V>::Element x) {
  return x - (V){};
}

template <class V>
QF_INLINE V least(V a, V b) {
  return a < b ? a : b;
}
template <class V>
QF_INLINE V most(V a, V b) {
  return a > b ? a : b;
}

constexpr int ANY = -1;  // of a cast's modes: known when it runs

// A cast as a vector does it.
template <class V>
struct VectorCast {
  typedef typename Lanes<V>::Element Element;
  static constexpr int BITS = Lanes<V>::BITS;

  FixedCast exact;
  int rounding, overflow;  // what rounded() and fitted() are asked for; SAT stands for SAT_SYM, too
  int drop, up, spare;
  Element low, high;
  bool usual;  // instructions below do it

  explicit VectorCast(const FixedCast& cast) : exact(cast) {
    const qf_format& f = cast.format;
    rounding = cast.drop > 0 ? f.rounding : QF_TRN;
    overflow = f.overflow == QF_SAT_SYM ? QF_SAT : f.overflow;
    drop = cast.drop > 0 ? cast.drop : 0;
    up = cast.drop < 0 ? -cast.drop : 0;
    spare = f.width < BITS ? BITS - f.width : 0;
    const qf_int64 last = BITS == 64 ? INT64_MAX : INT32_MAX;
    low = Element(f.low < -last ? -last - 1 : f.low);
    high = Element(f.high > last ? last : f.high);
    usual = (rounding == QF_TRN || rounding == QF_RND || rounding == QF_RND_CONV) && drop < BITS - 1 && up < BITS &&
            (overflow == QF_WRAP || (overflow == QF_SAT && up == 0));
  }

  template <int ROUNDING>
  QF_INLINE V rounded(V v) const {
    const int mode = ROUNDING == ANY ? rounding : ROUNDING;
    const V whole = v >> drop;
    if (mode == QF_TRN) return whole;
    if (mode == QF_RND) return whole + ((v >> (drop - 1)) & 1);
    const V rest = v - shift_up(whole, drop), half = fill_lanes<V>(Element(1) << (drop - 1));
    return whole - ((rest > half) | ((rest == half) & -(whole & 1)));
  }

  template <int OVERFLOW>
  QF_INLINE V fitted(V v) const {
    const int mode = OVERFLOW == ANY ? overflow : OVERFLOW;
    if (mode == QF_SAT) return least(most(v, fill_lanes<V>(low)), fill_lanes<V>(high));
    if (!exact.format.is_signed) return v & fill_lanes<V>(high);
    return shift_up(v, spare) >> spare;
  }

  // Whatever its modes. The first is for loops that do little else; to have the second at many places costs no code.
  QF_INLINE V applied(V v) const { return usual ? fitted<ANY>(shift_up(rounded<ANY>(v), up)) : one_by_one(v); }
  __attribute__((noinline)) V operator()(V v) const { return applied(v); }

  __attribute__((noinline)) V one_by_one(V v) const {
    for (int lane = 0; lane < Lanes<V>::COUNT; lane++) v[lane] = Element(qf_cast(v[lane], exact.drop, exact.format));
    return v;
  }
};

// Products of the low 32 bits of each 64-bit lane, signed.
QF_INLINE vlong multiply_low(vlong a, vlong b) {
#if defined(QF_AVX512)
  return (vlong)_mm512_maskz_mul_epi32(0xFF, (__m512i)a, (__m512i)b);
#elif defined(QF_ISA_V3)
  return (vlong)_mm256_mul_epi32((__m256i)a, (__m256i)b);
#elif defined(QF_SSE2) && defined(__SSE4_1__)
  return (vlong)_mm_mul_epi32((__m128i)a, (__m128i)b);
#else
  return a * b;
#endif
}

// An int32 for the low half of each 64-bit lane, at least.
QF_INLINE vlong fill_low(int32_t x) {
#if defined(QF_AVX512) || defined(QF_ISA_V3) || (defined(QF_SSE2) && defined(__SSE4_1__))
  return (vlong)fill_lanes<vint>(x);
#else
  return fill_lanes<vlong>(x);
#endif
}

typedef int16_t eight_values __attribute__((vector_size(16)));

// Eight rows of eight int16 the other way round.
QF_INLINE void transpose_eight(eight_values (&rows)[8]) {
  constexpr eight_values LOW = {0, 8, 1, 9, 2, 10, 3, 11}, HIGH = {4, 12, 5, 13, 6, 14, 7, 15};
  QF_UNROLL for (int pass = 0; pass < 3; pass++) {
    eight_values mixed[8];
    QF_UNROLL for (int i = 0; i < 4; i++) {
      mixed[2 * i] = __builtin_shuffle(rows[i], rows[i + 4], LOW);
      mixed[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + 4], HIGH);
    }
    QF_UNROLL for (int i = 0; i < 8; i++) rows[i] = mixed[i];
  }
}

typedef int32_t vhalf __attribute__((vector_size(LANES * 2)));

// LANES / 2 values in 64-bit lanes.
QF_INLINE vlong widen(const int32_t* p) {
  vhalf v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, vlong);
}

}  // namespace
