/* Gradients of rnn, lstm and gru through time, float32 (ops/rnn_gradient.py), from the states and sums of a training form.
 *
 * Arrays of the operator are (steps, directions, batch, ..); those made here have the direction first, so that each has the
 * rows of its steps and sequences behind each other: gates (directions, steps, batch, WIDTH * hidden) with the gradients of the
 * sums in their order (gru with linear_before_reset: z, r, h~, and that of Rh h + brh), states and cells (directions, steps,
 * batch, hidden). Rows from sequence_lens on hold zeros, and products leave them out: what x or w hold there or bring along may
 * be infinite.
 *
 * One launch a step finds the gradients of its gates, another takes them through R to the step before; both directions go at
 * once. Then each gradient of a parameter is one product over all rows. Every value has one thread, so that sums have one order.
 */
#include "recurrent.cuh"

/* A hidden unit of a sequence and direction: grid (batch * hidden / BLOCK, directions). */
struct Unit {
  bool exists, running;
  int d, n, unit;
  long long state; /* in (directions, batch, hidden) */
  long long row;   /* of its step in what has the direction first */
  long long theirs; /* and in arrays of the operator */
};

QF_FUNCTION Unit unit_of(const Recurrence& g, const int* __restrict__ lengths, int step) {
  Unit u = {};
  const long long item = static_cast<long long>(blockIdx.x) * BLOCK + threadIdx.x;
  u.d = blockIdx.y;
  u.exists = item < static_cast<long long>(g.batch) * g.hidden;
  if (!u.exists) return u;
  u.n = static_cast<int>(item / g.hidden);
  u.unit = static_cast<int>(item % g.hidden);
  u.state = static_cast<long long>(u.d) * g.batch * g.hidden + item;
  u.running = step < (lengths ? lengths[u.n] : g.steps);
  u.row = (static_cast<long long>(u.d) * g.steps + step) * g.batch + u.n;
  u.theirs = (static_cast<long long>(step) * gridDim.y + u.d) * g.batch + u.n;
  return u;
}

/* The derivative of a gate's function at its sum; 0 where clip cuts the sum off. */
QF_FUNCTION float slope_of(const Function& f, float sum, float clip) {
  if (clip < 3.4e38f && (sum >= clip || sum <= -clip)) return 0.0f;
  return qf_slope(f.code, f.alpha, f.beta, sum);
}

/* Whether this block's direction runs backwards. (An index that is not known would put g into local memory.) */
QF_FUNCTION bool runs_backwards(const Recurrence& g) { return blockIdx.y ? g.reverse[1] : g.reverse[0]; }

/* The step that is taken s-th from the end of a direction. */
QF_FUNCTION int step_back(const Recurrence& g, int s) { return runs_backwards(g) ? s : g.steps - 1 - s; }

/* Every row's state before its step. */
extern "C" __global__ void __launch_bounds__(BLOCK)
gradient_states(const Recurrence g, const int* __restrict__ lengths, const float* __restrict__ y,
                const float* __restrict__ initial, float* __restrict__ before) {
  for (int t = 0; t < g.steps; t++) {
    const Unit u = unit_of(g, lengths, t);
    if (!u.exists) return;
    const int from = runs_backwards(g) ? t + 1 : t - 1, length = lengths ? lengths[u.n] : g.steps;
    float value = 0.0f;
    if (u.running) {
      if (from >= 0 && from < length)
        value = y[((static_cast<long long>(from) * gridDim.y + u.d) * g.batch + u.n) * g.hidden + u.unit];
      else if (initial)
        value = initial[u.state];
    }
    before[u.row * g.hidden + u.unit] = value;
  }
}

