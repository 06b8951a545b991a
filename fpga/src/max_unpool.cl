/* Max unpooling: zeros, then each value to the place that its index names, in order. WORD_T is an unsigned integer as
 * wide as an element, since values are only moved. An index counts in (planes, IN_D, IN_H, IN_W) and is written at
 * the same coordinates of y (planes, OUT_D, OUT_H, OUT_W).
 */
enum { ELEMENTS, OUT_ELEMENTS, IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W };

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void max_unpool(
    __global const WORD_T* restrict x, __global const long* restrict indices, __constant const int* restrict g,
    __global WORD_T* restrict y) {
  for (int i = 0; i < g[OUT_ELEMENTS]; i++) y[i] = 0;
  for (int i = 0; i < g[ELEMENTS]; i++) {
    int place = (int)indices[i];
    int w = place % g[IN_W], h = place / g[IN_W] % g[IN_H];
    int d = place / (g[IN_W] * g[IN_H]) % g[IN_D], plane = place / (g[IN_W] * g[IN_H] * g[IN_D]);
    y[((plane * g[OUT_D] + d) * g[OUT_H] + h) * g[OUT_W] + w] = x[i];
  }
}
