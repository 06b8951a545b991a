/* Transposed convolution, float32, NCHW, as a gather: one thread collects every tap that lands on its output value.
 *
 *     y[n, m, i * stride + k * dilation - pad] += x[n, c, i] * w[c, m, k]
 *
 * turned around: for output o and tap k, i = (o + pad - k * dilation) / stride where that divides and lies inside x.
 * No two threads write the same place, so that the sum needs no atomics and comes out the same every time. Takes every
 * problem, with 64-bit indices. w is (C, M / groups, k).
 */
#include "common.cuh"

/* The input index that tap ``k`` brings to output ``o`` of one axis, or -1. */
QF_FUNCTION long long source_of(const ConvGeometry& g, int axis, long long o, int k, const int* small) {
  const long long position = o + g.pad[axis] - static_cast<long long>(k) * g.dilation[axis];
  if (position < 0 || position % g.stride[axis] != 0) return -1;
  const long long i = position / g.stride[axis];
  return i < small[axis] ? i : -1;
}

extern "C" __global__ void __launch_bounds__(256)
conv_transpose(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, const ConvGeometry g,
               const float* __restrict__ bias, const float* __restrict__ residual, int activation, float alpha,
               float beta) {
  /* the window slides over y: g.input is y's extent, g.output x's */
  const int* large = g.input;
  const int* small = g.output;
  const int channels = g.groups * g.out_per_group;
  const long long row = large[2], plane = row * large[1], volume = plane * large[0];
  const long long index = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= volume * channels * g.batch) return;
  const long long pixel = index % volume;
  const int m = static_cast<int>(index / volume % channels);
  const long long n = index / volume / channels;
  const int group = m / g.out_per_group;

  const long long in_volume = static_cast<long long>(small[0]) * small[1] * small[2];
  const float* source = x + (n * g.groups + group) * g.in_per_group * in_volume;
  const long long taps = static_cast<long long>(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const long long weight_step = taps * g.out_per_group;
  const float* weights = w + group * g.in_per_group * weight_step + m % g.out_per_group * taps;
  float sum = 0.0f;
  for (int kd = 0; kd < g.kernel[0]; kd++) {
    const long long d = source_of(g, 0, pixel / plane, kd, small);
    if (d < 0) continue;
    for (int kh = 0; kh < g.kernel[1]; kh++) {
      const long long h = source_of(g, 1, pixel % plane / row, kh, small);
      if (h < 0) continue;
      for (int kw = 0; kw < g.kernel[2]; kw++) {
        const long long v = source_of(g, 2, pixel % row, kw, small);
        if (v < 0) continue;
        const float* from = source + (d * small[1] + h) * small[2] + v;
        const float* tap = weights + (static_cast<long long>(kd) * g.kernel[1] + kh) * g.kernel[2] + kw;
        for (int c = 0; c < g.in_per_group; c++) sum += from[c * in_volume] * tap[c * weight_step];
      }
    }
  }
  y[index] = finish({bias, residual, activation, alpha, beta}, sum, m, index);
}
