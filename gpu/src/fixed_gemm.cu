/* Convolution in fixed point as an implicit matrix product, for sums of which 32 bits are enough; see implicit_gemm.cuh.
 *
 * With BYTES, for values and weights that fit a signed byte, four rows of the patches lie in one int and __dp4a adds
 * four products at a time; else rows are 32-bit values. The order of additions makes no difference here.
 *
 * Macros: X_TYPE, Y_TYPE, BYTES; SUM is SUM_NARROW. weights: (groups, K, M rounded up) in 32 bits, four rows an int
 * with BYTES. rows is one PatchRow for each row of the patches.
 */
#include "implicit_gemm.cuh"
#include "fixed_sum.cuh"

#ifdef BYTES
typedef int Value;
#else
typedef unsigned Value;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 2)
fixed_gemm(const X_TYPE* __restrict__ x, const Value* __restrict__ weights, const PatchRow* __restrict__ rows,
           Y_TYPE* __restrict__ y, const ConvGeometry g, int padded_k, int padded_m,
           const long long* __restrict__ starts, int drop, const Formats f) {
  __shared__ Shared<Value> shared;
  const Column c = column_of(g);
  const X_TYPE padding = 0;
  auto gather = [&](int k) {
#ifdef BYTES
    unsigned bytes = 0;
#pragma unroll
    for (int q = 0; q < 4; q++)
      bytes |= (static_cast<unsigned>(patch(x, g, c, rows[4 * k + q], padding)) & 0xff) << (8 * q);
    return static_cast<Value>(bytes);
#else
    return static_cast<Value>(patch(x, g, c, rows[k], padding));
#endif
  };
  Value sums[THREAD_M][THREAD_N] = {};
  product(shared, weights, padded_k, padded_m, c, gather, sums);
  write_out(shared, sums, g, c, [&](int channel, int index, Value sum) {
    const long long start = starts ? starts[channel] : 0;
    y[index] = static_cast<Y_TYPE>(output_value(settled(static_cast<Sum>(sum), start, drop, f), f));
  });
}
