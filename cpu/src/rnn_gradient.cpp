// Gradients of rnn, lstm and gru through time in float32 (ops/rnn_gradient.py), from the states and sums that the training
// form of the layer gave.
//
// A row is a valid step of a sequence. Rows lie step by step, without those behind sequence_lens, so that what stands there
// is never multiplied. For each direction:
//   lstm: cells are made from the sums, forwards; the values of i, f and c~ stay where their gradients will lie
//   the steps, backwards: gradients of the gates of a step's rows, then their products with R, which give dh of the step
//     before (without linear_before_reset gru's candidate goes through its R first)
//   all rows together, as large matrix products: dx = gates W, dw = gates^T x, dr = gates^T h, and db
// Only the products with R have to wait for each other, and only they read weights once a step: R is packed for them in
// panels. All products are those of rnn_product.h; the left side of the large ones is read as it lies (for dw and dr a
// transposed copy), the right side is packed a part at a time that the caches hold.
//
// Threads share the rows of the large products, and the panels of R where a step is worth it. Every sum is taken in the same
// order by any number of them. Accepts every option.
#include <omp.h>

#include "rnn_product.h"

namespace {

constexpr int64_t PART = PANEL_FLOATS / (4 * LANES);  // of the depth that is packed at a time
constexpr int64_t CHUNK = 24;                         // rows that stay in the first cache while all panels pass by
constexpr int64_t WORTH_THREADS = 1 << 18;            // multiply-accumulates of a step, as in the packed kernel

QF_INLINE int64_t padded(int64_t columns) { return divide_up(columns, LANES) * LANES; }
QF_INLINE vfloat get(const float* p, int lanes) { return lanes == LANES ? load(p) : load_first(p, lanes); }
QF_INLINE void put(float* p, vfloat v, int lanes) {
  if (lanes == LANES) store(p, v);
  else store_first(p, v, lanes);
}

// panels[block][depth][column], blocks of up to four vectors of columns: `count` rows of b from row `at` of the depth on;
// columns beyond the last are 0.
void pack(const float* b, int64_t count, int64_t columns, int64_t depth, int64_t at, float* panels) {
  const int64_t width = padded(columns);
  for (int64_t k = 0; k < count; k++)
    for (int64_t j = 0; j < width; j += LANES) {
      const int64_t block = j / (4 * LANES) * 4 * LANES, in_block = smaller(width - block, 4 * LANES);
      store(panels + block * depth + (at + k) * in_block + j - block, get(b + k * columns + j, clamped(columns - j, LANES)));
    }
}

template <int G>
void rows_of(int64_t rows, const float* a, int64_t a_row, int64_t depth, const float* panel, const float* from,
             int64_t from_row, float* out, int64_t out_row) {
  rows_product<G, 1>(rows, a, a_row, depth, panel, from, from_row, out, out_row, G - 1);
}

// c = a b, or with `add` c + a b, for a single row, which reads b once, as it lies.
void multiply_row(int64_t columns, int64_t depth, const float* a, const float* b, float* c, bool add) {
  constexpr int TOGETHER = 8;  // rows of b, so that c is written as often less
  if (!add) memset(c, 0, sizeof(float) * columns);
  int64_t k = 0;
  for (; k + TOGETHER <= depth; k += TOGETHER, b += TOGETHER * columns)
    for (int64_t j = 0; j < columns; j += LANES) {
      const int lanes = clamped(columns - j, LANES);
      vfloat sum = get(c + j, lanes), other = {};
      QF_UNROLL for (int i = 0; i < TOGETHER; i += 2) {
        sum += a[k + i] * get(b + i * columns + j, lanes);
        other += a[k + i + 1] * get(b + (i + 1) * columns + j, lanes);
      }
      put(c + j, sum + other, lanes);
    }
  for (; k < depth; k++, b += columns)
    for (int64_t j = 0; j < columns; j++) c[j] += a[k] * b[j];
}

// c (rows, columns) = a b, or with `add` c + a b, where a (rows, depth) has rows `a_row` apart, and b (depth, columns) and c
// are dense but for c's `c_row`. panels: PART * padded(columns) floats.
void multiply(int threads, int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, const float* b,
              float* c, int64_t c_row, bool add, float* panels) {
  if (!depth && !add)
    for (int64_t r = 0; r < rows; r++) memset(c + r * c_row, 0, sizeof(float) * columns);
  if (rows == 1 && depth > 1) return multiply_row(columns, depth, a, b, c, add);
  static const float zeros[4 * LANES] = {};
  const int64_t width = padded(columns);
  for (int64_t k = 0; k < depth; k += PART) {
    const int64_t count = smaller(PART, depth - k);
    pack(b + k * columns, count, columns, count, 0, panels);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t first = 0; first < rows; first += CHUNK)
      for (int64_t block = 0; block < width; block += 4 * LANES) {
        float aside[CHUNK * 4 * LANES];
        const int64_t wide = smaller(width - block, 4 * LANES), there = smaller(columns - block, 4 * LANES);
        const int64_t height = smaller(CHUNK, rows - first);
        const bool empty = k == 0 && !add, whole = there == wide;
        float* const at = c + first * c_row + block;
        float* const out = whole ? at : aside;
        const int64_t out_row = whole ? c_row : wide;
        if (!whole && !empty)
          for (int64_t r = 0; r < height; r++) memcpy(aside + r * wide, at + r * c_row, sizeof(float) * there);
        const auto product = wide == 4 * LANES   ? rows_of<4>
                             : wide == 3 * LANES ? rows_of<3>
                             : wide == 2 * LANES ? rows_of<2>
                                                 : rows_of<1>;
        product(height, a + first * a_row + k, a_row, count, panels + block * count, empty ? zeros : out,
                empty ? 0 : out_row, out, out_row);
        if (!whole)
          for (int64_t r = 0; r < height; r++) memcpy(at + r * c_row, aside + r * wide, sizeof(float) * there);
      }
  }
}

