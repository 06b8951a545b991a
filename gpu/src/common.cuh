/* What the kernels share: the geometry of a sliding window and the end of a convolution. Compiled by NVRTC without any
 * header of the CUDA toolkit, and by g++ after emulation/cuda_emulator.h. */
#pragma once

#define QF_FUNCTION static __device__ __forceinline__
#include "quatrefoil/activation.h"

/* ops.conv.ConvGeometry, field by field; axes are depth, height, width. Declared in conv.py as GEOMETRY. */
struct ConvGeometry {
  int batch, groups, in_per_group, out_per_group;
  int input[3], output[3], kernel[3], stride[3], dilation[3], pad[3];
};

/* activation(value + bias[channel] + residual[index]); bias and residual may be null. */
struct Epilogue {
  const float* bias;
  const float* residual;
  int activation;
  float alpha, beta;
};

QF_FUNCTION float finish(const Epilogue& epilogue, float value, int channel, long long index) {
  if (epilogue.bias) value += epilogue.bias[channel];
  if (epilogue.residual) value += epilogue.residual[index];
  return qf_activation(epilogue.activation, epilogue.alpha, epilogue.beta, value);
}

/* The taps of one axis that fall inside the input, for a window that begins at ``start``: first to last - 1. */
struct TapRange {
  int first, last;
};

QF_FUNCTION TapRange taps_inside(long long start, int taps, int dilation, int extent) {
  const long long first = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const long long last = start < extent ? (extent - start + dilation - 1) / dilation : 0;
  return {static_cast<int>(first < taps ? first : taps), static_cast<int>(last < taps ? last : taps)};
}
