/* One step of a recurrent layer of leaky units with a sparse recurrent matrix, float32 (ops/sparse.py).
 *
 * A thread makes one unit of one sequence: it walks its compressed row and reads the state of the step before, which is the
 * part of y that the launch before wrote (or initial_h, null for zeros).
 */
#include "common.cuh"

extern "C" __global__ void sparse_step(const float* __restrict__ x, const float* __restrict__ values,
                                       const int* __restrict__ columns, const int* __restrict__ offsets,
                                       const float* __restrict__ initial_h, float* y, int step, int batch, int hidden,
                                       float leak, int function, float alpha, float beta) {
  const int unit = blockIdx.x * blockDim.x + threadIdx.x, n = blockIdx.y;
  if (unit >= hidden) return;
  const long long size = static_cast<long long>(batch) * hidden, row = static_cast<long long>(n) * hidden;
  const float* h = step ? y + (step - 1) * size + row : initial_h ? initial_h + row : nullptr;
  float sum = x[step * size + row + unit];
  if (h)
    for (int k = offsets[unit]; k < offsets[unit + 1]; k++) sum += values[k] * h[columns[k]];
  float made = qf_activation(function, alpha, beta, sum);
  /* without a leak the old state has no part, not even where it is infinite */
  if (leak != 1.0f) made = (1.0f - leak) * (h ? h[unit] : 0.0f) + leak * made;
  y[step * size + row + unit] = made;
}