/* Every row's cell before its step and behind it. */
extern "C" __global__ void __launch_bounds__(BLOCK)
gradient_cells(const Recurrence g, const Function* __restrict__ functions, const int* __restrict__ lengths,
               const float* __restrict__ sums, const float* __restrict__ peepholes, const float* __restrict__ initial,
               float* __restrict__ before, float* __restrict__ behind) {
  float cell = 0.0f;
  for (int s = 0; s < g.steps; s++) {
    const Unit u = unit_of(g, lengths, step_back(g, g.steps - 1 - s));
    if (!u.exists) return;
    if (s == 0 && initial) cell = initial[u.state];
    const long long at = u.row * g.hidden + u.unit;
    before[at] = u.running ? cell : 0.0f;
    if (u.running) {
      const Function* f = functions + 3 * u.d;
      const float* sum = sums + u.theirs * 4 * g.hidden + u.unit;
      const float* p = peepholes ? peepholes + static_cast<long long>(u.d) * 3 * g.hidden + u.unit : nullptr;
      const float in = apply_clipped(f[0], sum[0] + (p ? p[0] * cell : 0.0f), g.clip);
      const float forget = g.input_forget
                               ? 1.0f - in
                               : apply_clipped(f[0], sum[2 * g.hidden] + (p ? p[2 * g.hidden] * cell : 0.0f), g.clip);
      cell = forget * cell + in * apply_clipped(f[1], sum[3 * g.hidden], g.clip);
    }
    behind[at] = u.running ? cell : 0.0f;
  }
}

/* The gates of the s-th step from the end. dh: the gradient of the state behind it without dy; it becomes what of the state
 * before does not come through R. dc likewise, whole. */
extern "C" __global__ void __launch_bounds__(BLOCK)
lstm_gradient_gates(const Recurrence g, int s, const Function* __restrict__ functions, const int* __restrict__ lengths,
                    const float* __restrict__ sums, const float* __restrict__ peepholes, const float* __restrict__ before,
                    const float* __restrict__ behind, const float* __restrict__ dy, float* __restrict__ dh,
                    float* __restrict__ dc, float* __restrict__ gates) {
  const Unit u = unit_of(g, lengths, step_back(g, s));
  if (!u.exists) return;
  const long long H = g.hidden;
  float* to = gates + u.row * 4 * H + u.unit;
  if (!u.running) {
    for (int gate = 0; gate < 4; gate++) to[gate * H] = 0.0f;
    return;
  }
  const Function* f = functions + 3 * u.d;
  const float* sum = sums + u.theirs * 4 * H + u.unit;
  const float* p = peepholes ? peepholes + u.d * 3 * H + u.unit : nullptr;
  const float old_cell = before[u.row * H + u.unit], cell = behind[u.row * H + u.unit];
  const float i_sum = sum[0] + (p ? p[0] * old_cell : 0.0f), o_sum = sum[H] + (p ? p[H] * cell : 0.0f);
  const float f_sum = sum[2 * H] + (p ? p[2 * H] * old_cell : 0.0f), c_sum = sum[3 * H];
  const float in = apply_clipped(f[0], i_sum, g.clip), out = apply_clipped(f[0], o_sum, g.clip);
  const float forget = g.input_forget ? 1.0f - in : apply_clipped(f[0], f_sum, g.clip);
  const float candidate = apply_clipped(f[1], c_sum, g.clip);
  const float dstate = dh[u.state] + (dy ? dy[u.theirs * H + u.unit] : 0.0f);
  const float d_o = dstate * apply(f[2], cell) * slope_of(f[0], o_sum, g.clip);
  const float dcell = dc[u.state] + dstate * out * qf_slope(f[2].code, f[2].alpha, f[2].beta, cell) + (p ? p[H] * d_o : 0.0f);
  const float d_i = dcell * (g.input_forget ? candidate - old_cell : candidate) * slope_of(f[0], i_sum, g.clip);
  const float d_f = g.input_forget ? 0.0f : dcell * old_cell * slope_of(f[0], f_sum, g.clip);
  to[0] = d_i;
  to[H] = d_o;
  to[2 * H] = d_f;
  to[3 * H] = dcell * in * slope_of(f[1], c_sum, g.clip);
  dc[u.state] = dcell * forget + (p ? p[0] * d_i + p[2 * H] * d_f : 0.0f);
  dh[u.state] = 0.0f;
}

