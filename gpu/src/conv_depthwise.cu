/* Depthwise convolution, float32, NCHW: each output channel reads one input channel.
 *
 * A block works on one output plane: it brings the plane's TAPS_LIMIT or fewer weights into shared memory once, then
 * its 128 threads walk the plane. The work is bound by memory; neighbouring threads read neighbouring x, and the taps
 * of a window overlap in the first-level cache.
 */
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(128)
conv_depthwise(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, const ConvGeometry g,
               int blocks_per_plane, const float* __restrict__ bias, const float* __restrict__ residual, int activation,
               float alpha, float beta) {
  __shared__ float weights[TAPS_LIMIT];
  const int plane = blockIdx.x / blocks_per_plane;
  const int channels = g.groups * g.out_per_group;
  const int m = plane % channels;
  const int taps = g.kernel[0] * g.kernel[1] * g.kernel[2];
  for (int tap = threadIdx.x; tap < taps; tap += 128) weights[tap] = w[m * taps + tap];
  __syncthreads();

  const int row = g.output[2], area = row * g.output[1], volume = area * g.output[0];
  const int in_volume = g.input[0] * g.input[1] * g.input[2];
  const float* source = x + (static_cast<long long>(plane / channels) * g.groups + m / g.out_per_group) * in_volume;
  for (int pixel = blockIdx.x % blocks_per_plane * 128 + threadIdx.x; pixel < volume; pixel += blocks_per_plane * 128) {
    const int d0 = pixel / area * g.stride[0] - g.pad[0];
    const int h0 = pixel % area / row * g.stride[1] - g.pad[1];
    const int w0 = pixel % row * g.stride[2] - g.pad[2];
    const TapRange depth = taps_inside(d0, g.kernel[0], g.dilation[0], g.input[0]);
    const TapRange height = taps_inside(h0, g.kernel[1], g.dilation[1], g.input[1]);
    const TapRange width = taps_inside(w0, g.kernel[2], g.dilation[2], g.input[2]);
    float sum = 0.0f;
    for (int kd = depth.first; kd < depth.last; kd++)
      for (int kh = height.first; kh < height.last; kh++) {
        const int line = (d0 + kd * g.dilation[0]) * g.input[1] + h0 + kh * g.dilation[1];
        const int from = line * g.input[2] + w0;
        const int tap = (kd * g.kernel[1] + kh) * g.kernel[2];
        for (int kw = width.first; kw < width.last; kw++) sum += source[from + kw * g.dilation[2]] * weights[tap + kw];
      }
    const long long index = static_cast<long long>(plane) * volume + pixel;
    y[index] = finish({bias, residual, activation, alpha, beta}, sum, m, index);
  }
}
