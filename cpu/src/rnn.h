// What the Cython door and the recurrent kernels share: the arguments of one call, and the exported kernels.
//
// Sizes are those of ops/rnn.py: x (steps, batch, inputs), y (steps, directions, batch, hidden), weights with the
// gates of one direction behind each other in ONNX's order (lstm i, o, f, c; gru z, r, h).
#pragma once

#include <cstdint>

#include "instruction_sets.h"
#include "native_step.h"

enum RnnKind { RNN_PLAIN = 0, RNN_LSTM = 1, RNN_GRU = 2 };

struct RnnFunction {
  double alpha, beta;
  int32_t code;
};

static inline int64_t gates_of(int kind) { return kind == RNN_LSTM ? 4 : kind == RNN_GRU ? 3 : 1; }

// Weights by compressed rows, for rows_ kernels: slices of LANES rows of a column (rnn_layer.h), all directions, blocks and
// columns in this order. Row `lane` of a slice has values[i * LANES + lane] at columns[i * LANES + lane] for i from
// starts[slice] to starts[slice + 1]; shorter rows end in zeros. Columns are uint16, or int32 where `wide`.
struct RnnSlices {
  const int64_t* starts;
  const float* values;
  const void* columns;
  const int32_t* gaps;  // for each row of a slice: -1 where it leaves a column out, else 0
  int32_t wide;
};

struct RnnArguments {
  int64_t steps, batch, inputs, hidden;
  int32_t directions, kind, threads;
  int32_t reverse[2];
  RnnFunction functions[2][3];  // f, g, h of each direction
  double clip;                  // infinity when there is none
  int32_t linear_before_reset, input_forget;
  int32_t finite;     // what rnn_finite_f32 said
  int32_t passing;    // 1: weights are packed by blocks when they are used, once, by one thread; w and r have to be there
  int32_t downwards;  // 1: the first step takes the blocks of units from the last to the first

  const void *w, *r, *b, *p;  // as the operator has them; b and p may be null. rnn_packed_f32 reads them in pack, or where passing
  const float* packed;        // what rnn_pack_f32 made of them
  const float *w_book, *r_book;  // where w and r are codes (uint8): 16 or 256 entries
  RnnSlices w_slices, r_slices;  // in the place of w and r

  const void* x;
  const int32_t* lengths;                  // or null
  const void *initial_h, *initial_c;       // or null
  void *y, *y_h, *y_c;                     // y_c of lstm
  void* sums;                              // of a training form, or null
  void* workspace;
};

// The gradients of a layer: ops/rnn_gradient.py. w, r and p are plain, packed is unused, y is what the forward pass gave.
struct RnnGradientArguments {
  RnnArguments layer;
  const void *y, *sums;
  const void *dy, *dy_h, *dy_c;                             // or null
  void *dx, *dw, *dr, *db, *dinitial_h, *dinitial_c, *dp;  // null: not wanted
};

struct RnnNeeds {
  int64_t packed_floats, workspace_floats;
  int32_t threads;  // as many as the work is worth
};

// Sums of a unit in a training form's output.
static inline int64_t slots_of(const RnnArguments& a) { return gates_of(a.kind) + (a.kind == RNN_GRU && a.linear_before_reset); }

QF_DECLARE(void, rnn_needs_f32, (const RnnArguments*, RnnNeeds*))
QF_DECLARE(int, rnn_finite_f32, (const RnnArguments*))
QF_DECLARE(void, rnn_pack_f32, (const RnnArguments*, float*))
QF_DECLARE(void, rnn_packed_f32, (const RnnArguments*))
QF_DECLARE_AMX(void, rnn_codes4_needs_f32, (const RnnArguments*, RnnNeeds*))
QF_DECLARE_AMX(void, rnn_codes4_pack_f32, (const RnnArguments*, float*))
QF_DECLARE_AMX(void, rnn_codes4_f32, (const RnnArguments*))
QF_DECLARE_AMX(void, rnn_codes8_needs_f32, (const RnnArguments*, RnnNeeds*))
QF_DECLARE_AMX(void, rnn_codes8_pack_f32, (const RnnArguments*, float*))
QF_DECLARE_AMX(void, rnn_codes8_f32, (const RnnArguments*))
QF_DECLARE(void, rnn_rows_needs_f32, (const RnnArguments*, RnnNeeds*))
QF_DECLARE(void, rnn_rows_pack_f32, (const RnnArguments*, float*))
QF_DECLARE(void, rnn_rows_f32, (const RnnArguments*))
QF_DECLARE(void, rnn_general_f64, (const RnnArguments*))
QF_DECLARE(size_t, rnn_gradient_f32_workspace, (const RnnGradientArguments*))
QF_DECLARE(void, rnn_gradient_f32, (const RnnGradientArguments*))
QF_DECLARE(void, rnn_gradient_general_f64, (const RnnGradientArguments*))

// A prepared layer as a step of a sequence: what it points to belongs to _rnn.Layer.
struct RnnStep {
  void (*run)(const RnnArguments*);
  const RnnArguments* arguments;
  int most_threads;  // as many as the work is worth
  int lengths;       // where sequence_lens is among the inputs; the states follow
};

static inline void run_rnn_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                                int threads) {
  const RnnStep& step = *static_cast<const RnnStep*>(context);
  RnnArguments arguments = *step.arguments;
  arguments.x = inputs[0];
  arguments.lengths = static_cast<const int32_t*>(inputs[step.lengths]);
  arguments.initial_h = inputs[step.lengths + 1];
  arguments.y = outputs[0];
  arguments.y_h = outputs[1];
  if (arguments.kind == RNN_LSTM) arguments.initial_c = inputs[step.lengths + 2], arguments.y_c = outputs[2];
  arguments.threads = threads < step.most_threads ? threads : step.most_threads;
  arguments.workspace = workspace;
  step.run(&arguments);
}
