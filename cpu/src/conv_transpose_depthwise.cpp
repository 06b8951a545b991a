// Transposed depthwise convolution (one input and one output channel a group) on plain NCHW, which is also the gradient of a
// depthwise convolution's input. Vectors lie along the places of one phase of a row of y (conv_phases.h).
//
// A plane of x is copied with zeros around it. For some rows of y the taps that meet each phase are added up, some vectors of
// places in registers at a time, the taps' weights in registers where there are up to four; then the phases are interleaved into
// y with bias, residual and activation. Limited by the loads of x, one for each multiply-add, and by memory; on planes of 7x7 by
// the interleaving.
//
// Takes planes and rows, and strides of up to MOST_PHASES. Threads share the planes. Weights are used as they are:
// (C, 1, kernel).
#include <omp.h>

#include "conv_phases.h"

namespace {

constexpr int64_t MOST_PHASES = 8;
constexpr int MOST_ACROSS = 4, FEW_TAPS = 4;
constexpr int64_t SUMS = 4096;  // of some rows, half the first-level cache

struct Plan {
  Phase high[MOST_PHASES], wide[MOST_PHASES];
  int64_t phases, phases_high;  // along a row, and along a column
  int across;                   // vectors of places that are computed together: 1, 2 or MOST_ACROSS
  int64_t places;               // of a phase, in whole steps
  int64_t lead, pitch;          // zeros before a row of x, and floats of a row with what is around it
  int64_t above, lines;         // rows of zeros above x, and rows with those and what is below
  int64_t rows;                 // of each phase that are computed before they are interleaved
  explicit Plan(const ConvShape& s)
      : phases(smaller(s.strides[2], s.input[2])), phases_high(smaller(s.strides[1], s.input[1])), lead(0), above(0) {
    const int64_t vectors = divide_up(divide_up(s.input[2], s.strides[2]), LANES);
    across = vectors >= 3 ? MOST_ACROSS : int(vectors);
    places = divide_up(vectors, across) * across * LANES;
    int64_t end = s.output[2], bottom = s.output[1];
    for (int64_t r = 0; r < phases_high; r++) {
      high[r] = Phase(s, 1, r);
      widen(high[r], high[r].places, above, bottom);
    }
    for (int64_t q = 0; q < phases; q++) {
      wide[q] = Phase(s, 2, q);
      widen(wide[q], places, lead, end);
    }
    lead = divide_up(lead, LANES) * LANES;
    pitch = divide_up(lead + end, LANES) * LANES;
    lines = above + bottom;
    const int64_t all = divide_up(s.input[1], s.strides[1]), fit = SUMS / (phases_high * phases * places);
    rows = clamped(fit, all) > 1 ? clamped(fit, all) : 1;
  }

 private:
  // Zeros before, and an end, that taps of `count` places reach.
  static void widen(const Phase& phase, int64_t count, int64_t& before, int64_t& end) {
    if (!phase.count) return;
    const int64_t last = phase.first + (phase.count - 1) * phase.x_step;
    const int64_t least = smaller(phase.first, last), most = phase.first + last - least;
    if (-least > before) before = -least;
    if (most + count > end) end = most + count;
  }
};

// The taps of one phase along both axes: weights, and floats from a place of x to what each tap meets there.
struct Taps {
  int64_t count, *places;
  float* weights;
};

// `rows` rows of one phase, `places` sums each, next_sums apart.
template <int ACROSS, int COUNT>
void add_phase(const Taps& taps, int64_t rows, int64_t places, const float* line, int64_t pitch, float start, float* sums,
               int64_t next_sums) {
  vfloat weights[COUNT ? COUNT : 1];
  int64_t at[COUNT ? COUNT : 1];
  for (int k = 0; k < COUNT; k++) weights[k] = broadcast(taps.weights[k]), at[k] = taps.places[k];
  for (int64_t row = 0; row < rows; row++, line += pitch, sums += next_sums)
    for (int64_t t = 0; t < places; t += ACROSS * LANES) {
      vfloat c[ACROSS];
      QF_UNROLL for (int i = 0; i < ACROSS; i++) c[i] = broadcast(start);
      if constexpr (COUNT > 0) {
        QF_UNROLL for (int k = 0; k < COUNT; k++)
          QF_UNROLL for (int i = 0; i < ACROSS; i++) c[i] += weights[k] * load(line + at[k] + t + i * LANES);
      } else {
        for (int64_t k = 0; k < taps.count; k++)
          QF_UNROLL for (int i = 0; i < ACROSS; i++) c[i] += taps.weights[k] * load(line + taps.places[k] + t + i * LANES);
      }
      QF_UNROLL for (int i = 0; i < ACROSS; i++) store(sums + t + i * LANES, c[i]);
    }
}

// A row of x, and zeros behind it up to a whole vector.
QF_INLINE void copy_row(const float* row, int64_t width, float* to) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) store(to + i, load(row + i));
  if (i < width) store(to + i, load_first(row + i, int(width - i)));
}

