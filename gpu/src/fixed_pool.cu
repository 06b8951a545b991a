/* Pooling in fixed point, NCHW: one thread an output value. Offsets have 32 bits: fixed.py rejects larger arrays.
 *
 * fixed_max_pool: the greatest tap, cast to y; the accumulator is the format of x. fixed_average_pool: the taps are
 * added in row-major order and divided toward zero by their number, with ``count_pads`` by those inside the padding too.
 *
 * Macros: X_TYPE, Y_TYPE; AVERAGE; SUM, see fixed_sum.cuh (a tap is a product with 1).
 */
#include "fixed_sum.cuh"

/* Declared in fixed.py as POOL. */
struct Pool {
  ConvGeometry window; /* its batch counts planes; groups and channels are 1 */
  int pad_end[3];
  int count_pads;
};

extern "C" __global__ void __launch_bounds__(256, 2)
#ifdef AVERAGE
fixed_average_pool(
#else
fixed_max_pool(
#endif
    const X_TYPE* __restrict__ x, Y_TYPE* __restrict__ y, const Pool p, int drop, const Formats f) {
  const ConvGeometry& g = p.window;
  const int row = g.output[2], area = row * g.output[1], volume = area * g.output[0];
  const int index = blockIdx.x * 256 + threadIdx.x;
  if (index >= volume * g.batch) return;
  const int pixel = index % volume;
  const int start[3] = {pixel / area * g.stride[0] - g.pad[0], pixel % area / row * g.stride[1] - g.pad[1],
                        pixel % row * g.stride[2] - g.pad[2]};
  TapRange inside[3];
#pragma unroll
  for (int axis = 0; axis < 3; axis++)
    inside[axis] = taps_inside(start[axis], g.kernel[axis], g.dilation[axis], g.input[axis]);

  const X_TYPE* plane = x + index / volume * (g.input[0] * g.input[1] * g.input[2]);
#ifdef AVERAGE
  Sum sum = opened(0);
#else
  bool any = false;
  int greatest = 0;
#endif
  for (int kd = inside[0].first; kd < inside[0].last; kd++)
    for (int kh = inside[1].first; kh < inside[1].last; kh++) {
      const int line = (start[0] + kd * g.dilation[0]) * g.input[1] + start[1] + kh * g.dilation[1];
      const X_TYPE* from = plane + line * g.input[2] + start[2];
      for (int kw = inside[2].first; kw < inside[2].last; kw++) {
        const int value = from[kw * g.dilation[2]];
#ifdef AVERAGE
        sum = added(sum, value, 1, drop, f);
#else
        greatest = any && greatest > value ? greatest : value;
        any = true;
#endif
      }
    }
#ifdef AVERAGE
  long long count = 1;
#pragma unroll
  for (int axis = 0; axis < 3; axis++) {
    const int extent = p.count_pads ? g.input[axis] + p.pad_end[axis] : 0;
    count *= p.count_pads ? taps_inside(start[axis], g.kernel[axis], g.dilation[axis], extent).last
                          : inside[axis].last - inside[axis].first;
  }
  y[index] = static_cast<Y_TYPE>(output_value(settled(sum, 0, drop, f) / count, f));
#else
  y[index] = static_cast<Y_TYPE>(output_value(greatest, f));
#endif
}
