/* One step of rnn, float32: h' = f(input product + R h). See recurrent.cuh for the launch and the layouts. */
#include "recurrent.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, 2)
rnn_step(const Recurrence g, int step, int stride, const float* __restrict__ inputs, const float* __restrict__ weights,
         const Function* __restrict__ functions, const int* __restrict__ lengths, const float* __restrict__ h,
         float* __restrict__ new_h, float* __restrict__ y, float* __restrict__ kept) {
  __shared__ __align__(16) RecurrentShared shared;
  const int direction = blockIdx.z;
  recurrent_product(shared, g, h + static_cast<long long>(direction) * g.batch * g.hidden,
                    weights + static_cast<long long>(direction) * g.padded_hidden * stride + blockIdx.x * LANES, stride,
                    blockIdx.y * BATCH_TILE);
  for (int item = threadIdx.x; item < items(1); item += BLOCK) {
    const Place p = place_of<1>(g, lengths, step, direction * stride, item);
    if (!p.exists) continue;
    float value = 0.0f;
    const float sum = p.running ? inputs[p.input] + shared.sums[p.b][p.lane] : 0.0f;
    keep_sum<1>(g, p, 0, sum, kept);
    if (p.running) value = apply_clipped(functions[direction], sum, g.clip);
    write_state(p, value, h, new_h, y);
  }
}
