// Convolution as a matrix product, on plain NCHW: y[m][pixel] = sum over k of w[m][k] * panel[k][pixel], where a panel
// holds what the taps read for a few pixels. All of k is summed in registers, so that bias, residual and activation
// are added there and y is written once. Elements have 4 bytes: a float, or a pair of int16.
//
// Two forms of the same tile (microkernel.h):
//   pixel lanes    vectors hold pixels, rows are output channels; y is written row by row. For planes of some size.
//   channel lanes  vectors hold output channels, rows are pixels; a tile is transposed before it is written. For small
//                  planes, where pixels do not fill vectors.
// Small images of a batch are one long row of pixels. A 1x1 convolution of stride 1 may read x where it is.
//
// A block of panels that fits the second-level cache is packed, then every block of channels passes over it. Threads
// share blocks of pixels, and channels where there are few pixels.
#pragma once

#include <omp.h>

#include "conv_panel.h"
#include "microkernel.h"

namespace {

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

struct Blocking {
  bool channel_lanes, in_place, merged;
  int columns;             // vectors in a tile's row
  int64_t depth;           // elements summed for one output
  int64_t images, pixels;  // separately treated images, and the pixels of each
  int64_t tiles, width;    // tiles of pixels, and pixels in the widest
  int64_t block;           // tiles of pixels that are packed together
  int64_t out_channels, packed_channels, channel_blocks;  // of a group

  // in_place_allowed: whether the elements of x can be read as they are.
  Blocking(const ConvShape& s, int64_t depth, bool in_place_allowed) : depth(depth), out_channels(s.out_channels) {
    const int64_t plane = volume(s.output);
    merged = s.batch > 1 && plane < 16 * LANES;
    images = merged ? 1 : s.batch;
    pixels = merged ? s.batch * plane : plane;
    const int64_t pixel_vectors = divide_up(pixels, LANES), channel_vectors = divide_up(out_channels, LANES);
    float best_pixel = 0, best_channel = 0;
    int pixel_columns = 0, channel_columns = 0;
    for (int j = 1; j <= MOST_COLUMNS; j++) {
      // Channel lanes pay for turning each vector of a tile, about 200 cycles.
      const float by_pixel = cycles(out_channels, pixel_vectors, j, depth, 4.0f, 4.0f);
      const float by_channel = cycles(pixels, channel_vectors, j, depth, 4.0f, 200.0f * LANES / 16);
      if (!pixel_columns || by_pixel <= best_pixel) best_pixel = by_pixel, pixel_columns = j;
      if (!channel_columns || by_channel <= best_channel) best_channel = by_channel, channel_columns = j;
    }
    channel_lanes = out_channels >= LANES / 2 && best_channel < best_pixel;
    columns = channel_lanes ? channel_columns : pixel_columns;
    in_place = in_place_allowed && volume(s.kernel) == 1 && !merged;
    for (int axis = 0; axis < 3; axis++)
      in_place = in_place && s.strides[axis] == 1 && s.pads[axis] == 0 && s.input[axis] == s.output[axis];
    width = channel_lanes ? most_rows(columns) : columns * LANES;
    tiles = channel_lanes ? Rows(pixels, most_rows(columns)).tiles : divide_up(pixels, width);
    // Bytes of panels that leave room for the weights in the second-level cache. Somewhat more is taken when that is
    // all there is, so that the weights pass but once.
    const int64_t tile_bytes = depth * width * 4;
    const int64_t room = tiles * tile_bytes <= (1280 << 10) ? 1280 << 10 : 768 << 10;
    block = room / tile_bytes;
    block = block < 1 ? 1 : smaller(block, tiles);
    block = divide_up(tiles, divide_up(tiles, block));
    packed_channels = channel_lanes ? channel_vectors * LANES : out_channels;
    channel_blocks = channel_lanes ? divide_up(channel_vectors, columns) : Rows(out_channels, most_rows(columns)).tiles;
  }

