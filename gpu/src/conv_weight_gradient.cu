/* The gradient of a convolution's weight, float32, NCHW:
 *
 *     dw[m, c, k] = sum over n, o of dy[n, m, o] * x[n, c, o * stride + k * dilation - pad]
 *
 * conv_weight_gradient_product: for each group a matrix product over pixels, sums[m][row] = sum of dy[m][pixel] *
 * patches[row][pixel], row being an input channel and tap; the patches are gathered straight into shared memory (as in
 * implicit_gemm.cuh, Chetlur et al. 2014), with neighbouring threads on neighbouring pixels. Pixels are cut into splits,
 * so that small weights keep the whole GPU busy and no sum grows long; each split writes sums of its own, and nothing
 * is added in an order that changes from run to run. grid (row tiles, channel tiles, groups * splits).
 *
 * conv_weight_gradient_finish: adds the splits. Padding was read as zeros, of which an infinite dy makes NaN, so a sum that
 * is not finite is computed anew by the definition.
 *
 * conv_weight_gradient_direct: the definition, a thread for each value, 64-bit indices.
 */
#include "common.cuh"

QF_FUNCTION float by_definition(const float* __restrict__ x, const float* __restrict__ dy, const ConvGeometry& g,
                                long long index) {
  const long long taps = static_cast<long long>(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const int tap = static_cast<int>(index % taps), c = static_cast<int>(index / taps % g.in_per_group);
  const int m = static_cast<int>(index / taps / g.in_per_group), group = m / g.out_per_group;
  const int at[3] = {tap / g.kernel[2] / g.kernel[1], tap / g.kernel[2] % g.kernel[1], tap % g.kernel[2]};
  long long offset[3];
  int first[3], last[3];
#pragma unroll
  for (int axis = 0; axis < 3; axis++) {
    offset[axis] = static_cast<long long>(at[axis]) * g.dilation[axis] - g.pad[axis];
    const TapRange inside = taps_inside(offset[axis], g.output[axis], g.stride[axis], g.input[axis]);
    first[axis] = inside.first, last[axis] = inside.last;
  }
  const long long in_volume = static_cast<long long>(g.input[0]) * g.input[1] * g.input[2];
  const long long out_volume = static_cast<long long>(g.output[0]) * g.output[1] * g.output[2];
  double total = 0.0;
  for (long long n = 0; n < g.batch; n++) {
    const float* from = x + ((n * g.groups + group) * g.in_per_group + c) * in_volume;
    const float* with = dy + (n * g.groups * g.out_per_group + m) * out_volume;
    for (int d = first[0]; d < last[0]; d++)
      for (int h = first[1]; h < last[1]; h++) {
        const long long line = (static_cast<long long>(d) * g.stride[0] + offset[0]) * g.input[1] +
                               static_cast<long long>(h) * g.stride[1] + offset[1];
        const float* row = from + line * g.input[2] + offset[2];
        const float* dy_row = with + (static_cast<long long>(d) * g.output[1] + h) * g.output[2];
        float sum = 0.0f;
        for (int w = first[2]; w < last[2]; w++) sum += dy_row[w] * row[static_cast<long long>(w) * g.stride[2]];
        total += sum;
      }
  }
  return static_cast<float>(total);
}

extern "C" __global__ void __launch_bounds__(256)
conv_weight_gradient_finish(const float* __restrict__ sums, const float* __restrict__ x, const float* __restrict__ dy,
                            float* __restrict__ dw, const ConvGeometry g, long long count, int splits) {
  const long long index = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= count) return;
  float total = 0.0f;
  for (int split = 0; split < splits; split++) total += sums[split * count + index];
  dw[index] = splits && total - total == 0.0f ? total : by_definition(x, dy, g, index);
}

#ifdef TILE_M
#include "tile.cuh"

/* An input channel and tap, as an offset in the image and as steps on each axis (struct PatchRow of implicit_gemm.cuh). */
struct PatchRow {
  int offset, depth, height, width;
};

