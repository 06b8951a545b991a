/* The inputs' part of a recurrent layer for all steps at once, float32: sums[row][column] = bias[column] + sum over k
 * of x[row][k] * weights[k][column], a row for each step and sequence, a column for each gate of each hidden unit.
 *
 * A block multiplies tiles from double-buffered shared memory as conv_gemm.cu does. x is (rows, depth); weights are
 * (padded_k, padded_columns) with zeros in the rounding, bias (padded_columns), sums (rows, padded_columns).
 * grid (row tiles, column tiles).
 */
#include "common.cuh"
#include "tile.cuh"

constexpr int A_GROUPS = THREADS / TILE_M;      /* threads that share a row of x */
constexpr int A_LOADS = TILE_K / A_GROUPS;      /* and the neighbouring values that each of them brings */
constexpr int B_VECTORS = TILE_K * TILE_N / 4 / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
input_product(const float* __restrict__ x, const float* __restrict__ weights, const float* __restrict__ bias,
              float* __restrict__ sums, int rows, int depth, int padded_k, int padded_columns) {
  __shared__ __align__(16) float a[2][TILE_K][TILE_M];
  __shared__ __align__(16) float b[2][TILE_K][TILE_N];
  const int thread = threadIdx.x;
  const int row0 = blockIdx.x * TILE_M, column0 = blockIdx.y * TILE_N;
  const int my_row = row0 + thread % TILE_M, first_k = thread / TILE_M * A_LOADS;
  const int limit = my_row < rows ? depth : 0;
  const float* from = x + static_cast<long long>(my_row) * depth;

  float next_a[A_LOADS], next_b[B_VECTORS][4];
  auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int k = k0 + first_k + i;
      next_a[i] = k < limit ? from[k] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < B_VECTORS; i++) {
      const int vector = thread + i * THREADS;
      const int k = k0 + vector / (TILE_N / 4), column = column0 + vector % (TILE_N / 4) * 4;
      load4(weights + static_cast<long long>(k) * padded_columns + column, next_b[i]);
    }
  };
  auto place_in = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) a[buffer][first_k + i][thread % TILE_M] = next_a[i];
#pragma unroll
    for (int i = 0; i < B_VECTORS; i++) {
      const int vector = thread + i * THREADS;
      store4(next_b[i], &b[buffer][vector / (TILE_N / 4)][vector % (TILE_N / 4) * 4]);
    }
  };

  float tile[THREAD_M][THREAD_N] = {};
  fetch(0);
  place_in(0);
  __syncthreads();
  int buffer = 0;
  for (int k0 = 0; k0 < padded_k; k0 += TILE_K, buffer ^= 1) {
    const bool more = k0 + TILE_K < padded_k;
    if (more) fetch(k0 + TILE_K);
    multiply_tile(a[buffer], b[buffer], tile);
    if (more) place_in(buffer ^ 1);
    __syncthreads();
  }

#pragma unroll
  for (int j = 0; j < THREAD_N; j += 4) {
    const int column = column0 + tile_column(j);
    float add[4];
    load4(bias + column, add);
#pragma unroll
    for (int i = 0; i < THREAD_M; i++) {
      const int row = row0 + tile_row(i);
      if (row >= rows) continue;
#pragma unroll
      for (int q = 0; q < 4; q++) tile[i][j + q] += add[q];
      store4(&tile[i][j], sums + static_cast<long long>(row) * padded_columns + column);
    }
  }
}