// to (columns, rows) with rows `to_row` apart = from (rows, columns) transposed
void transposed(const float* from, int64_t rows, int64_t columns, float* to, int64_t to_row) {
  for (int64_t c = 0; c < columns; c += LANES)
    for (int64_t r = 0; r < rows; r += LANES) {
      const int wide = clamped(columns - c, LANES), high = clamped(rows - r, LANES);
      vfloat square[LANES];
      for (int i = 0; i < LANES; i++) square[i] = i < high ? get(from + (r + i) * columns + c, wide) : (vfloat){};
      transpose(square);
      for (int i = 0; i < wide; i++) put(to + (c + i) * to_row + r, square[i], high);
    }
}

// sums[column] = a[row][column] over all rows
void sum_rows(const float* a, int64_t a_row, int64_t rows, int64_t columns, float* sums) {
  for (int64_t j = 0; j < columns; j += LANES) {
    const int lanes = clamped(columns - j, LANES);
    vfloat sum = {};
    for (int64_t r = 0; r < rows; r++) sum += get(a + r * a_row + j, lanes);
    put(sums + j, sum, lanes);
  }
}

// A function of a gate and its derivative, from its sum and its value.
template <bool STANDARD>
struct Gates {
  Function f, g, h;
  float clip;

  QF_INLINE vfloat clipped(vfloat x) const { return at_most(at_least(x, broadcast(-clip)), broadcast(clip)); }
  QF_INLINE vfloat f_of(vfloat x) const { return STANDARD ? sigmoid(x) : apply_any(f, clipped(x)); }
  QF_INLINE vfloat g_of(vfloat x) const { return STANDARD ? tangent_hyperbolic(x) : apply_any(g, clipped(x)); }
  QF_INLINE vfloat h_of(vfloat x) const { return STANDARD ? tangent_hyperbolic(x) : apply_any(h, x); }
  QF_INLINE vfloat f_slope(vfloat sum, vfloat y) const { return STANDARD ? y * (1.0f - y) : within(f, sum); }
  QF_INLINE vfloat g_slope(vfloat sum, vfloat y) const { return STANDARD ? 1.0f - y * y : within(g, sum); }
  QF_INLINE vfloat h_slope(vfloat sum, vfloat y) const { return STANDARD ? 1.0f - y * y : any(h, sum); }

