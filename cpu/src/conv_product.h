// The product of weights and pixels that convolutions on plain planes come down to: for each place of an output plane
//   sums[m][place] = bias[m] + sum over k of weights[m][k] * panel[k][place]
// where k counts taps and input channels and the panels hold what they read ("implicit GEMM": Chetlur et al., cuDNN,
// 2014), with vectors of places and scalars of weights (microkernel.h).
//
// Blocking (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): the depth k is cut into
// slices such that a panel, one slice of a tile of places, takes half of the first-level cache. For some places
//   for each slice: their panels are packed, to stay in the second-level cache
//     for some output channels, whose weights stay there too
//       for each panel: it moves to the first-level cache, and all tiles of these channels pass over it.
// Sums wait in y between slices. Limited by the multiply-adds: a tile takes some 30 cycles beside them, so one call covers
// many (Patch). Packing costs a load and a store for each vector that as many multiply-adds use as there are output
// channels, twice that where x is read tap by tap. Where x is as dense as panels the first tile of channels reads it there
// and packs it on the way, so that one panel at a time has to be near; of a few rows of x, all tiles read it there.
// Vectors of 16 were not timed so: they pack ahead, or take x for few output channels, unless its rows would push each
// other out of the cache.
#pragma once

#include "conv_arguments.h"
#include "conv_epilogue.h"
#include "microkernel.h"

namespace {

constexpr int64_t PANEL_BYTES = 16 << 10, ROOM_BYTES = 192 << 10, WEIGHT_BYTES = 128 << 10;
constexpr int64_t GROUP_BYTES = 12 << 10;  // of panels that a tile of channels passes over together
constexpr int64_t MOST_BLOCK = 512;    // places
constexpr int64_t FEW_CHANNELS = 128;  // of y: fewer do not pay for packing x

// Whether the first tile of output channels packs x, and then: the most rows of x that all tiles read there, and how many
// rows ahead x is fetched.
constexpr bool KEEPS = LANES < 16;
constexpr int64_t FEW_ROWS = 32;
constexpr int ROWS_AHEAD = 6;

// Splits `total` rows into tiles of at most `most`: some of a height, the first ones a row higher.
struct Rows {
  int64_t tiles, height, higher;
  QF_INLINE Rows(int64_t total, int most) : tiles(divide_up(total, most)), height(total / tiles), higher(total % tiles) {}
  QF_INLINE int64_t begin(int64_t tile) const { return tile * height + smaller(tile, higher); }
  QF_INLINE int count(int64_t tile) const { return int(height + (tile < higher)); }
};

// What a product sums at each place of a plane (or volume): tap t of axis a lies at
// place * stride[a] + first[a] + t * step[a] of x, and reads zero outside of it.
struct Window {
  int64_t images, channels;  // channels of one image; images follow one another at image_step
  int64_t image_step;
  int64_t input[3], places[3], taps[3], first[3], step[3], stride[3];

  QF_INLINE int64_t depth() const { return channels * volume(taps); }
  // Whether place p of channel c reads x there alone.
  QF_INLINE bool flat() const {
    bool same = volume(taps) == 1;
    for (int axis = 0; axis < 3; axis++)
      same = same && stride[axis] == 1 && first[axis] == 0 && input[axis] == places[axis];
    return same;
  }
};

// Step k of the depth: chunks of CHUNK channels outermost, then taps, then channels, so that all taps read a few
// channels of x while they are in the first-level cache.
constexpr int64_t CHUNK = 16;
struct Depth {
  int64_t tap, channel, channels;  // and how many channels follow with this tap
  QF_INLINE Depth(const Window& window, int64_t k) {
    const int64_t taps = volume(window.taps), chunk = k / (CHUNK * taps);
    const int64_t width = smaller(CHUNK, window.channels - chunk * CHUNK), rest = k - chunk * CHUNK * taps;
    tap = rest / width;
    channel = chunk * CHUNK + rest % width;
    channels = width - rest % width;
  }
};

struct Plan {
  bool merged;             // images form one long row of places
  bool in_place;           // x itself may serve as panels
  int columns;             // vectors in a tile's row
  int64_t depth, slices;
  int64_t images, pixels;  // separately treated images, and places of each
  int64_t width, tiles;    // places in a tile, tiles of an image
  int64_t blocks, pitch;   // of tiles that are packed together; floats of a line of their places, with a vector behind
  int64_t out_channels, channel_blocks;

