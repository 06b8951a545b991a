/* Direct convolution, float32, NCHW: one thread sums one output value. Takes every problem, with 64-bit indices.
 *
 *     y[n, m, o] = activation(sum over c, k of x[n, c, o * stride + k * dilation - pad] * w[m, c, k] + bias + residual)
 *
 * Neighbouring threads hold neighbouring outputs along the width, so that a warp reads x in rows and one weight at a
 * time. Padding costs nothing: each axis loops over the taps inside x alone.
 */
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
conv_direct(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, const ConvGeometry g,
            const float* __restrict__ bias, const float* __restrict__ residual, int activation, float alpha,
            float beta) {
  const int channels = g.groups * g.out_per_group;
  const long long row = g.output[2], plane = row * g.output[1], volume = plane * g.output[0];
  const long long index = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= volume * channels * g.batch) return;
  const long long pixel = index % volume;
  const int m = static_cast<int>(index / volume % channels);
  const long long n = index / volume / channels;
  const int group = m / g.out_per_group;

  const long long d0 = pixel / plane * g.stride[0] - g.pad[0];
  const long long h0 = pixel % plane / row * g.stride[1] - g.pad[1];
  const long long w0 = pixel % row * g.stride[2] - g.pad[2];
  const TapRange depth = taps_inside(d0, g.kernel[0], g.dilation[0], g.input[0]);
  const TapRange height = taps_inside(h0, g.kernel[1], g.dilation[1], g.input[1]);
  const TapRange width = taps_inside(w0, g.kernel[2], g.dilation[2], g.input[2]);

  const long long in_volume = static_cast<long long>(g.input[0]) * g.input[1] * g.input[2];
  const float* source = x + (n * g.groups + group) * g.in_per_group * in_volume;
  const long long taps = static_cast<long long>(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const float* weights = w + m * g.in_per_group * taps;
  float sum = 0.0f;
  for (int c = 0; c < g.in_per_group; c++, source += in_volume, weights += taps)
    for (int kd = depth.first; kd < depth.last; kd++)
      for (int kh = height.first; kh < height.last; kh++) {
        const long long line = (d0 + static_cast<long long>(kd) * g.dilation[0]) * g.input[1] +
                               (h0 + static_cast<long long>(kh) * g.dilation[1]);
        const float* from = source + line * g.input[2] + w0;
        const float* tap = weights + (static_cast<long long>(kd) * g.kernel[1] + kh) * g.kernel[2];
        for (int kw = width.first; kw < width.last; kw++)
          sum += from[static_cast<long long>(kw) * g.dilation[2]] * tap[kw];
      }
  y[index] = finish({bias, residual, activation, alpha, beta}, sum, m, index);
}
