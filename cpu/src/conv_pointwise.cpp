// Convolution 1x1 of few input channels on plain NCHW: streams of x into streams of y.
//
// A matrix product of so little depth is all beginning and end of its tiles. Here the weights of a few output channels stay in
// registers, and the places of a run go by: a load for each input channel, a multiply-add for each weight, a store for each
// output channel. A run of x stays in the first-level cache for all output channels. Limited by the stores.
// Takes windows of one tap that read x place by place. Threads share images, groups and runs. Weights are read as they are:
// (M, C / groups).
#include "conv_epilogue.h"

namespace {

constexpr int MOST_STREAMS = 6;       // of y at a time
constexpr int64_t RUN_FLOATS = 1024;  // places: 4 KiB of each input channel

struct Streams {
  const float* x;  // of the first input channel
  const float *weights, *bias, *residual;  // of the first output channel; bias and residual may be null
  float* y;
  int64_t plane, count;  // floats from channel to channel, and places of the run
};

// M output channels of a run.
template <int DEPTH, int M>
__attribute__((noinline)) void channels(const Streams& streams, const Epilogue& epilogue) {
  const Streams s = streams;
  const vfloat low = epilogue.low, high = epilogue.high;
  const bool clamps = epilogue.clamps;
  vfloat weights[M][DEPTH];
  QF_UNROLL for (int m = 0; m < M; m++)
    QF_UNROLL for (int d = 0; d < DEPTH; d++) {
      weights[m][d] = broadcast(s.weights[m * DEPTH + d]);
      settle(weights[m][d]);
    }
  float bias[M];
  QF_UNROLL for (int m = 0; m < M; m++) bias[m] = s.bias ? s.bias[m] : 0.0f;
  const auto places = [&](int64_t i, const auto& get, const auto& put) __attribute__((always_inline)) {
    vfloat x[DEPTH];
    QF_UNROLL for (int d = 0; d < DEPTH; d++) x[d] = get(s.x + d * s.plane + i);
    QF_UNROLL for (int m = 0; m < M; m++) {
      vfloat sum = broadcast(bias[m]);
      QF_UNROLL for (int d = 0; d < DEPTH; d++) sum += weights[m][d] * x[d];
      if (s.residual) sum += get(s.residual + m * s.plane + i);
      if (clamps) sum = at_most(at_least(sum, low), high);
      put(s.y + m * s.plane + i, sum);
    }
  };
  int64_t i = 0;
  for (; i + LANES <= s.count; i += LANES) places(i, load, store);
  if (i < s.count) {
    const lanemask inside = lanes_between(0, int(s.count - i));
    places(i, [&](const float* p) { return load_masked(p, inside); },
           [&](float* p, vfloat v) { store_masked(p, v, inside); });
  }
  if (epilogue.later)
    QF_UNROLL for (int m = 0; m < M; m++) epilogue.activate_row(s.y + m * s.plane, s.count);
}

// `out_channels` of a run, M at a time, then fewer.
template <int DEPTH, int M>
void run(Streams s, int64_t out_channels, const Epilogue& epilogue) {
  for (; out_channels >= M; out_channels -= M) {
    channels<DEPTH, M>(s, epilogue);
    s.weights += M * DEPTH;
    s.y += M * s.plane;
    if (s.bias) s.bias += M;
    if (s.residual) s.residual += M * s.plane;
  }
  if constexpr (M > 1)
    if (out_channels) run<DEPTH, M - 1>(s, out_channels, epilogue);
}

// As many output channels at a time as have room in registers with their weights.
template <int DEPTH>
void run(const Streams& streams, int64_t out_channels, const Epilogue& epilogue) {
  constexpr int FIT = REGISTERS / DEPTH;
  run<DEPTH, (FIT < MOST_STREAMS ? FIT : MOST_STREAMS)>(streams, out_channels, epilogue);
}

// By the number of input channels of a group, less one: as many as conv.py lets through.
constexpr void (*INSTANCES[])(const Streams&, int64_t, const Epilogue&) = {run<1>, run<2>, run<3>, run<4>,
                                                                          run<5>, run<6>, run<7>, run<8>};

}  // namespace

extern "C" void QF_EXPORT(conv_pointwise_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Epilogue epilogue(s);
  const int64_t plane = volume(s.input), runs = divide_up(plane, RUN_FLOATS), parts = s.batch * s.groups * runs;
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < parts; part++) {
    const int64_t image_group = part / runs, place = part % runs * RUN_FLOATS, m = image_group % s.groups * s.out_channels;
    const int64_t at = image_group * s.out_channels * plane + place;
    const Streams streams{(const float*)call->x + image_group * s.in_channels * plane + place,
                          (const float*)call->weights + m * s.in_channels,
                          call->bias ? (const float*)call->bias + m : nullptr,
                          call->residual ? (const float*)call->residual + at : nullptr,
                          (float*)call->y + at,
                          plane,
                          smaller(RUN_FLOATS, plane - place)};
    INSTANCES[s.in_channels - 1](streams, s.out_channels, epilogue);
  }
}
