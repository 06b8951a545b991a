// What every kernel of a convolution's weight gradient is told, and one value of it by its definition.
//
//   dw[m][c][tap] = sum over images and places of dy[m][place] * x[c][place * stride + tap * dilation - pad]
//
// The shape is the convolution's own (ConvShape): its window slides over x.
#pragma once

#include "conv_arguments.h"
#include "simd.h"

struct ConvGradientCall {
  const void* x;
  const void* dy;
  void* dw;
  char* workspace;  // as many bytes for each thread as the kernel asked for, aligned to 64
  int threads;
};

namespace {

// The first and one past the last i of 0 to count with 0 <= i * step + offset < length.
struct Inside {
  int64_t begin, end;
  QF_INLINE Inside(int64_t step, int64_t offset, int64_t length, int64_t count) {
    begin = offset < 0 ? divide_up(-offset, step) : 0;
    end = length > offset ? smaller(divide_up(length - offset, step), count) : 0;
    if (begin > end) begin = end;
  }
};

// One value of dw. Places whose tap falls on padding are left out; rows are summed in T, and their sums in double.
template <class T>
double weight_by_taps(const ConvShape& s, const ConvGradientCall& call, int64_t group, int64_t m, int64_t c, int64_t tap) {
  const int64_t at[3] = {tap / s.kernel[2] / s.kernel[1], tap / s.kernel[2] % s.kernel[1], tap % s.kernel[2]};
  int64_t offset[3];
  for (int axis = 0; axis < 3; axis++) offset[axis] = at[axis] * s.dilations[axis] - s.pads[axis];
  const Inside columns(s.strides[2], offset[2], s.input[2], s.output[2]);
  const Inside rows(s.strides[1], offset[1], s.input[1], s.output[1]);
  const Inside depths(s.strides[0], offset[0], s.input[0], s.output[0]);
  double total = 0;
  for (int64_t image = 0; image < s.batch; image++) {
    const T* x = (const T*)call.x + ((image * s.groups + group) * s.in_channels + c) * volume(s.input);
    const T* dy = (const T*)call.dy + ((image * s.groups + group) * s.out_channels + m) * volume(s.output);
    for (int64_t d = depths.begin; d < depths.end; d++)
      for (int64_t h = rows.begin; h < rows.end; h++) {
        const T* x_row = x + ((d * s.strides[0] + offset[0]) * s.input[1] + h * s.strides[1] + offset[1]) * s.input[2];
        const T* dy_row = dy + (d * s.output[1] + h) * s.output[2];
        T sum = 0;
        for (int64_t w = columns.begin; w < columns.end; w++) sum += dy_row[w] * x_row[w * s.strides[2] + offset[2]];
        total += sum;
      }
  }
  return total;
}

}  // namespace
