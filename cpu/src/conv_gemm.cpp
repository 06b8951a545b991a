// The matrix product of conv_blocking.h in float32, with bias, residual and activation.
#include "conv_blocking.h"
#include "conv_epilogue.h"

namespace {

struct Target {
  float* y;
  int64_t row_step;
  const float* bias;         // one for each row, or null
  const float* residual;     // laid out like y, or null
  const Epilogue* epilogue;  // null: plain sums are wanted
  bool cold;                 // y is not in the cache yet, and the tile takes long enough to fetch it meanwhile
};

struct FloatArithmetic {
  typedef float Element;
  typedef float Sum;
  typedef void (*TileFunction)(const float*, int64_t, const float*, int64_t, int64_t, const Target&);
  static constexpr bool WRITES_TILES = true;

  const ConvShape& s;
  const ConvCall& call;
  const Epilogue& epilogue;
  bool cold;

  template <int R, int J>
  __attribute__((noinline)) static void tile(const float* scalars, int64_t scalar_step, const float* vectors,
                                             int64_t vector_step, int64_t depth, const Target& target) {
    vfloat c[R][J];
    if (target.cold)
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) __builtin_prefetch(target.y + r * target.row_step + j * LANES, 1);
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = target.bias ? broadcast(target.bias[r]) : (vfloat){};
    multiply_add<R, J>(c, scalars, scalar_step, vectors, vector_step, depth);
    if (target.residual)
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += load(target.residual + r * target.row_step + j * LANES);
    if (target.epilogue && target.epilogue->clamps)
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = target.epilogue->clamp(c[r][j]);
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) store(target.y + r * target.row_step + j * LANES, c[r][j]);
    if (target.epilogue && target.epilogue->later)
      for (int r = 0; r < R; r++) target.epilogue->activate_row(target.y + r * target.row_step, J * LANES);
  }

  QF_INLINE void pack(int64_t x_offset, const Segments& segments, float* panel, int64_t width) const {
    pack_panel(s, segments, (const float*)call.x + x_offset, panel, width);
  }
  QF_INLINE Target target(int64_t at, int64_t row_step, int64_t channel) const {
    return {(float*)call.y + at, row_step, call.bias ? (const float*)call.bias + channel : nullptr,
            call.residual ? (const float*)call.residual + at : nullptr, &epilogue, cold};
  }
  QF_INLINE Target sums_target(float* sums, int64_t row_step) const {
    return {sums, row_step, nullptr, nullptr, nullptr, false};
  }
  void write_rows(const float* sums, int64_t step, int64_t channel, int64_t rows, int64_t at, int64_t row_step,
                  int64_t count) const {
    const float* bias = call.bias ? (const float*)call.bias + channel : nullptr;
    const float* residual = call.residual ? (const float*)call.residual + at : nullptr;
    float* y = (float*)call.y + at;
    for (int64_t i = 0; i < count; i += LANES) {
      const lanemask lanes = lanes_between(0, int(smaller(LANES, count - i)));
      for (int64_t r = 0; r < rows; r++) {
        vfloat v = load_masked(sums + r * step + i, lanes);
        if (bias) v += bias[r];
        if (residual) v += load_masked(residual + r * row_step + i, lanes);
        store_masked(y + r * row_step + i, epilogue.clamp(v), lanes);
      }
    }
    if (epilogue.later)
      for (int64_t r = 0; r < rows; r++) epilogue.activate_row(y + r * row_step, count);
  }
};

Blocking blocking_of(const ConvShape& s) { return Blocking(s, s.in_channels * volume(s.kernel), true); }

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Blocking plan = blocking_of(*s);
  // Whole cache lines, so that several packed weights can follow one another.
  const int64_t packed = divide_up(BLOCKING_BYTES + plan.packed_bytes(s->groups), 64) * 64;
  *needs = {size_t(packed), size_t(plan.workspace_bytes())};
}

// Packed: the blocking, so that calls need not think again; then for each group and block of channels, the weights of its channels side by side, tap by tap.
extern "C" void QF_EXPORT(conv_gemm_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Blocking plan = blocking_of(*s);
  const int64_t taps = volume(s->kernel);
  memcpy(packed, &plan, sizeof plan);
  packed += BLOCKING_BYTES / sizeof(float);
  for (int64_t group = 0; group < s->groups; group++)
    for (int64_t block = 0; block < plan.channel_blocks; block++) {
      const int64_t first = plan.first_channel(block), count = plan.channels(block);
      for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t c = 0; c < s->in_channels; c++)
          for (int64_t m = first; m < first + count; m++)
            *packed++ = m < s->out_channels
                            ? weights[((group * s->out_channels + m) * s->in_channels + c) * taps + tap]
                            : 0.0f;
    }
}

extern "C" void QF_EXPORT(conv_gemm_f32)(const ConvShape* s, const ConvCall* call) {
  const Blocking& plan = *(const Blocking*)call->weights;
  const Epilogue epilogue(*s);
  const int64_t y_bytes = s->batch * s->groups * s->out_channels * volume(s->output) * 4;
  multiply(*s, *call, plan, FloatArithmetic{*s, *call, epilogue, plan.depth >= 48 && y_bytes > (1 << 20)});
}
