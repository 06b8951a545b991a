/* A recurrent layer of leaky units with a sparse recurrent matrix (ops/sparse.py), one sequence after the other.
 *
 * The state stays on the chip, twice: the one that is read and the one that is made. The matrix streams once a step as it
 * is stored, row by row. CAPACITY is an upper bound of the units.
 *
 *   x [T][N][H], values [Z], columns [Z], offsets [H + 1], initial_h [N][H] or null; y [T][N][H]
 */
#include "quatrefoil/activation.h"

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void sparse_recurrent(
    __global const float* restrict x, __global const float* restrict values, __global const int* restrict columns,
    __global const int* restrict offsets, __global const float* restrict initial_h, int steps, int batch, int hidden,
    float leak, int function, float alpha, float beta, __global float* restrict y) {
  __local float state[2][CAPACITY];
  for (int n = 0; n < batch; n++) {
    for (int i = 0; i < hidden; i++) state[0][i] = initial_h ? initial_h[n * hidden + i] : 0.0f;
    for (int t = 0; t < steps; t++) {
      int now = t & 1, first = (t * batch + n) * hidden;
      for (int i = 0; i < hidden; i++) {
        float sum = x[first + i], made;
        for (int k = offsets[i]; k < offsets[i + 1]; k++) sum += values[k] * state[now][columns[k]];
        made = qf_activation(function, alpha, beta, sum);
        /* without a leak the old state has no part, not even where it is infinite */
        if (leak != 1.0f) made = (1.0f - leak) * state[now][i] + leak * made;
        state[1 - now][i] = made;
        y[first + i] = made;
      }
    }
  }
}
