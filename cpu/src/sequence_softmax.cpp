// Softmax of a sequence, or its logarithm: e^(x - max) / sum along the middle axis of (outer, length, inner).
//
// Three passes over values that stay in the cache: the maximum, the exponentials with their sum, the division. Vectors
// run along the axis where it is the last one (inner is 1), else along inner.
#include "sequence.h"
#include "simd.h"

namespace {

QF_INLINE float sum_of(vfloat v) {
  float total = 0.0f;
  for (int lane = 0; lane < LANES; lane++) total += v[lane];
  return total;
}

QF_INLINE float largest_of(vfloat v) {
  float most = v[0];
  for (int lane = 1; lane < LANES; lane++) most = v[lane] > most || v[lane] != v[lane] ? v[lane] : most;
  return most;
}

// a where it is larger or NaN, else b; a NaN in b stays.
QF_INLINE vfloat larger_or_nan(vfloat a, vfloat b) { return a != a ? a : at_least(b, a); }

QF_INLINE vfloat lanes_or(const float* p, int count, float filler) {
  if (count == LANES) return load(p);
  const vfloat v = load_first(p, count);
  vint lane;
  QF_UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
  return lane < count ? v : broadcast(filler);
}

QF_INLINE void put(float* p, vfloat v, int count) {
  if (count == LANES) store(p, v);
  else store_first(p, v, count);
}

void along_the_row(const float* x, float* y, int64_t length, bool logarithm) {
  vfloat most = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < length; i += LANES)
    most = larger_or_nan(lanes_or(x + i, int(smaller(LANES, length - i)), -__builtin_inff()), most);
  const vfloat top = broadcast(largest_of(most));
  vfloat sum = {};
  for (int64_t i = 0; i < length; i += LANES) {
    const int n = int(smaller(LANES, length - i));
    const vfloat shifted = lanes_or(x + i, n, -__builtin_inff()) - top, e = exponential_to_zero(shifted);
    sum += n == LANES ? e : lanes_or(reinterpret_cast<const float*>(&e), n, 0.0f);
    put(y + i, logarithm ? shifted : e, n);
  }
  const float total = sum_of(sum);
  const vfloat minus = broadcast(logf(total));
  for (int64_t i = 0; i < length; i += LANES) {
    const int n = int(smaller(LANES, length - i));
    const vfloat v = lanes_or(y + i, n, 0.0f);
    put(y + i, logarithm ? v - minus : v / total, n);
  }
}

// `count` neighbouring columns, whose rows are `inner` apart.
void down_the_columns(const float* x, float* y, int64_t length, int64_t inner, int count, bool logarithm) {
  vfloat top = broadcast(-__builtin_inff()), sum = {};
  for (int64_t i = 0; i < length; i++) top = larger_or_nan(lanes_or(x + i * inner, count, 0.0f), top);
  for (int64_t i = 0; i < length; i++) {
    const vfloat shifted = lanes_or(x + i * inner, count, 0.0f) - top, e = exponential_to_zero(shifted);
    sum += e;
    put(y + i * inner, logarithm ? shifted : e, count);
  }
  vfloat minus = {};
  if (logarithm)
    for (int lane = 0; lane < count; lane++) minus[lane] = logf(sum[lane]);
  for (int64_t i = 0; i < length; i++) {
    const vfloat v = lanes_or(y + i * inner, count, 0.0f);
    put(y + i * inner, logarithm ? v - minus : v / sum, count);
  }
}

}  // namespace

extern "C" void QF_EXPORT(sequence_softmax)(const void* context, const void* const* inputs, void* const* outputs, char*,
                                            int) {
  const SoftmaxContext& s = *static_cast<const SoftmaxContext*>(context);
  for (int64_t outer = 0; outer < s.outer; outer++) {
    const int64_t at = outer * s.length * s.inner;
    const float* x = static_cast<const float*>(inputs[0]) + at;
    float* y = static_cast<float*>(outputs[0]) + at;
    if (s.inner == 1) along_the_row(x, y, s.length, s.logarithm);
    else
      for (int64_t i = 0; i < s.inner; i += LANES)
        down_the_columns(x + i, y + i, s.length, s.inner, int(smaller(LANES, s.inner - i)), s.logarithm);
  }
}
