/* Recurrent layers in fixed point, all steps in one launch: a block computes one sequence in one direction.
 *
 * Its threads share the gates; the state and the sums of a step lie in the block's part of ``scratch`` (in the
 * first-level cache unless the layer is large), and a barrier stands between what the threads write and read. Weights
 * come transposed in 32 bits, so that neighbours read neighbouring gates. Functions are looked up in tables of the
 * accumulator's format.
 *
 *   x [T][N][I], w [D][I][GATES H], r [D][H][GATES H], starts [D][2][GATES H] (bias of w, then of r, of the
 *   accumulator), lengths [N] or null, initial_h and initial_c [D][N][H] or null, tables [2][size] (sigmoid, tanh),
 *   codes [D][3] of f, g, h, scratch [N][D][SCRATCH H], y [T][D][N][H], y_h and y_c [D][N][H]
 *
 * Macros: X_TYPE, Y_TYPE; GATES, 1 (rnn), 4 (lstm) or 3 (gru); SUM, see fixed_sum.cuh.
 */
#include "fixed_sum.cuh"

/* Declared in fixed.py as RECURRENCE. */
struct Recurrence {
  int steps, batch, inputs, hidden;
  int reverse[2], linear_before_reset;
  int drop_x, drop_h;           /* how many more fraction bits x w and h r have than the accumulator */
  int fraction, state_fraction; /* fraction bits of the accumulator and of y */
  int table_size, bits[2];      /* of the tables: qf_table_index's bits for a value of the accumulator */
};

enum { SIGMOID = 0, TANH = 1, RELU = 2 }; /* places in ops/fixed.py's FUNCTIONS */

/* A function of a value with ``finer`` more fraction bits than the accumulator, as an integer of the accumulator. */
QF_FUNCTION long long apply(int code, long long value, int finer, const long long* __restrict__ tables,
                            const Recurrence& g, const Formats& f) {
  if (code == RELU) return qf_cast(value < 0 ? 0 : value, finer, f.accumulator);
  const int bits = (code == SIGMOID ? g.bits[0] : g.bits[1]) + finer;
  return tables[code * g.table_size + qf_table_index(value, bits, g.table_size)];
}

/* a b + state gate, exact, as a state; a, b and gate are the accumulator's. */
QF_FUNCTION long long blend(long long a, long long b, long long state, long long gate, const Recurrence& g,
                            const Formats& f) {
  const int wide = g.fraction > g.state_fraction ? g.fraction : g.state_fraction;
  const long long total = qf_shifted(a * b, wide - g.fraction) + qf_shifted(state * gate, wide - g.state_fraction);
  return qf_cast(total, wide + g.fraction - g.state_fraction, f.y);
}

/* Column ``column`` of start + values times a matrix whose rows are ``width`` long. */
template <class Value>
QF_FUNCTION long long dense(const Value* values, int count, const int* __restrict__ matrix, int width, int column,
                            const long long* __restrict__ starts, int drop, const Formats& f) {
  Sum sum = opened(starts[column]);
  for (int first = 0; first < f.reuse; first++)
    for (int k = first; k < count; k += f.reuse)
      sum = added(sum, static_cast<int>(values[k]), matrix[static_cast<long long>(k) * width + column], drop, f);
  return settled(sum, starts[column], drop, f);
}

