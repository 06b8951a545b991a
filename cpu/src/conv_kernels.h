// Every convolution kernel by the name of its algorithm, to be picked by instruction set. For _conv.pyx alone.
#pragma once

#include <cstring>

#include "conv_arguments.h"
#include "conv_gradient.h"
#include "instruction_sets.h"
#include "native_step.h"

typedef void (*ConvNeedsFunction)(const ConvShape*, ConvNeeds*);
typedef void (*ConvPackFunction)(const ConvShape*, const float* weights, float* packed);
typedef void (*ConvRunFunction)(const ConvShape*, const ConvCall*);

// The float algorithms: those that pack weights and take a workspace, those that use the weights as they are, and those
// that pack weights and need AMX.
#define QF_CONV_ALGORITHMS(PACKED, PLAIN, TILES) \
  TILES(conv_tiles_f32)                   \
  PACKED(conv_gemm_f32)                   \
  PACKED(conv_winograd_f32)               \
  PACKED(conv_blocked_f32)                \
  PACKED(conv_depthwise_blocked_f32)      \
  PACKED(conv_depthwise_f32)              \
  PACKED(conv_padded_f32)                 \
  PACKED(conv_transpose_winograd_f32)     \
  PACKED(conv_transpose_gemm_f32)         \
  PACKED(conv_transpose_depthwise_f32)    \
  PLAIN(conv_pointwise_f32)               \
  PLAIN(conv_direct_f32)                  \
  PLAIN(conv_direct_f64)                  \
  PLAIN(conv_transpose_direct_f32)        \
  PLAIN(conv_transpose_direct_f64)

