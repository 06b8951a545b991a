/* How fixed-point products are added, one after the other, as kernels/ops/fixed.py says.
 *
 * The formats are compile-time constants, so that a cast is wires and at most a comparison:
 *   ACCUMULATOR, Y_FORMAT   the initialisers of a qf_format
 *   SUM_T, SIGNED_SUM_T     unsigned and signed, of SUM_BITS bits: int where sums of that size say all, else long
 *   PRODUCT_T               int where every product fits, else long; PRODUCT_BITS are its bits
 *   EXACT                   the accumulator wraps, or is never left: it is enough to fit the whole sum
 */
#include "quatrefoil/fixed.h"

#define FORMAT(constants) ((qf_format){constants})

/* sum + product, which has `drop` more fraction bits than the accumulator */
static inline SUM_T added(SUM_T sum, PRODUCT_T product, int drop) {
#ifdef EXACT
  const int rounding = FORMAT(ACCUMULATOR).rounding;
  if (drop <= 0) return -drop < SUM_BITS ? sum + ((SUM_T)product << -drop) : sum;
  if (rounding == QF_TRN) return sum + (SUM_T)(product >> (drop < PRODUCT_BITS ? drop : PRODUCT_BITS - 1));
  return sum + (SUM_T)qf_rounded(product, drop, rounding);
#else
  return qf_fitted((SIGNED_SUM_T)sum + qf_cast(product, drop, FORMAT(ACCUMULATOR)), FORMAT(ACCUMULATOR));
#endif
}

/* The sum as an integer of the accumulator. */
static inline long settled(SUM_T sum) {
#ifdef EXACT
  return qf_fitted((SIGNED_SUM_T)sum, FORMAT(ACCUMULATOR));
#else
  return (SIGNED_SUM_T)sum;
#endif
}

#ifdef Y_DROP
/* A sum as an output value; Y_DROP is how many more fraction bits the accumulator has than y. */
static inline Y_T fixed_output(SUM_T sum) {
  long y = qf_cast(settled(sum), Y_DROP, FORMAT(Y_FORMAT));
#ifdef RECTIFIED
  return y < 0 ? 0 : y;
#else
  return y;
#endif
}
#endif
