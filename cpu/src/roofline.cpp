// What one core can do at most: multiply-adds in registers, and reading from each level of its memory.
//
// The two ceilings of the roofline model (Williams, Waterman and Patterson 2009), for benchmarks to be judged by.
// Multiply-adds: as many independent chains as there are registers to spare, so that every cycle can begin one in each
// unit; nothing is loaded, so the units are the limit (without FMA: a multiplication and an addition). Reading: one
// pass after another over a block, summed into eight registers, since fewer would wait for the additions' latency
// instead of for the loads.

#include "seconds.h"
#include "simd.h"

namespace {

constexpr int CHAINS = REGISTERS - 4;  // two operands, and two to spare
constexpr int SUMS = 8;

}  // namespace

// Floating-point operations of one core in a second, over that many rounds. The factors come from outside, so that
// nothing is computed ahead; the sum of the chains goes to *sink, so that nothing is left out.
extern "C" double QF_EXPORT(roofline_flops_f32)(int64_t rounds, float factor, float term, float* sink) {
  vfloat chains[CHAINS];
  QF_UNROLL for (int i = 0; i < CHAINS; i++) chains[i] = broadcast(float(i));
  const vfloat a = broadcast(factor), b = broadcast(term);
  const double start = seconds();
  for (int64_t round = 0; round < rounds; round++)
    QF_UNROLL for (int i = 0; i < CHAINS; i++) chains[i] = chains[i] * a + b;
  vfloat sum = {};
  QF_UNROLL for (int i = 0; i < CHAINS; i++) sum += chains[i];
  *sink = sum[0];
  return 2.0 * CHAINS * LANES * double(rounds) / (seconds() - start);
}

// Bytes that one core reads in a second, in that many passes over `count` floats (a multiple of SUMS * LANES).
extern "C" double QF_EXPORT(roofline_bytes_f32)(const float* block, int64_t count, int64_t passes, float* sink) {
  vfloat sums[SUMS] = {};
  const double start = seconds();
  for (int64_t pass = 0; pass < passes; pass++)
    for (int64_t at = 0; at < count; at += SUMS * LANES)
      QF_UNROLL for (int i = 0; i < SUMS; i++) sums[i] += load(block + at + i * LANES);
  vfloat sum = {};
  QF_UNROLL for (int i = 0; i < SUMS; i++) sum += sums[i];
  *sink = sum[0];
  return 4.0 * double(count) * double(passes) / (seconds() - start);
}
