/* Integer convolution, uint8 or int8, NCHW: one thread sums one output value. Takes every problem, with 64-bit indices.
 *
 *     acc = sum over c, k of (x[...] - x_zero_point) * (w[m, c, k] - w_zero_point[m])      int32, wrapping
 *
 * conv_integer writes acc. qlinear_conv adds an int32 bias and requantises as ops/conv.py defines to the last bit:
 *
 *     y = saturate(round_half_even(float32(float32(acc) * multiplier[m])) + y_zero_point)
 *
 * Macros: X_TYPE, W_TYPE (signed char or unsigned char); Y_TYPE with Y_LOW and Y_HIGH, its bounds, for qlinear_conv.
 * Padding stands for x_zero_point and adds nothing.
 */
#include "common.cuh"
#ifdef Y_TYPE
#include "requantize.cuh"
#endif

extern "C" __global__ void __launch_bounds__(256)
#ifdef Y_TYPE
qlinear_conv(const X_TYPE* __restrict__ x, const W_TYPE* __restrict__ w, Y_TYPE* __restrict__ y, const ConvGeometry g,
             int x_zero_point, const int* __restrict__ w_zero_points, const int* __restrict__ bias,
             const float* __restrict__ multipliers, int y_zero_point) {
#else
conv_integer(const X_TYPE* __restrict__ x, const W_TYPE* __restrict__ w, int* __restrict__ y, const ConvGeometry g,
             int x_zero_point, const int* __restrict__ w_zero_points) {
#endif
  const int channels = g.groups * g.out_per_group;
  const long long row = g.output[2], plane = row * g.output[1], volume = plane * g.output[0];
  const long long index = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
  if (index >= volume * channels * g.batch) return;
  const long long pixel = index % volume;
  const int m = static_cast<int>(index / volume % channels);
  const long long n = index / volume / channels;
  const int group = m / g.out_per_group;
  const int w_zero_point = w_zero_points[m];

  const long long d0 = pixel / plane * g.stride[0] - g.pad[0];
  const long long h0 = pixel % plane / row * g.stride[1] - g.pad[1];
  const long long w0 = pixel % row * g.stride[2] - g.pad[2];
  const TapRange depth = taps_inside(d0, g.kernel[0], g.dilation[0], g.input[0]);
  const TapRange height = taps_inside(h0, g.kernel[1], g.dilation[1], g.input[1]);
  const TapRange width = taps_inside(w0, g.kernel[2], g.dilation[2], g.input[2]);

  const long long in_volume = static_cast<long long>(g.input[0]) * g.input[1] * g.input[2];
  const X_TYPE* source = x + (n * g.groups + group) * g.in_per_group * in_volume;
  const long long taps = static_cast<long long>(g.kernel[0]) * g.kernel[1] * g.kernel[2];
  const W_TYPE* weights = w + m * g.in_per_group * taps;
  unsigned sum = 0; /* unsigned, because its overflow is defined */
  for (int c = 0; c < g.in_per_group; c++, source += in_volume, weights += taps)
    for (int kd = depth.first; kd < depth.last; kd++)
      for (int kh = height.first; kh < height.last; kh++) {
        const long long line = (d0 + static_cast<long long>(kd) * g.dilation[0]) * g.input[1] +
                               (h0 + static_cast<long long>(kh) * g.dilation[1]);
        const X_TYPE* from = source + line * g.input[2] + w0;
        const W_TYPE* tap = weights + (static_cast<long long>(kd) * g.kernel[1] + kh) * g.kernel[2];
        for (int kw = width.first; kw < width.last; kw++)
          sum += static_cast<unsigned>((from[static_cast<long long>(kw) * g.dilation[2]] - x_zero_point) *
                                       (tap[kw] - w_zero_point));
      }
#ifdef Y_TYPE
  if (bias) sum += static_cast<unsigned>(bias[m]);
  y[index] = requantize(static_cast<int>(sum), multipliers[m], y_zero_point);
#else
  y[index] = static_cast<int>(sum);
#endif
}