  // columns: 0 for those that suit the window.
  QF_INLINE Plan(const Window& window, int64_t out_channels, int given_columns = 0)
      : columns(given_columns), depth(window.depth()), out_channels(out_channels) {
    const int64_t plane = volume(window.places);
    merged = window.images > 1 && plane < 16 * LANES;
    images = merged ? 1 : window.images;
    pixels = merged ? window.images * plane : plane;
    if (!columns) columns = best_columns();
    width = columns * LANES;
    tiles = divide_up(pixels, width);
    slices = depth ? divide_up(depth * width * 4, PANEL_BYTES) : 1;
    const int64_t most = depth ? divide_up(depth, slices) : 1;
    blocks = tiles ? divide_up(tiles, smaller(ROOM_BYTES / (most * width * 4), MOST_BLOCK / width)) : 1;
    channel_blocks = smaller(rows().tiles, divide_up(out_channels * most * 4, WEIGHT_BYTES));
    // The rows of x meet in few sets of the first-level cache where planes are a multiple of its lines, and those of y
    // in the same ones.
    int64_t sets = 64;
    for (int64_t bytes = volume(window.input) * 4; bytes % 128 == 0 && sets > 1; bytes /= 2) sets /= 2;
    in_place = !merged && window.flat() &&
               (KEEPS ? depth <= FEW_ROWS : out_channels <= FEW_CHANNELS && sets >= 16 && most <= 4 * sets);
    pitch = divide_up(divide_up(tiles, blocks) * width + LANES, 16) * 16;
  }

  QF_INLINE Rows rows() const { return Rows(out_channels, most_rows(columns)); }
  QF_INLINE int64_t first_of_slice(int64_t slice) const { return depth * slice / slices; }
  QF_INLINE int64_t panels_floats() const { return (divide_up(depth, slices) + CHUNK) * pitch; }
  QF_INLINE int64_t packed_floats() const { return out_channels * depth; }

