/* What the steps of rnn, lstm and gru share.
 *
 * One launch computes one step of every direction: grid (hidden units / UNITS, batch / BATCH_TILE, directions), 256
 * threads. A block owns UNITS hidden units of BATCH_TILE sequences. Its 32 lanes are the units' gates, its 8 warps
 * split the sum over the previous state; the parts meet in shared memory. The step's weights are read once for each
 * tile of the batch, in rows of 128 bytes, and stay in the second-level cache from step to step.
 *
 * Matrices of gates are packed in blocks of 32 columns: column = unit / UNITS * 32 + unit % UNITS * GATES + gate, so
 * that a block's columns lie side by side; columns that are left over are zero.
 *
 * The grid of a step is small, so that occupancy is not what hides latency: __launch_bounds__(BLOCK, 2) leaves each
 * thread the registers to keep several loads of weights in flight.
 *
 * Macro: BATCH_TILE.
 */
#pragma once
#include "common.cuh"

constexpr int LANES = 32;
constexpr int SLICES = 8;
constexpr int CHUNK = 256; /* values of the previous state in shared memory at a time */
constexpr int SLICE = CHUNK / SLICES;
constexpr int BLOCK = LANES * SLICES;

struct Recurrence {
  int steps, batch, hidden;
  int padded_hidden;  /* rows of the packed recurrent weights: hidden rounded up to 4 */
  int row;            /* columns of the input product, all directions */
  int reverse[2];     /* for each direction, whether it runs backwards */
  int input_forget;
  float clip;
};

struct Function {
  int code;
  float alpha, beta;
};

QF_FUNCTION float apply(const Function& function, float value) {
  return qf_activation(function.code, function.alpha, function.beta, value);
}

QF_FUNCTION float apply_clipped(const Function& function, float value, float clip) {
  return apply(function, qf_clip(value, -clip, clip));
}

struct RecurrentShared {
  float state[BATCH_TILE][CHUNK];
  float parts[SLICES][BATCH_TILE][LANES];
  float sums[BATCH_TILE][LANES];
};

/* How many units a block finishes whose lanes hold this many gates of a unit. */
QF_FUNCTION constexpr int items(int gates) { return BATCH_TILE * (LANES / gates); }

/* shared.sums[b][lane] = sum over k of state[n0 + b][k] * weights[k][lane], for all threads to read. ``state`` is
 * (batch, hidden), ``weights`` points at this block's 32 columns of a matrix of ``stride`` columns. */
QF_FUNCTION void recurrent_product(RecurrentShared& shared, const Recurrence& g, const float* __restrict__ state,
                                   const float* __restrict__ weights, int stride, int n0) {
  const int thread = threadIdx.x, lane = thread % LANES, slice = thread / LANES;
  float sums[BATCH_TILE] = {};
  for (int k0 = 0; k0 < g.hidden; k0 += CHUNK) {
    for (int i = thread; i < BATCH_TILE * CHUNK; i += BLOCK) {
      const int n = n0 + i / CHUNK, k = k0 + i % CHUNK;
      shared.state[i / CHUNK][i % CHUNK] =
          n < g.batch && k < g.hidden ? state[static_cast<long long>(n) * g.hidden + k] : 0.0f;
    }
    __syncthreads();
    for (int k = slice * SLICE; k < (slice + 1) * SLICE && k0 + k < g.padded_hidden; k += 4) {
      const float* from = weights + static_cast<long long>(k0 + k) * stride + lane;
      float w[4];
#pragma unroll
      for (int q = 0; q < 4; q++) w[q] = from[static_cast<long long>(q) * stride];
#pragma unroll
      for (int b = 0; b < BATCH_TILE; b++) {
        const float4 h = *reinterpret_cast<const float4*>(&shared.state[b][k]);
        sums[b] += h.x * w[0] + h.y * w[1] + h.z * w[2] + h.w * w[3];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int b = 0; b < BATCH_TILE; b++) shared.parts[slice][b][lane] = sums[b];
  __syncthreads();
  for (int i = thread; i < BATCH_TILE * LANES; i += BLOCK) {
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < SLICES; s++) sum += shared.parts[s][i / LANES][i % LANES];
    shared.sums[i / LANES][i % LANES] = sum;
  }
  __syncthreads();
}

/* A hidden unit of one sequence, which one thread finishes after the product. */
struct Place {
  bool exists;       /* false beyond the last unit or sequence */
  bool running;      /* whether the sequence is still running at this step */
  int b, lane;       /* where its gates are in shared.sums */
  int n, unit;
  long long state;   /* its index in (directions, batch, hidden) */
  long long input;   /* the index of its first gate in the input product; valid while running */
  long long output;  /* its index in y (steps, directions, batch, hidden) */
};

/* The block's ``item``-th unit, 0 to BATCH_TILE * UNITS - 1. ``first_column`` is where this direction's gates of this
 * kernel begin in the input product. */
template <int GATES>
QF_FUNCTION Place place_of(const Recurrence& g, const int* __restrict__ lengths, int step, int first_column, int item) {
  constexpr int UNITS = LANES / GATES;
  Place p = {};
  p.b = item / UNITS;
  p.lane = item % UNITS * GATES;
  p.n = blockIdx.y * BATCH_TILE + p.b;
  p.unit = blockIdx.x * UNITS + item % UNITS;
  p.exists = p.n < g.batch && p.unit < g.hidden;
  if (!p.exists) return p;
  const int direction = blockIdx.z, length = lengths ? lengths[p.n] : g.steps;
  p.running = step < length;
  const long long t = p.running && g.reverse[direction] ? length - 1 - step : step;
  p.state = (static_cast<long long>(direction) * g.batch + p.n) * g.hidden + p.unit;
  p.input = (t * g.batch + p.n) * g.row + first_column + blockIdx.x * LANES + p.lane;
  p.output = ((t * gridDim.z + direction) * g.batch + p.n) * g.hidden + p.unit;
  return p;
}

/* The new state of a running sequence, the old one and y = 0 of a finished one. */
QF_FUNCTION void write_state(const Place& p, float value, const float* __restrict__ old_state,
                             float* __restrict__ new_state, float* __restrict__ y) {
  new_state[p.state] = p.running ? value : old_state[p.state];
  y[p.output] = p.running ? value : 0.0f;
}

/* Of a training form, the sum that a gate's function takes, in slot ``slot`` of a unit's SLOTS; 0 of a finished sequence.
 * ``kept`` is (steps, directions, batch, SLOTS * hidden), or null. */
template <int SLOTS>
QF_FUNCTION void keep_sum(const Recurrence& g, const Place& p, int slot, float sum, float* __restrict__ kept) {
  if (kept) kept[(p.output - p.unit) * SLOTS + static_cast<long long>(slot) * g.hidden + p.unit] = p.running ? sum : 0.0f;
}
