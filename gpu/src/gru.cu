/* One step of gru, float32, gates z, r, h~ as ops/rnn.py defines them. See recurrent.cuh for the launch and the
 * layouts.
 *
 * With linear_before_reset all three gates need h alone, and gru_step is one launch. Without it the candidate needs
 * R (r h), r of all units, so that gru_gates and then gru_candidate are launched.
 */
#include "recurrent.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, 2)
gru_step(const Recurrence g, int step, int stride, const float* __restrict__ inputs, const float* __restrict__ weights,
         const Function* __restrict__ functions, const int* __restrict__ lengths,
         const float* __restrict__ candidate_bias, const float* __restrict__ h, float* __restrict__ new_h,
         float* __restrict__ y, float* __restrict__ kept) {
  __shared__ __align__(16) RecurrentShared shared;
  const int direction = blockIdx.z;
  recurrent_product(shared, g, h + static_cast<long long>(direction) * g.batch * g.hidden,
                    weights + static_cast<long long>(direction) * g.padded_hidden * stride + blockIdx.x * LANES, stride,
                    blockIdx.y * BATCH_TILE);
  const Function* f = functions + 2 * direction;
  for (int item = threadIdx.x; item < items(3); item += BLOCK) {
    const Place p = place_of<3>(g, lengths, step, direction * stride, item);
    if (!p.exists) continue;
    float value = 0.0f;
    const float* sums = &shared.sums[p.b][p.lane];
    const float* from = inputs + p.input; /* read while running */
    const float inner = sums[2] + candidate_bias[direction * g.hidden + p.unit];
    for (int gate = 0; kept && gate < 2; gate++) keep_sum<4>(g, p, gate, p.running ? from[gate] + sums[gate] : 0.0f, kept);
    keep_sum<4>(g, p, 2, p.running ? from[2] : 0.0f, kept);
    keep_sum<4>(g, p, 3, inner, kept);
    if (p.running) {
      const float update = apply_clipped(f[0], from[0] + sums[0], g.clip);
      const float reset = apply_clipped(f[0], from[1] + sums[1], g.clip);
      const float candidate = apply_clipped(f[1], from[2] + reset * inner, g.clip);
      value = (1.0f - update) * candidate + update * h[p.state];
    }
    write_state(p, value, h, new_h, y);
  }
}

/* z and r h of running sequences, for gru_candidate. */
extern "C" __global__ void __launch_bounds__(BLOCK, 2)
gru_gates(const Recurrence g, int step, int stride, int direction_columns, const float* __restrict__ inputs,
          const float* __restrict__ weights, const Function* __restrict__ functions, const int* __restrict__ lengths,
          const float* __restrict__ h, float* __restrict__ updates, float* __restrict__ reset_h, float* __restrict__ kept) {
  __shared__ __align__(16) RecurrentShared shared;
  const int direction = blockIdx.z;
  recurrent_product(shared, g, h + static_cast<long long>(direction) * g.batch * g.hidden,
                    weights + static_cast<long long>(direction) * g.padded_hidden * stride + blockIdx.x * LANES, stride,
                    blockIdx.y * BATCH_TILE);
  const Function function = functions[2 * direction];
  for (int item = threadIdx.x; item < 2 * items(2); item += BLOCK) { /* a thread for each of a unit's two gates */
    const Place p = place_of<2>(g, lengths, step, direction * direction_columns, item / 2);
    if (!p.exists) continue;
    const int gate = item % 2;
    float value = 0.0f;
    const float sum = p.running ? inputs[p.input + gate] + shared.sums[p.b][p.lane + gate] : 0.0f;
    keep_sum<3>(g, p, gate, sum, kept);
    if (p.running) value = apply_clipped(function, sum, g.clip);
    if (gate == 0)
      updates[p.state] = value;
    else
      reset_h[p.state] = value * h[p.state];
  }
}

extern "C" __global__ void __launch_bounds__(BLOCK, 2)
gru_candidate(const Recurrence g, int step, int stride, int direction_columns, const float* __restrict__ inputs,
              const float* __restrict__ weights, const Function* __restrict__ functions,
              const int* __restrict__ lengths, const float* __restrict__ updates, const float* __restrict__ reset_h,
              const float* __restrict__ h, float* __restrict__ new_h, float* __restrict__ y,
              float* __restrict__ kept) {
  __shared__ __align__(16) RecurrentShared shared;
  const int direction = blockIdx.z;
  recurrent_product(shared, g, reset_h + static_cast<long long>(direction) * g.batch * g.hidden,
                    weights + static_cast<long long>(direction) * g.padded_hidden * stride + blockIdx.x * LANES, stride,
                    blockIdx.y * BATCH_TILE);
  const int first_column = direction * direction_columns + direction_columns - stride; /* behind z and r */
  for (int item = threadIdx.x; item < items(1); item += BLOCK) {
    const Place p = place_of<1>(g, lengths, step, first_column, item);
    if (!p.exists) continue;
    float value = 0.0f;
    const float sum = p.running ? inputs[p.input] + shared.sums[p.b][p.lane] : 0.0f;
    keep_sum<3>(g, p, 2, sum, kept);
    if (p.running) {
      const float candidate = apply_clipped(functions[2 * direction + 1], sum, g.clip);
      const float update = updates[p.state];
      value = (1.0f - update) * candidate + update * h[p.state];
    }
    write_state(p, value, h, new_h, y);
  }
}
