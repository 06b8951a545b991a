// Transposed convolution without a gather of columns: places of y that share a remainder by the stride along every axis
// (a phase) are a dense convolution of x, of stride 1, with the taps that meet them (Shi et al., "Is the deconvolution
// layer the same as a convolutional layer?", 2016). Each phase is a product (conv_product.h) whose sums stay in the
// second-level cache until all phases along the rows are there; then the rows are interleaved into y with residual and
// activation. Phases along a row get as many places as the longest, and taps that reach over x's edge meet zeros; no other
// multiplication is idle.
//
// In a transposed ConvShape `output` is x's extent and `input` y's. Weights come as (C, M / groups, kernel). Threads share images, groups and blocks of places.
#include <omp.h>

#include "conv_phases.h"
#include "conv_product.h"

namespace {

constexpr int64_t SUMS_BYTES = 192 << 10;

// One product for every phase. All phases along the rows get the places of the first, the longest.
struct PhaseWindow : Window {
  Phase phases[3];

  PhaseWindow(const ConvShape& s, int64_t d, int64_t h, int64_t w) : phases{{s, 0, d}, {s, 1, h}, {s, 2, w}} {
    images = 1;
    channels = s.in_channels;
    image_step = 0;
    for (int axis = 0; axis < 3; axis++) {
      input[axis] = s.output[axis];
      places[axis] = axis == 2 ? divide_up(s.input[2], s.strides[2]) : phases[axis].places;
      taps[axis] = phases[axis].count;
      first[axis] = phases[axis].first;
      step[axis] = phases[axis].x_step;
      stride[axis] = 1;
    }
  }
  int64_t kernel_tap(const ConvShape& s, int64_t tap) const {
    const int64_t t[3] = {tap / taps[2] / taps[1], tap / taps[2] % taps[1], tap % taps[2]};
    int64_t at = 0;
    for (int axis = 0; axis < 3; axis++) at = at * s.kernel[axis] + phases[axis].tap + t[axis] * phases[axis].step;
    return at;
  }
};

struct Phases {
  int64_t counts[3];   // phases along each axis
  int columns = 0;     // of all phases' tiles: those that suit the first one
  int64_t blocks;      // of places, at least
  int64_t panels_floats, sums_floats;

  explicit Phases(const ConvShape& s) : blocks(1), panels_floats(0), sums_floats(0) {
    for (int axis = 0; axis < 3; axis++) counts[axis] = smaller(s.strides[axis], s.input[axis]);
    columns = Plan(PhaseWindow(s, 0, 0, 0), s.out_channels).columns;
    each(s, [&](const PhaseWindow&, const Plan& plan) {
      const int64_t fit = SUMS_BYTES / (counts[2] * s.out_channels * plan.width * 4);
      const int64_t needed = divide_up(plan.tiles, fit < 1 ? 1 : fit);
      if (plan.blocks > blocks) blocks = plan.blocks;
      if (needed > blocks) blocks = needed;
    });
    each(s, [&](const PhaseWindow&, const Plan& plan) {
      if (plan.panels_floats() > panels_floats) panels_floats = plan.panels_floats();
      const int64_t sums = counts[2] * s.out_channels * divide_up(plan.tiles, smaller(blocks, plan.tiles)) * plan.width;
      if (sums > sums_floats) sums_floats = sums;
    });
  }
  template <class Visit>
  void each(const ConvShape& s, const Visit& visit) const {
    for (int64_t d = 0; d < counts[0]; d++)
      for (int64_t h = 0; h < counts[1]; h++)
        for (int64_t w = 0; w < counts[2]; w++) {
          const PhaseWindow window(s, d, h, w);
          visit(window, Plan(window, s.out_channels, columns));
        }
  }
  int64_t workspace_floats() const { return divide_up(panels_floats + sums_floats, 16) * 16; }
};

}  // namespace

extern "C" void QF_EXPORT(conv_transpose_gemm_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Phases phases(*s);
  int64_t packed = 0;
  phases.each(*s, [&](const PhaseWindow&, const Plan& plan) { packed += plan.packed_floats(); });
  *needs = {sizeof(float) * s->groups * packed, sizeof(float) * phases.workspace_floats()};
}

