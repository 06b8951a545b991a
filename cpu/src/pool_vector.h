// What the vectorised pooling kernels have in common: the reductions, the watch for NaN, loads that may hang over a
// row's ends, and the shuffles along a row.
//
// The maximum instructions of x86 drop a NaN in one of their operands. Instead of paying for it in every maximum, a
// kernel takes the plain maximum and watches whether a NaN passed by (half an instruction a vector); rows where one
// did are computed again by the definition.
#pragma once

#include "pool_rows.h"

namespace {

// a where it is greater, else b; some operand where one is NaN. (GCC 12 warns about its own header for the forms
// without a mask.)
QF_INLINE vfloat larger(vfloat a, vfloat b) {
#if defined(QF_AVX512)
  return (vfloat)_mm512_maskz_max_ps(0xFFFF, (__m512)a, (__m512)b);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(QF_SSE2)
  return (vfloat)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Remembers whether a NaN was seen.
struct NanWatch {
#if defined(QF_AVX512)
  __mmask16 seen = 0;
  QF_INLINE void see(vfloat a, vfloat b) { seen |= _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q); }
  QF_INLINE bool any() const { return seen != 0; }
#elif defined(QF_ISA_V3)
  __m256 seen = _mm256_setzero_ps();
  QF_INLINE void see(vfloat a, vfloat b) {
    seen = _mm256_or_ps(seen, _mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q));
  }
  QF_INLINE bool any() const { return _mm256_movemask_ps(seen) != 0; }
#elif defined(QF_SSE2)
  __m128 seen = _mm_setzero_ps();
  QF_INLINE void see(vfloat a, vfloat b) { seen = _mm_or_ps(seen, _mm_cmpunord_ps((__m128)a, (__m128)b)); }
  QF_INLINE bool any() const { return _mm_movemask_ps(seen) != 0; }
#else
  vint seen = {};
  QF_INLINE void see(vfloat a, vfloat b) { seen |= (a != a) | (b != b); }
  QF_INLINE bool any() const {
    int32_t all = 0;
    for (int lane = 0; lane < LANES; lane++) all |= seen[lane];
    return all != 0;
  }
#endif
};

// Columns [column, column + LANES) of rows of `width` elements: lanes outside a row become a filler.
struct Span {
  int64_t column;
#if defined(QF_AVX512)
  __mmask16 inside;
#elif defined(QF_ISA_V3)
  __m256i inside;
#else
  int first, last;
#endif
};

QF_INLINE int clamp_lane(int64_t lane) { return lane < 0 ? 0 : lane > LANES ? LANES : (int)lane; }

QF_INLINE Span span_at(int64_t column, int64_t width) {
  const int first = clamp_lane(-column), last = clamp_lane(width - column);
  Span span;
  span.column = column;
#if defined(QF_AVX512)
  span.inside = (__mmask16)(((1u << last) - 1u) & ~((1u << first) - 1u));
#elif defined(QF_ISA_V3)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  span.inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                    _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
#else
  span.first = first;
  span.last = last;
#endif
  return span;
}

QF_INLINE vfloat load_span(const float* row, const Span& span, float filler) {
#if defined(QF_AVX512)
  return (vfloat)_mm512_mask_loadu_ps(_mm512_set1_ps(filler), span.inside, row + span.column);
#elif defined(QF_ISA_V3)
  return (vfloat)_mm256_blendv_ps(_mm256_set1_ps(filler), _mm256_maskload_ps(row + span.column, span.inside),
                                  _mm256_castsi256_ps(span.inside));
#else
  if (span.first == 0 && span.last == LANES) return load(row + span.column);
  vfloat v = broadcast(filler);
  for (int lane = 0; lane < LANES; lane++)
    if (lane >= span.first && lane < span.last) v[lane] = row[span.column + lane];
  return v;
#endif
}

// A reduction: identity, what it makes of a value that was read, how two combine, also with values of a span, and whether
// the rows have to be computed again.
struct MaxReduction {
  NanWatch nans;
  static constexpr bool scaled = false;
  static QF_INLINE float identity() { return -__builtin_inff(); }
  static QF_INLINE vfloat value(vfloat x) { return x; }
  static QF_INLINE vfloat combine(vfloat a, vfloat b) { return larger(a, b); }
  static QF_INLINE float combine(float a, float b) { return a > b ? a : b; }
  static QF_INLINE vfloat finish(vfloat x) { return x; }
  QF_INLINE void see(vfloat a, vfloat b) { nans.see(a, b); }
  QF_INLINE vfloat with_span(vfloat so_far, const float* row, const Span& span) {
    const vfloat v = load_span(row, span, identity());
    see(v, v);
    return combine(v, so_far);
  }
  QF_INLINE bool again() const { return nans.any(); }
  // Whether there is a NaN among x[0 .. count).
  static bool has_nan(const float* x, int64_t count) {
    NanWatch watch;
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) watch.see(load(x + i), load(x + i + LANES));
    for (; i < count; i += LANES) {
      const vfloat v = load_first(x + i, count - i < LANES ? (int)(count - i) : LANES);
      watch.see(v, v);
    }
    return watch.any();
  }
};

