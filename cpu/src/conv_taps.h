// One output of a convolution by its definition, in either layout of x and y: what kernels turn to for the few values
// that their own way of summing would spoil, such as infinities. Taps on padding are left out.
#pragma once

#include "channel_blocks.h"

namespace {

// Where a channel's element lies: of an image, the channel counted over all groups, and its place in the plane.
QF_INLINE int64_t element_at(bool blocked, int64_t image, int64_t channels, int64_t channel, int64_t plane, int64_t place) {
  return blocked ? ((image * divide_up(channels, LANES) + channel / LANES) * plane + place) * LANES + channel % LANES
                 : (image * channels + channel) * plane + place;
}

// weights: of this output channel.
inline void write_by_taps_of(const ConvShape& s, const ConvCall& call, const float* weights, int64_t image, int64_t group,
                             int64_t out_channel, int64_t d, int64_t h, int64_t w) {
  const int64_t m = group * s.out_channels + out_channel, in_plane = volume(s.input), taps = volume(s.kernel);
  float sum = call.bias ? ((const float*)call.bias)[m] : 0.0f;
  for (int64_t c = 0; c < s.in_channels; c++)
    for (int64_t tap = 0; tap < taps; tap++) {
      const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
      const int64_t id = d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
      const int64_t ih = h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
      const int64_t iw = w * s.strides[2] + kw * s.dilations[2] - s.pads[2];
      if (id < 0 || id >= s.input[0] || ih < 0 || ih >= s.input[1] || iw < 0 || iw >= s.input[2]) continue;
      sum += weights[c * taps + tap] *
             ((const float*)call.x)[element_at(s.x_blocked, image, s.groups * s.in_channels, group * s.in_channels + c,
                                               in_plane, (id * s.input[1] + ih) * s.input[2] + iw)];
    }
  const int64_t place = (d * s.output[1] + h) * s.output[2] + w;
  const int64_t at = element_at(s.y_blocked, image, s.groups * s.out_channels, m, volume(s.output), place);
  if (call.residual) sum += ((const float*)call.residual)[at];
  ((float*)call.y)[at] = qf_activation(s.activation, s.alpha, s.beta, sum);
}

inline void write_by_taps(const ConvShape& s, const ConvCall& call, int64_t image, int64_t group, int64_t out_channel,
                          int64_t d, int64_t h, int64_t w) {
  const int64_t m = group * s.out_channels + out_channel;
  const float* weights = (const float*)call.plain_weights + m * s.in_channels * volume(s.kernel);
  write_by_taps_of(s, call, weights, image, group, out_channel, d, h, w);
}

// The same of a transposed convolution; `s` is seen from x, and weights are laid out as (C, M / groups, kernel).
inline void write_transposed_by_taps(const ConvShape& s, const ConvCall& call, int64_t image, int64_t group,
                                     int64_t out_channel, int64_t d, int64_t h, int64_t w) {
  const int64_t m = group * s.out_channels + out_channel, in_plane = volume(s.input), taps = volume(s.kernel);
  const float* weights = (const float*)call.plain_weights + (group * s.in_channels * s.out_channels + out_channel) * taps;
  const int64_t y_place[3] = {d, h, w};
  float sum = call.bias ? ((const float*)call.bias)[m] : 0.0f;
  for (int64_t tap = 0; tap < taps; tap++) {
    const int64_t at[3] = {tap / s.kernel[2] / s.kernel[1], tap / s.kernel[2] % s.kernel[1], tap % s.kernel[2]};
    int64_t place = 0;
    bool met = true;
    for (int axis = 0; axis < 3; axis++) {
      const int64_t reach = y_place[axis] + s.pads[axis] - at[axis] * s.dilations[axis], x = reach / s.strides[axis];
      met = met && reach >= 0 && reach % s.strides[axis] == 0 && x < s.input[axis];
      place = place * s.input[axis] + x;
    }
    if (!met) continue;
    for (int64_t c = 0; c < s.in_channels; c++)
      sum += weights[c * s.out_channels * taps + tap] *
             ((const float*)call.x)[element_at(s.x_blocked, image, s.groups * s.in_channels, group * s.in_channels + c,
                                               in_plane, place)];
  }
  const int64_t place = (d * s.output[1] + h) * s.output[2] + w;
  const int64_t at = element_at(s.y_blocked, image, s.groups * s.out_channels, m, volume(s.output), place);
  if (call.residual) sum += ((const float*)call.residual)[at];
  ((float*)call.y)[at] = qf_activation(s.activation, s.alpha, s.beta, sum);
}

}  // namespace
