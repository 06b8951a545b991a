// What the Cython door and the fixed-point kernels share: what a prepared operator holds, the arguments of one call, and
// the exported kernels. What the operators compute is said in ops/fixed.py, casts in quatrefoil/fixed.h.
#pragma once

#include <cstdint>

#include "fixed_cast.h"
#include "instruction_sets.h"
#include "native_step.h"

// How products are computed, and in what they are summed.
enum FixedKind {
  FIXED_PAIRS = 0,  // int16 by int16, two at a time, exact in int32
  FIXED_SHORT = 1,  // int16 by int16, one at a time in int32
  FIXED_WIDE = 2    // int32 by int32, one at a time in int64
};

// Sums of products, sum(w[row][step] * x[offset[step]]), for all rows of w at once: lanes of a vector are rows.
//
// Rows come in groups, a group's in blocks of a vector: 32-bit lanes for PAIRS and SHORT, 64-bit ones for WIDE. With
// `lanewise` each lane has an x of its own, `offset` counts from a vector of them, and a group is one block.
struct FixedProducts {
  int32_t kind, lanewise;
  int32_t exact;        // products are added as they are, and no sum leaves its lane, or only with bits that wrap away
  int32_t wide_finish;  // what comes after the sums needs 64 bits, although they do not
  int64_t groups, rows, channels, steps;  // channels: the rows of all groups; the last one may have fewer
  const int64_t* offsets;                 // of each step, in elements of x as the kind has them (int16 or int32)
  const void* weights;                    // (groups, blocks, steps, lanes); PAIRS: two int16 a lane
  const void* start;                      // (groups, blocks, lanes): where sums begin
  const void* late;                       // likewise: what is added to a sum that was shifted up, by `up` bits
  int32_t up;
  FixedCast product, sum, y;  // of products to the accumulator, of a finished sum, and of that to y
  int32_t relu, y_bytes;
};

enum { FIXED_PLACES = 8 };  // of a tile

// Where a tile's results go: y[at[place] + row * stride].
struct FixedTarget {
  char* y;
  int64_t at[FIXED_PLACES];
  int64_t stride;
  int32_t places;  // that are wanted
  int32_t beside;  // places are one element apart
};

// The sums of all rows of a group, cast, for the places of a tile, or for a single one. x: where each place's products
// begin, FIXED_PLACES of them however many are wanted, or one.
typedef void (*FixedTile)(const FixedProducts*, int64_t group, const void* const* x, const FixedTarget*);

struct FixedTiles {
  FixedTile full, lone;  // lone is null where x is lanewise
  int32_t x_bytes;       // of an element of x as it is laid out
};

QF_DECLARE_VNNI(void, fixed_tiles, (const FixedProducts*, FixedTiles*))

struct FixedConv {
  FixedTiles tiles;
  FixedProducts products;
  int64_t batch, in_channels;  // in_channels: of all groups
  int64_t depth;               // channels of a group as x is laid out
  int64_t each;                // lanewise: output channels that an input channel makes
  int64_t input[3], output[3], strides[3], pads[3], reach[3];  // reach: what all windows cover of an axis, padding too
  int64_t chunk;               // images that are laid out at a time
  int32_t x_bytes;
};

struct FixedPool {
  int64_t planes;
  int64_t input[3], output[3], kernel[3], strides[3], dilations[3], pads[3];
  int32_t average, x_bytes, y_bytes;
  int32_t narrow;           // sums fit 32 bits, and so does what comes after them
  int32_t exact;            // no sum leaves the accumulator
  const int32_t* divisors;  // average: of each output place
  FixedCast x, sum, y;      // of a tap to the accumulator, of a sum, and to y
};

enum { FIXED_SIGMOID = 0, FIXED_TANH = 1, FIXED_RELU = 2 };  // positions in ops/fixed.py: FUNCTIONS
enum FixedCell { FIXED_RNN = 0, FIXED_LSTM = 1, FIXED_GRU = 2, FIXED_GRU_LINEAR = 3 };

// A function that gates take: a table of the accumulator's integers, or Relu.
struct FixedFunction {
  const int32_t* table;  // null for Relu
  int32_t reach_bits, size_bits;  // log2 of twice the table's reach, and of its size
};

struct FixedRecurrent {
  int32_t cell, directions, x_bytes, y_bytes;
  int32_t reverse[2];
  int64_t steps, batch, inputs, hidden;
  FixedProducts from_x[2], from_h[2];  // of each direction: rows are gates
  FixedProducts from_kept[2];          // gru without linear_before_reset: R_h alone
  FixedTiles tiles_x[2], tiles_h[2], tiles_kept[2];
  FixedFunction functions[2][3];
  int32_t fraction, state_fraction;  // of the accumulator, and of y
  qf_format accumulator, state;
};

struct FixedRecurrentCall {
  const void* x;
  const int32_t* lengths;             // or null
  const void *initial_h, *initial_c;  // or null
  void *y, *y_h, *y_c;                // y zeroed; y_c of lstm
  char* workspace;                    // of fixed_recurrent_workspace's size
};

QF_DECLARE(void, fixed_conv, (const FixedConv*, const void* x, void* y, char* workspace, int threads))
QF_DECLARE(void, fixed_recurrent, (const FixedRecurrent*, const FixedRecurrentCall*))
QF_DECLARE(int64_t, fixed_recurrent_workspace, (const FixedRecurrent*))
QF_DECLARE(void, fixed_pool, (const FixedPool*, const void* x, void* y, int threads))

// ---- the operators as native steps: what is run on what, and the multiply-accumulates or taps of a call

struct FixedConvStep {
  void (*run)(const FixedConv*, const void*, void*, char*, int);
  FixedConv arguments;
  double work;
};

struct FixedPoolStep {
  void (*run)(const FixedPool*, const void*, void*, int);
  FixedPool arguments;
  double work;
};

struct FixedRecurrentStep {
  void (*run)(const FixedRecurrent*, const FixedRecurrentCall*);
  FixedRecurrent arguments;
};

// Another thread is worth waking for so much work.
inline int fixed_threads(double work, int threads) {
  constexpr double WORTH = 1 << 18;
  return work < 2 * WORTH ? 1 : threads < work / WORTH ? threads : int(work / WORTH);
}

inline void run_fixed_conv_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                                int threads) {
  const FixedConvStep& s = *static_cast<const FixedConvStep*>(context);
  s.run(&s.arguments, inputs[0], outputs[0], workspace, fixed_threads(s.work, threads));
}

inline void run_fixed_pool_step(const void* context, const void* const* inputs, void* const* outputs, char*, int threads) {
  const FixedPoolStep& s = *static_cast<const FixedPoolStep*>(context);
  s.run(&s.arguments, inputs[0], outputs[0], fixed_threads(s.work, threads));
}

// inputs: those of ops/fixed.py by position, absent ones null; outputs: y, zeroed where there are lengths, y_h, y_c.
inline void run_fixed_recurrent_step(const void* context, const void* const* inputs, void* const* outputs,
                                     char* workspace, int) {
  const FixedRecurrentStep& s = *static_cast<const FixedRecurrentStep*>(context);
  const FixedRecurrentCall call = {
      inputs[0], static_cast<const int32_t*>(inputs[4]), inputs[5], inputs[6], outputs[0], outputs[1],
      s.arguments.cell == FIXED_LSTM ? outputs[2] : nullptr, workspace};
  s.run(&s.arguments, &call);
}
