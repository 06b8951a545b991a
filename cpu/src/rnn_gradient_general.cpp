// Gradients of rnn, lstm and gru in float64 by their definition (ops/rnn_gradient.py): plain loops over one sequence and one
// step at a time.
//
// Accepts every option. Workspace: (steps + 12) * hidden doubles.
#include "rnn_double.h"

namespace {

struct Sequence {
  const RnnGradientArguments& g;
  const RnnArguments& a;
  int64_t d, n, hidden, gates, slots;
  const double *w, *r, *p;
  double *dw, *dr, *db, *dp;
  const RnnFunction* f;
  double *cells, *dh, *dc, *next, *direct, *recurrent, *through;  // direct and recurrent: gradients of the sums of W x and R h

  Sequence(const RnnGradientArguments& g, int64_t d, int64_t n) : g(g), a(g.layer), d(d), n(n) {
    hidden = a.hidden, gates = gates_of(a.kind), slots = slots_of(a), f = a.functions[d];
    const int64_t rows = gates * hidden;
    w = static_cast<const double*>(a.w) + d * rows * a.inputs;
    r = static_cast<const double*>(a.r) + d * rows * hidden;
    p = a.p ? static_cast<const double*>(a.p) + d * 3 * hidden : nullptr;
    const auto of = [&](void* whole, int64_t size) { return whole ? static_cast<double*>(whole) + d * size : nullptr; };
    dw = of(g.dw, rows * a.inputs), dr = of(g.dr, rows * hidden), db = of(g.db, 2 * rows), dp = of(g.dp, 3 * hidden);
    double* memory = static_cast<double*>(a.workspace);
    dh = memory, dc = dh + hidden, next = dc + hidden, direct = next + hidden, recurrent = direct + 4 * hidden;
    through = recurrent + 4 * hidden, cells = through + hidden;
  }

  double slope_within(const RnnFunction& function, double x) const {
    if (a.clip < (double)INFINITY && (x >= a.clip || x <= -a.clip)) return 0;
    return slope(function, x);
  }
  double value(const RnnFunction& function, double x) const { return apply(function, clipped(x, a.clip)); }
  const double* row(const void* whole, int64_t t, int64_t width) const {
    return static_cast<const double*>(whole) + ((t * a.directions + d) * a.batch + n) * width;
  }
  const double* state(const void* whole) const {
    return whole ? static_cast<const double*>(whole) + (d * a.batch + n) * hidden : nullptr;
  }

  // Values and sums of an lstm's gates i, f and c~ of a unit.
  struct Lstm {
    double i_sum, f_sum, i, f, candidate;
  };
  Lstm lstm(const double* sums, int64_t j, double c) const {
    Lstm u;
    u.i_sum = sums[j] + (p ? p[j] * c : 0);
    u.f_sum = sums[2 * hidden + j] + (p ? p[2 * hidden + j] * c : 0);
    u.i = value(f[0], u.i_sum);
    u.f = a.input_forget ? 1 - u.i : value(f[0], u.f_sum);
    u.candidate = value(f[1], sums[3 * hidden + j]);
    return u;
  }

  void lstm_unit(const double* sums, int64_t j, double before) {
    const Lstm u = lstm(sums, j, before);
    const double c = u.f * before + u.i * u.candidate, o_sum = sums[hidden + j] + (p ? p[hidden + j] * c : 0);
    const double d_o = dh[j] * apply(f[2], c) * slope_within(f[0], o_sum);
    const double dcell = dc[j] + dh[j] * value(f[0], o_sum) * slope(f[2], c) + (p ? p[hidden + j] * d_o : 0);
    const double d_i = dcell * (a.input_forget ? u.candidate - before : u.candidate) * slope_within(f[0], u.i_sum);
    const double d_f = a.input_forget ? 0 : dcell * before * slope_within(f[0], u.f_sum);
    direct[j] = d_i, direct[hidden + j] = d_o, direct[2 * hidden + j] = d_f;
    direct[3 * hidden + j] = dcell * u.i * slope_within(f[1], sums[3 * hidden + j]);
    dc[j] = dcell * u.f + (p ? p[j] * d_i + p[2 * hidden + j] * d_f : 0);
    next[j] = 0;
    if (dp) dp[j] += d_i * before, dp[hidden + j] += d_o * c, dp[2 * hidden + j] += d_f * before;
  }