 private:
  __attribute__((noinline)) static vfloat any(const Function& function, vfloat x) {
    vfloat y = x;
    for (int lane = 0; lane < LANES; lane++) y[lane] = qf_slope(function.code, function.alpha, function.beta, x[lane]);
    return y;
  }
  vfloat within(const Function& function, vfloat x) const {
    const vfloat slope = any(function, x);
    if (clip == __builtin_inff()) return slope;
    return (x <= broadcast(-clip)) | (x >= broadcast(clip)) ? (vfloat){} : slope;
  }
};

// Hands out pieces of the workspace, or only counts them.
struct Memory {
  char* at;
  size_t used;
  float* take(int64_t floats) {
    float* piece = reinterpret_cast<float*>(at ? at + used : nullptr);
    used += divide_up(floats * 4, 64) * 64;
    return piece;
  }
};

// Columns of the gates' gradients from `column` on, `count` of them, that go through rows `row` on of R.
struct Segment {
  int64_t column, row, count;
  bool reset;  // with the reset state instead of the state
};

struct Backward {
  const RnnGradientArguments& g;
  const RnnArguments& a;
  int64_t hidden, gates, slots, row;  // row: from one row of dh and dc to the next
  int64_t most, rows;                 // rows that there may be, and that there are
  bool through_reset, linear;
  Segment segments[2];
  int count;  // of segments
  // in the workspace
  int64_t* first;     // row of each step's first sequence, and the number of rows behind
  int32_t* sequence;  // of each row
  float *dh, *dc, *next, *x, *dx, *gates_of_rows, *turned, *before, *cells, *resets, *panels, *r;

  Backward(const RnnGradientArguments& g, void* workspace, size_t* used) : g(g), a(g.layer) {
    hidden = a.hidden, gates = gates_of(a.kind), slots = slots_of(a), row = padded(hidden) + 16;
    most = a.steps * a.batch;
    linear = a.kind == RNN_GRU && a.linear_before_reset;
    through_reset = a.kind == RNN_GRU && !a.linear_before_reset;
    count = a.kind == RNN_GRU ? 2 : 1;
    segments[0] = {0, 0, (count == 2 ? 2 : gates) * hidden, false};
    segments[1] = {(linear ? 3 : 2) * hidden, 2 * hidden, hidden, through_reset};
    Memory memory{static_cast<char*>(workspace), 0};
    first = reinterpret_cast<int64_t*>(memory.take(2 * (a.steps + 1)));
    sequence = reinterpret_cast<int32_t*>(memory.take(most));
    dh = memory.take(a.batch * row), dc = memory.take(a.batch * row), next = memory.take(a.batch * row);
    x = memory.take(a.lengths ? most * a.inputs : 0), dx = memory.take(a.lengths ? most * a.inputs : 0);
    gates_of_rows = memory.take(most * slots * hidden);
    turned = memory.take((most + 16) * slots * hidden);
    before = memory.take(most * hidden);
    cells = memory.take(a.kind == RNN_LSTM ? most * hidden : 0);
    resets = memory.take(through_reset ? most * hidden : 0);
    panels = memory.take(PART * padded(hidden > a.inputs ? hidden : a.inputs));
    r = memory.take(a.steps > 1 ? gates * hidden * padded(hidden) : 0);
    if (used) *used = memory.used;
  }

  int64_t width() const { return slots * hidden; }
  int64_t turned_row() const { return rows + 16 - rows % 16; }
  int lanes_of(int64_t j) const { return clamped(hidden - j, LANES); }
  int64_t length(int64_t n) const { return a.lengths ? a.lengths[n] : a.steps; }
  const float* sums_of(int64_t d, int64_t t, int64_t n) const {
    return static_cast<const float*>(g.sums) + ((t * a.directions + d) * a.batch + n) * width();
  }
  float* gates_at(int64_t r) const { return gates_of_rows + r * width(); }

