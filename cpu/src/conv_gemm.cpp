// Convolution as a matrix product, on plain NCHW: y[m][pixel] = sum over k of w[m][k] * panel[k][pixel], where a panel
// holds what the taps read for a few pixels (conv_panel.h). Weights are packed once. All of k is summed in registers,
// so that bias, residual and activation are added there and y is written once.
//
// Two forms of the same tile (microkernel.h):
//   pixel lanes    vectors hold pixels, rows are output channels; y is written row by row. For planes of some size.
//   channel lanes  vectors hold output channels, rows are pixels; a tile is transposed before it is written. For small
//                  planes, where pixels do not fill vectors.
// Small images of a batch are one long row of pixels. A 1x1 convolution of stride 1 reads x where it is.
//
// A block of panels that fits the second-level cache is packed, then every block of channels passes over it. Threads
// share blocks of pixels, and channels where there are few pixels.
#include <omp.h>

#include "conv_epilogue.h"
#include "conv_panel.h"
#include "microkernel.h"

namespace {

struct Target {
  float* y;
  int64_t row_step;
  const float* bias;        // one for each row, or null
  const float* residual;    // laid out like y, or null
  const Epilogue* epilogue;  // null: plain sums are wanted
};

typedef void (*TileFunction)(const float*, int64_t, const float*, int64_t, int64_t, const Target&);

template <int R, int J>
__attribute__((noinline)) void tile(const float* scalars, int64_t scalar_step, const float* vectors,
                                    int64_t vector_step, int64_t depth, const Target& target) {
  vfloat c[R][J];
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

template <int R, int J>
constexpr TileFunction tile_if_it_fits() {
  if constexpr (R <= most_rows(J))
    return tile<R, J>;
  else
    return nullptr;
}

#define QF_TILES_OF_ROWS(R) \
  {tile_if_it_fits<R, 1>(), tile_if_it_fits<R, 2>(), tile_if_it_fits<R, 3>(), MOST_COLUMNS > 3 ? tile_if_it_fits<R, MOST_COLUMNS>() : nullptr}

// TILES[rows - 1][columns - 1]
constexpr TileFunction TILES[14][4] = {
    QF_TILES_OF_ROWS(1),  QF_TILES_OF_ROWS(2),  QF_TILES_OF_ROWS(3),  QF_TILES_OF_ROWS(4),  QF_TILES_OF_ROWS(5),
    QF_TILES_OF_ROWS(6),  QF_TILES_OF_ROWS(7),  QF_TILES_OF_ROWS(8),  QF_TILES_OF_ROWS(9),  QF_TILES_OF_ROWS(10),
    QF_TILES_OF_ROWS(11), QF_TILES_OF_ROWS(12), QF_TILES_OF_ROWS(13), QF_TILES_OF_ROWS(14)};

// Splits `total` rows into tiles of nearly equal height, at most `most`.
struct Rows {
  int64_t total, tiles;
  QF_INLINE Rows(int64_t total, int most) : total(total), tiles(divide_up(total, most)) {}
  QF_INLINE int64_t begin(int64_t tile) const { return total * tile / tiles; }
  QF_INLINE int count(int64_t tile) const { return int(begin(tile + 1) - begin(tile)); }
};

// A rough count of the cycles that a tile takes for each step of depth: two multiply-adds and two loads a cycle, and
// four cycles of latency.
QF_INLINE float step_cycles(int rows, int columns) {
  const float multiply = rows * columns / 2.0f, load = (rows + columns) / 2.0f;
  const float busy = multiply > load ? multiply : load;
  return busy > 4.0f ? busy : 4.0f;
}

// The same for all the tiles of rows x vectors, with what a tile costs besides: `row` cycles for each row and `vector`
// for each of its vectors.
QF_INLINE float cycles(int64_t rows, int64_t vectors, int columns, int64_t depth, float row, float vector) {
  const Rows split(rows, most_rows(columns));
  const int height = int(divide_up(rows, split.tiles));
  const int64_t whole = vectors / columns, rest = vectors % columns;
  float steps = whole * step_cycles(height, columns);
  if (rest) steps += step_cycles(height, int(rest));
  const float besides = row * height * divide_up(vectors, columns) + vector * vectors;
  return split.tiles * (steps * depth + besides);
}

struct Plan {
  bool channel_lanes, in_place, merged;
  int columns;           // vectors in a tile's row
  int64_t depth;         // in_channels * taps
  int64_t images, pixels;  // separately treated images, and the pixels of each
  int64_t tiles, width;  // tiles of pixels, and pixels in the widest
  int64_t block;         // tiles of pixels that are packed together

  explicit Plan(const ConvShape& s) {
    const int64_t plane = volume(s.output), taps = volume(s.kernel);
    depth = s.in_channels * taps;
    merged = s.batch > 1 && plane < 16 * LANES;
    images = merged ? 1 : s.batch;
    pixels = merged ? s.batch * plane : plane;
    const int64_t pixel_vectors = divide_up(pixels, LANES), channel_vectors = divide_up(s.out_channels, LANES);
    float best_pixel = 0, best_channel = 0;
    int pixel_columns = 0, channel_columns = 0;
    for (int j = 1; j <= MOST_COLUMNS; j++) {
      // Channel lanes pay for turning each vector of a tile, about 200 cycles.
      const float by_pixel = cycles(s.out_channels, pixel_vectors, j, depth, 4.0f, 4.0f);
      const float by_channel = cycles(pixels, channel_vectors, j, depth, 4.0f, 200.0f * LANES / 16);
      if (!pixel_columns || by_pixel <= best_pixel) best_pixel = by_pixel, pixel_columns = j;
      if (!channel_columns || by_channel <= best_channel) best_channel = by_channel, channel_columns = j;
    }
    channel_lanes = s.out_channels >= LANES / 2 && best_channel < best_pixel;
    columns = channel_lanes ? channel_columns : pixel_columns;
    bool plain = taps == 1 && !merged;
    for (int axis = 0; axis < 3; axis++)
      plain = plain && s.strides[axis] == 1 && s.pads[axis] == 0 && s.input[axis] == s.output[axis];
    in_place = plain;
    width = channel_lanes ? most_rows(columns) : columns * LANES;
    tiles = channel_lanes ? Rows(pixels, most_rows(columns)).tiles : divide_up(pixels, width);
    // Bytes of panels that leave room for the weights in the second-level cache. Somewhat more is taken when that is
    // all there is, so that the weights pass but once.
    const int64_t tile_bytes = depth * width * int64_t(sizeof(float));
    const int64_t room = tiles * tile_bytes <= (1280 << 10) ? 1280 << 10 : 768 << 10;
    block = room / tile_bytes;
    block = block < 1 ? 1 : smaller(block, tiles);
    block = divide_up(tiles, divide_up(tiles, block));
  }

  QF_INLINE int64_t first_pixel(int64_t tile) const {
    return channel_lanes ? pixels * tile / tiles : smaller(tile * width, pixels);
  }
  QF_INLINE int64_t channel_blocks(const ConvShape& s) const {
    return channel_lanes ? divide_up(s.out_channels, columns * LANES) : Rows(s.out_channels, most_rows(columns)).tiles;
  }
  QF_INLINE int64_t packed_channels(const ConvShape& s) const {
    return channel_lanes ? divide_up(s.out_channels, LANES) * LANES : s.out_channels;
  }
  // Where one packed panel starts; rows keep their order, so that room for one more vector at the end suffices.
  QF_INLINE int64_t panel_size() const { return depth * width + LANES; }
};

// One thread's part: a block of pixels of one image and group, and a range of channel blocks.
struct Pass {
  const ConvShape& s;
  const ConvCall& call;
  const Plan& plan;
  const Epilogue& epilogue;
  int64_t image, group, plane;

  QF_INLINE int64_t y_offset(int64_t channel) const {
    return ((image * s.groups + group) * s.out_channels + channel) * plane;
  }
  QF_INLINE const float* bias(int64_t channel) const {
    return call.bias ? (const float*)call.bias + group * s.out_channels + channel : nullptr;
  }

  // Adds the epilogue to `rows` rows of sums and writes them: row r, pixel i is sums[r * step + i].
  void write(const float* sums, int64_t step, int64_t channel, int64_t rows, int64_t pixel, int64_t count,
             bool with_bias) const {
    const int64_t image_step = s.groups * s.out_channels * plane;
    const float* biases = with_bias ? bias(channel) : nullptr;
    int64_t n = plan.merged ? pixel / plane : 0, place = pixel - n * plane;
    while (count > 0) {
      const int64_t length = smaller(count, plane - place), at = y_offset(channel) + n * image_step + place;
      for (int64_t r = 0; r < rows; r++) {
        const vfloat b = biases ? broadcast(biases[r]) : (vfloat){};
        const float* residual = call.residual ? (const float*)call.residual + at + r * plane : nullptr;
        float* y = (float*)call.y + at + r * plane;
        for (int64_t i = 0; i < length; i += LANES) {
          const int lanes = int(smaller(LANES, length - i));
          vfloat v = load_first(sums + r * step + i, lanes) + b;
          if (residual) v += load_first(residual + i, lanes);
          if (epilogue.clamps) v = epilogue.clamp(v);
          store_first(y + i, v, lanes);
        }
        if (epilogue.later) epilogue.activate_row(y, length);
      }
      sums += length;
      count -= length;
      place = 0;
      n++;
    }
  }

  void pixel_lanes(const float* panel, int64_t panel_step, const float* weights, int64_t channel, int rows,
                   int64_t pixel, int64_t count) const {
    const int columns = int(divide_up(count, LANES));
    const TileFunction function = TILES[rows - 1][columns - 1];
    const bool whole = count == columns * LANES && !plan.merged;
    if (whole) {
      const int64_t at = y_offset(channel) + pixel;
      const float* residual = call.residual ? (const float*)call.residual + at : nullptr;
      function(weights, rows, panel, panel_step, plan.depth,
               {(float*)call.y + at, plane, bias(channel), residual, &epilogue});
      return;
    }
    float sums[MOST_ROWS * MOST_COLUMNS * LANES];
    function(weights, rows, panel, panel_step, plan.depth, {sums, columns * LANES, bias(channel), nullptr, nullptr});
    write(sums, columns * LANES, channel, rows, pixel, count, false);
  }

  void channel_lanes(const float* panel, int64_t panel_step, const float* weights, int64_t channel, int columns,
                     int64_t pixel, int count) const {
    float sums[MOST_ROWS * MOST_COLUMNS * LANES], turned[LANES * LANES];
    TILES[count - 1][columns - 1](panel, panel_step, weights, columns * LANES, plan.depth,
                                  {sums, columns * LANES, nullptr, nullptr, nullptr});
    for (int j = 0; j < columns; j++) {
      const int64_t first = channel + j * LANES;
      const int64_t channels = smaller(LANES, s.out_channels - first);
      for (int begin = 0; begin < count; begin += LANES) {
        vfloat rows[LANES];
        for (int p = 0; p < LANES; p++)
          rows[p] = begin + p < count ? load(sums + ((begin + p) * columns + j) * LANES) : (vfloat){};
        transpose(rows);
        QF_UNROLL for (int r = 0; r < LANES; r++) store(turned + r * LANES, rows[r]);
        write(turned, LANES, first, channels, pixel + begin, smaller(LANES, count - begin), true);
      }
    }
  }

  void run(int64_t first_tile, int64_t last_tile, int64_t first_block, int64_t last_block, float* workspace) const {
    const int64_t channel_size = volume(s.input), image_step = s.groups * s.in_channels * channel_size;
    const float* x = (const float*)call.x + image * image_step + group * s.in_channels * channel_size;
    const float* packed = (const float*)call.weights + group * plan.packed_channels(s) * plan.depth;
    // Where a tile's pixels are read: in x itself, if whole vectors may be loaded there.
    auto in_x = [&](int64_t count) { return plan.in_place && (plan.channel_lanes || count == plan.width); };
    for (int64_t tile = first_tile; tile < last_tile; tile++) {
      const int64_t pixel = plan.first_pixel(tile), count = plan.first_pixel(tile + 1) - pixel;
      if (in_x(count)) continue;
      const int64_t width = plan.channel_lanes ? count : divide_up(count, LANES) * LANES;
      float* panel = workspace + (plan.in_place ? 0 : (tile - first_tile) * plan.panel_size());
      pack_panel(s, Segments(s, pixel, count, image_step), x, panel, width);
    }
    for (int64_t block = first_block; block < last_block; block++) {
      const Rows rows(s.out_channels, most_rows(plan.columns));
      const int64_t channel = plan.channel_lanes ? block * plan.columns * LANES : rows.begin(block);
      const int columns = int(smaller(plan.columns, divide_up(s.out_channels - channel, LANES)));
      const float* weights = packed + channel * plan.depth;
      for (int64_t tile = first_tile; tile < last_tile; tile++) {
        const int64_t pixel = plan.first_pixel(tile), count = plan.first_pixel(tile + 1) - pixel;
        const bool direct = in_x(count);
        const float* panel = direct          ? x + pixel
                             : plan.in_place ? workspace
                                             : workspace + (tile - first_tile) * plan.panel_size();
        const int64_t width = plan.channel_lanes ? count : divide_up(count, LANES) * LANES;
        const int64_t step = direct ? channel_size : width;
        if (plan.channel_lanes)
          channel_lanes(panel, step, weights, channel, columns, pixel, int(count));
        else
          pixel_lanes(panel, step, weights, channel, rows.count(block), pixel, count);
      }
    }
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  needs->packed = sizeof(float) * s->groups * plan.packed_channels(*s) * plan.depth;
  needs->workspace = sizeof(float) * (plan.in_place ? 1 : plan.block) * plan.panel_size();
  needs->workspace = (needs->workspace + 63) / 64 * 64;
}

extern "C" void QF_EXPORT(conv_gemm_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Plan plan(*s);
  const int64_t taps = volume(s->kernel), blocks = plan.channel_blocks(*s);
  const Rows rows(s->out_channels, most_rows(plan.columns));
  for (int64_t group = 0; group < s->groups; group++)
    for (int64_t block = 0; block < blocks; block++) {
      int64_t first = rows.begin(block), count = rows.count(block);
      if (plan.channel_lanes) {
        first = block * plan.columns * LANES;
        count = smaller(plan.columns, divide_up(s->out_channels - first, LANES)) * LANES;
      }
      for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t c = 0; c < s->in_channels; c++)
          for (int64_t m = first; m < first + count; m++)
            *packed++ = m < s->out_channels
                            ? weights[((group * s->out_channels + m) * s->in_channels + c) * taps + tap]
                            : 0.0f;
    }
}

extern "C" void QF_EXPORT(conv_gemm_f32)(const ConvShape* s, const ConvCall* call) {
  const Plan plan(*s);
  const Epilogue epilogue(*s);
  ConvNeeds needs;
  QF_EXPORT(conv_gemm_f32_needs)(s, &needs);
  const int64_t channel_blocks = plan.channel_blocks(*s);
  int64_t pixel_blocks = divide_up(plan.tiles, plan.block);
  const int64_t others = plan.images * s->groups;
  if (others * pixel_blocks < call->threads)
    pixel_blocks = smaller(plan.tiles, divide_up(call->threads, others));
  const int64_t splits = smaller(channel_blocks, divide_up(call->threads, others * pixel_blocks));
  const int64_t parts = others * pixel_blocks * splits;
#pragma omp parallel for schedule(dynamic) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < parts; part++) {
#ifdef _OPENMP
    char* workspace = call->workspace + omp_get_thread_num() * needs.workspace;
#else
    char* workspace = call->workspace;
#endif
    const int64_t split = part % splits, pixel_block = part / splits % pixel_blocks;
    const int64_t other = part / splits / pixel_blocks;
    const Pass pass{*s, *call, plan, epilogue, other / s->groups, other % s->groups, volume(s->output)};
    pass.run(plan.tiles * pixel_block / pixel_blocks, plan.tiles * (pixel_block + 1) / pixel_blocks,
             channel_blocks * split / splits, channel_blocks * (split + 1) / splits, (float*)workspace);
  }
}
