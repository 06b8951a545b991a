/* Pooling of any shape over three axes by many work-items, for devices that want them (processors, GPUs): max_pool (with
 * indices), average_pool, lp_pool, fixed_max_pool, fixed_average_pool.
 *
 * A work-item computes one output; neighbours are neighbours along the width. Sizes are arguments.
 *   global size: places of a plane of y and what fills the last group, planes
 */
#include "pool_place.h"

__kernel void pool_ndrange(
    __global const X_T* restrict x, __constant const int* restrict g, int p, int count_pads, int column_major,
    __global Y_T* restrict y
#ifdef WITH_INDICES
    , __global long* restrict indices
#endif
) {
#ifndef WITH_INDICES
  __global long* indices = 0;
#endif
  int place = get_global_id(0), row = g[OUT_W], area = g[OUT_H] * row;
  if (place >= g[OUT_D] * area) return;
  pool_place(x, g, p, count_pads, column_major, y, indices, get_global_id(1), place / area, place / row % g[OUT_H],
             place % row);
}
