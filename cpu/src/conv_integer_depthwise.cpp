// Depthwise integer convolution (one input channel a group), 1 to 3 axes, any kernel, stride and dilation, exact in
// int32 (wrapping).
//
// A channel of x is laid out once, with its zero point taken off and its padding as zeros, as int32; columns that a
// stride apart share a run of memory, so that a vector of outputs reads a vector for every tap. Then each row of y is
// computed a few vectors at a time and requantised. x is uint8 or int8; weights are int16 with their zero points taken
// off, (M, 1, kernel). Threads share the channels. Limited by the loads: one for each tap and vector.
#include <omp.h>

#include "conv_panel.h"
#include "conv_requantize.h"

namespace {

typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));
typedef uint32_t vuint_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr int COLUMNS = 4;  // vectors of a row that are summed together

// A channel with its padding: rows of `stride` runs of `run` columns; column c lies in run c % stride.
struct Laid {
  int64_t extent[2];  // depth and height with padding
  int64_t stride, run;

  explicit Laid(const ConvShape& s) {
    for (int axis = 0; axis < 2; axis++)
      extent[axis] = (s.output[axis] - 1) * s.strides[axis] + (s.kernel[axis] - 1) * s.dilations[axis] + 1;
    stride = s.strides[2];
    // outputs are computed in whole vectors, and those behind the last one read zeros
    const int64_t outputs = divide_up(s.output[2], LANES) * LANES;
    run = outputs + divide_up((s.kernel[2] - 1) * s.dilations[2] + 1, stride);
  }

  int64_t row_size() const { return stride * run; }
  int64_t size() const { return extent[0] * extent[1] * row_size(); }
};

template <class X>
void lay(const ConvShape& s, const Laid& laid, const X* x, int zero, uint32_t* out) {
  memset(out, 0, laid.size() * sizeof(uint32_t));
  for (int64_t d = 0; d < laid.extent[0]; d++)
    for (int64_t h = 0; h < laid.extent[1]; h++) {
      const int64_t id = d - s.pads[0], ih = h - s.pads[1];
      if (id < 0 || id >= s.input[0] || ih < 0 || ih >= s.input[1]) continue;
      const X* row = x + (id * s.input[1] + ih) * s.input[2];
      uint32_t* to = out + (d * laid.extent[1] + h) * laid.row_size();
      if (laid.stride == 1) {
        const int64_t count = smaller(s.input[2], laid.run - s.pads[2]);
        for (int64_t i = 0; i < count; i++) to[s.pads[2] + i] = uint32_t(row[i] - zero);
      } else {
        for (int64_t i = 0; i < s.input[2]; i++) {
          const int64_t column = s.pads[2] + i, place = column / laid.stride;
          if (place < laid.run) to[column % laid.stride * laid.run + place] = uint32_t(row[i] - zero);
        }
      }
    }
}

void sum_row(const ConvShape& s, const Laid& laid, const uint32_t* x, const int16_t* weights, uint32_t bias, int64_t d,
             int64_t h, uint32_t* sums) {
  for (int64_t first = 0; first < s.output[2]; first += COLUMNS * LANES) {
    const int columns = int(smaller(COLUMNS, divide_up(s.output[2] - first, LANES)));
    vuint totals[COLUMNS];
    QF_UNROLL for (int i = 0; i < COLUMNS; i++) totals[i] = bias - (vuint){};
    const int16_t* tap = weights;
    for (int64_t kd = 0; kd < s.kernel[0]; kd++)
      for (int64_t kh = 0; kh < s.kernel[1]; kh++) {
        const int64_t depth = d * s.strides[0] + kd * s.dilations[0], height = h * s.strides[1] + kh * s.dilations[1];
        const uint32_t* row = x + (depth * laid.extent[1] + height) * laid.row_size() + first;
        for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
          const int64_t column = kw * s.dilations[2];
          const uint32_t* from = row + column % laid.stride * laid.run + column / laid.stride;
          const vuint weight = uint32_t(int32_t(*tap++)) - (vuint){};
          QF_UNROLL for (int i = 0; i < COLUMNS; i++)
            if (i < columns) totals[i] += weight * *(const vuint_unaligned*)(from + i * LANES);
        }
      }
    for (int i = 0; i < columns; i++) *(vuint_unaligned*)(sums + first + i * LANES) = totals[i];
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_integer_needs)(const ConvShape* shape, ConvNeeds* needs) {
  needs->packed = 0;
  const int64_t sums = divide_up(shape->output[2], LANES) * LANES;
  needs->workspace = divide_up((Laid(*shape).size() + sums) * int64_t(sizeof(uint32_t)), 64) * 64;
}

extern "C" void QF_EXPORT(conv_depthwise_integer)(const ConvShape* shape, const ConvQuantization* q,
                                                  const ConvCall* call) {
  const ConvShape& s = *shape;
  const Laid laid(s);
  ConvNeeds needs;
  QF_EXPORT(conv_depthwise_integer_needs)(shape, &needs);
  const int64_t channels = s.groups * s.out_channels, rows = s.output[0] * s.output[1];
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < s.batch * s.groups; part++) {
    uint32_t* x = (uint32_t*)(call->workspace + omp_get_thread_num() * needs.workspace);
    uint32_t* sums = x + laid.size();
    const int64_t group = part % s.groups, from = part * volume(s.input);
    if (q->x_signed)
      lay(s, laid, (const int8_t*)call->x + from, q->x_zero, x);
    else
      lay(s, laid, (const uint8_t*)call->x + from, q->x_zero, x);
    for (int64_t m = group * s.out_channels; m < (group + 1) * s.out_channels; m++) {
      const int16_t* weights = (const int16_t*)call->weights + m * volume(s.kernel);
      const uint32_t bias = call->bias ? ((const uint32_t*)call->bias)[m] : 0;
      for (int64_t row = 0; row < rows; row++) {
        sum_row(s, laid, x, weights, bias, row / s.output[1], row % s.output[1], sums);
        const int64_t at = (part / s.groups * channels + m) * rows * s.output[2] + row * s.output[2];
        store_sums(*q, *call, (const int32_t*)sums, m, at, s.output[2]);
      }
    }
  }
}