  // Calls each(vector's first unit, its lanes).
  template <class Each>
  QF_INLINE void units(Each each) const {
    for (int64_t j = 0; j < hidden; j += LANES) each(j, lanes_of(j));
  }

  void find_rows() {
    rows = 0;
    for (int64_t t = 0; t < a.steps; t++) {
      first[t] = rows;
      for (int64_t n = 0; n < a.batch; n++)
        if (t < length(n)) sequence[rows++] = (int32_t)n;
    }
    first[a.steps] = rows;
  }

  void gather_states(int64_t d) const {
    const float *y = static_cast<const float*>(g.y), *initial = static_cast<const float*>(a.initial_h);
    for (int64_t t = 0; t < a.steps; t++)
      for (int64_t r = first[t]; r < first[t + 1]; r++) {
        const int64_t n = sequence[r], from = a.reverse[d] ? t + 1 : t - 1;
        float* to = before + r * hidden;
        if (from >= 0 && from < length(n))
          memcpy(to, y + ((from * a.directions + d) * a.batch + n) * hidden, sizeof(float) * hidden);
        else if (initial)
          memcpy(to, initial + (d * a.batch + n) * hidden, sizeof(float) * hidden);
        else
          memset(to, 0, sizeof(float) * hidden);
      }
  }

  void load_states(int64_t d, const void* from, float* to) const {
    for (int64_t n = 0; n < a.batch; n++)
      if (from) memcpy(to + n * row, static_cast<const float*>(from) + (d * a.batch + n) * hidden, sizeof(float) * hidden);
      else memset(to + n * row, 0, sizeof(float) * hidden);
  }

  void store_states(int64_t d, const float* from, void* to) const {
    for (int64_t n = 0; to && n < a.batch; n++)
      memcpy(static_cast<float*>(to) + (d * a.batch + n) * hidden, from + n * row, sizeof(float) * hidden);
  }

  // The cells before each row, and the values of i, f and c~, with dc as the cells on their way.
  template <bool STANDARD>
  void make_cells(int64_t d, const Gates<STANDARD>& functions) const {
    const float* p = a.p ? static_cast<const float*>(a.p) + d * 3 * hidden : nullptr;
    load_states(d, a.initial_c, dc);
    for (int64_t s = 0; s < a.steps; s++) {
      const int64_t t = a.reverse[d] ? a.steps - 1 - s : s;
      for (int64_t r = first[t]; r < first[t + 1]; r++) {
        const float* sums = sums_of(d, t, sequence[r]);
        float *values = gates_at(r), *state = dc + sequence[r] * row;
        units([&](int64_t j, int lanes) __attribute__((always_inline)) {
          const vfloat cell = get(state + j, lanes);
          vfloat i = get(sums + j, lanes), f = get(sums + 2 * hidden + j, lanes);
          if (p) i += get(p + j, lanes) * cell, f += get(p + 2 * hidden + j, lanes) * cell;
          i = functions.f_of(i);
          f = a.input_forget ? 1.0f - i : functions.f_of(f);
          const vfloat candidate = functions.g_of(get(sums + 3 * hidden + j, lanes));
          put(cells + r * hidden + j, cell, lanes);
          put(values + j, i, lanes);
          put(values + 2 * hidden + j, f, lanes);
          put(values + 3 * hidden + j, candidate, lanes);
          put(state + j, f * cell + i * candidate, lanes);
        });
      }
    }
  }