 private:
  // The width of tiles that takes the fewest cycles, roughly: two multiply-adds and two loads a cycle, four cycles of
  // latency from one step of depth to the next, and what begins and ends a tile.
  QF_INLINE int best_columns() const {
    int best = 1;
    float least = 0;
    for (int j = 1; j <= MOST_COLUMNS; j++) {
      const int64_t tiles = Rows(out_channels, most_rows(j)).tiles;
      const float height = float(out_channels) / tiles;
      auto cycles = [&](int64_t count) {
        const float multiply = height * count / 2.0f, loads = (height + count) / 2.0f;
        const float step = multiply > loads ? multiply : loads;
        return (step > 4.0f ? step : 4.0f) * depth + 20.0f + 2.0f * height * count;
      };
      const int64_t vectors = divide_up(pixels, LANES);
      float all = tiles * (vectors / j * cycles(j) + (vectors % j ? cycles(vectors % j) : 0.0f));
      if (j * LANES % 16) all *= 1.03f;  // tiles that share cache lines
      if (j == 1 || all <= least) best = j, least = all;
    }
    return best;
  }
};

// LANES values from x on, STRIDE apart.
template <int STRIDE>
QF_INLINE vfloat load_places(const float* x, int64_t stride) {
  vfloat v;
  if (STRIDE == 1) {
    v = load(x);
  } else if (STRIDE == 2) {
    vfloat odd;
    load_parted(x, v, odd);
  } else {
    QF_UNROLL for (int n = 0; n < LANES; n++) v[n] = x[n * stride];
  }
  return v;
}

// Copies what the places of a run read for one tap, of `channels` channels: lanes begin to end from x on, STRIDE apart;
// the run's other lanes are zero. Whole vectors are loaded where `inside`: all that they reach is x's; they are stored:
// up to LANES floats behind the run are overwritten.
template <int STRIDE>
void copy_run(const float* x, int64_t channel, int64_t channels, int64_t stride, int64_t begin, int64_t end, int64_t count,
              bool inside, float* to, int64_t pitch) {
  if (!inside) {
    for (int64_t c = 0; c < channels; c++, x += channel, to += pitch)
      for (int64_t i = 0; i < count; i += LANES) {
        vfloat v = {};
        for (int64_t n = i < begin ? begin : i; n < smaller(i + LANES, end); n++) v[n - i] = x[n * stride];
        store(to + i, v);
      }
    return;
  }
  const int64_t first = begin / LANES * LANES, last = end / LANES * LANES;  // vectors that zeros begin and end in
  const vint none = {};
  vint lane;
  QF_UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
  const vint low = lane >= int32_t(begin - first), high = lane < int32_t(end - last);
  for (int64_t c = 0; c < channels; c++, x += channel, to += pitch) {
    int64_t i = 0;
    for (; i < first; i += LANES) store(to + i, (vfloat)none);
    if (begin > first) {
      vint v = (vint)load_places<STRIDE>(x + i * stride, stride) & low;
      if (last == first) v &= high;
      store(to + i, (vfloat)v);
      i += LANES;
    }
    for (; i < (end == count ? count : last); i += LANES) {
      if (STRIDE != 1) __builtin_prefetch(x + ROWS_AHEAD * channel + i * stride);  // rows with gaps surprise the hardware
      store(to + i, load_places<STRIDE>(x + i * stride, stride));
    }
    if (i < count && end > i) {
      store(to + i, (vfloat)((vint)load_places<STRIDE>(x + i * stride, stride) & high));
      i += LANES;
    }
    for (; i < count; i += LANES) store(to + i, (vfloat)none);
  }
}

// Rows of places in a line, one for each channel, into panels: panel[tile][k][J vectors], `depth` rows each. Tile by tile,
// so that one panel at a time is written: beside several the stores wait for lines of the second-level cache.
template <int J>
inline void spread_rows(const float* from, int64_t step, int64_t rows, int64_t count, int64_t depth, float* panels) {
  constexpr int64_t WIDTH = J * LANES;
  for (; count > 0; count -= WIDTH, from += WIDTH, panels += depth * WIDTH) {
    const float* x = from;
    float* to = panels;
    if (count >= WIDTH)
      for (int64_t k = 0; k < rows; k++, x += step, to += WIDTH)
        QF_UNROLL for (int j = 0; j < J; j++) store(to + j * LANES, load(x + j * LANES));
    else
      for (int64_t k = 0; k < rows; k++, x += step, to += WIDTH)
        for (int64_t j = 0; j < count; j += LANES) store(to + j, load_first(x + j, int(smaller(LANES, count - j))));
  }
}

// Panels of places `pixel` to pixel + count for the depth from `first` to `last`: panel[tile][k][width]. x: the group's
// first channel in the first image; lines: room for CHUNK rows of the places, `pitch` apart.
inline void pack_panels(const Window& window, bool flat, const float* x, const float* x_end, int64_t first, int64_t last,
                        int64_t pixel, int64_t count, int columns, int64_t pitch, float* lines, float* panels) {
  const int64_t channel = volume(window.input), plane = volume(window.places), row = window.places[2];
  const int64_t *input = window.input, width = columns * LANES;
  const auto spread = columns == 1 ? spread_rows<1> : columns == 2 ? spread_rows<2> : columns == 3 ? spread_rows<3> : spread_rows<4>;
  if (flat) return spread(x + first * channel + pixel, channel, last - first, count, last - first, panels);
  for (int64_t k = first; k < last;) {
    const Depth at(window, k);
    const int64_t kw = at.tap % window.taps[2], kh = at.tap / window.taps[2] % window.taps[1];
    const int64_t kd = at.tap / window.taps[2] / window.taps[1];
    const int64_t c = at.channel, channels = smaller(at.channels, last - k);
    for (int64_t done = 0; done < count;) {  // runs of places of one row
      const int64_t place = pixel + done, image = place / plane, w = place % row, h = place / row % window.places[1];
      const int64_t d = place % plane / row / window.places[1];
      const int64_t length = smaller(row - w, count - done), stride = window.stride[2];
      const int64_t id = d * window.stride[0] + window.first[0] + kd * window.step[0];
      const int64_t ih = h * window.stride[1] + window.first[1] + kh * window.step[1];
      const int64_t iw = w * stride + window.first[2] + kw * window.step[2];
      const bool there = id >= 0 && id < input[0] && ih >= 0 && ih < input[1];
      const int64_t begin = iw < 0 ? smaller(divide_up(-iw, stride), length) : 0;
      const int64_t end = there && iw < input[2] ? smaller(divide_up(input[2] - iw, stride), length) : begin;
      const float* from = x + image * window.image_step + c * channel;
      if (there) from += (id * input[1] + ih) * input[2] + iw;
      const bool inside = begin < end && from >= x &&
                          from + (channels - 1) * channel + divide_up(length, LANES) * LANES * stride <= x_end;
      const auto copy = stride == 1 ? copy_run<1> : stride == 2 ? copy_run<2> : copy_run<0>;
      copy(from, channel, channels, stride, begin, end, length, inside, lines + done, pitch);
      done += length;
    }
    spread(lines, pitch, channels, count, last - first, panels + (k - first) * width);
    k += channels;
  }
}

// What one call computes: `tiles` tiles of places side by side for `row_tiles` tiles of as many output channels.
struct Patch {
  const float* weights;        // of all tiles of rows, one after the other
  const float* panel;          // of the first tile of places
  int64_t step, tile_step;     // floats to the next step of its depth, and to the next tile's
  int64_t depth, row_tiles, tiles;
  float* kept;                 // where the first tile of rows lays what it reads, for those after it; or null
};

// Where a patch's sums go.
struct Target {
  float* y;
  int64_t row_step;
  const float* bias;         // one for each row, or null: where sums begin, in the first slice
  const float* residual;     // laid out like y, or null
  const Epilogue* epilogue;  // in the last slice, else null
  bool first;
};

struct Product {
  typedef void (*TileFunction)(const Patch& patch, const Target& target);

