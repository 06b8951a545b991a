/* How fixed-point products are added, one after the other, as kernels/ops/fixed.py says.
 *
 * Macro SUM, by what is enough for the formats at hand:
 *   SUM_NARROW    products are no finer than the accumulator, which wraps or is never left: they are added as they are,
 *                 modulo 2^32, and the whole sum is brought to the accumulator
 *   SUM_WIDE      the same modulo 2^64
 *   SUM_ROUNDED   products are finer: each is rounded, and the whole sum is fitted to the accumulator
 *   SUM_CAST      each product and each sum is cast
 * Formats are arguments, alike for all threads, so that one program serves many of them.
 */
#pragma once
#include "common.cuh"
#include "quatrefoil/fixed.h"

#define SUM_NARROW 0
#define SUM_WIDE 1
#define SUM_ROUNDED 2
#define SUM_CAST 3

/* Declared in fixed.py as FORMATS. */
struct Formats {
  qf_format accumulator, y;
  int y_drop;    /* how many more fraction bits the accumulator has than y */
  int rectified; /* whether y is max(y, 0) */
  int reuse;     /* products are added by every reuse-th from the first on, then from the second on, … */
};

#if SUM == SUM_NARROW
typedef unsigned Sum;
#else
typedef long long Sum;
#endif

/* What a sum is before its first product. */
QF_FUNCTION Sum opened(long long start) { return SUM == SUM_CAST ? static_cast<Sum>(start) : 0; }

/* sum + a b; the product has ``drop`` more fraction bits than the accumulator. */
QF_FUNCTION Sum added(Sum sum, int a, int b, int drop, const Formats& f) {
#if SUM == SUM_NARROW
  return sum + static_cast<unsigned>(a) * static_cast<unsigned>(b);
#else
  const long long product = static_cast<long long>(a) * b;
#if SUM == SUM_CAST
  return qf_fitted(sum + qf_cast(product, drop, f.accumulator), f.accumulator);
#else
  const long long term = SUM == SUM_ROUNDED ? qf_rounded(product, drop, f.accumulator.rounding) : product;
  return static_cast<long long>(static_cast<unsigned long long>(sum) + static_cast<unsigned long long>(term));
#endif
#endif
}

/* The sum as an integer of the accumulator. */
QF_FUNCTION long long settled(Sum sum, long long start, int drop, const Formats& f) {
  if (SUM == SUM_CAST) return static_cast<long long>(sum);
  const long long whole = SUM == SUM_NARROW ? static_cast<int>(sum) : static_cast<long long>(sum);
  const unsigned long long shifted = SUM == SUM_ROUNDED ? whole : qf_shifted(whole, -drop);
  return qf_fitted(static_cast<long long>(shifted + static_cast<unsigned long long>(start)), f.accumulator);
}

/* An integer of the accumulator as an output value. */
QF_FUNCTION long long output_value(long long total, const Formats& f) {
  const long long y = qf_cast(total, f.y_drop, f.y);
  return f.rectified && y < 0 ? 0 : y;
}
