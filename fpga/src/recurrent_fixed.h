/* The arithmetic of recurrent.cl in fixed point, as kernels/ops/fixed.py says. Functions are looked up in tables of the
 * accumulator's format, which are kept on the chip where they have TABLE_WORDS or fewer.
 *
 * Constants: those of fixed_sum.h; DROP_X and DROP_H, how many more fraction bits x w and h r have than the accumulator;
 * FRACTION and STATE_FRACTION, those of the accumulator and of y; SIGMOID_BITS and TANH_BITS for qf_table_index of a
 * value of the accumulator; TABLE_T, TABLE_SIZE.
 */
#include "fixed_sum.h"

typedef long BIAS_T, VALUE_T;
#define WIDE (FRACTION > STATE_FRACTION ? FRACTION : STATE_FRACTION)
#define TABLE_WORDS 16384

enum { SIGMOID, TANH, RELU }; /* places in ops/fixed.py's FUNCTIONS */

#define OPTIONS __global const TABLE_T *restrict given_tables,
#if 2 * TABLE_SIZE <= TABLE_WORDS
#define TABLES __local const TABLE_T*
#define ON_CHIP \
  __local TABLE_T tables[2 * TABLE_SIZE]; \
  for (int i = 0; i < 2 * TABLE_SIZE; i++) tables[i] = given_tables[i];
#else
#define TABLES __global const TABLE_T*
#define ON_CHIP __global const TABLE_T* tables = given_tables;
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

#define ONE ((long)1 << FRACTION)
#define ADDED_X(sum, a, b) added(sum, (a) * (b), DROP_X)
#define ADDED_H(sum, a, b) added(sum, (a) * (b), DROP_H)
#define SETTLED(sum) settled(sum)
#define GATE_SUM(a, b) qf_fitted((a) + (b), FORMAT(ACCUMULATOR))
#define FUNCTION(place, value) apply(codes[d * 3 + place], value, 0, tables)
#define OF_CELL(out, cell) \
  qf_cast((out) * apply(codes[d * 3 + 2], cell, STATE_FRACTION - FRACTION, tables), 2 * FRACTION - STATE_FRACTION, \
          FORMAT(Y_FORMAT))
#define AS_STATE(value) qf_cast(value, FRACTION - STATE_FRACTION, FORMAT(Y_FORMAT))
#define BLEND(a, b, state, gate) blend(a, b, state, gate)
#define RESET_STATE(reset, state) qf_cast((reset) * (state), FRACTION, FORMAT(Y_FORMAT))
#define RESET_SUM(reset, sum) qf_cast((reset) * (sum), FRACTION, FORMAT(ACCUMULATOR))
#define PEEPHOLE(gate, cell) 0