  template <int R, int J>
  __attribute__((noinline)) static void tile(const Patch& patch, const Target& target) {
    constexpr int64_t WIDTH = J * LANES;
    Target to = target;
    const float *weights = patch.weights, *first_panel = patch.panel;
    int64_t step = patch.step, tile_step = patch.tile_step;
    float* kept = patch.kept;
    for (int64_t row = 0; row < patch.row_tiles; row++, weights += R * patch.depth) {
      const float* panel = first_panel;
      for (int64_t tile = 0; tile < patch.tiles; tile++, panel += tile_step) {
        vfloat c[R][J];
        begin<R, J>(c, to);
        if (kept)
          sum<true, R, J>(c, weights, panel, step, patch.depth, kept + tile * patch.depth * WIDTH);
        else
          sum<false, R, J>(c, weights, panel, step, patch.depth, nullptr);
        end<R, J>(c, to);
        to.y += WIDTH;
        if (to.residual) to.residual += WIDTH;
      }
      const int64_t next = R * to.row_step - patch.tiles * WIDTH;
      to.y += next;
      if (to.residual) to.residual += next;
      if (to.bias) to.bias += R;
      if (kept) first_panel = kept, step = WIDTH, tile_step = patch.depth * WIDTH, kept = nullptr;
    }
  }

 private:
  // multiply_add, where KEEP with the vectors that it reads stored one after the other.
  template <bool KEEP, int R, int J>
  QF_INLINE static void sum(vfloat (&c)[R][J], const float* scalars, const float* vectors, int64_t vector_step,
                            int64_t depth, float* kept) {
#pragma GCC unroll(KEEPS ? 4 : 1)
    for (int64_t k = 0; k < depth; k++, scalars += R, vectors += vector_step) {
      if (KEEP)
        QF_UNROLL for (int j = 0; j < J * LANES; j += 16) __builtin_prefetch(vectors + ROWS_AHEAD * vector_step + j);
      vfloat v[J];
      QF_UNROLL for (int j = 0; j < J; j++) v[j] = load(vectors + j * LANES);
      if (KEEP) {
        QF_UNROLL for (int j = 0; j < J; j++) store(kept + j * LANES, v[j]);
        kept += J * LANES;
      }
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += scalars[r] * v[j];
    }
  }

  template <int R, int J>
  QF_INLINE static void begin(vfloat (&c)[R][J], const Target& to) {
    const int64_t step = to.row_step;
    if (to.first) {
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J * LANES; j += 16) __builtin_prefetch(to.y + r * step + j, 1);
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = to.bias ? broadcast(to.bias[r]) : (vfloat){};
    } else {
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = load(to.y + r * step + j * LANES);
    }
  }

  template <int R, int J>
  QF_INLINE static void end(vfloat (&c)[R][J], const Target& to) {
    const int64_t step = to.row_step;
    if (to.epilogue) {
      if (to.residual)
        QF_UNROLL for (int r = 0; r < R; r++)
          QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += load(to.residual + r * step + j * LANES);
      if (to.epilogue->clamps)
        QF_UNROLL for (int r = 0; r < R; r++)
          QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = to.epilogue->clamp(c[r][j]);
    }
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) store(to.y + r * step + j * LANES, c[r][j]);
    if (to.epilogue && to.epilogue->later)
      for (int r = 0; r < R; r++) to.epilogue->activate_row(to.y + r * step, J * LANES);
  }
};

