/* Recurrent layers as the array and the vector unit compute them.
 *
 * For each direction the array first multiplies every step's input by W, (T N, I) by (I, G H). Then, step by step, it
 * multiplies the hidden states (N, H) by R (H, G H), and the vector unit evaluates the gates. A gru that is not
 * linear_before_reset needs two dependent products a step: z and r first, then the candidate from r h.
 *
 * Arrays: x (T, N, I), w (D, I, G H), r (D, H, G H), bias (D, 2 G H), peepholes (D, 3 H), states (D, N, H),
 * y (T, D, N, H). Gates in ONNX's order: lstm i, o, f, c; gru z, r, h.
 */
#ifndef QUATREFOIL_ASIC_RECURRENT_H
#define QUATREFOIL_ASIC_RECURRENT_H

#include <array>
#include <cstdint>
#include <vector>

namespace asic {

enum class Cell { rnn, lstm, gru };

struct Function {
  int code;
  float alpha, beta;
};

/* What every arithmetic has in common. */
struct Layer {
  Cell cell;
  int64_t steps, batch, inputs, hidden;
  bool linear_before_reset;
  std::vector<bool> reverse; /* each direction */

  int64_t gates() const { return cell == Cell::rnn ? 1 : cell == Cell::lstm ? 4 : 3; }

  /* Where sequence n stands at a step, -1 when it is over and keeps its state; `lengths` may be null. */
  int64_t time(int64_t step, int64_t n, const int32_t* lengths, bool backwards) const {
    const int64_t length = lengths ? lengths[n] : steps;
    return step >= length ? -1 : backwards ? length - 1 - step : step;
  }
};

struct Recurrent : Layer {
  bool input_forget;
  float clip; /* infinity when there is none */
  std::vector<std::array<Function, 3>> functions; /* f, g, h of each direction */
};

/* bias, lengths and peepholes may be null. `h` and `c` hold the initial states and become the final ones (c is null
 * but for lstm); y comes zeroed. */
void run_recurrent(const Recurrent& layer, int64_t array_rows, const float* x, const float* w, const float* r,
                   const float* bias, const int32_t* lengths, const float* peepholes, float* h, float* c, float* y);

}  // namespace asic

#endif