  QF_INLINE int64_t first_pixel(int64_t tile) const {
    return channel_lanes ? pixels * tile / tiles : smaller(tile * width, pixels);
  }
  QF_INLINE int64_t first_channel(int64_t block) const {
    return channel_lanes ? block * columns * LANES : Rows(out_channels, most_rows(columns)).begin(block);
  }
  // Channels in a block as they are packed: whole vectors of channel lanes.
  QF_INLINE int channels(int64_t block) const {
    return int(channel_lanes ? smaller(columns * LANES, packed_channels - first_channel(block))
                             : Rows(out_channels, most_rows(columns)).count(block));
  }
  // Room for one more vector at the end: pack_panel stores whole vectors.
  QF_INLINE int64_t panel_size() const { return depth * width + LANES; }
  QF_INLINE int64_t packed_bytes(int64_t groups) const { return groups * packed_channels * depth * 4; }
  QF_INLINE int64_t workspace_bytes() const { return divide_up((in_place ? 1 : block) * panel_size() * 4, 64) * 64; }
};

// Packed weights begin with their Blocking, in this many bytes: whole cache lines.
constexpr int64_t BLOCKING_BYTES = (sizeof(Blocking) + 63) / 64 * 64;

// One thread's part: a block of pixels of one image and group, and a range of channel blocks.
//
// Arithmetic says what elements and sums are and gives
//   tile<rows, columns>(scalars, scalar_step, vectors, vector_step, depth, target), of type TileFunction
//   sums_target(sums, row_step)               a tile's sums as they are
//   target(y offset, row_step, channel)       a tile written into y at once, if WRITES_TILES
//   write_rows(sums, step, channel, rows, y offset, row_step, count)   a piece of each row of sums into y
//   pack(x offset, segments, panel, width)
template <class Arithmetic>
struct Pass {
  typedef typename Arithmetic::Element Element;
  typedef typename Arithmetic::Sum Sum;

  const ConvShape& s;
  const Blocking& plan;
  const Arithmetic& arithmetic;
  int64_t image, group, plane;

  QF_INLINE int64_t y_offset(int64_t channel) const {
    return ((image * s.groups + group) * s.out_channels + channel) * plane;
  }

  // Writes `rows` rows of sums, whose pixels may belong to several images: row r, pixel i is sums[r * step + i].
  void write(const Sum* sums, int64_t step, int64_t channel, int64_t rows, int64_t pixel, int64_t count) const {
    const int64_t image_step = s.groups * s.out_channels * plane, m = group * s.out_channels + channel;
    int64_t n = plan.merged ? pixel / plane : 0, place = pixel - n * plane;
    while (count > 0) {
      const int64_t length = smaller(count, plane - place), at = y_offset(channel) + n * image_step + place;
      arithmetic.write_rows(sums, step, m, rows, at, plane, length);
      sums += length;
      count -= length;
      place = 0;
      n++;
    }
  }

  void pixel_lanes(const Element* panel, int64_t panel_step, const Element* weights, int64_t channel, int rows,
                   int64_t pixel, int64_t count) const {
    const int columns = int(divide_up(count, LANES));
    const typename Arithmetic::TileFunction function = TileTable<Arithmetic>::of[rows - 1][columns - 1];
    [[maybe_unused]] const int64_t m = group * s.out_channels + channel;
    if constexpr (Arithmetic::WRITES_TILES)
      if (count == columns * LANES && !plan.merged) {
        function(weights, rows, panel, panel_step, plan.depth, arithmetic.target(y_offset(channel) + pixel, plane, m));
        return;
      }
    Sum sums[MOST_ROWS * MOST_COLUMNS * LANES];
    function(weights, rows, panel, panel_step, plan.depth, arithmetic.sums_target(sums, columns * LANES));
    write(sums, columns * LANES, channel, rows, pixel, count);
  }