extern "C" __global__ void __launch_bounds__(BLOCK)
rnn_gradient_gates(const Recurrence g, int s, const Function* __restrict__ functions, const int* __restrict__ lengths,
                   const float* __restrict__ sums, const float* __restrict__ dy, float* __restrict__ dh,
                   float* __restrict__ gates) {
  const Unit u = unit_of(g, lengths, step_back(g, s));
  if (!u.exists) return;
  const long long at = u.theirs * g.hidden + u.unit;
  float gate = 0.0f;
  if (u.running) {
    gate = (dh[u.state] + (dy ? dy[at] : 0.0f)) * slope_of(functions[u.d], sums[at], g.clip);
    dh[u.state] = 0.0f;
  }
  gates[u.row * g.hidden + u.unit] = gate;
}

/* resets: null with linear_before_reset (slots 4). Without it (slots 3) they become r h, and the gate r waits for gru_gradient_reset;
 * e, which is cleared, then takes the gradient of r h. */
extern "C" __global__ void __launch_bounds__(BLOCK)
gru_gradient_gates(const Recurrence g, int s, int slots, const Function* __restrict__ functions,
                   const int* __restrict__ lengths, const float* __restrict__ sums, const float* __restrict__ before,
                   const float* __restrict__ dy, float* __restrict__ dh, float* __restrict__ gates,
                   float* __restrict__ resets, float* __restrict__ e) {
  const Unit u = unit_of(g, lengths, step_back(g, s));
  if (!u.exists) return;
  const long long H = g.hidden;
  float* to = gates + u.row * slots * H + u.unit;
  if (resets) e[u.state] = 0.0f;
  if (!u.running) {
    for (int slot = 0; slot < slots; slot++) to[slot * H] = 0.0f;
    if (resets) resets[u.row * H + u.unit] = 0.0f;
    return;
  }
  const Function* f = functions + 2 * u.d;
  const float* sum = sums + u.theirs * slots * H + u.unit;
  const float h = before[u.row * H + u.unit];
  const float update = apply_clipped(f[0], sum[0], g.clip), reset = apply_clipped(f[0], sum[H], g.clip);
  const float inner = resets ? 0.0f : sum[3 * H], c_sum = sum[2 * H] + reset * inner;
  const float dstate = dh[u.state] + (dy ? dy[u.theirs * H + u.unit] : 0.0f);
  const float d_candidate = dstate * (1.0f - update) * slope_of(f[1], c_sum, g.clip);
  to[0] = dstate * (h - apply_clipped(f[1], c_sum, g.clip)) * slope_of(f[0], sum[0], g.clip);
  to[2 * H] = d_candidate;
  dh[u.state] = dstate * update;
  if (resets) {
    resets[u.row * H + u.unit] = reset * h;
  } else {
    to[H] = d_candidate * inner * slope_of(f[0], sum[H], g.clip);
    to[3 * H] = d_candidate * reset;
  }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
gru_gradient_reset(const Recurrence g, int s, const Function* __restrict__ functions, const int* __restrict__ lengths,
                   const float* __restrict__ sums, const float* __restrict__ before, const float* __restrict__ e,
                   float* __restrict__ dh, float* __restrict__ gates) {
  const Unit u = unit_of(g, lengths, step_back(g, s));
  if (!u.exists || !u.running) return;
  const Function* f = functions + 2 * u.d;
  const float sum = sums[(u.theirs * 3 + 1) * g.hidden + u.unit], de = e[u.state];
  gates[(u.row * 3 + 1) * g.hidden + u.unit] = de * before[u.row * g.hidden + u.unit] * slope_of(f[0], sum, g.clip);
  dh[u.state] += de * apply_clipped(f[0], sum, g.clip);
}

/* out[direction][n][unit] += sum over k < count of gates[row][column + k] * r[direction][first + k][unit], of running sequences.
 * width: of a row of gates. r_rows: rows of one direction of r. */
extern "C" __global__ void __launch_bounds__(BLOCK)
gradient_through(const Recurrence g, int s, int width, int column, int count, int r_rows, int first,
                 const int* __restrict__ lengths, const float* __restrict__ gates, const float* __restrict__ r,
                 float* __restrict__ out) {
  const Unit u = unit_of(g, lengths, step_back(g, s));
  if (!u.exists || !u.running) return;
  const float* from = gates + u.row * width + column;
  const float* weights = r + (static_cast<long long>(u.d) * r_rows + first) * g.hidden + u.unit;
  float sum = out[u.state];
  for (int k = 0; k < count; k++) sum += from[k] * weights[static_cast<long long>(k) * g.hidden];
  out[u.state] = sum;
}

/* out (rows, columns) = sum over depth of a[depth * a_depth + row * a_row] * b[depth][column], added where `add`. Rows
 * (by_row) or the depth are rows of steps and sequences; those beyond lengths are left out: their sum is 0, or they add
 * nothing. Tiles of 16 x 16, grid (column tiles, row tiles). */
constexpr int SIDE = 16;
extern "C" __global__ void __launch_bounds__(BLOCK)
gradient_product(int rows, int columns, int depth, long long a_row, long long a_depth, int batch, int by_row, int add,
                 const int* __restrict__ lengths, const float* __restrict__ a, const float* __restrict__ b,
                 float* __restrict__ out) {
  __shared__ float left[SIDE][SIDE + 1], right[SIDE][SIDE + 1];
  const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
  const int row = blockIdx.y * SIDE + y, column = blockIdx.x * SIDE + x;
  float sum = 0.0f;
  for (int k0 = 0; k0 < depth; k0 += SIDE) {
    const int k_left = a_row == 1 ? k0 + y : k0 + x, row_left = blockIdx.y * SIDE + (a_row == 1 ? x : y), k_right = k0 + y;
    const bool valid_left = k_left < depth && row_left < rows &&
                            (by_row || !lengths || k_left / batch < lengths[k_left % batch]);
    const bool valid_right = k_right < depth && column < columns &&
                             (by_row || !lengths || k_right / batch < lengths[k_right % batch]);
    const float value = valid_left ? a[k_left * a_depth + row_left * a_row] : 0.0f;
    if (a_row == 1)
      left[x][y] = value;
    else
      left[y][x] = value;
    right[y][x] = valid_right ? b[static_cast<long long>(k_right) * columns + column] : 0.0f;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SIDE; k++) sum += left[y][k] * right[k][x];
    __syncthreads();
  }
  if (row >= rows || column >= columns) return;
  const long long at = static_cast<long long>(row) * columns + column;
  if (by_row && lengths && row / batch >= lengths[row % batch]) sum = 0.0f;
  out[at] = add ? out[at] + sum : sum;
}