  // Gradients of a row's gates. dh: of the state behind it, without dy. base: what of the state before does not come through R.
  template <bool STANDARD>
  void lstm_row(int64_t d, int64_t t, int64_t r, const float* dy, const float* dh, float* base,
                const Gates<STANDARD>& functions) const {
    const float* sums = sums_of(d, t, sequence[r]);
    const float* p = a.p ? static_cast<const float*>(a.p) + d * 3 * hidden : nullptr;
    float* dp = g.dp ? static_cast<float*>(g.dp) + d * 3 * hidden : nullptr;
    float *values = gates_at(r), *state = dc + sequence[r] * row;
    units([&](int64_t j, int lanes) __attribute__((always_inline)) {
      const auto gate = [&](const float* from, int64_t place) { return get(from + place * hidden + j, lanes); };
      const vfloat i = gate(values, 0), f = gate(values, 2), candidate = gate(values, 3);
      const vfloat before = get(cells + r * hidden + j, lanes), cell = f * before + i * candidate;
      vfloat i_sum = gate(sums, 0), o_sum = gate(sums, 1), f_sum = gate(sums, 2);
      if (p) i_sum += gate(p, 0) * before, f_sum += gate(p, 2) * before, o_sum += gate(p, 1) * cell;
      const vfloat o = functions.f_of(o_sum), out = functions.h_of(cell);
      vfloat dstate = get(dh + j, lanes);
      if (dy) dstate += get(dy + j, lanes);
      const vfloat d_o = dstate * out * functions.f_slope(o_sum, o);
      vfloat dcell = get(state + j, lanes) + dstate * o * functions.h_slope(cell, out);
      if (p) dcell += gate(p, 1) * d_o;
      const vfloat d_candidate = dcell * i * functions.g_slope(gate(sums, 3), candidate);
      const vfloat d_i = dcell * (a.input_forget ? candidate - before : candidate) * functions.f_slope(i_sum, i);
      const vfloat d_f = a.input_forget ? (vfloat){} : dcell * before * functions.f_slope(f_sum, f);
      vfloat dbefore = dcell * f;
      if (p) dbefore += gate(p, 0) * d_i + gate(p, 2) * d_f;
      put(state + j, dbefore, lanes);
      put(base + j, (vfloat){}, lanes);
      put(values + j, d_i, lanes);
      put(values + hidden + j, d_o, lanes);
      put(values + 2 * hidden + j, d_f, lanes);
      put(values + 3 * hidden + j, d_candidate, lanes);
      if (!dp) return;
      put(dp + j, get(dp + j, lanes) + d_i * before, lanes);
      put(dp + hidden + j, gate(dp, 1) + d_o * cell, lanes);
      put(dp + 2 * hidden + j, gate(dp, 2) + d_f * before, lanes);
    });
  }

  template <bool STANDARD>
  void gru_row(int64_t d, int64_t t, int64_t r, const float* dy, const float* dh, float* base,
               const Gates<STANDARD>& functions) const {
    const float *sums = sums_of(d, t, sequence[r]), *h = before + r * hidden;
    float* to = gates_at(r);
    units([&](int64_t j, int lanes) __attribute__((always_inline)) {
      const vfloat z_sum = get(sums + j, lanes), r_sum = get(sums + hidden + j, lanes), state = get(h + j, lanes);
      const vfloat z = functions.f_of(z_sum), reset = functions.f_of(r_sum);
      vfloat sum = get(sums + 2 * hidden + j, lanes), recurrent = {};
      if (linear) recurrent = get(sums + 3 * hidden + j, lanes), sum += reset * recurrent;
      const vfloat candidate = functions.g_of(sum);
      vfloat dstate = get(dh + j, lanes);
      if (dy) dstate += get(dy + j, lanes);
      const vfloat d_candidate = dstate * (1.0f - z) * functions.g_slope(sum, candidate);
      put(base + j, dstate * z, lanes);
      put(to + j, dstate * (state - candidate) * functions.f_slope(z_sum, z), lanes);
      put(to + 2 * hidden + j, d_candidate, lanes);
      if (linear) {
        put(to + hidden + j, d_candidate * recurrent * functions.f_slope(r_sum, reset), lanes);
        put(to + 3 * hidden + j, d_candidate * reset, lanes);
      } else {
        put(to + hidden + j, reset, lanes);  // until its gradient is known
        put(resets + r * hidden + j, reset * state, lanes);
      }
    });
  }

