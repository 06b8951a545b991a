/* Convolution of uint8 or int8 as an implicit matrix product; see implicit_gemm.cuh. Four rows of the patches lie in
 * one int, and __dp4a adds four products at a time to sums that wrap.
 *
 * The operands are made signed and their zero points taken out of the sum: with x' = x - 128 for uint8 (the sign bit
 * flipped), x_zero' likewise, and K counting every row up to the rounding,
 *
 *     sum (x' - x_zero') (w' - w_zero') = sum x' w' - w_zero' sum x' + (K x_zero' w_zero' - x_zero' sum w')
 *
 * The bracket is known on the host and comes as corrections[m], for qlinear_conv with the bias in it; sum x' is added
 * up while x is gathered. Padding and the rounding rows stand for x_zero'. Exact modulo 2^32, as conv_integer
 * is defined.
 *
 * Macros: X_FLIP, 0x80 for uint8 and 0 for int8; Y_TYPE, Y_LOW and Y_HIGH for qlinear_conv. The weights come made
 * signed, four rows an int: (groups, K / 4, M rounded up). rows is still one PatchRow for each of the K rows.
 */
#include "implicit_gemm.cuh"
#ifdef Y_TYPE
#include "requantize.cuh"
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 2)
#ifdef Y_TYPE
qlinear_conv_dp4a(const unsigned char* __restrict__ x, const int* __restrict__ weights,
                  const PatchRow* __restrict__ rows, Y_TYPE* __restrict__ y, const ConvGeometry g, int padded_k,
                  int padded_m, int x_zero_point, const int* __restrict__ w_zero_points,
                  const int* __restrict__ corrections, const float* __restrict__ multipliers, int y_zero_point) {
#else
conv_integer_dp4a(const unsigned char* __restrict__ x, const int* __restrict__ weights,
                  const PatchRow* __restrict__ rows, int* __restrict__ y, const ConvGeometry g, int padded_k,
                  int padded_m, int x_zero_point, const int* __restrict__ w_zero_points,
                  const int* __restrict__ corrections) {
#endif
  __shared__ Shared<int> shared;
  __shared__ int column_sums[B_ROWS_AT_ONCE][TILE_N];
  const Column c = column_of(g);
  const unsigned char padding = static_cast<unsigned char>(x_zero_point ^ X_FLIP); /* as x stores it */
  int column_sum = 0;
  auto gather = [&](int k) {
    unsigned bytes = 0;
#pragma unroll
    for (int q = 0; q < 4; q++)
      bytes |= static_cast<unsigned>(patch(x, g, c, rows[4 * k + q], padding) ^ X_FLIP) << (8 * q);
    const int packed = static_cast<int>(bytes);
    column_sum = __dp4a(packed, 0x01010101, column_sum);
    return packed;
  };
  int sums[THREAD_M][THREAD_N] = {};
  product(shared, weights, padded_k, padded_m, c, gather, sums);

  column_sums[c.first_row][c.column] = column_sum;
  __syncthreads();
  unsigned x_sum = 0; /* unsigned, because its overflow is defined */
#pragma unroll
  for (int r = 0; r < B_ROWS_AT_ONCE; r++) x_sum += static_cast<unsigned>(column_sums[r][c.column]);
  write_out(shared, sums, g, c, [&](int channel, int index, int sum) {
    const unsigned total = static_cast<unsigned>(sum) + static_cast<unsigned>(corrections[channel]) -
                           static_cast<unsigned>(w_zero_points[channel]) * x_sum;
#ifdef Y_TYPE
    y[index] = requantize(static_cast<int>(total), multipliers[channel], y_zero_point);
#else
    y[index] = static_cast<int>(total);
#endif
  });
}
