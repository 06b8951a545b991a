// What the packed recurrent kernel and the gradients share: products of rows, held in registers, with panels of weights
// [k][column][lane], and the functions of the gates.
#pragma once

#include "rnn.h"
#include "simd.h"

namespace {

constexpr int64_t PANEL_FLOATS = 4096;  // of a panel's part that stays in the first cache: half of it
constexpr int STREAMS = 4;              // of weights where they are read once
constexpr int TURN_BYTES = 256;         // that are read of one stream before the next

// Rows of a register block: with G columns, that many accumulators, a row's broadcast values and a weight (or the other
// way round) fit into the registers.
template <int G>
constexpr int group_rows() {
  int rows = 8;
  while (rows * G + (rows < G ? rows : G) + 1 > REGISTERS) rows--;
  return rows;
}

// out[row][column] = from[row][column] + sum over k of x[row][k] panel[k][column], P rows at once. The last column's
// place in `from` and `out` is the slot `last`. U sets of accumulators hide the latency of the sums. The k are read as
// S streams, TURN of each in turn.
template <int G, int P, int S>
__attribute__((noinline)) void product(const float* x, int64_t x_row, int64_t count, const float* panel,
                                       const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
  constexpr int U = G * P >= 8 ? 1 : 8 / (G * P);
  constexpr int TURN = S == 1 ? U : G * LANES * 4 >= TURN_BYTES ? 1 : TURN_BYTES / (G * LANES * 4);
  vfloat sums[U][P][G];
  QF_UNROLL for (int u = 0; u < U; u++)
    QF_UNROLL for (int p = 0; p < P; p++)
      QF_UNROLL for (int g = 0; g < G; g++)
        sums[u][p][g] = u ? (vfloat){} : load(from + p * from_row + (g == G - 1 ? last : g) * LANES);
  const auto add = [&](vfloat(&sum)[P][G], int64_t k) __attribute__((always_inline)) {
    vfloat weights[G];
    QF_UNROLL for (int g = 0; g < G; g++) weights[g] = load(panel + (k * G + g) * LANES);
    QF_UNROLL for (int p = 0; p < P; p++)
      QF_UNROLL for (int g = 0; g < G; g++) sum[p][g] += x[p * x_row + k] * weights[g];
  };
  const int64_t segment = count / (S * TURN) * TURN;
  for (int64_t k = 0; k < segment; k += TURN)
    QF_UNROLL for (int s = 0; s < S; s++)
      QF_UNROLL for (int i = 0; i < TURN; i++) add(sums[i % U], s * segment + k + i);
  for (int64_t k = S * segment; k < count; k++) add(sums[0], k);
  QF_UNROLL for (int u = 1; u < U; u++)
    QF_UNROLL for (int p = 0; p < P; p++)
      QF_UNROLL for (int g = 0; g < G; g++) sums[0][p][g] += sums[u][p][g];
  QF_UNROLL for (int p = 0; p < P; p++)
    QF_UNROLL for (int g = 0; g < G; g++) store(out + p * out_row + (g == G - 1 ? last : g) * LANES, sums[0][p][g]);
}

template <int G, int S, int P = group_rows<G>()>
void rows_product(int64_t rows, const float* x, int64_t x_row, int64_t count, const float* panel, const float* from,
                  int64_t from_row, float* out, int64_t out_row, int last) {
  for (; rows >= P; rows -= P, x += P * x_row, from += P * from_row, out += P * out_row)
    product<G, P, S>(x, x_row, count, panel, from, from_row, out, out_row, last);
  if constexpr (P > 1) {
    if (rows) rows_product<G, S, P - 1>(rows, x, x_row, count, panel, from, from_row, out, out_row, last);
  }
}

// The product for any number of rows. One group reads the panel once, in streams; for several it is taken a part at a
// time that stays in the first cache from group to group.
template <int G>
void products(int64_t rows, const float* x, int64_t x_row, int64_t count, const float* panel, const float* from,
              int64_t from_row, float* out, int64_t out_row, int last) {
  constexpr int64_t PART = PANEL_FLOATS / (G * LANES);
  if (rows <= group_rows<G>()) {
    rows_product<G, STREAMS>(rows, x, x_row, count, panel, from, from_row, out, out_row, last);
    return;
  }
  for (int64_t k = 0; k < count; k += PART, from = out, from_row = out_row)
    rows_product<G, 1>(rows, x + k, x_row, smaller(PART, count - k), panel + k * G * LANES, from, from_row, out,
                       out_row, last);
}

inline void products_of(int columns, int64_t rows, const float* x, int64_t x_row, int64_t count, const float* panel,
                 const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
  switch (columns) {
    case 1: products<1>(rows, x, x_row, count, panel, from, from_row, out, out_row, last); break;
    case 2: products<2>(rows, x, x_row, count, panel, from, from_row, out, out_row, last); break;
    case 3: products<3>(rows, x, x_row, count, panel, from, from_row, out, out_row, last); break;
    default: products<4>(rows, x, x_row, count, panel, from, from_row, out, out_row, last); break;
  }
}

struct Function {
  int code;
  float alpha, beta;
};

[[maybe_unused]] __attribute__((noinline)) vfloat apply_any(const Function& f, vfloat x) { return activate(f.code, f.alpha, f.beta, x); }

inline bool is_standard(const RnnArguments& a) {
  const bool gated = a.kind != RNN_PLAIN;
  if (a.p || a.input_forget || a.clip < (double)__builtin_inff()) return false;
  for (int i = 0; i < a.directions; i++) {
    const RnnFunction* f = a.functions[i];
    if (f[0].code != (gated ? QF_SIGMOID : QF_TANH_FUNCTION)) return false;
    if (gated && f[1].code != QF_TANH_FUNCTION) return false;
    if (a.kind == RNN_LSTM && f[2].code != QF_TANH_FUNCTION) return false;
  }
  return true;
}

inline Function narrowed(const RnnFunction& f) { return {f.code, (float)f.alpha, (float)f.beta}; }

}  // namespace
