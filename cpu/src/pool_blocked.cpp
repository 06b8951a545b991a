// Pooling over blocks of channels: an output pixel is one vector, the maximum or the sum of the vectors that its window
// holds. Any window, stride, dilation and padding, in one to three dimensions; the window is cut to what lies inside
// once a row and once an output. Limited by loads from the first-level cache, one a tap.
//
// `planes` counts blocks. Sums are taken row by row of the window, so that rounding does not pile up in large ones.
// Accepts float32 max and average; every window has to hold something (pool.py).
#include "pool_vector.h"

namespace {

// The taps of a window along one axis that are inside: from `first`, `count` of them.
struct Inside {
  int64_t start, first, count;
  QF_INLINE Inside(const PoolArguments& a, int axis, int64_t place) {
    start = place * a.strides[axis] - a.pads[axis];
    const int64_t dilation = a.dilations[axis];
    first = start < 0 ? (-start + dilation - 1) / dilation : 0;
    const int64_t room = a.input[axis] - start;  // taps at start + k * dilation < input
    const int64_t end = room <= 0 ? 0 : smaller((room + dilation - 1) / dilation, a.kernel[axis]);
    count = end - first;
  }
};

// a where it is greater or NaN, else b, which stays where it is NaN.
QF_INLINE vfloat larger_or_nan(vfloat a, vfloat b) { return a != a ? a : at_least(b, a); }

template <bool AVERAGE>
QF_INLINE vfloat combine(vfloat value, vfloat so_far) {
  return AVERAGE ? so_far + value : larger_or_nan(value, so_far);
}

template <bool AVERAGE>
void every_row(const PoolArguments& a) {
  const int64_t rows = a.output[0] * a.output[1];
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    const float* x = static_cast<const float*>(a.x) + plane * a.input[0] * a.input[1] * a.input[2] * LANES;
    float* y = static_cast<float*>(a.y) + plane * rows * a.output[2] * LANES;
    const vfloat nothing = broadcast(AVERAGE ? 0.0f : -__builtin_inff());
    for (int64_t row = begin; row < end; row++) {
      const Inside depth(a, 0, row / a.output[1]), height(a, 1, row % a.output[1]);
      for (int64_t column = 0; column < a.output[2]; column++) {
        const Inside width(a, 2, column);
        vfloat all = nothing;
        for (int64_t d = depth.first; d < depth.first + depth.count; d++)
          for (int64_t h = height.first; h < height.first + height.count; h++) {
            const int64_t line = (depth.start + d * a.dilations[0]) * a.input[1] + height.start + h * a.dilations[1];
            const float* tap = x + (line * a.input[2] + width.start + width.first * a.dilations[2]) * LANES;
            vfloat along = nothing;
            for (int64_t w = 0; w < width.count; w++, tap += a.dilations[2] * LANES)
              along = combine<AVERAGE>(load(tap), along);
            all = combine<AVERAGE>(along, all);
          }
        if (AVERAGE) all = all * (a.row_weights[row] * a.column_weights[column]);
        store(y + (row * a.output[2] + column) * LANES, all);
      }
    }
  });
}

}  // namespace

extern "C" int QF_EXPORT(pool_blocked_f32)(const PoolArguments* a) {
  if (a->kind == POOL_LP) return 1;
  if (a->kind == POOL_MAX) every_row<false>(*a);
  else every_row<true>(*a);
  return 0;
}