  // All of gru's units; leaves the candidate's part of next added, and what multiplies its R in `through`.
  void gru(const double* sums, const double* h) {
    for (int64_t j = 0; j < hidden; j++) {
      const double z = value(f[0], sums[j]), reset = value(f[0], sums[hidden + j]);
      const double inner = a.linear_before_reset ? sums[3 * hidden + j] : 0, sum = sums[2 * hidden + j] + reset * inner;
      const double state = h ? h[j] : 0;
      direct[j] = dh[j] * (state - value(f[1], sum)) * slope_within(f[0], sums[j]);
      direct[2 * hidden + j] = dh[j] * (1 - z) * slope_within(f[1], sum);
      next[j] = dh[j] * z;
      if (a.linear_before_reset) direct[hidden + j] = direct[2 * hidden + j] * inner * slope_within(f[0], sums[hidden + j]);
      through[j] = a.linear_before_reset ? state : reset * state;
      recurrent[2 * hidden + j] = direct[2 * hidden + j] * (a.linear_before_reset ? reset : 1);
    }
    for (int64_t j = 0; j < hidden; j++) {
      double e = 0;
      for (int64_t k = 0; k < hidden; k++) e += recurrent[2 * hidden + k] * r[(2 * hidden + k) * hidden + j];
      if (a.linear_before_reset) {
        next[j] += e;
      } else {
        direct[hidden + j] = e * (h ? h[j] : 0) * slope_within(f[0], sums[hidden + j]);
        next[j] += e * value(f[0], sums[hidden + j]);
      }
    }
    memcpy(recurrent, direct, sizeof(double) * 2 * hidden);
  }

  void run() {
    const int64_t rows = gates * hidden, length = a.lengths ? a.lengths[n] : a.steps;
    const double *dy_h = state(g.dy_h), *dy_c = state(g.dy_c), *initial_h = state(a.initial_h), *initial_c = state(a.initial_c);
    const auto step = [&](int64_t s) { return a.reverse[d] ? length - 1 - s : s; };
    for (int64_t j = 0; j < hidden; j++) {
      dh[j] = dy_h ? dy_h[j] : 0;
      dc[j] = dy_c ? dy_c[j] : 0;
      if (a.kind != RNN_LSTM || !length) continue;
      cells[j] = initial_c ? initial_c[j] : 0;
      for (int64_t s = 0; s + 1 < length; s++) {
        const Lstm u = lstm(row(g.sums, step(s), slots * hidden), j, cells[s * hidden + j]);
        cells[(s + 1) * hidden + j] = u.f * cells[s * hidden + j] + u.i * u.candidate;
      }
    }
    for (int64_t s = length - 1; s >= 0; s--) {
      const int64_t t = step(s);
      const double *sums = row(g.sums, t, slots * hidden), *h = s ? row(g.y, step(s - 1), hidden) : initial_h;
      const double* x = static_cast<const double*>(a.x) + (t * a.batch + n) * a.inputs;
      for (int64_t j = 0; g.dy && j < hidden; j++) dh[j] += row(g.dy, t, hidden)[j];
      if (a.kind == RNN_GRU) {
        gru(sums, h);
      } else {
        for (int64_t j = 0; j < hidden; j++)
          if (a.kind == RNN_LSTM) lstm_unit(sums, j, cells[s * hidden + j]);
          else direct[j] = dh[j] * slope_within(f[0], sums[j]), next[j] = 0;
        memcpy(recurrent, direct, sizeof(double) * rows);
      }
      const int64_t state_rows = a.kind == RNN_GRU ? 2 * hidden : rows;  // gru's candidate has gone through its R
      for (int64_t k = 0; k < rows; k++) {
        const double* left = k < state_rows ? h : through;
        for (int64_t j = 0; j < hidden; j++) {
          if (k < state_rows) next[j] += recurrent[k] * r[k * hidden + j];
          if (dr) dr[k * hidden + j] += recurrent[k] * (left ? left[j] : 0);
        }
        for (int64_t i = 0; dw && i < a.inputs; i++) dw[k * a.inputs + i] += direct[k] * x[i];
        double* dx = static_cast<double*>(g.dx) + (t * a.batch + n) * a.inputs;
        for (int64_t i = 0; g.dx && i < a.inputs; i++) dx[i] += direct[k] * w[k * a.inputs + i];
        if (db) db[k] += direct[k], db[rows + k] += recurrent[k];
      }
      memcpy(dh, next, sizeof(double) * hidden);
    }
    const int64_t to = (d * a.batch + n) * hidden;
    if (g.dinitial_h) memcpy(static_cast<double*>(g.dinitial_h) + to, dh, sizeof(double) * hidden);
    if (g.dinitial_c) memcpy(static_cast<double*>(g.dinitial_c) + to, dc, sizeof(double) * hidden);
  }
};

}  // namespace

extern "C" void QF_EXPORT(rnn_gradient_general_f64)(const RnnGradientArguments* g) {
  const RnnArguments& a = g->layer;
  const int64_t rows = gates_of(a.kind) * a.hidden;
  const auto clear = [](void* at, int64_t count) {
    if (at) memset(at, 0, sizeof(double) * count);
  };
  clear(g->dx, a.steps * a.batch * a.inputs);
  clear(g->dw, a.directions * rows * a.inputs);
  clear(g->dr, a.directions * rows * a.hidden);
  clear(g->db, a.directions * 2 * rows);
  clear(g->dp, a.directions * 3 * a.hidden);
  for (int64_t d = 0; d < a.directions; d++)
    for (int64_t n = 0; n < a.batch; n++) Sequence(*g, d, n).run();
}
