// The gradient of a convolution's weight by its definition, in float and double, of any shape; and that of its bias, the sum
// of dy over images and places. Threads share the values of dw.
#include "conv_gradient.h"

namespace {

template <class T>
void all_weights(const ConvShape& s, const ConvGradientCall& call) {
  const int64_t taps = volume(s.kernel), each = s.in_channels * taps, count = s.groups * s.out_channels * each;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
  for (int64_t i = 0; i < count; i++) {
    const int64_t m = i / each;
    ((T*)call.dw)[i] =
        T(weight_by_taps<T>(s, call, m / s.out_channels, m % s.out_channels, i % each / taps, i % taps));
  }
}

// The sum of a plane: LANES sums side by side, each of at most so many values before they are added in double.
constexpr int64_t STRETCH = 64 * LANES;

double sum_of(const float* values, int64_t count) {
  double total = 0;
  for (int64_t first = 0; first < count; first += STRETCH) {
    const int64_t end = smaller(first + STRETCH, count);
    vfloat a = {}, b = {};
    int64_t i = first;
    for (; i + 2 * LANES <= end; i += 2 * LANES) {
      a += load(values + i);
      b += load(values + i + LANES);
    }
    a += b;
    for (; i < end; i++) total += values[i];
    for (int lane = 0; lane < LANES; lane++) total += a[lane];
  }
  return total;
}

double sum_of(const double* values, int64_t count) {
  double total = 0;
  for (int64_t i = 0; i < count; i++) total += values[i];
  return total;
}

template <class T>
void all_biases(const ConvShape& s, const ConvGradientCall& call) {
  const int64_t plane = volume(s.output), channels = s.groups * s.out_channels;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
  for (int64_t m = 0; m < channels; m++) {
    double total = 0;
    for (int64_t image = 0; image < s.batch; image++) total += sum_of((const T*)call.dy + (image * channels + m) * plane, plane);
    ((T*)call.dw)[m] = T(total);
  }
}

}  // namespace

extern "C" {
void QF_EXPORT(conv_gradient_direct_f32)(const ConvShape* s, const ConvGradientCall* call) { all_weights<float>(*s, *call); }
void QF_EXPORT(conv_gradient_direct_f64)(const ConvShape* s, const ConvGradientCall* call) { all_weights<double>(*s, *call); }
void QF_EXPORT(conv_gradient_bias_f32)(const ConvShape* s, const ConvGradientCall* call) { all_biases<float>(*s, *call); }
void QF_EXPORT(conv_gradient_bias_f64)(const ConvShape* s, const ConvGradientCall* call) { all_biases<double>(*s, *call); }
}
