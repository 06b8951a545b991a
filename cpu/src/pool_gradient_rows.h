// What the kernels of pooling's gradients have in common: one plane by plain loops (the definition, which the fast kernels
// fall back to where a NaN turned up), the split of the work among threads, and lines put together from phases.
#pragma once

#include "pool_gradient.h"
#include "pool_vector.h"

namespace {

template <class T> QF_INLINE T sign_of(T x) { return x > 0 ? T(1) : x < 0 ? T(-1) : x; }

// One plane by the definition.
template <class T>
void plane_by_definition(const PoolGradientArguments& a, int64_t plane) {
  const int64_t height = a.input[1], width = a.input[2], volume = a.input[0] * height * width;
  const int64_t outputs = a.output[0] * a.output[1] * a.output[2];
  const T* x = static_cast<const T*>(a.x) + plane * volume;  // max and lp read it
  const T* y = static_cast<const T*>(a.y) + plane * outputs;  // lp
  const T* dy = static_cast<const T*>(a.dy) + plane * outputs;
  T* dx = static_cast<T*>(a.dx) + plane * volume;
  memset(dx, 0, volume * sizeof(T));
  for (int64_t o = 0; o < outputs; o++) {
    const int64_t at[3] = {o / (a.output[1] * a.output[2]), o / a.output[2] % a.output[1], o % a.output[2]};
    const Taps td = window_taps(a, 0, at[0]), th = window_taps(a, 1, at[1]), tw = window_taps(a, 2, at[2]);
    T share = dy[o], best = Numbers<T>::lowest();
    int64_t best_at = -1;
    if (a.kind == POOL_AVERAGE)
      share /= T(counted_taps(a, 0, at[0]) * counted_taps(a, 1, at[1]) * counted_taps(a, 2, at[2]));
    for (int64_t kd = td.begin; kd < td.end; kd++)
      for (int64_t kh = th.begin; kh < th.end; kh++) {
        const int64_t line = ((td.start + kd * a.dilations[0]) * height + th.start + kh * a.dilations[1]) * width;
        for (int64_t kw = tw.begin; kw < tw.end; kw++) {
          const int64_t i = line + tw.start + kw * a.dilations[2];
          if (a.kind == POOL_MAX) {
            if (best_at < 0 || x[i] > best || (is_nan(x[i]) && !is_nan(best))) {
              best = x[i];
              best_at = i;
            }
          } else if (a.kind == POOL_AVERAGE) {
            dx[i] += share;
          } else if (a.p == 1) {
            dx[i] += share * sign_of(x[i]);
          } else if (y[o] != 0) {
            dx[i] += share * sign_of(x[i]) * power(x[i] / y[o], a.p - 1);
          }
        }
      }
    if (best_at >= 0) dx[best_at] += share;
  }
}

// Calls body(plane, thread) over all planes.
template <class Body>
QF_INLINE void over_whole_planes(const PoolGradientArguments& a, Body body) {
  const int threads = a.threads < a.planes ? a.threads : int(a.planes);
  if (threads <= 1) {
    for (int64_t plane = 0; plane < a.planes; plane++) body(plane, 0);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    for (int64_t plane = a.planes * me / team; plane < a.planes * (me + 1) / team; plane++) body(plane, int(me));
  }
}

// a[0], b[0], a[1], b[1], …: the first vector of them, and the second.
QF_INLINE void interleave(vfloat a, vfloat b, vfloat& low, vfloat& high) {
#if defined(QF_ISA_V3)
  const __m256 l = _mm256_unpacklo_ps((__m256)a, (__m256)b), h = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  low = (vfloat)_mm256_permute2f128_ps(l, h, 0x20);
  high = (vfloat)_mm256_permute2f128_ps(l, h, 0x31);
#else
  vint first, second;
  QF_UNROLL for (int i = 0; i < LANES; i++) {
    first[i] = i % 2 * LANES + i / 2;
    second[i] = i % 2 * LANES + LANES / 2 + i / 2;
  }
  low = __builtin_shuffle(a, b, first);
  high = __builtin_shuffle(a, b, second);
#endif
}

// Line to[0 .. width) of a gradient: to[i * stride + phase] = gather(phase, i), for a vector of i at once.
// scratch: stride vectors.
template <class Gather>
QF_INLINE void put_line(float* to, int64_t width, int64_t stride, float* scratch, const Gather& gather) {
  const auto put = [&](int64_t at, vfloat v) __attribute__((always_inline)) {
    if (at + LANES <= width)
      store(to + at, v);
    else if (at < width)
      store_first(to + at, v, int(width - at));
  };
  if (stride == 1) {
    for (int64_t i = 0; i < width; i += LANES) put(i, gather(0, i));
  } else if (stride == 2) {
    for (int64_t i = 0; 2 * i < width; i += LANES) {
      vfloat low, high;
      interleave(gather(0, i), gather(1, i), low, high);
      put(2 * i, low);
      put(2 * i + LANES, high);
    }
  } else if (stride == 4) {
    for (int64_t i = 0; 4 * i < width; i += LANES) {
      vfloat even[2], odd[2], v[4];
      interleave(gather(0, i), gather(2, i), even[0], even[1]);
      interleave(gather(1, i), gather(3, i), odd[0], odd[1]);
      interleave(even[0], odd[0], v[0], v[1]);
      interleave(even[1], odd[1], v[2], v[3]);
      QF_UNROLL for (int k = 0; k < 4; k++) put(4 * i + k * LANES, v[k]);
    }
  } else {
    for (int64_t i = 0; stride * i < width; i += LANES) {
      for (int64_t phase = 0; phase < stride; phase++) store(scratch + phase * LANES, gather(phase, i));
      const int64_t end = smaller(width - stride * i, stride * LANES);
      float* from = to + stride * i;
      for (int64_t k = 0, lane = 0; k < end; lane++)
        for (int64_t phase = 0; phase < stride && k < end; phase++, k++) from[k] = scratch[phase * LANES + lane];
    }
  }
}

// The taps that reach a column of a phase of the input, where phases count from the first column on: those k for which
// (first + phase - k * dilation) is a multiple of the stride; the output is that far along: i + along.
struct PhaseTaps {
  int64_t first, step;  // of k
  int64_t along, back;  // of the first tap, and how much less each further one is
};

QF_INLINE int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

QF_INLINE PhaseTaps taps_of_phase(const PoolArguments& a, int64_t phase) {
  const int64_t stride = a.strides[2], dilation = a.dilations[2], column = a.pads[2] + phase;
  const int64_t step = stride / common_divisor(stride, dilation);
  int64_t k = 0;
  while (k < step && (column - k * dilation) % stride != 0) k++;
  if (k == step) return {a.kernel[2], step, 0, 0};  // no tap reaches it
  return {k, step, (column - k * dilation) / stride, step * dilation / stride};
}

}  // namespace