// What a thread works with: taps, lines of x, sums.
struct Room {
  int64_t taps, lines, sums;  // bytes
  Room(const ConvShape& s, const Plan& plan)
      : taps(divide_up(volume(s.kernel) * (sizeof(int64_t) + sizeof(float)), 64) * 64),
        lines(sizeof(float) * plan.lines * plan.pitch),
        sums(sizeof(float) * plan.phases_high * plan.phases * plan.rows * plan.places) {}
  int64_t bytes() const { return divide_up(taps + lines + sums, 64) * 64; }
};

typedef void (*AddPhase)(const Taps&, int64_t, int64_t, const float*, int64_t, float, float*, int64_t);
#define QF_COUNTS(ACROSS) \
  {add_phase<ACROSS, 0>, add_phase<ACROSS, 1>, add_phase<ACROSS, 2>, add_phase<ACROSS, 3>, add_phase<ACROSS, 4>}
constexpr AddPhase ADD_PHASE[3][FEW_TAPS + 1] = {QF_COUNTS(1), QF_COUNTS(2), QF_COUNTS(4)};

}  // namespace

extern "C" void QF_EXPORT(conv_transpose_depthwise_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  *needs = {sizeof(float) * s->groups * volume(s->kernel), size_t(Room(*s, Plan(*s)).bytes())};
}

extern "C" void QF_EXPORT(conv_transpose_depthwise_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  memcpy(packed, weights, sizeof(float) * s->groups * volume(s->kernel));
}

extern "C" void QF_EXPORT(conv_transpose_depthwise_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  const Room room(s, plan);
  const Epilogue epilogue(s);
  const AddPhase* add = ADD_PHASE[plan.across / 2];
  const int64_t x_plane = volume(s.output), y_plane = volume(s.input), width = s.output[2];
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    char* own = call->workspace + omp_get_thread_num() * room.bytes();
    Taps taps = {0, (int64_t*)own, (float*)(own + sizeof(int64_t) * volume(s.kernel))};
    float *lines = (float*)(own + room.taps), *sums = (float*)(own + room.taps + room.lines);
    float* origin = lines + plan.above * plan.pitch + plan.lead;
    memset(lines, 0, room.lines);  // what is around x stays zero
#pragma omp for schedule(static)
    for (int64_t i = 0; i < s.batch * s.groups; i++) {
      const float* x = (const float*)call->x + i * x_plane;
      const float* weights = (const float*)call->weights + i % s.groups * volume(s.kernel);
      const float start = call->bias ? ((const float*)call->bias)[i % s.groups] : 0.0f;
      for (int64_t h = 0; h < s.output[1]; h++) copy_row(x + h * width, width, origin + h * plan.pitch);
      for (int64_t first = 0; first * s.strides[1] < s.input[1]; first += plan.rows) {
        for (int64_t r = 0; r < plan.phases_high; r++)
          for (int64_t q = 0; q < plan.phases; q++) {
            const Phase &high = plan.high[r], &wide = plan.wide[q];
            taps.count = 0;
            for (int64_t a = 0; a < high.count; a++)
              for (int64_t b = 0; b < wide.count; b++, taps.count++) {
                taps.weights[taps.count] =
                    weights[(high.tap + a * high.step) * s.kernel[2] + wide.tap + b * wide.step];
                taps.places[taps.count] = (high.first + a * high.x_step) * plan.pitch + wide.first + b * wide.x_step;
              }
            add[taps.count <= FEW_TAPS ? taps.count : 0](taps, smaller(plan.rows, high.places - first), plan.places,
                                                         origin + first * plan.pitch, plan.pitch, start,
                                                         sums + (r * plan.phases + q) * plan.places,
                                                         plan.phases_high * plan.phases * plan.places);
          }
        const int64_t end = smaller((first + plan.rows) * s.strides[1], s.input[1]);
        for (int64_t row = first * s.strides[1]; row < end; row++) {
          const int64_t at = i * y_plane + row * s.input[2];
          const float* of_row = sums + ((row / s.strides[1] - first) * plan.phases_high + row % s.strides[1]) * plan.phases * plan.places;
          interleave(of_row, plan.places, plan.phases, plan.wide[0].places, s.input[2], (s.input[1] - row) * s.input[2],
                     call->residual ? (const float*)call->residual + at : nullptr, epilogue, (float*)call->y + at);
        }
      }
    }
  }
}
