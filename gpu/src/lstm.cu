/* One step of lstm, float32, gates i, o, f, c~ as ops/rnn.py defines them. See recurrent.cuh for the launch and the
 * layouts. The cell state is updated in place: each value has one thread. */
#include "recurrent.cuh"

extern "C" __global__ void __launch_bounds__(BLOCK, 2)
lstm_step(const Recurrence g, int step, int stride, const float* __restrict__ inputs, const float* __restrict__ weights,
          const Function* __restrict__ functions, const int* __restrict__ lengths, const float* __restrict__ peepholes,
          float* c, const float* __restrict__ h, float* __restrict__ new_h, float* __restrict__ y,
          float* __restrict__ kept) {
  __shared__ __align__(16) RecurrentShared shared;
  const int direction = blockIdx.z;
  recurrent_product(shared, g, h + static_cast<long long>(direction) * g.batch * g.hidden,
                    weights + static_cast<long long>(direction) * g.padded_hidden * stride + blockIdx.x * LANES, stride,
                    blockIdx.y * BATCH_TILE);
  const Function* f = functions + 3 * direction;
  for (int item = threadIdx.x; item < items(4); item += BLOCK) {
    const Place p = place_of<4>(g, lengths, step, direction * stride, item);
    if (!p.exists) continue;
    float value = 0.0f;
    const float* sums = &shared.sums[p.b][p.lane];
    const float* from = inputs + p.input; /* read while running */
    for (int gate = 0; kept && gate < 4; gate++) keep_sum<4>(g, p, gate, p.running ? from[gate] + sums[gate] : 0.0f, kept);
    if (p.running) {
      const float* peephole = peepholes ? peepholes + 3 * direction * g.hidden + p.unit : nullptr; /* i, o, f */
      const float old_cell = c[p.state];
      float in = from[0] + sums[0], out = from[1] + sums[1], forget = from[2] + sums[2];
      if (peephole) {
        in += peephole[0] * old_cell;
        forget += peephole[2 * g.hidden] * old_cell;
      }
      in = apply_clipped(f[0], in, g.clip);
      forget = g.input_forget ? 1.0f - in : apply_clipped(f[0], forget, g.clip);
      const float cell = forget * old_cell + in * apply_clipped(f[1], from[3] + sums[3], g.clip);
      if (peephole) out += peephole[g.hidden] * cell;
      value = apply_clipped(f[0], out, g.clip) * apply(f[2], cell);
      c[p.state] = cell;
    }
    write_state(p, value, h, new_h, y);
  }
}
