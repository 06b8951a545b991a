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
QF_DECLARE(void, rnn_general_f64, (const RnnArguments*))
QF_DECLARE(size_t, rnn_gradient_f32_workspace, (const RnnGradientArguments*))
QF_DECLARE(void, rnn_gradient_f32, (const RnnGradientArguments*))
QF_DECLARE(void, rnn_gradient_general_f64, (const RnnGradientArguments*))

// A prepared layer as a step of a sequence: what it points to belongs to _rnn.Layer.
struct RnnStep {
  void (*run)(const RnnArguments*);
  const RnnArguments* arguments;
  int most_threads;  // as many as the work is worth
};

static inline void run_rnn_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                                int threads) {
  const RnnStep& step = *static_cast<const RnnStep*>(context);
  RnnArguments arguments = *step.arguments;
  arguments.x = inputs[0];
  arguments.lengths = static_cast<const int32_t*>(inputs[4]);
  arguments.initial_h = inputs[5];
  arguments.y = outputs[0];
  arguments.y_h = outputs[1];
  if (arguments.kind == RNN_LSTM) arguments.initial_c = inputs[6], arguments.y_c = outputs[2];
  arguments.threads = threads < step.most_threads ? threads : step.most_threads;
  arguments.workspace = workspace;
  step.run(&arguments);
}