  void channel_lanes(const Element* panel, int64_t panel_step, const Element* weights, int64_t channel, int columns,
                     int64_t pixel, int count) const {
    Sum sums[MOST_ROWS * MOST_COLUMNS * LANES], turned[LANES * LANES];
    TileTable<Arithmetic>::of[count - 1][columns - 1](panel, panel_step, weights, columns * LANES, plan.depth,
                                              arithmetic.sums_target(sums, columns * LANES));
    for (int j = 0; j < columns; j++) {
      const int64_t first = channel + j * LANES;
      for (int begin = 0; begin < count; begin += LANES) {
        vfloat rows[LANES];  // moved as they are, whatever they mean
        QF_UNROLL for (int p = 0; p < LANES; p++)
          rows[p] = begin + p < count ? load((const float*)sums + ((begin + p) * columns + j) * LANES) : (vfloat){};
        transpose(rows);
        QF_UNROLL for (int r = 0; r < LANES; r++) store((float*)turned + r * LANES, rows[r]);
        write(turned, LANES, first, smaller(LANES, s.out_channels - first), pixel + begin,
              smaller(LANES, count - begin));
      }
    }
  }

  void run(const Element* packed, const Element* x, int64_t first_tile, int64_t last_tile, int64_t first_block,
           int64_t last_block, Element* workspace) const {
    const int64_t channel_size = volume(s.input), image_step = s.groups * s.in_channels * channel_size;
    const int64_t x_offset = image * image_step + group * s.in_channels * channel_size;
    packed += group * plan.packed_channels * plan.depth;
    // Whether a tile's pixels are read in x itself: whole vectors may be loaded there.
    auto in_x = [&](int64_t count) { return plan.in_place && (plan.channel_lanes || count == plan.width); };
    for (int64_t tile = first_tile; tile < last_tile; tile++) {
      const int64_t pixel = plan.first_pixel(tile), count = plan.first_pixel(tile + 1) - pixel;
      if (in_x(count)) continue;
      const int64_t width = plan.channel_lanes ? count : divide_up(count, LANES) * LANES;
      Element* panel = workspace + (plan.in_place ? 0 : (tile - first_tile) * plan.panel_size());
      arithmetic.pack(x_offset, Segments(s, pixel, count, image_step), panel, width);
    }
    for (int64_t block = first_block; block < last_block; block++) {
      const int64_t channel = plan.first_channel(block);
      const int channels = plan.channels(block);
      const Element* weights = packed + channel * plan.depth;
      for (int64_t tile = first_tile; tile < last_tile; tile++) {
        const int64_t pixel = plan.first_pixel(tile), count = plan.first_pixel(tile + 1) - pixel;
        const bool direct = in_x(count);
        const int64_t width = plan.channel_lanes ? count : divide_up(count, LANES) * LANES;
        const int64_t step = direct ? channel_size : width;
        const Element* panel = workspace + (plan.in_place ? 0 : (tile - first_tile) * plan.panel_size());
        if (direct) panel = x + x_offset + pixel;
        if (plan.channel_lanes)
          channel_lanes(panel, step, weights, channel, channels / LANES, pixel, int(count));
        else
          pixel_lanes(panel, step, weights, channel, channels, pixel, count);
      }
    }
  }
};

template <class Arithmetic>
void multiply(const ConvShape& s, const ConvCall& call, const Blocking& plan, const Arithmetic& arithmetic) {
  typedef typename Arithmetic::Element Element;
  int64_t pixel_blocks = divide_up(plan.tiles, plan.block);
  const int64_t others = plan.images * s.groups;
  if (others * pixel_blocks < call.threads) pixel_blocks = smaller(plan.tiles, divide_up(call.threads, others));
  const int64_t splits = smaller(plan.channel_blocks, divide_up(call.threads, others * pixel_blocks));
  const int64_t parts = others * pixel_blocks * splits;
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t part = 0; part < parts; part++) {
    Element* workspace = (Element*)(call.workspace + omp_get_thread_num() * plan.workspace_bytes());
    const int64_t split = part % splits, pixel_block = part / splits % pixel_blocks;
    const int64_t other = part / splits / pixel_blocks;
    const Pass<Arithmetic> pass{s, plan, arithmetic, other / s.groups, other % s.groups, volume(s.output)};
    pass.run((const Element*)((const char*)call.weights + BLOCKING_BYTES), (const Element*)call.x, plan.tiles * pixel_block / pixel_blocks,
             plan.tiles * (pixel_block + 1) / pixel_blocks, plan.channel_blocks * split / splits,
             plan.channel_blocks * (split + 1) / splits, workspace);
  }
}

}  // namespace
