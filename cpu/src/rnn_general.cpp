// rnn, lstm and gru in float64 by their definition: plain loops over one sequence and one step at a time.
//
// Accepts every option. Workspace: 9 * hidden doubles.
#include "rnn_double.h"

namespace {

double dot(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += a[i] * b[i];
  return sum;
}

// One sequence in one direction.
void sequence(const RnnArguments& a, int64_t direction, int64_t n, double* scratch) {
  const int64_t hidden = a.hidden, gates = gates_of(a.kind), rows = gates * hidden, kept = slots_of(a) * hidden;
  const double* x = static_cast<const double*>(a.x);
  const double* w = static_cast<const double*>(a.w) + direction * rows * a.inputs;
  const double* r = static_cast<const double*>(a.r) + direction * rows * hidden;
  const double* b = a.b ? static_cast<const double*>(a.b) + direction * 2 * rows : nullptr;
  const double* p = a.p ? static_cast<const double*>(a.p) + direction * 3 * hidden : nullptr;
  const int64_t state = (direction * a.batch + n) * hidden;
  const RnnFunction *f = &a.functions[direction][0], *g = f + 1, *out = f + 2;
  double *inputs = scratch, *recurrent = inputs + rows, *reset = recurrent + rows;
  double *h = static_cast<double*>(a.y_h) + state, *c = a.kind == RNN_LSTM ? static_cast<double*>(a.y_c) + state : nullptr;
  for (int64_t j = 0; j < hidden; j++) {
    h[j] = a.initial_h ? static_cast<const double*>(a.initial_h)[state + j] : 0;
    if (c) c[j] = a.initial_c ? static_cast<const double*>(a.initial_c)[state + j] : 0;
  }
  const int64_t length = a.lengths ? a.lengths[n] : a.steps;
  double* y = static_cast<double*>(a.y);
  for (int64_t t = 0; t < a.steps; t++)
    memset(y + ((t * a.directions + direction) * a.batch + n) * hidden, 0, sizeof(double) * hidden);
  double* sums = static_cast<double*>(a.sums);
  const auto kept_at = [&](int64_t t) { return sums + ((t * a.directions + direction) * a.batch + n) * kept; };
  for (int64_t t = length; sums && t < a.steps; t++) memset(kept_at(t), 0, sizeof(double) * kept);
  for (int64_t s = 0; s < length; s++) {
    const int64_t t = a.reverse[direction] ? length - 1 - s : s;
    for (int64_t j = 0; j < rows; j++) {
      inputs[j] = dot(w + j * a.inputs, x + (t * a.batch + n) * a.inputs, a.inputs) + (b ? b[j] : 0);
      recurrent[j] = dot(r + j * hidden, h, hidden) + (b ? b[rows + j] : 0);
    }
    double* keep = sums ? kept_at(t) : nullptr;
    for (int64_t j = 0; keep && j < (gates == 3 ? 2 : gates) * hidden; j++) keep[j] = inputs[j] + recurrent[j];
    if (keep && a.kind == RNN_GRU && a.linear_before_reset) {
      memcpy(keep + 2 * hidden, inputs + 2 * hidden, sizeof(double) * hidden);
      memcpy(keep + 3 * hidden, recurrent + 2 * hidden, sizeof(double) * hidden);
    }
    if (a.kind == RNN_PLAIN) {
      for (int64_t j = 0; j < hidden; j++) h[j] = apply(*f, clipped(inputs[j] + recurrent[j], a.clip));
    } else if (a.kind == RNN_LSTM) {
      for (int64_t j = 0; j < hidden; j++) {
        const double* const sums[2] = {inputs + j, recurrent + j};
        const auto gate = [&](int64_t at) { return sums[0][at * hidden] + sums[1][at * hidden]; };
        const double input = apply(*f, clipped(gate(0) + (p ? p[j] * c[j] : 0), a.clip));
        const double forget =
            a.input_forget ? 1 - input : apply(*f, clipped(gate(2) + (p ? p[2 * hidden + j] * c[j] : 0), a.clip));
        c[j] = forget * c[j] + input * apply(*g, clipped(gate(3), a.clip));
        const double output = apply(*f, clipped(gate(1) + (p ? p[hidden + j] * c[j] : 0), a.clip));
        h[j] = output * apply(*out, c[j]);
      }
    } else {
      double *z = inputs, *candidate = inputs + 2 * hidden;
      for (int64_t j = 0; j < hidden; j++) {
        z[j] = apply(*f, clipped(z[j] + recurrent[j], a.clip));
        const double gate = apply(*f, clipped(inputs[hidden + j] + recurrent[hidden + j], a.clip));
        reset[j] = gate * h[j];
        if (a.linear_before_reset) candidate[j] += gate * recurrent[2 * hidden + j];
      }
      if (!a.linear_before_reset)
        for (int64_t j = 0; j < hidden; j++)
          candidate[j] += dot(r + (2 * hidden + j) * hidden, reset, hidden) + (b ? b[rows + 2 * hidden + j] : 0);
      if (keep && !a.linear_before_reset) memcpy(keep + 2 * hidden, candidate, sizeof(double) * hidden);
      for (int64_t j = 0; j < hidden; j++) h[j] = (1 - z[j]) * apply(*g, clipped(candidate[j], a.clip)) + z[j] * h[j];
    }
    memcpy(y + ((t * a.directions + direction) * a.batch + n) * hidden, h, sizeof(double) * hidden);
  }
}

}  // namespace

extern "C" void QF_EXPORT(rnn_general_f64)(const RnnArguments* a) {
  for (int64_t direction = 0; direction < a->directions; direction++)
    for (int64_t n = 0; n < a->batch; n++) sequence(*a, direction, n, static_cast<double*>(a->workspace));
}
