/* A function of fixed-point integers as a stage of a stream (fpga/streams.py): of each value a value, exact and then cast
 * once, as sequences.FixedElementwise says. FUNCTION is one of the codes below.
 *
 * Constants: FACTOR, OFFSET, LOW, HIGH; Y_FORMAT, the initialisers of a qf_format; DROP and DROP_BELOW, how many more
 * fraction bits than y the exact result has (of values not above 0); TABLE_SIZE and TABLE_BITS for qf_table_index.
 */
#include "quatrefoil/fixed.h"

#define AFFINE 0
#define TABLE 1
#define SLOPE_BELOW 2
#define TABLE_BELOW 3

typedef struct {
  __global const int* table;
} stage_t;

static inline void begin(stage_t* s, __global const int* table) { s->table = table; }

static inline int wants(const stage_t* s) { return 1; }

static inline int take(stage_t* s, const X_T* x, Y_T* y) {
  const qf_format format = {Y_FORMAT};
  for (int c = 0; c < CHANNELS; c++) {
    const qf_int64 v = x[c];
#if FUNCTION == AFFINE
    const qf_int64 line = v * FACTOR + OFFSET;
    y[c] = qf_cast(line < LOW ? LOW : line > HIGH ? HIGH : line, DROP, format);
#elif FUNCTION == TABLE
    y[c] = s->table[qf_table_index(v, TABLE_BITS, TABLE_SIZE)];
#elif FUNCTION == SLOPE_BELOW
    y[c] = v > 0 ? qf_cast(v, DROP, format) : qf_cast(v * FACTOR, DROP_BELOW, format);
#else
    y[c] = v > 0 ? qf_cast(v, DROP, format) : s->table[qf_table_index(v, TABLE_BITS, TABLE_SIZE)];
#endif
  }
  return 1;
}
