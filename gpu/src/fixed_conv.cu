/* Convolution in fixed point, NCHW: one thread sums one output value. Offsets have 32 bits: fixed.py rejects larger arrays.
 *
 * As conv_direct.cu, but by taps with the channels of a tap innermost, the order that fixed point fixes; weights come
 * so too: (M, taps, C / group), in 32 bits. starts: the sums' first values (the bias, as the accumulator's), or null.
 *
 * Macros: X_TYPE, Y_TYPE; SUM, see fixed_sum.cuh.
 */
#include "fixed_sum.cuh"

extern "C" __global__ void __launch_bounds__(256, 2)
fixed_conv(const X_TYPE* __restrict__ x, const int* __restrict__ w, Y_TYPE* __restrict__ y, const ConvGeometry g,
           const long long* __restrict__ starts, int drop, const Formats f) {
  const int channels = g.groups * g.out_per_group;
  const int row = g.output[2], plane = row * g.output[1], volume = plane * g.output[0];
  const int index = blockIdx.x * 256 + threadIdx.x;
  if (index >= volume * channels * g.batch) return;
  const int pixel = index % volume, m = index / volume % channels, n = index / volume / channels;
  const int group = m / g.out_per_group;

  const int d0 = pixel / plane * g.stride[0] - g.pad[0];
  const int h0 = pixel % plane / row * g.stride[1] - g.pad[1];
  const int w0 = pixel % row * g.stride[2] - g.pad[2];
  const TapRange depth = taps_inside(d0, g.kernel[0], g.dilation[0], g.input[0]);
  const TapRange height = taps_inside(h0, g.kernel[1], g.dilation[1], g.input[1]);
  const TapRange width = taps_inside(w0, g.kernel[2], g.dilation[2], g.input[2]);

  const int in_volume = g.input[0] * g.input[1] * g.input[2];
  const X_TYPE* source = x + (n * g.groups + group) * g.in_per_group * in_volume;
  const int* weights = w + m * g.in_per_group * (g.kernel[0] * g.kernel[1] * g.kernel[2]);
  const long long start = starts ? starts[m] : 0;
  Sum sum = opened(start);
  const int reuse = SUM == SUM_CAST ? f.reuse : 1; /* elsewhere the order makes no difference */
  for (int first = 0; first < reuse; first++)
    for (int kd = depth.first; kd < depth.last; kd++)
      for (int kh = height.first; kh < height.last; kh++) {
        const int line = (d0 + kd * g.dilation[0]) * g.input[1] + h0 + kh * g.dilation[1];
        const X_TYPE* from = source + line * g.input[2] + w0;
        for (int kw = width.first; kw < width.last; kw++) {
          const int before = ((kd * g.kernel[1] + kh) * g.kernel[2] + kw) * g.in_per_group;
          for (int c = (first + reuse - before % reuse) % reuse; c < g.in_per_group; c += reuse)
            sum = added(sum, from[c * in_volume + kw * g.dilation[2]], weights[before + c], drop, f);
        }
      }
  y[index] = static_cast<Y_TYPE>(output_value(settled(sum, start, drop, f), f));
}
