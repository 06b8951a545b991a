// What the pooling kernels have in common: the taps of a window that are inside along one axis, one output row by
// plain loops (the definition, which the fast kernels fall back to where a NaN turned up), and the split of the work
// among threads.
#pragma once

#include <math.h>
#include <omp.h>

#include "pool.h"
#include "simd.h"

namespace {

struct Taps {
  int64_t begin, end;  // the taps k with 0 <= start + k * dilation < length
  int64_t start;
};

QF_INLINE Taps taps_inside(int64_t start, int64_t dilation, int64_t kernel, int64_t length) {
  int64_t begin = start < 0 ? -start : 0, end = start >= length ? 0 : length - start;
  if (dilation > 1) {
    begin = (begin + dilation - 1) / dilation;
    end = (end + dilation - 1) / dilation;
  }
  if (end > kernel) end = kernel;
  if (begin > end) begin = end;
  return {begin, end, start};
}

QF_INLINE Taps window_taps(const PoolArguments& a, int axis, int64_t position) {
  return taps_inside(position * a.strides[axis] - a.pads[axis], a.dilations[axis], a.kernel[axis], a.input[axis]);
}

// The depth of an output row; its height is what is left.
QF_INLINE int64_t depth_of(const PoolArguments& a, int64_t row) { return a.output[0] == 1 ? 0 : row / a.output[1]; }

// The taps along one axis that an average divides by.
QF_INLINE int64_t counted_taps(const PoolArguments& a, int axis, int64_t position) {
  if (!a.count_include_pad) {
    const Taps taps = window_taps(a, axis, position);
    return taps.end - taps.begin;
  }
  const Taps taps = taps_inside(position * a.strides[axis], a.dilations[axis], a.kernel[axis],
                                a.input[axis] + a.pads[axis] + a.pads_end[axis]);
  return taps.end - taps.begin;
}

template <class T> struct Numbers;
template <> struct Numbers<float> {
  typedef float Sum;
  static float lowest() { return -__builtin_inff(); }
};
template <> struct Numbers<double> {
  typedef double Sum;
  static double lowest() { return -__builtin_inf(); }
};
template <> struct Numbers<uint8_t> {
  typedef int32_t Sum;
  static uint8_t lowest() { return 0; }
};
template <> struct Numbers<int8_t> {
  typedef int32_t Sum;
  static int8_t lowest() { return -128; }
};

template <class T> QF_INLINE bool is_nan(T x) { return x != x; }

QF_INLINE float power_root(float sum, int p) { return p == 1 ? sum : p == 2 ? sqrtf(sum) : powf(sum, 1.0f / (float)p); }
QF_INLINE double power_root(double sum, int p) { return p == 1 ? sum : p == 2 ? sqrt(sum) : pow(sum, 1.0 / p); }
QF_INLINE int32_t power_root(int32_t sum, int) { return sum; }

template <class S> QF_INLINE S power(S x, int p) {
  const S magnitude = x < 0 ? -x : x;
  S result = magnitude;
  for (int i = 1; i < p; i++) result *= magnitude;
  return result;
}

// One output row by the definition.
template <class T>
void row_by_definition(const PoolArguments& a, int64_t plane, int64_t row) {
  typedef typename Numbers<T>::Sum Sum;
  const int64_t od = depth_of(a, row), oh = row - od * a.output[1], ow_count = a.output[2];
  const int64_t depth = a.input[0], height = a.input[1], width = a.input[2];
  const int64_t volume = depth * height * width;
  const T* x = static_cast<const T*>(a.x) + plane * volume;
  const int64_t at = (plane * a.output[0] * a.output[1] + row) * ow_count;
  T* y = static_cast<T*>(a.y) + at;
  const Taps td = window_taps(a, 0, od), th = window_taps(a, 1, oh);
  for (int64_t ow = 0; ow < ow_count; ow++) {
    const Taps tw = window_taps(a, 2, ow);
    T best = Numbers<T>::lowest();
    int64_t best_at = -1;
    Sum sum = 0;
    for (int64_t kd = td.begin; kd < td.end; kd++) {
      const int64_t id = td.start + kd * a.dilations[0];
      for (int64_t kh = th.begin; kh < th.end; kh++) {
        const int64_t ih = th.start + kh * a.dilations[1];
        const T* line = x + (id * height + ih) * width;
        for (int64_t kw = tw.begin; kw < tw.end; kw++) {
          const int64_t iw = tw.start + kw * a.dilations[2];
          const T value = line[iw];
          if (a.kind == POOL_MAX) {
            if (best_at < 0 || value > best || (is_nan(value) && !is_nan(best))) {
              best = value;
              best_at = a.storage_order ? (iw * height + ih) * depth + id : (id * height + ih) * width + iw;
            }
          } else {
            sum += a.kind == POOL_LP ? power<Sum>((Sum)value, a.p) : (Sum)value;
          }
        }
      }
    }
    if (a.kind == POOL_MAX) {
      y[ow] = best;
      if (a.indices) a.indices[at + ow] = best_at < 0 ? -1 : plane * volume + best_at;
    } else if (a.kind == POOL_LP) {
      y[ow] = (T)power_root(sum, a.p);
    } else {
      y[ow] = (T)(sum / (Sum)(counted_taps(a, 0, od) * counted_taps(a, 1, oh) * counted_taps(a, 2, ow)));
    }
  }
}

// Calls body(plane, first row, last row, thread) over all planes, in bands of rows where there are fewer planes than
// threads.
template <class Body>
QF_INLINE void over_planes(const PoolArguments& a, Body body) {
  const int64_t rows = a.output[0] * a.output[1];
  const int threads = a.threads;
  if (threads <= 1) {
    for (int64_t plane = 0; plane < a.planes; plane++) body(plane, (int64_t)0, rows, 0);
    return;
  }
  int64_t bands = a.planes >= threads ? 1 : (threads + a.planes - 1) / a.planes;
  if (bands > rows) bands = rows;
  const int64_t items = a.planes * bands;
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    for (int64_t item = items * me / team; item < items * (me + 1) / team; item++) {
      const int64_t plane = item / bands, band = item % bands;
      body(plane, rows * band / bands, rows * (band + 1) / bands, (int)me);
    }
  }
}

}  // namespace