// Weights of one window as (slices, tiles of output channels, depth of the slice, channels of the tile); weight(m, tap,
// channel) finds one.
template <class Weight>
inline void pack_weights(const Window& window, const Plan& plan, const Weight& weight, float* packed) {
  const Rows rows = plan.rows();
  for (int64_t slice = 0; slice < plan.slices; slice++)
    for (int64_t tile = 0; tile < rows.tiles; tile++)
      for (int64_t k = plan.first_of_slice(slice); k < plan.first_of_slice(slice + 1); k++) {
        const Depth at(window, k);
        for (int64_t m = rows.begin(tile); m < rows.begin(tile + 1); m++) *packed++ = weight(m, at.tap, at.channel);
      }
}

// A part of the product as `multiply` hands it out: its first row of y, rows of each tile, and first tile of places.
struct Part : Patch {
  int64_t m, tile;
  int rows;
  bool first, last;  // slice of the depth
};

// What one thread computes at a time: tiles of places of an image, for tiles of output channels.
struct Share {
  int64_t first_tile, last_tile, first_row, last_row;
};

// Whether panels are there already, and whether they have to be there afterwards.
struct Panels {
  float* at;
  bool packed, again;
};

// Hands all of a share to visit(Part), slice by slice; a part is of whole tiles of places, or of the image's last one. x:
// the group's first channel in the image, or in the first one where images are merged; all vectors that lie between it
// and x_end may be loaded.
template <class Visit>
QF_INLINE void multiply(const Window& window, const Plan& plan, const float* x, const float* x_end,
                        const float* weights, const Share& share, const Panels& panels, const Visit& visit) {
  const Rows rows = plan.rows();
  const int64_t width = plan.width, pixel = share.first_tile * width;
  const int64_t count = smaller(plan.pixels, share.last_tile * width) - pixel;
  const int64_t channel = volume(window.input), height = share.last_row - share.first_row;
  const bool flat = !plan.merged && window.flat();
  // Tiles that x itself serves for, or packs: whole ones. Where they straddle cache lines, panels are faster.
  const bool in_place = plan.in_place && uintptr_t(x + pixel) % 64 == 0;
  const bool keeps = KEEPS && flat && !panels.packed && !in_place;
  const int64_t full = share.first_tile + count / width, whole = keeps || in_place ? full : share.first_tile;
  const bool stays = panels.again || panels.packed || plan.channel_blocks > 1;
  float* const packed = panels.at + CHUNK * plan.pitch;
  for (int64_t slice = 0; slice < plan.slices; slice++) {
    const int64_t k = plan.first_of_slice(slice), depth = plan.first_of_slice(slice + 1) - k;
    const int64_t skipped = (whole - share.first_tile) * width;
    if (!panels.packed && count > skipped)
      pack_panels(window, flat, x, x_end, k, k + depth, pixel + skipped, count - skipped, plan.columns, plan.pitch, panels.at,
                  packed + skipped * depth);
    // Shallow panels are taken together, so that a tile of channels writes longer pieces of its rows.
    const int64_t fit = depth ? GROUP_BYTES / (depth * width * 4) : 1, together = fit < 1 ? 1 : fit;
    for (int64_t block = 0; block < plan.channel_blocks; block++)
      for (int64_t begin = share.first_tile, end; begin < share.last_tile; begin = end) {
        end = smaller(begin + together, begin < whole ? whole : begin < full ? full : share.last_tile);
        const int64_t last = share.first_row + height * (block + 1) / plan.channel_blocks;
        const int64_t place = (begin - share.first_tile) * width;
        for (int64_t row = share.first_row + height * block / plan.channel_blocks, next; row < last; row = next) {
          next = row < rows.higher ? smaller(rows.higher, last) : last;
          const bool reads = begin < whole && (in_place || row == share.first_row);
          float* panel = packed + (begin < whole && !stays ? 0 : place * depth);
          Part part;
          part.weights = weights + k * plan.out_channels + rows.begin(row) * depth;
          part.panel = reads ? x + k * channel + pixel + place : panel;
          part.step = reads ? channel : width;
          part.tile_step = reads ? width : width * depth;
          part.depth = depth;
          part.row_tiles = next - row;
          part.tiles = end - begin;
          part.kept = reads && keeps && (height > 1 || panels.again) ? panel : nullptr;
          part.m = rows.begin(row);
          part.tile = begin;
          part.rows = rows.count(row);
          part.first = slice == 0;
          part.last = slice + 1 == plan.slices;
          visit(part);
        }
      }
  }
}

}  // namespace