  // The reset gate of gru without linear_before_reset, from the gradient e of r h.
  template <bool STANDARD>
  void reset_row(int64_t d, int64_t t, int64_t r, const float* e, float* base, const Gates<STANDARD>& functions) const {
    const float *sums = sums_of(d, t, sequence[r]) + hidden, *h = before + r * hidden;
    float* to = gates_at(r) + hidden;
    units([&](int64_t j, int lanes) __attribute__((always_inline)) {
      const vfloat reset = get(to + j, lanes), de = get(e + j, lanes);
      put(to + j, de * get(h + j, lanes) * functions.f_slope(get(sums + j, lanes), reset), lanes);
      put(base + j, get(base + j, lanes) + de * reset, lanes);
    });
  }

  template <bool STANDARD>
  void rnn_row(int64_t d, int64_t t, int64_t r, const float* dy, const float* dh, float* base,
               const Gates<STANDARD>& functions) const {
    const float* sums = sums_of(d, t, sequence[r]);
    float* to = gates_at(r);
    units([&](int64_t j, int lanes) __attribute__((always_inline)) {
      const vfloat sum = get(sums + j, lanes);
      vfloat dstate = get(dh + j, lanes);
      if (dy) dstate += get(dy + j, lanes);
      const vfloat slope = STANDARD ? functions.g_slope(sum, tangent_hyperbolic(sum)) : functions.f_slope(sum, sum);
      put(to + j, dstate * slope, lanes);
      put(base + j, (vfloat){}, lanes);
    });
  }

  // out += the gradients of a step's gates times R, of one segment.
  void through(int64_t d, const Segment& segment, int64_t t, float* out) const {
    const int64_t here = first[t + 1] - first[t], width_of_r = padded(hidden);
    const float* from = gates_at(first[t]) + segment.column;
    if (a.steps == 1) {
      const float* weights = static_cast<const float*>(a.r) + (d * gates * hidden + segment.row) * hidden;
      return multiply(a.threads, here, hidden, segment.count, from, width(), weights, out, row, true, panels);
    }
    const bool worth = here * segment.count * hidden >= WORTH_THREADS && a.threads > 1;
#pragma omp parallel for schedule(static) num_threads(a.threads) if (worth)
    for (int64_t block = 0; block < width_of_r; block += 4 * LANES) {
      const int columns = int(smaller(width_of_r - block, 4 * LANES) / LANES);
      products_of(columns, here, from, width(), segment.count, r + segment.row * width_of_r + block * segment.count,
                  out + block, row, out + block, row, columns - 1);
    }
  }

  // All steps of a direction, from the last to the first.
  template <bool STANDARD>
  void steps(int64_t d, const Gates<STANDARD>& functions) const {
    const float* dy = static_cast<const float*>(g.dy);
    load_states(d, g.dy_h, dh);
    load_states(d, g.dy_c, dc);
    for (int64_t s = 0; s < a.steps; s++) {
      const int64_t t = a.reverse[d] ? s : a.steps - 1 - s, here = first[t + 1] - first[t];
      const bool all = here == a.batch;  // every sequence runs, so that rows are sequences
      float* const to = all ? dh : next;
      for (int64_t r = first[t]; r < first[t + 1]; r++) {
        const int64_t n = sequence[r];
        const float* dy_row = dy ? dy + ((t * a.directions + d) * a.batch + n) * hidden : nullptr;
        const float* state = dh + n * row;
        float* base = to + (r - first[t]) * row;
        if (a.kind == RNN_LSTM) lstm_row(d, t, r, dy_row, state, base, functions);
        else if (a.kind == RNN_GRU) gru_row(d, t, r, dy_row, state, base, functions);
        else rnn_row(d, t, r, dy_row, state, base, functions);
      }
      if (through_reset) {
        float* e = dc;  // gru has no cells
        for (int64_t k = 0; k < here; k++) memset(e + k * row, 0, sizeof(float) * padded(hidden));
        through(d, segments[1], t, e);
        for (int64_t r = first[t]; r < first[t + 1]; r++)
          reset_row(d, t, r, e + (r - first[t]) * row, to + (r - first[t]) * row, functions);
      }
      if (s + 1 == a.steps && !g.dinitial_h) break;  // nobody asks for the state before all steps
      for (int i = 0; i < count - through_reset; i++) through(d, segments[i], t, to);
      for (int64_t r = first[t]; !all && r < first[t + 1]; r++)
        memcpy(dh + sequence[r] * row, next + (r - first[t]) * row, sizeof(float) * hidden);
    }
    store_states(d, dh, g.dinitial_h);
    store_states(d, dc, g.dinitial_c);
  }

