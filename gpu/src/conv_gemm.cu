/* Convolution as an implicit matrix product, float32, NCHW (Chetlur et al., cuDNN: Efficient Primitives, 2014).
 *
 * For each group, sums[m][pixel] = sum over k of weights[k][m] * patches[k][pixel], k running over input channels and
 * taps. The patches are never written out: each block gathers a TILE_K x TILE_N piece of them straight into shared
 * memory. Where row k of the patches lies comes from a table of PatchRow made once on the host, so that no division
 * stands in the loop. While a tile is multiplied the next one is already on its way into registers, and shared memory
 * is double, so that one barrier a tile suffices. The sums leave through shared memory too, so that each thread ends
 * with values of one pixel column, neighbours write neighbouring pixels, and the activation is compiled once or twice
 * instead of once a sum.
 *
 * grid (pixel tiles, channel tiles, groups). weights: (groups, K rounded up to TILE_K, M rounded up to TILE_M), zeros
 * in the rounding. Offsets have 32 bits: accepts() in conv.py rejects larger arrays.
 */
#include "common.cuh"
#include "tile.cuh"

/* A row of the patches: input channel and tap, as an offset in the image and as steps on each axis. */
struct PatchRow {
  int offset, depth, height, width;
};

constexpr int A_VECTORS = TILE_K * TILE_M / 4;                   /* float4s of a weight tile */
constexpr int A_LOADS = (A_VECTORS + THREADS - 1) / THREADS;     /* and how many of them a thread brings */
constexpr int B_ROWS_AT_ONCE = THREADS / TILE_N;                 /* rows of patches that the block brings in one go */
constexpr int B_LOADS = TILE_K / B_ROWS_AT_ONCE;

constexpr int STAGE_ROWS = 4 * THREADS_M; /* channels that leave in one pass: one group of 4 of each thread's rows */

union __align__(16) Shared {
  struct {
    float a[2][TILE_K][TILE_M], b[2][TILE_K][TILE_N];
  } product;
  float stage[STAGE_ROWS][TILE_N];
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv_gemm(const float* __restrict__ x, const float* __restrict__ weights, const PatchRow* __restrict__ rows,
          float* __restrict__ y, const ConvGeometry g, int padded_k, int padded_m, const float* __restrict__ bias,
          const float* __restrict__ residual, int activation, float alpha, float beta) {
  __shared__ Shared shared;
  auto& a = shared.product.a;
  auto& b = shared.product.b;
  const int thread = threadIdx.x;
  const int group = blockIdx.z;
  const int m0 = blockIdx.y * TILE_M;
  const int width = g.output[2], plane = width * g.output[1], volume = plane * g.output[0];
  const int pixels = g.batch * volume;
  const int in_volume = g.input[0] * g.input[1] * g.input[2];
  const float* weight_tile = weights + static_cast<long long>(group) * padded_k * padded_m + m0;

  /* the one column of patches that this thread gathers */
  const int column = thread % TILE_N, first_row = thread / TILE_N;
  const int my_pixel = blockIdx.x * TILE_N + column;
  const bool inside = my_pixel < pixels;
  const int image = my_pixel / volume, place = my_pixel % volume;
  const int d0 = inside ? place / plane * g.stride[0] - g.pad[0] : g.input[0];
  const int h0 = place % plane / width * g.stride[1] - g.pad[1];
  const int w0 = place % width * g.stride[2] - g.pad[2];
  const int origin = (image * g.groups + group) * g.in_per_group * in_volume + (d0 * g.input[1] + h0) * g.input[2] + w0;

  float next_a[A_LOADS][4], next_b[B_LOADS];
  auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) {
      const PatchRow row = rows[k0 + first_row + i * B_ROWS_AT_ONCE];
      const bool valid = static_cast<unsigned>(d0 + row.depth) < static_cast<unsigned>(g.input[0]) &&
                         static_cast<unsigned>(h0 + row.height) < static_cast<unsigned>(g.input[1]) &&
                         static_cast<unsigned>(w0 + row.width) < static_cast<unsigned>(g.input[2]);
      next_b[i] = valid ? x[origin + row.offset] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int vector = thread + i * THREADS;
      if (vector < A_VECTORS)
        load4(weight_tile + (k0 + vector / (TILE_M / 4)) * padded_m + vector % (TILE_M / 4) * 4, next_a[i]);
    }
  };
  auto place_in = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int vector = thread + i * THREADS;
      if (vector < A_VECTORS) store4(next_a[i], &a[buffer][vector / (TILE_M / 4)][vector % (TILE_M / 4) * 4]);
    }
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) b[buffer][first_row + i * B_ROWS_AT_ONCE][column] = next_b[i];
  };

  float sums[THREAD_M][THREAD_N] = {};
  fetch(0);
  place_in(0);
  __syncthreads();
  int buffer = 0;
  for (int k0 = 0; k0 < padded_k; k0 += TILE_K, buffer ^= 1) {
    const bool more = k0 + TILE_K < padded_k;
    if (more) fetch(k0 + TILE_K);
    multiply_tile(a[buffer], b[buffer], sums);
    if (more) place_in(buffer ^ 1);
    __syncthreads();
  }

  const int out = image * g.groups * g.out_per_group * volume + place;
#pragma unroll
  for (int pass = 0; pass < THREAD_M / 4; pass++) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < THREAD_N; j += 4)
        store4(&sums[4 * pass + i][j], &shared.stage[tile_row(i)][tile_column(j)]);
    __syncthreads();
    if (inside) {
#pragma unroll 1
      for (int r = first_row; r < STAGE_ROWS; r += B_ROWS_AT_ONCE) {
        const int m = m0 + pass * STAGE_ROWS + r;
        if (m >= g.out_per_group) break;
        const int channel = group * g.out_per_group + m;
        const int index = out + channel * volume;
        y[index] = finish({bias, residual, activation, alpha, beta}, shared.stage[r][column], channel, index);
      }
    }
    __syncthreads();
  }
}
