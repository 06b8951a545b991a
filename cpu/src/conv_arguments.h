// What every convolution kernel is told: the shape once, the arrays at each call. Shared with _conv.pyx.
#pragma once

#include <cstddef>
#include <cstdint>

// ops/conv.py's ConvGeometry. For a transposed convolution the window slides over y: input is y's extent, output x's,
// and in_channels counts x's channels.
struct ConvShape {
  int64_t batch, groups;
  int64_t in_channels, out_channels;  // of one group
  int64_t input[3], output[3], kernel[3], strides[3], dilations[3], pads[3];
  int activation;  // a code of activation.h; the epilogue is activation(conv + bias + residual)
  float alpha, beta;
  // Whether x, and y with the residual, hold channels in blocks (channel_blocks.h) instead of plane after plane. Bytes have
  // one block: channels last, (N, spatial, C).
  int32_t x_blocked, y_blocked;
};

// What a kernel needs for a shape: bytes of packed weights, and of workspace for each thread.
struct ConvNeeds {
  size_t packed, workspace;
};

struct ConvCall {
  const void* x;
  const void* weights;   // as packed by the kernel's own pack function
  const void* bias;      // one for each output channel, or null
  const void* residual;  // like y, or null
  void* y;
  char* workspace;  // ConvNeeds::workspace bytes for each thread, aligned to 64
  int threads;
  const void* plain_weights;  // as they were before packing, for kernels that packed them
};

// What an integer convolution adds to a ConvCall, whose weights are int16 with their zero points taken off, and whose
// bias is int32.
struct ConvQuantization {
  int x_signed, x_zero;
  const float* multipliers;  // requantisation, one for each output channel; null: y is the int32 sums
  int y_signed, y_zero;
};

static inline int64_t volume(const int64_t (&extents)[3]) { return extents[0] * extents[1] * extents[2]; }
