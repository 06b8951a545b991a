// Local response normalisation of a sequence (Krizhevsky et al., "ImageNet classification with deep convolutional
// neural networks", 2012): x / (bias + scale * sum of squares over neighbouring channels) ^ beta.
//
// Vectors run along the plane; the few squares of a window are summed anew for each channel, so that no rounding is
// carried from channel to channel. For the usual exponent, 3/4, the power is two square roots.
#include "sequence.h"
#include "simd.h"

namespace {

QF_INLINE vfloat square_root(vfloat x) {
  vfloat y;
  QF_UNROLL for (int lane = 0; lane < LANES; lane++) y[lane] = __builtin_sqrtf(x[lane]);
  return y;
}

QF_INLINE vfloat power(vfloat x, float exponent) {
  if (exponent == 0.75f) {
    const vfloat root = square_root(x);
    return root * square_root(root);
  }
  vfloat y;
  for (int lane = 0; lane < LANES; lane++) y[lane] = powf(x[lane], exponent);
  return y;
}

}  // namespace

extern "C" void QF_EXPORT(sequence_lrn)(const void* context, const void* const* inputs, void* const* outputs, char*,
                                        int threads) {
  const LrnContext& s = *static_cast<const LrnContext*>(context);
  const int64_t planes = s.batch * s.channels;
#pragma omp parallel for num_threads(threads) if (threads > 1 && planes * s.plane > 1 << 14)
  for (int64_t task = 0; task < planes; task++) {
    const int64_t channel = task % s.channels;
    const int64_t low = -smaller(channel, s.before), high = smaller(s.channels - 1 - channel, s.behind);
    const float* x = static_cast<const float*>(inputs[0]) + task * s.plane;
    float* y = static_cast<float*>(outputs[0]) + task * s.plane;
    for (int64_t i = 0; i < s.plane; i += LANES) {
      const int n = int(smaller(LANES, s.plane - i));
      vfloat sum = {};
      for (int64_t neighbour = low; neighbour <= high; neighbour++) {
        const vfloat v = load_first(x + neighbour * s.plane + i, n);
        sum += v * v;
      }
      store_first(y + i, load_first(x + i, n) / power(s.bias + s.scale * sum, s.beta), n);
    }
  }
}
