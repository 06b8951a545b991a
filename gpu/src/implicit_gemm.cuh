/* Convolution as an implicit matrix product, NCHW (Chetlur et al., cuDNN: Efficient Primitives, 2014).
 *
 * For each group, sums[m][pixel] = sum over k of weights[k][m] * patches[k][pixel], k running over input channels and
 * taps. The patches are never written out: each block gathers a TILE_K x TILE_N piece of them straight into shared
 * memory. Where row k of the patches lies comes from a table of PatchRow made once on the host, so that no division
 * stands in the loop. While a tile is multiplied the next one is already on its way into registers, and shared memory
 * is double, so that one barrier a tile suffices. The sums leave through shared memory too, so that each thread ends
 * with values of one pixel column, neighbours write neighbouring pixels, and what is done to a sum in the end is
 * compiled once or twice instead of once a sum.
 *
 * grid (pixel tiles, channel tiles, groups). weights: (groups, K rounded up to TILE_K, M rounded up to TILE_M), zeros
 * in the rounding. Offsets have 32 bits: conv.py rejects larger arrays.
 */
#pragma once
#include "common.cuh"
#include "tile.cuh"

/* A row of the patches: input channel and tap, as an offset in the image and as steps on each axis. */
struct PatchRow {
  int offset, depth, height, width;
};

constexpr int A_VECTORS = TILE_K * TILE_M / 4;               /* vectors of 4 in a weight tile */
constexpr int A_LOADS = (A_VECTORS + THREADS - 1) / THREADS; /* and how many of them a thread brings */
constexpr int B_ROWS_AT_ONCE = THREADS / TILE_N;             /* rows of patches that the block brings in one go */
constexpr int B_LOADS = TILE_K / B_ROWS_AT_ONCE;
constexpr int STAGE_ROWS = 4 * THREADS_M; /* channels that leave in one pass: one group of 4 of each thread's rows */

template <class Value>
union __align__(16) Shared {
  struct {
    Value a[2][TILE_K][TILE_M], b[2][TILE_K][TILE_N];
  } product;
  Value stage[STAGE_ROWS][TILE_N];
};

/* The one column of the tile that a thread gathers, and later finishes. */
struct Column {
  int column, first_row; /* in the tile; it gathers rows first_row, first_row + B_ROWS_AT_ONCE, … */
  bool inside;           /* whether there is such a pixel */
  int out;               /* index in y of the pixel's first channel */
  int origin, d0, h0, w0; /* where its window begins in x, as an index and on each axis */
};

QF_FUNCTION int output_volume(const ConvGeometry& g) { return g.output[0] * g.output[1] * g.output[2]; }

QF_FUNCTION Column column_of(const ConvGeometry& g) {
  const int width = g.output[2], plane = width * g.output[1], volume = output_volume(g);
  const int in_volume = g.input[0] * g.input[1] * g.input[2];
  Column c;
  c.column = threadIdx.x % TILE_N;
  c.first_row = threadIdx.x / TILE_N;
  const int pixel = blockIdx.x * TILE_N + c.column;
  const int image = pixel / volume, place = pixel % volume;
  c.inside = pixel < g.batch * volume;
  c.out = image * g.groups * g.out_per_group * volume + place;
  c.d0 = c.inside ? place / plane * g.stride[0] - g.pad[0] : g.input[0]; /* beyond x: only padding is gathered */
  c.h0 = place % plane / width * g.stride[1] - g.pad[1];
  c.w0 = place % width * g.stride[2] - g.pad[2];
  const int first_channel = (image * g.groups + static_cast<int>(blockIdx.z)) * g.in_per_group;
  c.origin = first_channel * in_volume + (c.d0 * g.input[1] + c.h0) * g.input[2] + c.w0;
  return c;
}

/* x at a row of the column's patch, or ``padding`` outside x. */
template <class Element>
QF_FUNCTION Element patch(const Element* __restrict__ x, const ConvGeometry& g, const Column& c, const PatchRow& row,
                          Element padding) {
  const bool valid = static_cast<unsigned>(c.d0 + row.depth) < static_cast<unsigned>(g.input[0]) &&
                     static_cast<unsigned>(c.h0 + row.height) < static_cast<unsigned>(g.input[1]) &&
                     static_cast<unsigned>(c.w0 + row.width) < static_cast<unsigned>(g.input[2]);
  return valid ? x[c.origin + row.offset] : padding;
}

/* The block's tile of sums. ``gather(k)`` is row k of the patches in this thread's column; it is called once a row. */
template <class Value, class Gather>
QF_FUNCTION void product(Shared<Value>& shared, const Value* __restrict__ weights, int padded_k, int padded_m,
                         const Column& c, Gather gather, Value (&sums)[THREAD_M][THREAD_N]) {
  auto& a = shared.product.a;
  auto& b = shared.product.b;
  const int thread = threadIdx.x;
  const Value* tile = weights + static_cast<long long>(blockIdx.z) * padded_k * padded_m + blockIdx.y * TILE_M;
  Value next_a[A_LOADS][4], next_b[B_LOADS];
  auto fetch = [&](int k0) {
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) next_b[i] = gather(k0 + c.first_row + i * B_ROWS_AT_ONCE);
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int vector = thread + i * THREADS;
      if (vector < A_VECTORS)
        load4(tile + (k0 + vector / (TILE_M / 4)) * padded_m + vector % (TILE_M / 4) * 4, next_a[i]);
    }
  };
  auto place_in = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int vector = thread + i * THREADS;
      if (vector < A_VECTORS) store4(next_a[i], &a[buffer][vector / (TILE_M / 4)][vector % (TILE_M / 4) * 4]);
    }
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) b[buffer][c.first_row + i * B_ROWS_AT_ONCE][c.column] = next_b[i];
  };

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
}

/* Hands each sum that is an output to ``write(channel, index, sum)``, by the thread that owns its pixel column. */
template <class Value, class Write>
QF_FUNCTION void write_out(Shared<Value>& shared, const Value (&sums)[THREAD_M][THREAD_N], const ConvGeometry& g,
                           const Column& c, Write write) {
#pragma unroll
  for (int pass = 0; pass < THREAD_M / 4; pass++) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < THREAD_N; j += 4)
        store4(&sums[4 * pass + i][j], &shared.stage[tile_row(i)][tile_column(j)]);
    __syncthreads();
    if (c.inside) {
#pragma unroll 1
      for (int r = c.first_row; r < STAGE_ROWS; r += B_ROWS_AT_ONCE) {
        const int m = blockIdx.y * TILE_M + pass * STAGE_ROWS + r;
        if (m >= g.out_per_group) break;
        const int channel = blockIdx.z * g.out_per_group + m;
        write(channel, c.out + channel * output_volume(g), shared.stage[r][c.column]);
      }
    }
    __syncthreads();
  }
}
