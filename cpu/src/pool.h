// What the Cython door and the pooling kernels share: the arguments of one call, and the exported kernels.
//
// A pool works on `planes` = N * C volumes of three spatial axes (depth, height, width), one after the other in
// memory. Every kernel takes the volumes' output rows: row r is (depth r / output[1], height r % output[1]).
#pragma once

#include <cstdint>

#include "instruction_sets.h"
#include "native_step.h"

enum PoolKind { POOL_MAX = 0, POOL_AVERAGE = 1, POOL_LP = 2 };
enum PoolType { POOL_FLOAT32 = 0, POOL_FLOAT64 = 1, POOL_UINT8 = 2, POOL_INT8 = 3 };

struct PoolArguments {
  const void* x;
  void* y;
  int64_t* indices;     // of max, or null
  float* workspace;     // workspace_floats for each thread, where a kernel needs it
  int64_t workspace_floats;
  int64_t row_floats, batch_rows;  // of the workspace's row buffers, see pool.py
  int64_t planes;
  int64_t input[3], output[3], kernel[3], strides[3], dilations[3], pads[3], pads_end[3];
  // average: 1 / (taps that count), over depth and height for each output row, along the width for each output column
  const float *row_weights, *column_weights;
  const int32_t* first_columns;  // max with indices: the first tap of each output column that is inside
  int32_t kind, type, count_include_pad, p, storage_order, threads;
  int64_t channels;  // that lie last in each of `planes`, where a kernel takes them so
};

struct UnpoolArguments {
  const void* x;
  const int64_t* indices;
  void* y;
  int64_t planes, size;  // size: elements of x
  int64_t indexed[3], output[3];
  int32_t element_bytes;  // 1, 2, 4 or 8
};

// Each returns 0, or 1 where it has no instance for the window (its declaration in pool.py accepts fewer).
QF_DECLARE(int, pool_global_f32, (const PoolArguments*))
QF_DECLARE(int, pool_separable_f32, (const PoolArguments*))
QF_DECLARE(int, pool_indices_f32, (const PoolArguments*))
QF_DECLARE(int, pool_blocked_f32, (const PoolArguments*))
QF_DECLARE(int, pool_bytes, (const PoolArguments*))
QF_DECLARE(int, pool_general, (const PoolArguments*))
QF_DECLARE(int, pool_unpool, (const UnpoolArguments*))

// A prepared pool without indices as a step of a sequence: what it points to belongs to _pool.Pool.
struct PoolStep {
  int (*run)(const PoolArguments*);
  const PoolArguments* arguments;
  bool worth_threads;
};

inline void run_pool_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                          int threads) {
  const PoolStep& step = *static_cast<const PoolStep*>(context);
  PoolArguments arguments = *step.arguments;
  arguments.x = inputs[0];
  arguments.y = outputs[0];
  arguments.workspace = reinterpret_cast<float*>(workspace);
  arguments.threads = step.worth_threads ? threads : 1;
  step.run(&arguments);
}
