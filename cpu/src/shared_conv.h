// What the Cython door and the kernels of convolutions with shared weights have in common.
#pragma once

#include "conv_arguments.h"
#include "instruction_sets.h"

struct SharedConv {
  ConvShape shape;
  int32_t bits;           // of a code: 4 or 8
  const float* book;      // 16 or 256 entries
  const uint8_t* plain;   // the codes as they came, of a codebook that is not finite; else null
  const uint8_t* packed;  // what shared_conv_pack made of the codes
  const float* bias;      // one for each output channel, or null
};

struct SharedConvCall {
  const float *x, *residual;  // residual like y, or null
  float* y;
  char* workspace;  // SharedConvNeeds::workspace bytes for each thread, aligned to 64
  int threads;
};

struct SharedConvNeeds {
  size_t packed, workspace;
};

typedef void (*SharedConvNeedsFunction)(const SharedConv*, SharedConvNeeds*);
typedef void (*SharedConvPack)(const SharedConv*, const uint8_t* codes, uint8_t* packed);
typedef void (*SharedConvFunction)(const SharedConv*, const SharedConvCall*);

QF_DECLARE_AMX(void, shared_conv_needs, (const SharedConv*, SharedConvNeeds*))
QF_DECLARE_AMX(void, shared_conv_pack, (const SharedConv*, const uint8_t* codes, uint8_t* packed))
QF_DECLARE_AMX(void, shared_conv_f32, (const SharedConv*, const SharedConvCall*))

// A prepared convolution as a step of a sequence: what it points to belongs to _shared.Convolution.
struct SharedConvStep {
  SharedConvFunction run;
  const SharedConv* conv;
  int most_threads;
};

static inline void run_shared_conv_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                                        int threads) {
  const SharedConvStep& step = *static_cast<const SharedConvStep*>(context);
  const SharedConvCall call{static_cast<const float*>(inputs[0]), static_cast<const float*>(inputs[4]),
                            static_cast<float*>(outputs[0]), workspace,
                            threads < step.most_threads ? threads : step.most_threads};
  step.run(step.conv, &call);
}
