// What one core can do at most in products of bytes that are summed in int32: in registers, nothing is loaded.
//
// v4_vnni: one instruction multiplies and sums (vpdpbusd). v3 and v4: products are summed in twos with saturation
// (pmaddubsw), in twos again (pmaddwd), and added; exact kernels take two steps for half as many products (conv_pairs.h), and
// so stay below. Elsewhere words are multiplied and added as the compiler does it.
//
// As in roofline.cpp there are as many independent chains as registers to spare.
#include "seconds.h"
#include "simd.h"

namespace {

constexpr int CHAINS = REGISTERS - 6;  // two operands, ones, two products, and one to spare

#if defined(__AVX512VNNI__)
constexpr int PRODUCTS = 4 * LANES;
QF_INLINE vint add_products(vint sum, vint a, vint b, vint) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
#elif defined(QF_AVX512)
constexpr int PRODUCTS = 4 * LANES;
QF_INLINE vint add_products(vint sum, vint a, vint b, vint ones) {
  return sum + (vint)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)a, (__m512i)b), (__m512i)ones);
}
#elif defined(QF_ISA_V3)
constexpr int PRODUCTS = 4 * LANES;
QF_INLINE vint add_products(vint sum, vint a, vint b, vint ones) {
  return sum + (vint)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)a, (__m256i)b), (__m256i)ones);
}
#elif defined(QF_SSE2)
constexpr int PRODUCTS = 2 * LANES;
QF_INLINE vint add_products(vint sum, vint a, vint b, vint) { return sum + (vint)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#else
constexpr int PRODUCTS = LANES;
QF_INLINE vint add_products(vint sum, vint a, vint b, vint) { return sum + a * b; }
#endif

// v might be another value from here on, for all that the compiler knows.
QF_INLINE void renew(vint& v) {
  vfloat same = (vfloat)v;
  settle(same);
  v = (vint)same;
}

}  // namespace

// Multiplications and additions of one core in a second, over that many rounds. The factors come from outside, so that
// nothing is computed ahead; the sum of the chains goes to *sink, so that nothing is left out.
extern "C" double QF_EXPORT(roofline_products_i8)(int64_t rounds, int32_t factor, int32_t other, int32_t* sink) {
  vint chains[CHAINS];
  QF_UNROLL for (int i = 0; i < CHAINS; i++) chains[i] = (vint){} + i;
  vint a = (vint){} + factor;
  const vint b = (vint){} + other, ones = (vint){} + 0x00010001;
  const double start = seconds();
  for (int64_t round = 0; round < rounds; round++)
    QF_UNROLL for (int i = 0; i < CHAINS; i++) {
      renew(a);  // each chain computes its products anew
      chains[i] = add_products(chains[i], a, b, ones);
    }
  const double taken = seconds() - start;
  vint sum = {};
  QF_UNROLL for (int i = 0; i < CHAINS; i++) sum += chains[i];
  *sink = sum[0];
  return 2.0 * CHAINS * PRODUCTS * double(rounds) / taken;
}
