/* Recurrent layers of one direction after the other, one sequence after the other: rnn, lstm, gru, fixed_rnn, fixed_lstm,
 * fixed_gru.
 *
 * The state, the gates and the recurrent products of a step stay on the chip. Weights come transposed, so that the
 * innermost loop adds one input times a run of weights to all gates: no sum waits for itself, and weights are read
 * in order. GATES is 1 (rnn), 4 (lstm: i, o, f, c) or 3 (gru: z, r, h); CAPACITY is an upper bound of the hidden size.
 * What numbers are is said by recurrent_float.h, or with FIXED by recurrent_fixed.h. With REUSE every REUSE-th product is
 * added, then every REUSE-th from the second on, and so on.
 *
 *   x [T][N][I], w [D][I][GATES H], r [D][H][GATES H], bias [D][2 GATES H] (of w, then of r),
 *   lengths [N] or null, initial_h and initial_c [D][N][H] or null, codes [D][3] of f, g, h
 *   in float: peephole [D][3 H] or null, parameters [D][3][2] of f, g, h; fixed: tables [2][TABLE_SIZE] (sigmoid, tanh)
 *   y [T][D][N][H], y_h and y_c [D][N][H]
 */
#ifdef FIXED
#include "recurrent_fixed.h"
#else
#include "recurrent_float.h"
#endif

#define LSTM (GATES == 4)
#define GRU (GATES == 3)

#ifndef REUSE
#define REUSE 1
#endif

enum { STEPS, BATCH, INPUTS, HIDDEN, DIRECTIONS, REVERSE_0, REVERSE_1, LINEAR_BEFORE_RESET, INPUT_FORGET };

/* sum[begin, end) += values times matrix, whose rows are `width` long */
#define ADD_PRODUCT(sum, begin, end, values, count, matrix, width, added_to) \
  for (int round = 0; round < REUSE; round++) \
    for (int k = round; k < count; k += REUSE) { \
      PRODUCT_T value = values[k]; \
      for (int j = begin; j < end; j++) sum[j] = added_to(sum[j], value, (matrix)[k * (width) + j]); \
    }

#define GATE(index) GATE_SUM(SETTLED(from_input[(index) * hidden + j]), SETTLED(from_state[(index) * hidden + j]))

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void recurrent(
    __global const X_T* restrict x, __global const W_T* restrict w, __global const R_T* restrict r,
    __global const BIAS_T* restrict bias, __global const int* restrict lengths, __global const Y_T* restrict initial_h,
    __global const Y_T* restrict initial_c, __constant const int* restrict g, __constant const int* restrict codes,
    OPTIONS __global Y_T* restrict y, __global Y_T* restrict y_h
#if LSTM
    , __global Y_T* restrict y_c
#endif
) {
  __local Y_T state[CAPACITY];
  __local SUM_T from_input[GATES * CAPACITY];
  __local SUM_T from_state[GATES * CAPACITY];
#if LSTM
  __local Y_T cell[CAPACITY];
#endif
#if GRU
  __local Y_T reset_state[CAPACITY];
  __local VALUE_T update[CAPACITY], reset[CAPACITY];
#endif
  ON_CHIP
  int hidden = g[HIDDEN], width = GATES * hidden;

  for (int d = 0; d < g[DIRECTIONS]; d++)
    for (int n = 0; n < g[BATCH]; n++) {
      int sequence = d * g[BATCH] + n;
      int length = lengths ? lengths[n] : g[STEPS];
      int reverse = d ? g[REVERSE_1] : g[REVERSE_0];
      __global const W_T* w_d = w + d * g[INPUTS] * width;
      __global const R_T* r_d = r + d * hidden * width;
      for (int j = 0; j < hidden; j++) {
        state[j] = initial_h ? initial_h[sequence * hidden + j] : 0;
#if LSTM
        cell[j] = initial_c ? initial_c[sequence * hidden + j] : 0;
#endif
      }

      for (int step = 0; step < g[STEPS]; step++) {
        int valid = step < length;
        int t = reverse && valid ? length - 1 - step : step;
        __global Y_T* y_t = y + ((t * g[DIRECTIONS] + d) * g[BATCH] + n) * hidden;
        if (!valid) {
          for (int j = 0; j < hidden; j++) y_t[j] = 0;
          continue;
        }
        __global const X_T* x_t = x + (t * g[BATCH] + n) * g[INPUTS];
        for (int j = 0; j < width; j++) {
          from_input[j] = (SUM_T)bias[d * 2 * width + j];
          from_state[j] = (SUM_T)bias[(d * 2 + 1) * width + j];
        }
        ADD_PRODUCT(from_input, 0, width, x_t, g[INPUTS], w_d, width, ADDED_X)
#if GRU
        int linear = g[LINEAR_BEFORE_RESET];
        ADD_PRODUCT(from_state, 0, (linear ? width : 2 * hidden), state, hidden, r_d, width, ADDED_H)
        for (int j = 0; j < hidden; j++) {
          update[j] = FUNCTION(0, GATE(0));
          reset[j] = FUNCTION(0, GATE(1));
          reset_state[j] = RESET_STATE(reset[j], state[j]);
        }
        if (!linear) ADD_PRODUCT(from_state, 2 * hidden, width, reset_state, hidden, r_d, width, ADDED_H)
        for (int j = 0; j < hidden; j++) {
          VALUE_T of_state = SETTLED(from_state[2 * hidden + j]);
          if (linear) of_state = RESET_SUM(reset[j], of_state);
          VALUE_T candidate = FUNCTION(1, GATE_SUM(SETTLED(from_input[2 * hidden + j]), of_state));
          state[j] = BLEND(candidate, ONE - update[j], state[j], update[j]);
        }
#else
        ADD_PRODUCT(from_state, 0, width, state, hidden, r_d, width, ADDED_H)
        for (int j = 0; j < hidden; j++) {
#if LSTM
          VALUE_T in = FUNCTION(0, GATE(0) + PEEPHOLE(0, cell[j]));
          VALUE_T forget = g[INPUT_FORGET] ? ONE - in : FUNCTION(0, GATE(2) + PEEPHOLE(2, cell[j]));
          cell[j] = BLEND(FUNCTION(1, GATE(3)), in, cell[j], forget);
          VALUE_T out = FUNCTION(0, GATE(1) + PEEPHOLE(1, cell[j]));
          state[j] = OF_CELL(out, cell[j]);
#else
          state[j] = AS_STATE(FUNCTION(0, GATE(0)));
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
