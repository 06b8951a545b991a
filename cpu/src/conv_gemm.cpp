// Convolution on plain NCHW as one product (conv_product.h): any kernel, stride, dilation and padding. Planes of a
// batch that are small form one long row of places. The last slice of the depth adds bias, residual and activation in
// registers, so that y is written once for each slice. Tiles that do not fill their vectors or lie in several images are
// computed aside and written piece by piece.
//
// Threads share images, groups and blocks of places, and output channels where there are few.
#include <omp.h>

#include "conv_product.h"

namespace {

Window window_of(const ConvShape& s) {
  Window window{s.batch, s.in_channels, s.groups * s.in_channels * volume(s.input), {}, {}, {}, {}, {}, {}};
  for (int axis = 0; axis < 3; axis++) {
    window.input[axis] = s.input[axis];
    window.places[axis] = s.output[axis];
    window.taps[axis] = s.kernel[axis];
    window.first[axis] = -s.pads[axis];
    window.step[axis] = s.dilations[axis];
    window.stride[axis] = s.strides[axis];
  }
  return window;
}

// Where the tiles of one image and group are written.
struct Writer {
  const ConvShape& s;
  const ConvCall& call;
  const Plan& plan;
  const Epilogue& epilogue;
  int64_t image, group, plane;

  QF_INLINE void operator()(const Part& part) const {
    const int64_t pixel = part.tile * plan.width;
    if (plan.merged || plan.pixels - pixel < plan.width) return aside(part);
    const int64_t channel = group * s.out_channels + part.m;
    const int64_t at = (image * s.groups * s.out_channels + channel) * plane + pixel;
    const Target target{(float*)call.y + at, plane, call.bias ? (const float*)call.bias + channel : nullptr,
                        call.residual ? (const float*)call.residual + at : nullptr, part.last ? &epilogue : nullptr,
                        part.first};
    TileTable<Product>::of[part.rows - 1][plan.columns - 1](part, target);
  }

  // Tile by tile. Places may be of any images; sums of earlier slices are read from y.
  __attribute__((noinline)) void aside(const Part& part) const {
    Patch patch = part;
    patch.row_tiles = patch.tiles = 1;
    for (int64_t tile = 0; tile < part.tiles; tile++, patch.panel += part.tile_step) {
      patch.weights = part.weights;
      for (int64_t row = 0; row < part.row_tiles; row++, patch.weights += part.rows * part.depth)
        aside(part, patch, part.m + row * part.rows, (part.tile + tile) * plan.width);
    }
  }

  void aside(const Part& part, const Patch& patch, int64_t m, int64_t pixel) const {
    const int64_t count = smaller(plan.width, plan.pixels - pixel);
    float sums[(MOST_ROWS * MOST_COLUMNS + 1) * LANES];
    const int columns = int(divide_up(count, LANES));
    const int64_t step = columns * LANES, channel = group * s.out_channels + m;
    const int64_t first_image = image + pixel / plane, first_place = pixel % plane;
    // Row by row: the whole vectors that are stored into a row of sums may reach into the next one.
    auto pieces = [&](auto&& visit) {
      for (int r = 0; r < part.rows; r++) {
        int64_t n = first_image, place = first_place;
        for (int64_t done = 0; done < count;) {
          const int64_t length = smaller(smaller(LANES, count - done), plane - place);
          const int64_t at = (n * s.groups * s.out_channels + channel + r) * plane + place;
          visit(sums + r * step + done, at, lanes_between(0, int(length)));
          done += length;
          place += length;
          if (place == plane) place = 0, n++;
        }
      }
    };
    float* y = (float*)call.y;
    const float* residual = (const float*)call.residual;
    if (!part.first) pieces([&](float* sum, int64_t at, lanemask lanes) { store(sum, load_masked(y + at, lanes)); });
    const Target target{sums, step, call.bias ? (const float*)call.bias + channel : nullptr, nullptr, nullptr,
                        part.first};
    TileTable<Product>::of[part.rows - 1][columns - 1](patch, target);
    pieces([&](float* sum, int64_t at, lanemask lanes) {
      vfloat value = load(sum);
      if (part.last && residual) value += load_masked(residual + at, lanes);
      store_masked(y + at, part.last ? epilogue.apply(value) : value, lanes);
    });
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(window_of(*s), s->out_channels);
  *needs = {sizeof(float) * s->groups * plan.packed_floats(), sizeof(float) * plan.panels_floats()};
}

extern "C" void QF_EXPORT(conv_gemm_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Window window = window_of(*s);
  const Plan plan(window, s->out_channels);
  const int64_t taps = volume(s->kernel);
  for (int64_t group = 0; group < s->groups; group++, packed += plan.packed_floats())
    pack_weights(window, plan, [&](int64_t m, int64_t tap, int64_t c) {
      return weights[((group * s->out_channels + m) * s->in_channels + c) * taps + tap];
    }, packed);
}

extern "C" void QF_EXPORT(conv_gemm_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Window window = window_of(s);
  const Plan plan(window, s.out_channels);
  const Epilogue epilogue(s);
  const int64_t others = plan.images * s.groups, threads = call->threads, rows = plan.rows().tiles;
  if (!others || !plan.tiles) return;
  // Smaller blocks of places where that gives every thread one.
  const int64_t wanted = divide_up(threads, others), blocks = smaller(plan.tiles, plan.blocks < wanted ? wanted : plan.blocks);
  const int64_t splits = smaller(rows, divide_up(threads, others * blocks)), parts = others * blocks * splits;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t part = 0; part < parts; part++) {
    const int64_t split = part % splits, block = part / splits % blocks, other = part / splits / blocks;
    const int64_t image = other / s.groups, group = other % s.groups;
    const float* x = (const float*)call->x;
    multiply(window, plan, x + image * window.image_step + group * s.in_channels * volume(s.input),
             x + s.batch * window.image_step, (const float*)call->weights + group * plan.packed_floats(),
             {plan.tiles * block / blocks, plan.tiles * (block + 1) / blocks, rows * split / splits,
              rows * (split + 1) / splits},
             {(float*)call->workspace + omp_get_thread_num() * plan.panels_floats(), false, false},
             Writer{s, *call, plan, epilogue, image, group, volume(s.output)});
  }
}
