// How a convolution's sums become outputs: activation(sum + bias + residual), on vectors of one output channel.
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

// Identity, Relu and Clip are one clamp, done in registers; the other functions run over the stored values while they
// are in the cache.
struct Epilogue {
  vfloat low, high;
  bool clamps, later;
  int activation;
  float alpha, beta;

  QF_INLINE explicit Epilogue(const ConvShape& s) : activation(s.activation), alpha(s.alpha), beta(s.beta) {
    clamps = activation == QF_RELU || activation == QF_CLIP;
    later = !clamps && activation != QF_IDENTITY;
    low = broadcast(activation == QF_RELU ? 0.0f : activation == QF_CLIP ? alpha : -__builtin_inff());
    high = broadcast(activation == QF_CLIP ? beta : __builtin_inff());
  }

  QF_INLINE vfloat clamp(vfloat x) const { return at_most(at_least(x, low), high); }

  QF_INLINE vfloat apply(vfloat x) const {
    if (clamps) return clamp(x);
    return later ? activate(activation, alpha, beta, x) : x;
  }

  // The activations that are not clamps, over count values of y.
  __attribute__((noinline)) void activate_row(float* y, int64_t count) const {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(y + i, activate(activation, alpha, beta, load(y + i)));
    if (i < count)
      store_first(y + i, activate(activation, alpha, beta, load_first(y + i, int(count - i))), int(count - i));
  }
};

// Writes sums of `count` pixels, a vector of channels each, into the plain planes of these channels; residual is laid
// out like y, or null.
inline void write_planes(const Epilogue& epilogue, const float* sums, int64_t channels, int64_t plane, int64_t count,
                         const float* residual, float* y) {
  for (int64_t p = 0; p < count; p += LANES) {
    const int lanes = int(smaller(LANES, count - p));
    const lanemask inside = lanes_between(0, lanes);
    vfloat rows[LANES];
    QF_UNROLL for (int i = 0; i < LANES; i++) rows[i] = i < lanes ? load(sums + (p + i) * LANES) : (vfloat){};
    transpose(rows);
    for (int64_t c = 0; c < channels; c++) {
      vfloat value = rows[c];
      if (residual) value += load_masked(residual + c * plane + p, inside);
      value = epilogue.apply(value);
      if (lanes == LANES)
        store(y + c * plane + p, value);
      else
        store_masked(y + c * plane + p, value, inside);
    }
  }
}

}  // namespace
