// Convolution over channel blocks (channel_blocks.h), any kernel, stride, dilation and padding: the implicit matrix
// product of Goto and van de Geijn's blocking ("Anatomy of high-performance matrix multiplication", 2008) with vectors
// of output channels and scalars of pixels, so that planes of any size fill the tiles.
//
// The depth of the product is (tap, block of input channels); it is cut into slices whose weights, for one tile of
// output channels, take most of the first-level cache. For some pixels of an image
//   for each slice: the pixels that its taps read are copied side by side into a panel, a vector a block, zero on
//                   padding; the panel stays in the second-level cache
//     for each tile of output channels: its weights stay in the first-level cache while all tiles of pixels pass.
// A 1x1 convolution of stride 1 ("flat") reads blocked x in place, and turns plain x straight into the panel; other
// plain x is first brought into blocks, an image at a time. Sums go to y between slices, or to a scratch where y is
// plain planes, to be transposed at the end. Limited by the multiply-adds.
//
// Weights are packed as (groups, slices, tiles of output channels, depth of the slice, vectors). A flag behind them says
// that one is not finite: since padding is read as zeros, outputs are then computed by direct taps.
#include <omp.h>

#include "channel_blocks.h"
#include "conv_epilogue.h"
#include "conv_taps.h"
#include "microkernel.h"

namespace {

constexpr int64_t SLICE_BYTES = 20 << 10, ROOM_BYTES = 256 << 10;

struct Target {
  float* sums;
  int64_t column_step;      // between vectors of output channels
  const float* bias;        // the first slice: where sums begin; null without bias
  const float* residual;    // laid out like sums, or null
  const Epilogue* epilogue;  // the last slice, where sums are y; else null
  bool first;
  Ahead ahead;  // the weights of the next tile of output channels
};

struct Product {
  typedef void (*TileFunction)(const float* x, int64_t block_step, const float* weights, int64_t blocks,
                               const Target& target);
  template <int R, int J>
  __attribute__((noinline)) static void tile(const float* x, int64_t block_step, const float* weights, int64_t blocks,
                                             const Target& target) {
    vfloat c[R][J];
    float* sums = target.sums;
    // A residual is often not in the cache; it comes while the tile is computed.
    if (target.residual)
      QF_UNROLL for (int j = 0; j < J; j++)
        QF_UNROLL for (int i = 0; i < R * LANES; i += 16)
          __builtin_prefetch(target.residual + j * target.column_step + i);
    if (target.first) {
      QF_UNROLL for (int j = 0; j < J; j++) {
        const vfloat bias = target.bias ? load(target.bias + j * LANES) : (vfloat){};
        QF_UNROLL for (int r = 0; r < R; r++) c[r][j] = bias;
      }
    } else {
      QF_UNROLL for (int j = 0; j < J; j++)
        QF_UNROLL for (int r = 0; r < R; r++) c[r][j] = load(sums + j * target.column_step + r * LANES);
    }
    multiply_add_blocks<R, J>(c, x, LANES, block_step, weights, blocks, target.ahead);
    if (target.epilogue) {
      if (target.residual)
        QF_UNROLL for (int j = 0; j < J; j++)
          QF_UNROLL for (int r = 0; r < R; r++) c[r][j] += load(target.residual + j * target.column_step + r * LANES);
      if (target.epilogue->clamps)
        QF_UNROLL for (int j = 0; j < J; j++)
          QF_UNROLL for (int r = 0; r < R; r++) c[r][j] = target.epilogue->clamp(c[r][j]);
    }
    QF_UNROLL for (int j = 0; j < J; j++)
      QF_UNROLL for (int r = 0; r < R; r++) store(sums + j * target.column_step + r * LANES, c[r][j]);
    if (target.epilogue && target.epilogue->later)
      for (int j = 0; j < J; j++) target.epilogue->activate_row(sums + j * target.column_step, R * LANES);
  }
};

struct Plan {
  int64_t in_blocks, out_blocks;  // of one group
  int64_t depth;                  // blocks that are summed for one output: taps times in_blocks
  int64_t slices;                 // of the depth
  int columns;                    // vectors in a tile of output channels
  int64_t pixels, pixel_blocks;   // of one image
  bool flat;

  explicit Plan(const ConvShape& s) {
    in_blocks = divide_up(s.in_channels, LANES);
    out_blocks = divide_up(s.out_channels, LANES);
    depth = volume(s.kernel) * in_blocks;
    pixels = volume(s.output);
    columns = best_columns(out_blocks, pixels);
    slices = divide_up(depth, SLICE_BYTES / (columns * LANES * LANES * 4));
    // The panel, and the sums that wait for the next slice, stay in the second-level cache.
    const int64_t vectors = divide_up(depth, slices) + (slices == 1 ? columns : out_blocks);
    const int64_t fit = ROOM_BYTES / (vectors * LANES * 4);
    pixel_blocks = divide_up(pixels, fit < 24 ? 24 : fit);
    flat = volume(s.kernel) == 1;
    for (int axis = 0; axis < 3; axis++)
      flat = flat && s.strides[axis] == 1 && s.pads[axis] == 0 && s.input[axis] == s.output[axis];
  }

