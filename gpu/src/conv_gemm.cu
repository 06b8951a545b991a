/* Convolution as an implicit matrix product, float32; see implicit_gemm.cuh. */
#include "implicit_gemm.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 2)
conv_gemm(const float* __restrict__ x, const float* __restrict__ weights, const PatchRow* __restrict__ rows,
          float* __restrict__ y, const ConvGeometry g, int padded_k, int padded_m, const float* __restrict__ bias,
          const float* __restrict__ residual, int activation, float alpha, float beta) {
  __shared__ Shared<float> shared;
  const Column c = column_of(g);
  float sums[THREAD_M][THREAD_N] = {};
  product(shared, weights, padded_k, padded_m, c, [&](int k) { return patch(x, g, c, rows[k], 0.0f); }, sums);
  const Epilogue epilogue = {bias, residual, activation, alpha, beta};
  write_out(shared, sums, g, c, [&](int channel, int index, float sum) {
    y[index] = finish(epilogue, sum, channel, index);
  });
}