#define QF_DECLARE_PLAIN(name) QF_DECLARE(void, name, (const ConvShape*, const ConvCall*))
#define QF_DECLARE_PACKED(name)                                                 \
  QF_DECLARE(void, name##_needs, (const ConvShape*, ConvNeeds*))                \
  QF_DECLARE(void, name##_pack, (const ConvShape*, const float*, float*))       \
  QF_DECLARE_PLAIN(name)
#define QF_DECLARE_TILES(name)                                                  \
  QF_DECLARE_AMX_ALONE(void, name##_needs, (const ConvShape*, ConvNeeds*))            \
  QF_DECLARE_AMX_ALONE(void, name##_pack, (const ConvShape*, const float*, float*))   \
  QF_DECLARE_AMX_ALONE(void, name, (const ConvShape*, const ConvCall*))
QF_CONV_ALGORITHMS(QF_DECLARE_PACKED, QF_DECLARE_PLAIN, QF_DECLARE_TILES)

struct ConvAlgorithm {
  ConvNeedsFunction needs;  // null: the weights are used as they are, and there is no workspace
  ConvPackFunction pack;
  ConvRunFunction run;
};

// The functions of an algorithm for one instruction set; false where no algorithm has the name or it has no instance for the
// set. (To ask whether the set is
// supported is also what lets this process use tile registers.)
static inline bool find_conv_algorithm(const char* name, int isa, ConvAlgorithm* found) {
  if (!isa_supported(isa)) return false;
#define QF_FIND_PACKED(id) \
  if (!strcmp(name, #id)) return *found = {id##_needs(isa), id##_pack(isa), id(isa)}, found->run != nullptr;
#define QF_FIND_PLAIN(id) \
  if (!strcmp(name, #id)) return *found = {nullptr, nullptr, id(isa)}, true;
  QF_CONV_ALGORITHMS(QF_FIND_PACKED, QF_FIND_PLAIN, QF_FIND_PACKED)
  return false;
}

typedef void (*ConvIntegerFunction)(const ConvShape*, const ConvQuantization*, const ConvCall*);
typedef void (*ConvIntegerPackFunction)(const ConvShape*, const int16_t* weights, int32_t* packed);
struct ConvIntegerAlgorithm {
  ConvNeedsFunction needs;  // null: the weights are used as they are, and there is no workspace
  ConvIntegerPackFunction pack;
  ConvIntegerFunction run;
};

#define QF_DECLARE_INTEGER(DECLARE, name)                                        \
  DECLARE(void, name##_needs, (const ConvShape*, ConvNeeds*))                    \
  DECLARE(void, name##_pack, (const ConvShape*, const int16_t*, int32_t*))       \
  DECLARE(void, name, (const ConvShape*, const ConvQuantization*, const ConvCall*))
QF_DECLARE_INTEGER(QF_DECLARE_VNNI, conv_gemm_integer)
QF_DECLARE_INTEGER(QF_DECLARE, conv_winograd2_integer)
QF_DECLARE_INTEGER(QF_DECLARE, conv_winograd4_integer)
QF_DECLARE_INTEGER(QF_DECLARE_AMX_ALONE, conv_tiles_integer)
QF_DECLARE_INTEGER(QF_DECLARE_AMX_ALONE, conv_planes_tiles_integer)
QF_DECLARE_INTEGER(QF_DECLARE_VNNI_ALONE, conv_bytes_integer)
QF_DECLARE_INTEGER(QF_DECLARE_VNNI, conv_depthwise_integer)
QF_DECLARE_INTEGER(QF_DECLARE_VNNI, conv_channels_integer)
QF_DECLARE_INTEGER(QF_DECLARE_VNNI_ALONE, conv_channels_bytes_integer)
QF_DECLARE(void, conv_direct_integer, (const ConvShape*, const ConvQuantization*, const ConvCall*))

// As find_conv_algorithm, for integers.
static inline bool find_conv_integer_algorithm(const char* name, int isa, ConvIntegerAlgorithm* found) {
  if (!isa_supported(isa)) return false;
  QF_FIND_PACKED(conv_gemm_integer)
  QF_FIND_PACKED(conv_winograd2_integer)
  QF_FIND_PACKED(conv_winograd4_integer)
  QF_FIND_PACKED(conv_bytes_integer)
  QF_FIND_PACKED(conv_tiles_integer)
  QF_FIND_PACKED(conv_planes_tiles_integer)
  QF_FIND_PACKED(conv_depthwise_integer)
  QF_FIND_PACKED(conv_channels_integer)
  QF_FIND_PACKED(conv_channels_bytes_integer)
  QF_FIND_PLAIN(conv_direct_integer)
  return false;
}

typedef size_t (*ConvGradientNeeds)(const ConvShape*);  // bytes of workspace for each thread
typedef void (*ConvGradientFunction)(const ConvShape*, const ConvGradientCall*);

QF_DECLARE(size_t, conv_gradient_product_f32_needs, (const ConvShape*))
QF_DECLARE(void, conv_gradient_product_f32, (const ConvShape*, const ConvGradientCall*))
QF_DECLARE(size_t, conv_gradient_depthwise_f32_needs, (const ConvShape*))
QF_DECLARE(void, conv_gradient_depthwise_f32, (const ConvShape*, const ConvGradientCall*))
QF_DECLARE(void, conv_gradient_direct_f32, (const ConvShape*, const ConvGradientCall*))
QF_DECLARE(void, conv_gradient_direct_f64, (const ConvShape*, const ConvGradientCall*))
QF_DECLARE(void, conv_gradient_bias_f32, (const ConvShape*, const ConvGradientCall*))
QF_DECLARE(void, conv_gradient_bias_f64, (const ConvShape*, const ConvGradientCall*))

struct ConvGradientAlgorithm {
  ConvGradientNeeds needs;  // null: no workspace
  ConvGradientFunction run;
};

// As find_conv_algorithm, for the gradients of weight and bias.
static inline bool find_conv_gradient_algorithm(const char* name, int isa, ConvGradientAlgorithm* found) {
  if (!isa_supported(isa)) return false;
#define QF_FIND_ROOMY(id) \
  if (!strcmp(name, #id)) return *found = {id##_needs(isa), id(isa)}, true;
#define QF_FIND_BARE(id) \
  if (!strcmp(name, #id)) return *found = {nullptr, id(isa)}, true;
  QF_FIND_ROOMY(conv_gradient_product_f32)
  QF_FIND_ROOMY(conv_gradient_depthwise_f32)
  QF_FIND_BARE(conv_gradient_direct_f32)
  QF_FIND_BARE(conv_gradient_direct_f64)
  QF_FIND_BARE(conv_gradient_bias_f32)
  QF_FIND_BARE(conv_gradient_bias_f64)
  return false;
}

// The weights with which a convolution of stride 1 does what a transposed one does: (C, M / groups, kernel) becomes
// (M, C / groups, kernel reversed along every axis). In squares of channels, for the sake of the cache.
inline void flip_weights(const float* weights, int64_t groups, int64_t in_channels, int64_t out_channels, int64_t taps,
                         float* flipped) {
  constexpr int64_t SIDE = 8;  // rows a power of two apart share a set of the cache, which has eight ways
  for (int64_t group = 0; group < groups; group++, weights += in_channels * out_channels * taps,
               flipped += in_channels * out_channels * taps)
    for (int64_t m0 = 0; m0 < out_channels; m0 += SIDE)
      for (int64_t c0 = 0; c0 < in_channels; c0 += SIDE)
        for (int64_t m = m0; m < m0 + SIDE && m < out_channels; m++)
          for (int64_t c = c0; c < c0 + SIDE && c < in_channels; c++) {
            const float* from = weights + (c * out_channels + m) * taps;
            float* to = flipped + (m * in_channels + c) * taps + taps - 1;
            if (taps == 1) {  // a loop would take several times as long as what it does
              *to = *from;
              continue;
            }
            for (int64_t tap = 0; tap < taps; tap++) to[-tap] = from[tap];
          }
}

// A prepared convolution as a step of a sequence: what it points to belongs to _conv.Run or _conv.IntegerRun.
struct ConvStep {
  ConvRunFunction run;
  const ConvShape* shape;
  const ConvCall* call;  // weights and bias
  int most_threads;
};

struct ConvIntegerStep {
  ConvIntegerFunction run;
  const ConvShape* shape;
  const ConvQuantization* quantization;
  const ConvCall* call;  // weights and bias
  int most_threads;
};

template <class Step>
static inline ConvCall call_of_step(const Step& step, const void* x, const void* residual, void* y, char* workspace, int threads) {
  ConvCall call = *step.call;
  call.x = x;
  call.residual = residual;
  call.y = y;
  call.workspace = workspace;
  call.threads = threads < step.most_threads ? threads : step.most_threads;
  return call;
}

inline void run_conv_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                          int threads) {
  const ConvStep& step = *static_cast<const ConvStep*>(context);
  const ConvCall call = call_of_step(step, inputs[0], inputs[3], outputs[0], workspace, threads);
  step.run(step.shape, &call);
}

inline void run_conv_integer_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                                  int threads) {
  const ConvIntegerStep& step = *static_cast<const ConvIntegerStep*>(context);
  const ConvCall call = call_of_step(step, inputs[0], nullptr, outputs[0], workspace, threads);
  step.run(step.shape, step.quantization, &call);
}