  int64_t first_of_slice(int64_t slice) const { return depth * slice / slices; }
  int64_t slice_of(int64_t block) const {
    int64_t slice = block * slices / depth;
    while (first_of_slice(slice + 1) <= block) slice++;
    return slice;
  }
  int64_t first_pixel(int64_t block) const { return pixels * block / pixel_blocks; }
  int64_t out_tiles() const { return divide_up(out_blocks, columns); }
  int64_t most_pixels() const { return divide_up(pixels, pixel_blocks); }
  int64_t packed_floats(int64_t groups) const { return groups * depth * LANES * out_blocks * LANES; }
  bool in_place(const ConvShape& s) const { return flat && s.x_blocked; }
  int64_t image_floats(const ConvShape& s) const {
    return s.x_blocked || flat ? 0 : in_blocks * LANES * volume(s.input);
  }
  int64_t panel_floats(const ConvShape& s) const {
    return in_place(s) ? 0 : divide_up(depth, slices) * most_pixels() * LANES;
  }
  // With one slice, a tile of channels is written before the next begins.
  int64_t sums_floats(const ConvShape& s) const {
    return s.y_blocked ? 0 : (slices == 1 ? columns : out_blocks) * most_pixels() * LANES;
  }
  int64_t own_floats(const ConvShape& s) const { return panel_floats(s) + sums_floats(s) + out_blocks * LANES; }
  int64_t workspace_floats(const ConvShape& s) const { return divide_up(image_floats(s) + own_floats(s), 16) * 16; }
};

// Copies what the blocks first to last of the depth read for `count` pixels from `pixel` on: panel[tile][block][pixel
// of the tile][LANES].
void pack_panel(const ConvShape& s, const Plan& plan, const float* x, int64_t first, int64_t last, int64_t pixel,
                int64_t count, int64_t tiles, float* panel) {
  const int64_t plane = volume(s.input) * LANES;
  int64_t w = pixel % s.output[2], h = pixel / s.output[2] % s.output[1], d = pixel / s.output[2] / s.output[1];
  const int64_t first_tap = first / plan.in_blocks, first_channel = first % plan.in_blocks;
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t rows = count * (tile + 1) / tiles - count * tile / tiles;
    int64_t depths[MOST_ROWS], heights[MOST_ROWS], widths[MOST_ROWS];  // where the first tap of each pixel lies
    for (int64_t r = 0; r < rows; r++) {
      depths[r] = d * s.strides[0] - s.pads[0];
      heights[r] = h * s.strides[1] - s.pads[1];
      widths[r] = w * s.strides[2] - s.pads[2];
      if (++w == s.output[2]) {
        w = 0;
        if (++h == s.output[1]) h = 0, d++;
      }
    }
    int64_t kw = first_tap % s.kernel[2], kh = first_tap / s.kernel[2] % s.kernel[1];
    int64_t kd = first_tap / s.kernel[2] / s.kernel[1], channel = first_channel;
    for (int64_t block = first; block < last;) {
      const float* from[MOST_ROWS];
      for (int64_t r = 0; r < rows; r++) {
        const int64_t id = depths[r] + kd * s.dilations[0], ih = heights[r] + kh * s.dilations[1];
        const int64_t iw = widths[r] + kw * s.dilations[2];
        const bool inside = id >= 0 && id < s.input[0] && ih >= 0 && ih < s.input[1] && iw >= 0 && iw < s.input[2];
        from[r] = inside ? x + channel * plane + ((id * s.input[1] + ih) * s.input[2] + iw) * LANES : nullptr;
      }
      const int64_t channels = smaller(last - block, plan.in_blocks - channel);
      for (int64_t r = 0; r < rows; r++) {
        float* to = panel + r * LANES;
        if (from[r])
          for (int64_t c = 0; c < channels; c++) store(to + c * rows * LANES, load(from[r] + c * plane));
        else
          for (int64_t c = 0; c < channels; c++) store(to + c * rows * LANES, (vfloat){});
      }
      panel += channels * rows * LANES;
      block += channels;
      channel = 0;
      if (++kw == s.kernel[2]) {
        kw = 0;
        if (++kh == s.kernel[1]) kh = 0, kd++;
      }
    }
  }
}

