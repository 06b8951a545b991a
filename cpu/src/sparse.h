// What the Cython door and the kernel of sparse recurrent layers share: the arguments of one call. Sizes as in ops/sparse.py.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

struct SparseArguments {
  int64_t steps, batch, hidden;
  const float* x;
  const float* values;
  const int32_t *columns, *offsets;
  const float* initial_h;  // or null
  float* y;
  float* workspace;  // sparse_workspace_f32's floats
  float leak, alpha, beta;
  int32_t function;
};

QF_DECLARE(int64_t, sparse_workspace_f32, (const SparseArguments*))
QF_DECLARE(void, sparse_recurrent_f32, (const SparseArguments*))
