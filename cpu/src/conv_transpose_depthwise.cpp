// Transposed depthwise convolution (one input and one output channel a group) on plain NCHW, which is also the gradient of a
// depthwise convolution's input. Vectors lie along the places of one phase of a row of y (conv_phases.h).
//
// A plane of x is copied with zeros around its rows. For each row of y the taps that meet each phase are added up, some
// vectors of places in registers at a time, and the phases interleaved into y with bias, residual and activation. Limited by
// the loads of x, one for each multiply-add, and by memory.
//
// Takes planes and rows, and strides of up to MOST_PHASES. Threads share the planes. Weights are used as they are:
// (C, 1, kernel).
#include <omp.h>

#include "conv_phases.h"

namespace {

constexpr int64_t MOST_PHASES = 8;
constexpr int MOST_ACROSS = 4;

struct Plan {
  Phase high[MOST_PHASES], wide[MOST_PHASES];
  int64_t phases;              // along a row
  int across;                  // vectors of places that are computed together: 1, 2 or MOST_ACROSS
  int64_t places;              // of a phase, in whole steps
  int64_t lead, pitch;         // zeros before a row of x, and floats of a row with what is around it
  explicit Plan(const ConvShape& s) : phases(smaller(s.strides[2], s.input[2])), lead(0) {
    for (int64_t r = 0; r < smaller(s.strides[1], s.input[1]); r++) high[r] = Phase(s, 1, r);
    const int64_t vectors = divide_up(divide_up(s.input[2], s.strides[2]), LANES);
    across = vectors >= 3 ? MOST_ACROSS : int(vectors);
    places = divide_up(vectors, across) * across * LANES;
    int64_t end = s.output[2];
    for (int64_t q = 0; q < phases; q++) {
      wide[q] = Phase(s, 2, q);
      const int64_t last = wide[q].first + (wide[q].count - 1) * wide[q].x_step;
      if (!wide[q].count) continue;
      const int64_t least = smaller(wide[q].first, last), most = wide[q].first + last - least;
      if (-least > lead) lead = -least;
      if (most + places > end) end = most + places;
    }
    lead = divide_up(lead, LANES) * LANES;
    pitch = divide_up(lead + end, LANES) * LANES;
  }
  int64_t floats(const ConvShape& s) const { return divide_up(s.output[1] * pitch + phases * places, 16) * 16; }
};

// One phase of one row of y. line: row 0 of x, its zeros left out; row: where the first tap of the phase along the height lies.
template <int ACROSS>
void add_phase(const ConvShape& s, const Plan& plan, const Phase& high, const Phase& wide, int64_t row,
                         const float* line, const float* weights, float start, float* sums) {
  for (int64_t t = 0; t < plan.places; t += ACROSS * LANES) {
    vfloat c[ACROSS];
    QF_UNROLL for (int i = 0; i < ACROSS; i++) c[i] = broadcast(start);
    for (int64_t a = 0; a < high.count; a++) {
      const int64_t at = row + a * high.x_step;
      if (at < 0 || at >= s.output[1]) continue;
      const float* from = line + at * plan.pitch + t + wide.first;
      const float* w = weights + (high.tap + a * high.step) * s.kernel[2] + wide.tap;
      for (int64_t b = 0; b < wide.count; b++, from += wide.x_step, w += wide.step)
        QF_UNROLL for (int i = 0; i < ACROSS; i++) c[i] += *w * load(from + i * LANES);
    }
    QF_UNROLL for (int i = 0; i < ACROSS; i++) store(sums + t + i * LANES, c[i]);
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_transpose_depthwise_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  *needs = {sizeof(float) * s->groups * volume(s->kernel), sizeof(float) * Plan(*s).floats(*s)};
}

extern "C" void QF_EXPORT(conv_transpose_depthwise_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  memcpy(packed, weights, sizeof(float) * s->groups * volume(s->kernel));
}

extern "C" void QF_EXPORT(conv_transpose_depthwise_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  const Epilogue epilogue(s);
  const auto add = plan.across == 1 ? add_phase<1> : plan.across == 2 ? add_phase<2> : add_phase<MOST_ACROSS>;
  const int64_t x_plane = volume(s.output), y_plane = volume(s.input), width = s.output[2];
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    float* lines = (float*)call->workspace + omp_get_thread_num() * plan.floats(s);
    float* sums = lines + s.output[1] * plan.pitch;
    memset(lines, 0, sizeof(float) * s.output[1] * plan.pitch);  // what is around the rows stays zero
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.batch * s.groups; i++) {
      const float* x = (const float*)call->x + i * x_plane;
      const float* weights = (const float*)call->weights + i % s.groups * volume(s.kernel);
      const float start = call->bias ? ((const float*)call->bias)[i % s.groups] : 0.0f;
      for (int64_t h = 0; h < s.output[1]; h++) memcpy(lines + h * plan.pitch + plan.lead, x + h * width, sizeof(float) * width);
      for (int64_t row = 0; row < s.input[1]; row++) {
        const Phase& high = plan.high[row % s.strides[1]];
        for (int64_t q = 0; q < plan.phases; q++)
          add(s, plan, high, plan.wide[q], row / s.strides[1] + high.first, lines + plan.lead, weights, start,
              sums + q * plan.places);
        const int64_t at = i * y_plane + row * s.input[2];
        interleave(sums, plan.places, plan.phases, plan.wide[0].places, s.input[2],
                   call->residual ? (const float*)call->residual + at : nullptr, epilogue, (float*)call->y + at);
      }
    }
  }
}
