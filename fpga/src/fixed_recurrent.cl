/* Recurrent layers in fixed point, one direction after the other, one sequence after the other: fixed_rnn, fixed_lstm,
 * fixed_gru.
 *
 * As recurrent.cl: the state, the gates and the recurrent products of a step stay on the chip, weights come transposed
 * and are read in order, and the innermost loop adds one input times a run of weights to all gates. Functions are
 * looked up in tables of the accumulator's format, which are kept on the chip where they have TABLE_WORDS or fewer.
 *
 *   x [T][N][I], w [D][I][GATES H], r [D][H][GATES H], bias [D][2 GATES H] (of w, then of r; of the accumulator),
 *   lengths [N] or null, initial_h and initial_c [D][N][H] or null, tables [2][TABLE_SIZE] (sigmoid, tanh),
 *   codes [D][3] of f, g, h
 *   y [T][D][N][H], y_h and y_c [D][N][H]
 *
 * Constants: those of fixed_sum.h; DROP_X and DROP_H, how many more fraction bits x w and h r have than the accumulator;
 * FRACTION and STATE_FRACTION, those of the accumulator and of y; SIGMOID_BITS and TANH_BITS for qf_table_index of a
 * value of the accumulator; REUSE, as in conv_output.h.
 */
#include "fixed_sum.h"

#define LSTM (GATES == 4)
#define GRU (GATES == 3)
#define WIDE (FRACTION > STATE_FRACTION ? FRACTION : STATE_FRACTION)
#define TABLE_WORDS 16384

enum { STEPS, BATCH, INPUTS, HIDDEN, DIRECTIONS, REVERSE_0, REVERSE_1, LINEAR_BEFORE_RESET };
enum { SIGMOID, TANH, RELU }; /* places in ops/fixed.py's FUNCTIONS */

#if 2 * TABLE_SIZE <= TABLE_WORDS
#define TABLES __local const TABLE_T*
#else
#define TABLES __global const TABLE_T*
#endif

/* A function of a value with `finer` more fraction bits than the accumulator, as an integer of the accumulator. */
static inline long apply(int code, long value, int finer, TABLES tables) {
  if (code == RELU) return qf_cast(value < 0 ? 0 : value, finer, FORMAT(ACCUMULATOR));
  int bits = (code == SIGMOID ? SIGMOID_BITS : TANH_BITS) + finer;
  return tables[code * TABLE_SIZE + qf_table_index(value, bits, TABLE_SIZE)];
}

/* a b + state gate, exact, as a state; a, b and gate are the accumulator's. */
static inline Y_T blend(long a, long b, long state, long gate) {
  long total = qf_shifted(a * b, WIDE - FRACTION) + qf_shifted(state * gate, WIDE - STATE_FRACTION);
  return qf_cast(total, WIDE + FRACTION - STATE_FRACTION, FORMAT(Y_FORMAT));
}

/* The sum of two of the accumulator's integers, as another. */
static inline long gate_sum(long a, long s) { return qf_fitted(a + s, FORMAT(ACCUMULATOR)); }

/* sum[begin, end) += values times matrix, whose rows are `width` long */
#define ADD_PRODUCT(sum, begin, end, values, count, matrix, width, drop) \
  for (int round = 0; round < REUSE; round++) \
    for (int k = round; k < count; k += REUSE) { \
      PRODUCT_T value = values[k]; \
      for (int j = begin; j < end; j++) sum[j] = added(sum[j], value * (matrix)[k * (width) + j], drop); \
    }

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void fixed_recurrent(
    __global const X_T* restrict x, __global const W_T* restrict w, __global const R_T* restrict r,
    __global const long* restrict bias, __global const int* restrict lengths, __global const Y_T* restrict initial_h,
    __global const Y_T* restrict initial_c, __constant const int* restrict g, __global const TABLE_T* restrict given_tables,
    __constant const int* restrict codes, __global Y_T* restrict y, __global Y_T* restrict y_h
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
  __local long update[CAPACITY], reset[CAPACITY];
#endif
#if 2 * TABLE_SIZE <= TABLE_WORDS
  __local TABLE_T tables[2 * TABLE_SIZE];
  for (int i = 0; i < 2 * TABLE_SIZE; i++) tables[i] = given_tables[i];
#else
  __global const TABLE_T* tables = given_tables;
#endif
  int hidden = g[HIDDEN], width = GATES * hidden;

  for (int d = 0; d < g[DIRECTIONS]; d++)
    for (int n = 0; n < g[BATCH]; n++) {
      int sequence = d * g[BATCH] + n;
      int length = lengths ? lengths[n] : g[STEPS];
      int reverse = d ? g[REVERSE_1] : g[REVERSE_0];
      int f = codes[d * 3], second = codes[d * 3 + 1], third = codes[d * 3 + 2];
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
        ADD_PRODUCT(from_input, 0, width, x_t, g[INPUTS], w_d, width, DROP_X)
#if GRU
        int linear = g[LINEAR_BEFORE_RESET];
        ADD_PRODUCT(from_state, 0, (linear ? width : 2 * hidden), state, hidden, r_d, width, DROP_H)
        for (int j = 0; j < hidden; j++) {
          update[j] = apply(f, gate_sum(settled(from_input[j]), settled(from_state[j])), 0, tables);
          reset[j] = apply(f, gate_sum(settled(from_input[hidden + j]), settled(from_state[hidden + j])), 0, tables);
          reset_state[j] = qf_cast(reset[j] * state[j], FRACTION, FORMAT(Y_FORMAT));
        }
        if (!linear) ADD_PRODUCT(from_state, 2 * hidden, width, reset_state, hidden, r_d, width, DROP_H)
        for (int j = 0; j < hidden; j++) {
          long term = settled(from_state[2 * hidden + j]);
          if (linear) term = qf_cast(reset[j] * term, FRACTION, FORMAT(ACCUMULATOR));
          long candidate = apply(second, gate_sum(settled(from_input[2 * hidden + j]), term), 0, tables);
          state[j] = blend(candidate, ((long)1 << FRACTION) - update[j], state[j], update[j]);
        }
#else
        ADD_PRODUCT(from_state, 0, width, state, hidden, r_d, width, DROP_H)
#define GATE(index) gate_sum(settled(from_input[(index) * hidden + j]), settled(from_state[(index) * hidden + j]))
        for (int j = 0; j < hidden; j++) {
#if LSTM
          long in = apply(f, GATE(0), 0, tables), out = apply(f, GATE(1), 0, tables), forget = apply(f, GATE(2), 0, tables);
          cell[j] = blend(apply(second, GATE(3), 0, tables), in, cell[j], forget);
          long shown = apply(third, cell[j], STATE_FRACTION - FRACTION, tables);
          state[j] = qf_cast(out * shown, 2 * FRACTION - STATE_FRACTION, FORMAT(Y_FORMAT));
#else
          state[j] = qf_cast(apply(f, GATE(0), 0, tables), FRACTION - STATE_FRACTION, FORMAT(Y_FORMAT));
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