  // What is summed over all rows.
  void weights(int64_t d) const {
    const int64_t high = gates * hidden, down = turned_row();
    const float* inputs = a.lengths ? x : static_cast<const float*>(a.x);
    if (g.dw || g.dr) transposed(gates_of_rows, rows, width(), turned, down);
    if (g.dx)
      multiply(a.threads, rows, a.inputs, high, gates_of_rows, width(), static_cast<const float*>(a.w) + d * high * a.inputs,
               a.lengths ? dx : static_cast<float*>(g.dx), a.inputs, d > 0, panels);
    if (g.dw)
      multiply(a.threads, high, a.inputs, rows, turned, down, inputs, static_cast<float*>(g.dw) + d * high * a.inputs,
               a.inputs, false, panels);
    float* const db = g.db ? static_cast<float*>(g.db) + d * 2 * high : nullptr;
    if (db) sum_rows(gates_of_rows, width(), rows, high, db);
    for (int i = 0; i < count; i++) {
      const Segment& segment = segments[i];
      if (g.dr)
        multiply(a.threads, segment.count, hidden, rows, turned + segment.column * down, down,
                 segment.reset ? resets : before, static_cast<float*>(g.dr) + (d * high + segment.row) * hidden, hidden,
                 false, panels);
      if (db) sum_rows(gates_of_rows + segment.column, width(), rows, segment.count, db + high + segment.row);
    }
  }

  template <bool STANDARD>
  void run() {
    find_rows();
    if (g.dp) memset(g.dp, 0, sizeof(float) * a.directions * 3 * hidden);
    if (a.lengths) {
      for (int64_t t = 0; t < a.steps; t++)
        for (int64_t r = first[t]; r < first[t + 1]; r++)
          memcpy(x + r * a.inputs, static_cast<const float*>(a.x) + (t * a.batch + sequence[r]) * a.inputs,
                 sizeof(float) * a.inputs);
    }
    for (int64_t d = 0; d < a.directions; d++) {
      const RnnFunction* f = a.functions[d];
      const Gates<STANDARD> functions{narrowed(f[0]), narrowed(f[1]), narrowed(f[2]), (float)a.clip};
      gather_states(d);
      for (int i = 0; i < count && a.steps > 1; i++)
        pack(static_cast<const float*>(a.r) + (d * gates * hidden + segments[i].row) * hidden, segments[i].count, hidden,
             segments[i].count, 0, r + segments[i].row * padded(hidden));
      if (a.kind == RNN_LSTM) make_cells(d, functions);
      steps(d, functions);
      weights(d);
    }
    if (!g.dx || !a.lengths) return;
    memset(g.dx, 0, sizeof(float) * most * a.inputs);
    for (int64_t t = 0; t < a.steps; t++)
      for (int64_t r = first[t]; r < first[t + 1]; r++)
        memcpy(static_cast<float*>(g.dx) + (t * a.batch + sequence[r]) * a.inputs, dx + r * a.inputs, sizeof(float) * a.inputs);
  }
};

}  // namespace

extern "C" size_t QF_EXPORT(rnn_gradient_f32_workspace)(const RnnGradientArguments* g) {
  size_t used;
  Backward(*g, nullptr, &used);
  return used;
}

extern "C" void QF_EXPORT(rnn_gradient_f32)(const RnnGradientArguments* g) {
  Backward backward(*g, g->layer.workspace, nullptr);
  if (is_standard(g->layer)) backward.run<true>();
  else backward.run<false>();
}