/* db[first + column] = sum over rows of gates[row][from + column]: a thread for each column. */
extern "C" __global__ void __launch_bounds__(BLOCK)
gradient_bias(int rows, int width, int from, int count, int first, const float* __restrict__ gates, float* __restrict__ db) {
  const int column = blockIdx.x * BLOCK + threadIdx.x;
  if (column >= count) return;
  float sum = 0.0f;
  for (int row = 0; row < rows; row++) sum += gates[static_cast<long long>(row) * width + from + column];
  db[first + column] = sum;
}

/* dp (3, hidden) of one direction: i and f with the cell before, o with the one behind. */
extern "C" __global__ void __launch_bounds__(BLOCK)
gradient_peepholes(int rows, int hidden, const float* __restrict__ gates, const float* __restrict__ before,
                   const float* __restrict__ behind, float* __restrict__ dp) {
  const int unit = blockIdx.x * BLOCK + threadIdx.x;
  if (unit >= hidden) return;
  float in = 0.0f, out = 0.0f, forget = 0.0f;
  for (int row = 0; row < rows; row++) {
    const float* gate = gates + static_cast<long long>(row) * 4 * hidden + unit;
    const float old_cell = before[static_cast<long long>(row) * hidden + unit];
    in += gate[0] * old_cell;
    out += gate[hidden] * behind[static_cast<long long>(row) * hidden + unit];
    forget += gate[2 * static_cast<long long>(hidden)] * old_cell;
  }
  dp[unit] = in;
  dp[hidden + unit] = out;
  dp[2 * hidden + unit] = forget;
}
