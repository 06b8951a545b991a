/* The gradient of a convolution's bias, float32, NCHW: db[m] = sum over n and places of dy[n, m, place]. One block a channel;
 * its threads walk the planes side by side and add up their sums in a tree, in the same order in every run. grid (channels). */
#include "common.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
conv_bias_gradient(const float* __restrict__ dy, float* __restrict__ db, int batch, int channels, long long volume) {
  __shared__ float sums[THREADS];
  const int thread = threadIdx.x;
  float total = 0.0f;
  for (int n = 0; n < batch; n++) {
    const float* plane = dy + (static_cast<long long>(n) * channels + blockIdx.x) * volume;
    float sum = 0.0f;
    for (long long i = thread; i < volume; i += THREADS) sum += plane[i];
    total += sum;
  }
  sums[thread] = total;
  for (int half = THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) db[blockIdx.x] = sums[0];
}
