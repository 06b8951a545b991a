// What the Cython door and the kernels of pooling's gradients share: the arguments of one call, and the exported kernels.
//
// Geometry, kind, type, weights and workspace are those of the pool (pool.h), x is its input and y its output, where they
// are read. Planes are independent; each thread takes whole ones.
#pragma once

#include "pool.h"

struct PoolGradientArguments : PoolArguments {
  const void* dy;
  void* dx;
  // sums, over depth and over height: for each place of x where the list of the output places begins whose windows hold it
  // (and where the last one ends), then these lists
  const int32_t* holders[2];
  int64_t slots;        // max: lines of a plane that are open at once; sums: lines that are summed together
  int64_t line_floats;  // of a line of gradients, those in front of it included
  int64_t lead;         // floats in front of a line of gradients, and as many may be read behind it: see pool_gradient.py
};

struct UnpoolGradientArguments {
  const void* dy;
  const int64_t* indices;
  void* dx;
  uint8_t* taken;        // room for as many bytes as dy has places
  int64_t planes, size;  // size: elements of dx
  int64_t indexed[3], output[3];
  int32_t element_bytes;
};

// Each returns 0, or 1 where it has no instance for the arguments.
QF_DECLARE(int, pool_gradient_max_f32, (const PoolGradientArguments*))
QF_DECLARE(int, pool_gradient_sum_f32, (const PoolGradientArguments*))
QF_DECLARE(int, pool_gradient_global_f32, (const PoolGradientArguments*))
QF_DECLARE(int, pool_gradient_general, (const PoolGradientArguments*))
QF_DECLARE(int, pool_gradient_unpool, (const UnpoolGradientArguments*))