extern "C" __global__ void __launch_bounds__(256, 2)
fixed_recurrent(const X_TYPE* __restrict__ x, const int* __restrict__ w, const int* __restrict__ r,
                const long long* __restrict__ starts, const int* __restrict__ lengths,
                const Y_TYPE* __restrict__ initial_h, const Y_TYPE* __restrict__ initial_c,
                const long long* __restrict__ tables, const int* __restrict__ codes, long long* scratch,
                Y_TYPE* __restrict__ y, Y_TYPE* __restrict__ y_h, Y_TYPE* __restrict__ y_c, const Recurrence g,
                const Formats f) {
  const int n = blockIdx.x, direction = blockIdx.y, directions = gridDim.y, hidden = g.hidden, width = GATES * hidden;
  const long long sequence = static_cast<long long>(direction) * g.batch + n;
  const int length = lengths ? lengths[n] : g.steps;
  const int* w_d = w + static_cast<long long>(direction) * g.inputs * width;
  const int* r_d = r + static_cast<long long>(direction) * hidden * width;
  const long long *w_starts = starts + 2LL * direction * width, *r_starts = w_starts + width;
  const int *code = codes + 3 * direction;
  long long* state = scratch + sequence * (4 + 2 * GATES) * hidden;
  long long *cell = state + hidden, *reset_state = cell + hidden, *reset = reset_state + hidden;
  long long *from_input = reset + hidden, *from_state = from_input + width;

  for (int j = threadIdx.x; j < hidden; j += 256) {
    state[j] = initial_h ? initial_h[sequence * hidden + j] : 0;
    cell[j] = initial_c ? initial_c[sequence * hidden + j] : 0;
    for (int t = length; t < g.steps; t++) y[((static_cast<long long>(t) * directions + direction) * g.batch + n) * hidden + j] = 0;
  }
  __syncthreads();
  /* the gates of h that need no reset state first */
  const int at_once = GATES == 3 && !g.linear_before_reset ? 2 * hidden : width;
  for (int step = 0; step < length; step++) {
    const long long t = g.reverse[direction] ? length - 1 - step : step;
    const X_TYPE* x_t = x + (t * g.batch + n) * g.inputs;
    Y_TYPE* y_t = y + ((t * directions + direction) * g.batch + n) * hidden;
    for (int j = threadIdx.x; j < width; j += 256) {
      from_input[j] = dense(x_t, g.inputs, w_d, width, j, w_starts, g.drop_x, f);
      if (j < at_once) from_state[j] = dense(state, hidden, r_d, width, j, r_starts, g.drop_h, f);
    }
    __syncthreads();
    const auto gate = [&](int index, int j) {
      return qf_fitted(from_input[index * hidden + j] + from_state[index * hidden + j], f.accumulator);
    };
#if GATES == 3
    for (int j = threadIdx.x; j < hidden; j += 256) {
      reset[j] = apply(code[0], gate(1, j), 0, tables, g, f);
      reset_state[j] = qf_cast(reset[j] * state[j], g.fraction, f.y);
    }
    __syncthreads();
    for (int j = threadIdx.x; j < hidden; j += 256) {
      const int h = 2 * hidden + j;
      const long long update = apply(code[0], gate(0, j), 0, tables, g, f);
      from_state[h] = g.linear_before_reset ? qf_cast(reset[j] * from_state[h], g.fraction, f.accumulator)
                                            : dense(reset_state, hidden, r_d, width, h, r_starts, g.drop_h, f);
      const long long candidate = apply(code[1], gate(2, j), 0, tables, g, f);
      state[j] = blend(candidate, (1LL << g.fraction) - update, state[j], update, g, f);
      y_t[j] = static_cast<Y_TYPE>(state[j]);
    }
#else
    for (int j = threadIdx.x; j < hidden; j += 256) {
#if GATES == 4
      const long long in = apply(code[0], gate(0, j), 0, tables, g, f), out = apply(code[0], gate(1, j), 0, tables, g, f);
      const long long forget = apply(code[0], gate(2, j), 0, tables, g, f);
      cell[j] = blend(apply(code[1], gate(3, j), 0, tables, g, f), in, cell[j], forget, g, f);
      const long long shown = apply(code[2], cell[j], g.state_fraction - g.fraction, tables, g, f);
      state[j] = qf_cast(out * shown, 2 * g.fraction - g.state_fraction, f.y);
#else
      state[j] = qf_cast(apply(code[0], gate(0, j), 0, tables, g, f), g.fraction - g.state_fraction, f.y);
#endif
      y_t[j] = static_cast<Y_TYPE>(state[j]);
    }
#endif
    __syncthreads();
  }
  for (int j = threadIdx.x; j < hidden; j += 256) {
    y_h[sequence * hidden + j] = static_cast<Y_TYPE>(state[j]);
    if (y_c) y_c[sequence * hidden + j] = static_cast<Y_TYPE>(cell[j]);
  }
}
