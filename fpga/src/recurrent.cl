/* Recurrent layers of one direction after the other, one sequence after the other: rnn, lstm, gru.
 *
 * The state, the gates and the recurrent products of a step stay on the chip. Weights come transposed, so that the
 * innermost loop adds one input times a run of weights to all gates: no sum waits for itself, and weights are read
 * in order. GATES is 1 (rnn), 4 (lstm: i, o, f, c) or 3 (gru: z, r, h); CAPACITY is an upper bound of the hidden size.
 *
 *   x [T][N][I], w [D][I][GATES H], r [D][H][GATES H], bias [D][2 GATES H] (of w, then of r), peephole [D][3 H] or null,
 *   lengths [N] or null, initial_h and initial_c [D][N][H] or null, codes [D][3] and parameters [D][3][2] of f, g, h
 *   y [T][D][N][H], y_h and y_c [D][N][H]
 */
#include "quatrefoil/activation.h"

#define LSTM (GATES == 4)
#define GRU (GATES == 3)

enum { STEPS, BATCH, INPUTS, HIDDEN, DIRECTIONS, REVERSE_0, REVERSE_1, LINEAR_BEFORE_RESET, INPUT_FORGET };

#define APPLY(function, value) \
  qf_activation(codes[d * 3 + function], parameters[(d * 3 + function) * 2], parameters[(d * 3 + function) * 2 + 1], value)
#define GATE(function, value) APPLY(function, qf_clip(value, -clip, clip))

/* sum[begin, end) += values times matrix, whose rows are `width` long */
#define ADD_PRODUCT(sum, begin, end, values, count, matrix, width) \
  for (int k = 0; k < count; k++) { \
    float value = values[k]; \
    for (int j = begin; j < end; j++) sum[j] += value * (matrix)[k * (width) + j]; \
  }

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void recurrent(
    __global const float* restrict x, __global const float* restrict w, __global const float* restrict r,
    __global const float* restrict bias, __global const float* restrict peephole, __global const int* restrict lengths,
    __global const float* restrict initial_h, __global const float* restrict initial_c, __constant const int* restrict g,
    __constant const int* restrict codes, __constant const float* restrict parameters, float clip,
    __global float* restrict y, __global float* restrict y_h
#if LSTM
    , __global float* restrict y_c
#endif
) {
  __local float state[CAPACITY];
  __local float gate[GATES * CAPACITY];
  __local float from_state[GATES * CAPACITY];
#if LSTM
  __local float cell[CAPACITY];
#endif
#if GRU
  __local float reset_state[CAPACITY];
#endif
  int hidden = g[HIDDEN], width = GATES * hidden;

  for (int d = 0; d < g[DIRECTIONS]; d++)
    for (int n = 0; n < g[BATCH]; n++) {
      int sequence = d * g[BATCH] + n;
      int length = lengths ? lengths[n] : g[STEPS];
      int reverse = d ? g[REVERSE_1] : g[REVERSE_0];
      __global const float* w_d = w + d * g[INPUTS] * width;
      __global const float* r_d = r + d * hidden * width;
      for (int j = 0; j < hidden; j++) {
        state[j] = initial_h ? initial_h[sequence * hidden + j] : 0.0f;
#if LSTM
        cell[j] = initial_c ? initial_c[sequence * hidden + j] : 0.0f;
#endif
      }

      for (int step = 0; step < g[STEPS]; step++) {
        int valid = step < length;
        int t = reverse && valid ? length - 1 - step : step;
        __global float* y_t = y + ((t * g[DIRECTIONS] + d) * g[BATCH] + n) * hidden;
        if (!valid) {
          for (int j = 0; j < hidden; j++) y_t[j] = 0.0f;
          continue;
        }
        __global const float* x_t = x + (t * g[BATCH] + n) * g[INPUTS];
        for (int j = 0; j < width; j++) {
          gate[j] = bias[d * 2 * width + j];
          from_state[j] = bias[(d * 2 + 1) * width + j];
        }
        ADD_PRODUCT(gate, 0, width, x_t, g[INPUTS], w_d, width)
#if GRU
        int linear = g[LINEAR_BEFORE_RESET];
        ADD_PRODUCT(from_state, 0, (linear ? width : 2 * hidden), state, hidden, r_d, width)
        for (int j = 0; j < 2 * hidden; j++) gate[j] = GATE(0, gate[j] + from_state[j]);
        if (linear) {
          for (int j = 0; j < hidden; j++) gate[2 * hidden + j] += gate[hidden + j] * from_state[2 * hidden + j];
        } else {
          for (int j = 0; j < hidden; j++) reset_state[j] = gate[hidden + j] * state[j];
          ADD_PRODUCT(from_state, 2 * hidden, width, reset_state, hidden, r_d, width)
          for (int j = 0; j < hidden; j++) gate[2 * hidden + j] += from_state[2 * hidden + j];
        }
        for (int j = 0; j < hidden; j++) {
          float update = gate[j], candidate = GATE(1, gate[2 * hidden + j]);
          state[j] = (1.0f - update) * candidate + update * state[j];
        }
#else
        ADD_PRODUCT(from_state, 0, width, state, hidden, r_d, width)
        for (int j = 0; j < hidden; j++) {
#if LSTM
          float in = gate[j] + from_state[j], out = gate[hidden + j] + from_state[hidden + j];
          float forget = gate[2 * hidden + j] + from_state[2 * hidden + j];
          if (peephole) {
            in += peephole[d * 3 * hidden + j] * cell[j];
            forget += peephole[d * 3 * hidden + 2 * hidden + j] * cell[j];
          }
          in = GATE(0, in);
          forget = g[INPUT_FORGET] ? 1.0f - in : GATE(0, forget);
          cell[j] = forget * cell[j] + in * GATE(1, gate[3 * hidden + j] + from_state[3 * hidden + j]);
          if (peephole) out += peephole[d * 3 * hidden + hidden + j] * cell[j];
          state[j] = GATE(0, out) * APPLY(2, cell[j]);
#else
          state[j] = GATE(0, gate[j] + from_state[j]);
#endif
        }
#endif
        for (int j = 0; j < hidden; j++) y_t[j] = state[j];
      }
      for (int j = 0; j < hidden; j++) {
        y_h[sequence * hidden + j] = state[j];
#if LSTM
        y_c[sequence * hidden + j] = cell[j];
#endif
      }
    }
}