extern "C" void QF_EXPORT(conv_transpose_gemm_f32_pack)(const ConvShape* shape, const float* weights, float* packed) {
  const ConvShape& s = *shape;
  const Phases phases(s);
  const int64_t taps = volume(s.kernel);
  for (int64_t group = 0; group < s.groups; group++, weights += s.out_channels * taps * s.in_channels)
    phases.each(s, [&](const PhaseWindow& window, const Plan& plan) {
      int64_t* kernel_taps = new int64_t[volume(window.taps) + 1];  // a division for each weight would take longer
      for (int64_t tap = 0; tap < volume(window.taps); tap++) kernel_taps[tap] = window.kernel_tap(s, tap);
      pack_weights(window, plan, [&](int64_t m, int64_t tap, int64_t c) {
        return weights[(c * s.out_channels + m) * taps + kernel_taps[tap]];
      }, packed);
      delete[] kernel_taps;
      packed += plan.packed_floats();
    });
}

extern "C" void QF_EXPORT(conv_transpose_gemm_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Phases phases(s);
  const Epilogue epilogue(s);
  const int64_t x_floats = s.in_channels * volume(s.output), y_plane = volume(s.input);
  const int64_t parts = s.batch * s.groups * phases.blocks;
  int64_t all = 0;  // packed weights of a group
  phases.each(s, [&](const PhaseWindow&, const Plan& plan) { all += plan.packed_floats(); });
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < parts; part++) {
    const int64_t block = part % phases.blocks, image_group = part / phases.blocks, group = image_group % s.groups;
    const float* x = (const float*)call->x + image_group * x_floats;
    const float* x_end = (const float*)call->x + s.batch * s.groups * x_floats;
    float* panels = (float*)call->workspace + omp_get_thread_num() * phases.workspace_floats();
    float* sums = panels + phases.panels_floats;
    const float* bias = call->bias ? (const float*)call->bias + group * s.out_channels : nullptr;
    const float* weights = (const float*)call->weights + group * all;
    int64_t w = 0;
    Window packed{};
    phases.each(s, [&](const PhaseWindow& window, const Plan& plan) {
      const int64_t first_tile = plan.tiles * block / phases.blocks, last_tile = plan.tiles * (block + 1) / phases.blocks;
      const int64_t pitch = (last_tile - first_tile) * plan.width, phase_step = s.out_channels * pitch;
      const bool same = plan.slices == 1 && memcmp(&packed, static_cast<const Window*>(&window), sizeof packed) == 0;
      packed = window;
      float* phase_sums = sums + w * phase_step;
      multiply(window, plan, x, x_end, weights, {first_tile, last_tile, 0, plan.rows().tiles},
               {panels, same, plan.slices == 1}, [&](const Part& part) {
                 const Target target{phase_sums + part.m * pitch + (part.tile - first_tile) * plan.width, pitch,
                                     bias ? bias + part.m : nullptr, nullptr, nullptr, part.first};
                 TileTable<Product>::of[part.rows - 1][plan.columns - 1](part, target);
               });
      weights += plan.packed_floats();
      if (++w < phases.counts[2]) return;
      w = 0;
      const int64_t first = first_tile * plan.width, count = smaller(plan.pixels, last_tile * plan.width) - first;
      const int64_t row_places = window.places[2], height = window.places[1];
      for (int64_t m = 0; m < s.out_channels; m++)
        for (int64_t done = 0; done < count;) {
          const int64_t place = first + done, column = place % row_places;
          const int64_t length = smaller(row_places - column, count - done);
          const int64_t row = place / row_places % height * s.strides[1] + window.phases[1].remainder;
          const int64_t depth = place / row_places / height * s.strides[0] + window.phases[0].remainder;
          const int64_t at = (image_group * s.out_channels + m) * y_plane +
                             (depth * s.input[1] + row) * s.input[2] + column * s.strides[2];
          const int64_t width = smaller(length * s.strides[2], s.input[2] - column * s.strides[2]);
          interleave(sums + m * pitch + done, phase_step, phases.counts[2], length, width, width,
                     call->residual ? (const float*)call->residual + at : nullptr, epilogue, (float*)call->y + at);
          done += length;
        }
    });
  }
}
