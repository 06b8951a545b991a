// Direct convolution and transposed convolution of any shape, in float and double: the definition, row by row.
//
// For each output row the taps are added one by one along the row (an axpy of the row of x that the tap meets), so that
// the inner loop runs over contiguous memory where the stride is 1; taps that fall on padding are skipped. Weights are
// read as they are: (M, C / groups, kernel) and for the transposed form (C, M / groups, kernel).
// Float ends with bias, residual and activation; double with bias and residual only.
// Threads share the rows of y.
#include "conv_arguments.h"
#include "simd.h"

namespace {

// The first and one past the last i with 0 <= i * step + offset < length, among 0 <= i < count.
struct Range {
  int64_t begin, end;
};

QF_INLINE Range inside(int64_t step, int64_t offset, int64_t length, int64_t count) {
  int64_t begin = offset < 0 ? (-offset + step - 1) / step : 0;
  int64_t end = length > offset ? (length - offset + step - 1) / step : 0;
  if (end > count) end = count;
  return {begin, end > begin ? end : begin};
}

void finish_row(const ConvShape& s, float* y, const float* residual, int64_t length) {
  for (int64_t i = 0; i < length; i++) {
    const float sum = residual ? y[i] + residual[i] : y[i];
    y[i] = qf_activation(s.activation, s.alpha, s.beta, sum);
  }
}

void finish_row(const ConvShape&, double* y, const double* residual, int64_t length) {
  if (!residual) return;
  for (int64_t i = 0; i < length; i++) y[i] += residual[i];
}

template <class T>
void conv_row(const ConvShape& s, const T* x, const T* w, T* y, int64_t d, int64_t h) {
  for (int64_t c = 0; c < s.in_channels; c++)
    for (int64_t kd = 0; kd < s.kernel[0]; kd++)
      for (int64_t kh = 0; kh < s.kernel[1]; kh++, w += s.kernel[2]) {
        const int64_t id = d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
        const int64_t ih = h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
        if (id < 0 || id >= s.input[0] || ih < 0 || ih >= s.input[1]) continue;
        const T* row = x + ((c * s.input[0] + id) * s.input[1] + ih) * s.input[2];
        for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
          const int64_t offset = kw * s.dilations[2] - s.pads[2];
          const Range range = inside(s.strides[2], offset, s.input[2], s.output[2]);
          const T weight = w[kw];
          if (s.strides[2] == 1)
            for (int64_t i = range.begin; i < range.end; i++) y[i] += weight * row[i + offset];
          else
            for (int64_t i = range.begin; i < range.end; i++) y[i] += weight * row[i * s.strides[2] + offset];
        }
      }
}

// w points at w[first channel of the group][m]; its channels lie `step` apart.
template <class T>
void transposed_row(const ConvShape& s, const T* x, const T* w, int64_t step, T* y, int64_t d, int64_t h) {
  for (int64_t c = 0; c < s.in_channels; c++)
    for (int64_t kd = 0; kd < s.kernel[0]; kd++)
      for (int64_t kh = 0; kh < s.kernel[1]; kh++) {
        const int64_t td = d + s.pads[0] - kd * s.dilations[0], th = h + s.pads[1] - kh * s.dilations[1];
        if (td < 0 || th < 0 || td % s.strides[0] || th % s.strides[1]) continue;
        const int64_t id = td / s.strides[0], ih = th / s.strides[1];
        if (id >= s.output[0] || ih >= s.output[1]) continue;
        const T* row = x + ((c * s.output[0] + id) * s.output[1] + ih) * s.output[2];
        const T* weights = w + c * step + (kd * s.kernel[1] + kh) * s.kernel[2];
        for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
          const int64_t offset = kw * s.dilations[2] - s.pads[2];
          const Range range = inside(s.strides[2], offset, s.input[2], s.output[2]);
          for (int64_t i = range.begin; i < range.end; i++) y[i * s.strides[2] + offset] += weights[kw] * row[i];
        }
      }
}

template <class T, bool TRANSPOSED>
void conv_rows(const ConvShape& s, const ConvCall& call) {
  const int64_t(&of_y)[3] = TRANSPOSED ? s.input : s.output;
  const int64_t(&of_x)[3] = TRANSPOSED ? s.output : s.input;
  const int64_t channels = s.groups * s.out_channels, x_size = volume(of_x), taps = volume(s.kernel);
  const int64_t rows = s.batch * channels * of_y[0] * of_y[1];
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
  for (int64_t index = 0; index < rows; index++) {
    const int64_t h = index % of_y[1], d = index / of_y[1] % of_y[0];
    const int64_t m = index / of_y[1] / of_y[0] % channels, n = index / of_y[1] / of_y[0] / channels;
    const int64_t group = m / s.out_channels;
    const T* x = (const T*)call.x + (n * s.groups + group) * s.in_channels * x_size;
    const T* w = (const T*)call.weights;
    T* y = (T*)call.y + index * of_y[2];
    const T start = call.bias ? ((const T*)call.bias)[m] : T(0);
    for (int64_t i = 0; i < of_y[2]; i++) y[i] = start;
    if (TRANSPOSED)
      transposed_row(s, x, w + (group * s.in_channels * s.out_channels + m % s.out_channels) * taps,
                     s.out_channels * taps, y, d, h);
    else
      conv_row(s, x, w + m * s.in_channels * taps, y, d, h);
    finish_row(s, y, call.residual ? (const T*)call.residual + index * of_y[2] : nullptr, of_y[2]);
  }
}

}  // namespace

extern "C" {
void QF_EXPORT(conv_direct_f32)(const ConvShape* s, const ConvCall* call) { conv_rows<float, false>(*s, *call); }
void QF_EXPORT(conv_direct_f64)(const ConvShape* s, const ConvCall* call) { conv_rows<double, false>(*s, *call); }
void QF_EXPORT(conv_transpose_direct_f32)(const ConvShape* s, const ConvCall* call) { conv_rows<float, true>(*s, *call); }
void QF_EXPORT(conv_transpose_direct_f64)(const ConvShape* s, const ConvCall* call) { conv_rows<double, true>(*s, *call); }
}