// One image and group, shared by `members` threads. image_room: plain x in blocks, the members' own; own: this member's.
void run_image(const ConvShape& s, const ConvCall& call, const Plan& plan, const Epilogue& epilogue, int64_t image,
               int64_t group, int member, int members, float* image_room, float* own) {
  const int64_t in_plane = volume(s.input), out_plane = volume(s.output);
  const float* x = (const float*)call.x;
  if (s.x_blocked) {
    x += (image * divide_up(s.groups * s.in_channels, LANES) + group * plan.in_blocks) * in_plane * LANES;
  } else {
    x += (image * s.groups + group) * s.in_channels * in_plane;
  }
  if (!s.x_blocked && !plan.flat) {
    const int64_t height = s.input[0] * s.input[1];
    for (int64_t b = plan.in_blocks * member / members; b < plan.in_blocks * (member + 1) / members; b++)
      turn_band(x + b * LANES * in_plane, height, s.input[2], smaller(LANES, s.in_channels - b * LANES),
                {0, height, 0, s.input[2]}, image_room + b * in_plane * LANES);
    x = image_room;
    if (members > 1) {
#pragma omp barrier
    }
  }
  float *panel = own, *scratch = own + plan.panel_floats(s), *bias = scratch + plan.sums_floats(s);
  memset(bias, 0, plan.out_blocks * LANES * sizeof(float));
  if (call.bias)
    memcpy(bias, (const float*)call.bias + group * s.out_channels, s.out_channels * sizeof(float));
  const int64_t y_at = s.y_blocked
                           ? (image * divide_up(s.groups * s.out_channels, LANES) + group * plan.out_blocks) * out_plane * LANES
                           : (image * s.groups + group) * s.out_channels * out_plane;
  const float* weights = (const float*)call.weights + group * plan.depth * LANES * plan.out_blocks * LANES;
  // Threads share blocks of pixels; where these are few, output channels too.
  const int64_t out_tiles = plan.out_tiles();
  const int64_t splits = plan.pixel_blocks >= 2 * members ? 1 : smaller(out_tiles, members);
  const int64_t parts = plan.pixel_blocks * splits;
  for (int64_t part = parts * member / members; part < parts * (member + 1) / members; part++) {
    const int64_t block = part / splits, split = part % splits;
    const int64_t pixel = plan.first_pixel(block), count = plan.first_pixel(block + 1) - pixel;
    const int64_t tiles = divide_up(count, most_rows(plan.columns));
    const int64_t column_step = s.y_blocked ? out_plane * LANES : count * LANES;
    float* sums = s.y_blocked ? (float*)call.y + y_at + pixel * LANES : scratch;
    for (int64_t slice = 0; slice < plan.slices; slice++) {
      const int64_t first = plan.first_of_slice(slice), last = plan.first_of_slice(slice + 1), blocks = last - first;
      if (plan.flat && !s.x_blocked)
        for (int64_t b = first; b < last; b++)
          turn_band(x + b * LANES * in_plane, 1, in_plane, smaller(LANES, s.in_channels - b * LANES),
                    {0, 1, pixel, count}, panel + (b - first) * count * LANES);
      else if (!plan.flat)
        pack_panel(s, plan, x, first, last, pixel, count, tiles, panel);
      for (int64_t t = out_tiles * split / splits; t < out_tiles * (split + 1) / splits; t++) {
        const int64_t vector = t * plan.columns;
        const int columns = int(smaller(plan.columns, plan.out_blocks - vector));
        const float* u = weights + (first * plan.out_blocks + vector * blocks) * LANES * LANES;
        float* tile_sums = sums + (s.y_blocked || plan.slices > 1 ? vector * column_step : 0);
        Target target{nullptr, column_step, call.bias ? bias + vector * LANES : nullptr, nullptr,
                      slice + 1 == plan.slices && s.y_blocked ? &epilogue : nullptr, slice == 0, {}};
        // A narrower last tile of channels takes a packed panel's tiles of pixels as they are.
        const int64_t passes = plan.flat ? divide_up(count, most_rows(columns)) : tiles;
        for (int64_t i = 0; i < passes; i++) {
          const int64_t begin = count * i / passes, end = count * (i + 1) / passes;
          target.sums = tile_sums + begin * LANES;
          if (call.residual && s.y_blocked)
            target.residual = (const float*)call.residual + (target.sums - (float*)call.y);
          const float* from = plan.in_place(s) ? x + first * in_plane * LANES + (pixel + begin) * LANES
                              : plan.flat      ? panel + begin * LANES
                                               : panel + begin * blocks * LANES;
          const int64_t tile_floats = blocks * LANES * columns * LANES;
          target.ahead = share_of(u + tile_floats, tile_floats / 16, i, passes, blocks);
          const int64_t step = plan.in_place(s) ? in_plane : plan.flat ? count : end - begin;
          TileTable<Product>::of[end - begin - 1][columns - 1](from, step * LANES, u, blocks, target);
        }
        if (!s.y_blocked && slice + 1 == plan.slices)
          for (int j = 0; j < columns; j++) {
            const int64_t channel = (vector + j) * LANES, at = y_at + channel * out_plane + pixel;
            write_planes(epilogue, tile_sums + j * column_step, smaller(LANES, s.out_channels - channel), out_plane, count,
                         call.residual ? (const float*)call.residual + at : nullptr, (float*)call.y + at);
          }
      }
    }
  }
  if (members > 1) {
#pragma omp barrier
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_blocked_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  *needs = {sizeof(float) * (plan.packed_floats(s->groups) + 1), sizeof(float) * plan.workspace_floats(*s)};
}

extern "C" void QF_EXPORT(conv_blocked_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Plan plan(*s);
  const int64_t taps = volume(s->kernel), o_step = s->in_channels * taps;
  vfloat check = {};  // NaN as soon as a weight is not finite
  int64_t* of_tap = new int64_t[taps];  // where the block of channels begins for each tap
  for (int64_t group = 0; group < s->groups; group++, packed += plan.packed_floats(1))
    for (int64_t first = 0; first < plan.out_blocks; first += plan.columns) {
      const int64_t columns = smaller(plan.columns, plan.out_blocks - first);
      // LANES channels with all their taps follow each other in memory, and so do LANES rows of the transposed weights: some
      // of them at a time are turned, and stored where each one's channel and tap belong.
      for (int64_t b = 0; b < plan.in_blocks; b++) {
        for (int64_t tap = 0; tap < taps; tap++) {
          const int64_t block = tap * plan.in_blocks + b, slice = plan.slice_of(block), begin = plan.first_of_slice(slice);
          of_tap[tap] = (begin * plan.out_blocks + first * (plan.first_of_slice(slice + 1) - begin) + (block - begin) * columns) *
                        LANES * LANES;
        }
        const int64_t there = smaller(LANES, s->in_channels - b * LANES) * taps;
        for (int64_t j = 0; j < columns; j++) {
          const int64_t o = (first + j) * LANES;
          const int outputs = clamped(s->out_channels - o, LANES);
          const float* from = weights + (group * s->out_channels + o) * o_step + b * LANES * taps;
          int64_t channel = 0, tap = 0;
          for (int64_t at = 0; at < LANES * taps; at += LANES) {
            const int count = clamped(there - at, LANES);
            vfloat rows[LANES];
            for (int i = 0; i < LANES; i++)
              rows[i] = i >= outputs ? (vfloat){}
                        : count == LANES ? load(from + i * o_step + at) : load_first(from + i * o_step + at, count);
            transpose(rows);
            for (int i = 0; i < LANES; i++) {
              store(packed + of_tap[tap] + (channel * columns + j) * LANES, rows[i]);
              check += rows[i] * 0.0f;
              if (++tap == taps) tap = 0, channel++;
            }
          }
        }
      }
    }
  delete[] of_tap;
  bool finite = true;
  for (int lane = 0; lane < LANES; lane++) finite = finite && check[lane] == 0.0f;
  *packed = finite ? 0.0f : 1.0f;
}

extern "C" void QF_EXPORT(conv_blocked_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  const Epilogue epilogue(s);
  const int threads = call->threads;
  const int64_t images = s.batch * s.groups;
  if (((const float*)call->weights)[plan.packed_floats(s.groups)] != 0.0f) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t channel = 0; channel < images * s.out_channels; channel++)
      for (int64_t p = 0; p < plan.pixels; p++)
        write_by_taps(s, *call, channel / s.out_channels / s.groups, channel / s.out_channels % s.groups,
                      channel % s.out_channels, p / s.output[2] / s.output[1], p / s.output[2] % s.output[1],
                      p % s.output[2]);
    return;
  }
  // Threads take images of their own where there are enough; few images are shared by all.
  const bool together = threads > 1 && images < 2 * threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int member = threads > 1 ? omp_get_thread_num() : 0, members = threads > 1 ? omp_get_num_threads() : 1;
    float* room = (float*)call->workspace;
    float* mine = room + member * plan.workspace_floats(s);
    float* own = mine + plan.image_floats(s);
    if (together)
      for (int64_t i = 0; i < images; i++)
        run_image(s, *call, plan, epilogue, i / s.groups, i % s.groups, member, members, room, own);
    else
      for (int64_t i = images * member / members; i < images * (member + 1) / members; i++)
        run_image(s, *call, plan, epilogue, i / s.groups, i % s.groups, 0, 1, mine, own);
  }
}
