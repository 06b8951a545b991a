/* Pooling of any shape over three axes: max_pool (with indices), average_pool, lp_pool, fixed_max_pool,
 * fixed_average_pool.
 *
 * One output after the other. Sizes are arguments: one program an operator and element type.
 */
#include "pool_place.h"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void pool_direct(
    __global const X_T* restrict x, __constant const int* restrict g, int p, int count_pads, int column_major,
    __global Y_T* restrict y
#ifdef WITH_INDICES
    , __global long* restrict indices
#endif
) {
#ifndef WITH_INDICES
  __global long* indices = 0;
#endif
  for (int plane = 0; plane < g[PLANES]; plane++)
    for (int od = 0; od < g[OUT_D]; od++)
      for (int oh = 0; oh < g[OUT_H]; oh++)
        for (int ow = 0; ow < g[OUT_W]; ow++)
          pool_place(x, g, p, count_pads, column_major, y, indices, plane, od, oh, ow);
}
