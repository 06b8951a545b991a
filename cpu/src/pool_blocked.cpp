// Pooling over blocks of channels: an output pixel is one vector, the maximum or the sum of the vectors that its window
// holds. Any window, stride, dilation and padding, in one to three dimensions; the window is cut to what lies inside
// once a row and once an output, and where it lies inside four outputs are computed side by side. Limited by loads
// from the first-level cache, one a tap.
//
// `planes` counts blocks. Sums are taken row by row of the window, so that rounding does not pile up in large ones.
// Accepts float32 max and average; every window has to hold something (pool.py).
#include "pool_vector.h"

namespace {

constexpr int COLUMNS = 4;  // outputs side by side: enough sums to hide the latency of an addition

// The taps of a window along one axis that are inside: from `first`, `count` of them.
struct Inside {
  int64_t start, first, count;
  QF_INLINE bool whole(const PoolArguments& a) const { return count == a.kernel[2]; }  // along the width
  QF_INLINE Inside(const PoolArguments& a, int axis, int64_t place) {
    const int64_t dilation = a.dilations[axis], size = a.input[axis], kernel = a.kernel[axis];
    start = place * a.strides[axis] - a.pads[axis];
    first = 0, count = kernel;
    if (start >= 0 && start + (kernel - 1) * dilation < size) return;  // divisions for windows over the edge alone
    first = start < 0 ? divide_up(-start, dilation) : 0;
    count = (size <= start ? 0 : smaller(divide_up(size - start, dilation), kernel)) - first;
  }
};

// a where it is greater or NaN, else b, which stays where it is NaN.
QF_INLINE vfloat larger_or_nan(vfloat a, vfloat b) { return a != a ? a : at_least(b, a); }

template <bool AVERAGE>
QF_INLINE vfloat combine(vfloat value, vfloat so_far) {
  return AVERAGE ? so_far + value : larger_or_nan(value, so_far);
}

// N outputs side by side, whose windows have the same taps inside; width is that of the first one.
template <bool AVERAGE, int N>
QF_INLINE void windows(const PoolArguments& a, const float* x, const Inside& depth, const Inside& height,
                       const Inside& width, vfloat weight, float* y) {
  const vfloat nothing = broadcast(AVERAGE ? 0.0f : -__builtin_inff());
  const int64_t step = a.strides[2] * LANES;
  vfloat all[N];
  QF_UNROLL for (int n = 0; n < N; n++) all[n] = nothing;
  for (int64_t d = depth.first; d < depth.first + depth.count; d++)
    for (int64_t h = height.first; h < height.first + height.count; h++) {
      const int64_t line = (depth.start + d * a.dilations[0]) * a.input[1] + height.start + h * a.dilations[1];
      const float* tap = x + (line * a.input[2] + width.start + width.first * a.dilations[2]) * LANES;
      vfloat along[N];
      QF_UNROLL for (int n = 0; n < N; n++) along[n] = nothing;
      for (int64_t w = 0; w < width.count; w++, tap += a.dilations[2] * LANES)
        QF_UNROLL for (int n = 0; n < N; n++) along[n] = combine<AVERAGE>(load(tap + n * step), along[n]);
      QF_UNROLL for (int n = 0; n < N; n++) all[n] = combine<AVERAGE>(along[n], all[n]);
    }
  QF_UNROLL for (int n = 0; n < N; n++) store(y + n * LANES, AVERAGE ? all[n] * weight : all[n]);
}

template <bool AVERAGE>
void every_row(const PoolArguments& a) {
  const int64_t rows = a.output[0] * a.output[1], columns = a.output[2];
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    const float* x = static_cast<const float*>(a.x) + plane * a.input[0] * a.input[1] * a.input[2] * LANES;
    float* y = static_cast<float*>(a.y) + plane * rows * columns * LANES;
    for (int64_t row = begin; row < end; row++) {
      const Inside depth(a, 0, row / a.output[1]), height(a, 1, row % a.output[1]);
      for (int64_t column = 0; column < columns;) {
        const Inside width(a, 2, column);
        const vfloat weight = broadcast(AVERAGE ? a.row_weights[row] * a.column_weights[column] : 1.0f);
        float* to = y + (row * columns + column) * LANES;
        const bool side_by_side =
            width.whole(a) && column + COLUMNS <= columns && Inside(a, 2, column + COLUMNS - 1).whole(a);
        if (side_by_side) windows<AVERAGE, COLUMNS>(a, x, depth, height, width, weight, to);
        else windows<AVERAGE, 1>(a, x, depth, height, width, weight, to);
        column += side_by_side ? COLUMNS : 1;
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