struct SumReduction {
  static constexpr bool scaled = true;
  static QF_INLINE float identity() { return 0.0f; }
  static QF_INLINE vfloat value(vfloat x) { return x; }
  static QF_INLINE vfloat combine(vfloat a, vfloat b) { return a + b; }
  static QF_INLINE float combine(float a, float b) { return a + b; }
  static QF_INLINE vfloat finish(vfloat x) { return x; }
  QF_INLINE void see(vfloat, vfloat) {}
  QF_INLINE vfloat with_span(vfloat so_far, const float* row, const Span& span) {
#if defined(QF_AVX512)
    // To load under a mask and to add would be two operations instead of one.
    typedef float vector_in_memory __attribute__((vector_size(64), aligned(4), may_alias));
    asm("vaddps %1, %0, %0%{%2%}" : "+v"(so_far) : "m"(*(const vector_in_memory*)(row + span.column)), "Yk"(span.inside));
    return so_far;
#else
    return so_far + load_span(row, span, 0.0f);
#endif
  }
  QF_INLINE bool again() const { return false; }
  static bool has_nan(const float*, int64_t) { return false; }  // a NaN takes care of itself in a sum
};

struct MagnitudeReduction : SumReduction {
  static constexpr bool scaled = false;
  static QF_INLINE vfloat value(vfloat x) { return (vfloat)((vint)x & 0x7FFFFFFF); }
  QF_INLINE vfloat with_span(vfloat so_far, const float* row, const Span& span) {
    return so_far + value(load_span(row, span, 0.0f));
  }
};

struct SquareReduction : SumReduction {
  static constexpr bool scaled = false;
  static QF_INLINE vfloat value(vfloat x) { return x * x; }
  QF_INLINE vfloat with_span(vfloat so_far, const float* row, const Span& span) {
    return so_far + value(load_span(row, span, 0.0f));
  }
  static QF_INLINE vfloat finish(vfloat x) {
#if defined(QF_AVX512)
    return (vfloat)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)x);
#elif defined(QF_ISA_V3)
    return (vfloat)_mm256_sqrt_ps((__m256)x);
#elif defined(QF_SSE2)
    return (vfloat)_mm_sqrt_ps((__m128)x);
#else
    for (int lane = 0; lane < LANES; lane++) x[lane] = sqrtf(x[lane]);
    return x;
#endif
  }
};

// Rows split by the phases of a stride: to[phase * phase_length + i] = from[i * stride + phase].
template <int STRIDE>
QF_INLINE void split_by(const float* __restrict from, float* __restrict to, int64_t phase_length) {
  for (int64_t i = 0; i < phase_length; i++)
    for (int64_t phase = 0; phase < STRIDE; phase++) to[phase * phase_length + i] = from[i * STRIDE + phase];
}

// The phase length is whole vectors.
QF_INLINE void split(const float* from, float* to, int64_t phase_length, int64_t stride) {
  switch (stride) {
    case 2:
      for (int64_t i = 0; i < phase_length; i += LANES) {
        const vfloat low = load(from + 2 * i), high = load(from + 2 * i + LANES);
        store(to + i, even_lanes(low, high));
        store(to + phase_length + i, odd_lanes(low, high));
      }
      return;
    case 3: split_by<3>(from, to, phase_length); return;
    case 4: split_by<4>(from, to, phase_length); return;
    default:
      for (int64_t i = 0; i < phase_length; i++)
        for (int64_t phase = 0; phase < stride; phase++) to[phase * phase_length + i] = from[i * stride + phase];
  }
}

// One input row: from[0 .. width) behind `pad` paddings, split into its phases; what is behind it becomes the filler.
// row: a line of fillers, which a stride above 1 goes through.
QF_INLINE void stage_line(const float* from, int64_t width, int64_t pad, int64_t stride, int64_t phase_length, float filler,
                          float* row, float* to, NanWatch& nans) {
  float* copy = stride == 1 ? to : row;
  for (int64_t i = 0; i < width; i += LANES) {
    if (i + LANES <= width) {
      const vfloat v = load(from + i);
      nans.see(v, v);
      store(copy + pad + i, v);
      continue;
    }
    const Span span = span_at(0, width - i);
    const vfloat v = load_span(from + i, span, 0.0f);
    nans.see(v, v);
    store(copy + pad + i, load_span(from + i, span, filler));
  }
  if (stride > 1) split(row, to, phase_length, stride);
}

// Pairs of neighbours in a followed by b, each reduced to one.
template <class Op>
QF_INLINE vfloat pairs(vfloat a, vfloat b) {
#if defined(QF_ISA_V3)
  // The shuffles stay inside the halves, which is cheaper, and one more brings the quarters in order.
  const __m256 even = _mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
  const __m256 odd = _mm256_shuffle_ps((__m256)a, (__m256)b, 0xDD);
  const vfloat v = Op::combine((vfloat)even, (vfloat)odd);
  return (vfloat)_mm256_permute4x64_pd((__m256d)v, 0xD8);
#else
  return Op::combine(even_lanes(a, b), odd_lanes(a, b));
#endif
}

// The place of the k-th tap in rows split by the stride: in which phase, and how far along it. start: of the first.
struct TapPlace {
  int64_t phase, along;
  const int64_t phase_step, along_step, stride;
  TapPlace(int64_t dilation, int64_t stride, int64_t start = 0)
      : phase(start % stride), along(start / stride), phase_step(dilation % stride), along_step(dilation / stride),
        stride(stride) {}
  QF_INLINE void next() {
    phase += phase_step;
    along += along_step;
    if (phase >= stride) {
      phase -= stride;
      along++;
    }
  }
};

}  // namespace