constexpr int ROWS_AT_ONCE = THREADS / TILE_K; /* of dy or of the patches, that the block brings in one go */
constexpr int A_LOADS = TILE_M / ROWS_AT_ONCE, B_LOADS = TILE_N / ROWS_AT_ONCE;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv_weight_gradient_product(const float* __restrict__ x, const float* __restrict__ dy,
                             const PatchRow* __restrict__ rows, float* __restrict__ sums, const ConvGeometry g,
                             int row_count, int splits, int pixels_each) {
  __shared__ __align__(16) float a[TILE_K][TILE_M];
  __shared__ __align__(16) float b[TILE_K][TILE_N];
  const int group = blockIdx.z / splits, split = blockIdx.z % splits;
  const int width = g.output[2], plane = width * g.output[1], volume = plane * g.output[0];
  const int in_volume = g.input[0] * g.input[1] * g.input[2];
  const int pixels = g.batch * volume, first = split * pixels_each;
  const int last = first + pixels_each < pixels ? first + pixels_each : pixels;
  const int lane = threadIdx.x % TILE_K, mine = threadIdx.x / TILE_K;
  const int m0 = blockIdx.y * TILE_M, row0 = blockIdx.x * TILE_N;

  float next_a[A_LOADS], next_b[B_LOADS];
  auto fetch = [&](int pixel) {
    const bool inside = pixel < last;
    const int image = pixel / volume, place = pixel % volume;
    const int d0 = inside ? place / plane * g.stride[0] - g.pad[0] : g.input[0]; /* beyond x: zeros */
    const int h0 = place % plane / width * g.stride[1] - g.pad[1], w0 = place % width * g.stride[2] - g.pad[2];
    const int channel = (image * g.groups + group) * g.out_per_group;
    const int origin = (image * g.groups + group) * g.in_per_group * in_volume + (d0 * g.input[1] + h0) * g.input[2] + w0;
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) {
      const int m = m0 + mine + i * ROWS_AT_ONCE;
      next_a[i] = inside && m < g.out_per_group ? dy[(channel + m) * volume + place] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) {
      const int r = row0 + mine + i * ROWS_AT_ONCE;
      next_b[i] = 0.0f;
      if (r < row_count) {
        const PatchRow row = rows[r];
        const bool valid = static_cast<unsigned>(d0 + row.depth) < static_cast<unsigned>(g.input[0]) &&
                           static_cast<unsigned>(h0 + row.height) < static_cast<unsigned>(g.input[1]) &&
                           static_cast<unsigned>(w0 + row.width) < static_cast<unsigned>(g.input[2]);
        if (valid) next_b[i] = x[origin + row.offset];
      }
    }
  };

  float tile[THREAD_M][THREAD_N] = {};
  fetch(first + lane);
  for (int pixel = first; pixel < last; pixel += TILE_K) {
#pragma unroll
    for (int i = 0; i < A_LOADS; i++) a[lane][mine + i * ROWS_AT_ONCE] = next_a[i];
#pragma unroll
    for (int i = 0; i < B_LOADS; i++) b[lane][mine + i * ROWS_AT_ONCE] = next_b[i];
    __syncthreads();
    if (pixel + TILE_K < last) fetch(pixel + TILE_K + lane);
    multiply_tile(a, b, tile);
    __syncthreads();
  }

  const long long base = (static_cast<long long>(split) * g.groups + group) * g.out_per_group * row_count;
#pragma unroll
  for (int i = 0; i < THREAD_M; i++) {
    const int m = m0 + tile_row(i);
    if (m >= g.out_per_group) continue;
#pragma unroll
    for (int j = 0; j < THREAD_N; j++) {
      const int r = row0 + tile_column(j);
      if (r < row_count) sums[base + static_cast<long long>(m) * row_count + r] = tile[i][j];
    }
  }
}
#endif
