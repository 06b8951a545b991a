// What integer convolutions over laid x share: the slab, the register tile, and how sums are written.
//
// A slab of x, some planes or a band of rows of one, is laid out once with its channels last (Format, conv_words.h). A register
// tile multiplies runs of words of it by packed weights. Sums become y four pixels at a time, as planes or with channels last.
#pragma once

#include "conv_words.h"

namespace {

constexpr int COLUMNS = 2, ROWS = (REGISTERS - 4) / COLUMNS;
constexpr int BLOCK = COLUMNS * LANES;          // output channels that pass together
constexpr int GROUP = 4 * LANES;                // pixels that are written together
constexpr int64_t DEPTH = 16384 / (4 * BLOCK);  // words whose weights stay in the first-level cache
constexpr int64_t SLAB_BYTES = 1 << 18;         // of laid x that stay in the second-level cache
constexpr int64_t SLACK = 16;                   // values behind a slab that stores and loads may touch

// Values that follow one another in the slab: where they begin, seen from a pixel's first; how many words; and which
// weights they meet: `value` counts channels from tap `tap` on.
struct Run {
  int64_t offset, words, tap, value;
};

// The layout of a slab, [plane][row][tap of depth][column][channel], and the runs. A plane is one depth of y.
template <class Format>
struct Plan {
  int64_t step[2], stride[2];  // of rows and columns: places of x for one of the slab, of the slab for one of y
  int64_t columns, row_size;   // columns of a slab, and values of a row
  int64_t run_columns;         // of the kernel in a run
  int64_t pieces, runs;        // a run is cut into pieces; all of them
  int64_t depth;               // words of all runs
  int64_t planes, rows;        // planes of a slab and their rows of y, at most

  explicit Plan(const ConvShape& s) {
    for (int i = 0; i < 2; i++) {
      // A single tap meets but every stride-th place: only those are laid out.
      step[i] = s.kernel[i + 1] == 1 ? s.strides[i + 1] : 1;
      stride[i] = s.strides[i + 1] / step[i];
    }
    columns = (s.output[2] - 1) * stride[1] + (s.kernel[2] - 1) * s.dilations[2] + 1;
    row_size = s.kernel[0] * columns * s.in_channels;
    run_columns = s.dilations[2] == 1 ? s.kernel[2] : 1;
    const int64_t words = divide_up(run_columns * s.in_channels, Format::IN_WORD), whole = volume(s.kernel) / run_columns;
    pieces = divide_up(words, DEPTH);
    runs = whole * pieces;
    depth = whole * words;
    const int64_t fitting = SLAB_BYTES / int64_t(sizeof(typename Format::Value)) / row_size;
    planes = smaller(fitting / laid_rows(s, s.output[1]), s.batch * s.output[0]);
    rows = planes ? s.output[1] : (fitting - laid_rows(s, 0)) / stride[0];
    rows = rows < 1 ? 1 : divide_up(s.output[1], divide_up(s.output[1], rows));
    if (!planes) planes = 1;
  }

  // Rows of the slab for `count` rows of y.
  QF_INLINE int64_t laid_rows(const ConvShape& s, int64_t count) const {
    return (count - 1) * stride[0] + (s.kernel[1] - 1) * s.dilations[1] + 1;
  }
  QF_INLINE int64_t slab_bytes(const ConvShape& s) const {
    return divide_up((planes * laid_rows(s, rows) * row_size + SLACK) * int64_t(sizeof(typename Format::Value)), 64) * 64;
  }
  QF_INLINE int64_t blocks(const ConvShape& s) const { return divide_up(s.out_channels, BLOCK); }
  QF_INLINE int64_t packed_channels(const ConvShape& s) const { return divide_up(s.out_channels, LANES) * LANES; }
  QF_INLINE int64_t header_bytes() const {
    return divide_up(int64_t(sizeof(Plan)) + runs * int64_t(sizeof(Run)), 64) * 64;
  }
};

typedef uint32_t word_anywhere __attribute__((aligned(1), may_alias));

// rows[i][j] becomes rows[j][i]: four rounds, each interleaving rows that are eight apart.
QF_INLINE void transpose_bytes(sixteen_bytes (&rows)[16]) {
  QF_UNROLL for (int round = 0; round < 4; round++) {
    sixteen_bytes turned[16];
    QF_UNROLL for (int i = 0; i < 8; i++) {
      turned[2 * i] = interleave_low(rows[i], rows[i + 8]);
      turned[2 * i + 1] = interleave_high(rows[i], rows[i + 8]);
    }
    QF_UNROLL for (int i = 0; i < 16; i++) rows[i] = turned[i];
  }
}

// x as one thread reads it.
template <class Format>
struct Source {
  typedef typename Format::Value Value;
  const ConvShape& s;
  const Plan<Format>& plan;
  const uint8_t *x, *end;
  const Format format;
  const int64_t pixel;  // from a pixel of x to the next

  Source(const ConvShape& s, const Plan<Format>& plan, const ConvCall& call, const ConvQuantization& q)
      : s(s), plan(plan), x((const uint8_t*)call.x), end(x + s.batch * s.groups * s.in_channels * volume(s.input)),
        format(q), pixel(s.x_blocked ? s.groups * s.in_channels : 1) {}

  QF_INLINE sixteen_bytes load(const uint8_t* from, int64_t count) const {
    if (plan.step[1] == 1 && end - from >= 16) return *(const sixteen_bytes_anywhere*)from;
    sixteen_bytes v = {};
    for (int64_t i = 0; i < count; i++) v[i] = from[i * plan.step[1]];
    return v;
  }

  // Lays out values that follow one another as they do in x. The last store may touch up to 15 behind them, which are laid
  // out later.
  void lay_run(const uint8_t* from, int64_t count, Value* to) const {
    int64_t i = 0;
    for (; i < count && end - from - i >= 16; i += 16) format.store(to + i, *(const sixteen_bytes_anywhere*)(from + i));
    for (; i < count; i += 16) {
      sixteen_bytes v = {};
      memcpy(&v, from + i, smaller(16, count - i));
      format.store(to + i, v);
    }
  }

  // Lays out `count` pixels. Stores are of 16 channels, and what they leave behind a pixel's last is overwritten by the
  // next pixel's: the last channels go first.
  void lay_pixels(const uint8_t* from, int64_t count, Value* to) const {
    const int64_t channel = volume(s.input), channels = s.in_channels;
    if (s.x_blocked) {
      const int64_t step = pixel * plan.step[1];
      if (step == channels) return lay_run(from, count * channels, to);
      for (int64_t i = 0; i < count; i++) lay_run(from + i * step, channels, to + i * channels);
      return;
    }
    for (int64_t first = 0; first < count; first += 16)
      for (int64_t c = (channels - 1) / 16 * 16; c >= 0; c -= 16) {
        const int64_t pixels = smaller(16, count - first);
        sixteen_bytes v[16];
        QF_UNROLL for (int i = 0; i < 16; i++)
          v[i] = c + i < channels ? load(from + (c + i) * channel + first * plan.step[1], pixels) : (sixteen_bytes){};
        transpose_bytes(v);
        QF_UNROLL for (int i = 0; i < 16; i++)
          if (i < pixels) format.store(to + (first + i) * channels + c, v[i]);
      }
  }

  // Lays out `rows` rows of the group's plane of y's depth d, the first of them at row h of x.
  void lay(int64_t image, int64_t group, int64_t d, int64_t h, int64_t rows, Value* slab) const {
    const int64_t step = plan.step[1], width = plan.columns * s.in_channels;
    const int64_t left = smaller(divide_up(s.pads[2], step), plan.columns);
    const int64_t right = smaller(divide_up(s.input[2] + s.pads[2], step), plan.columns);
    const bool joined = s.kernel[0] == 1 && plan.step[0] == 1 && step == 1 && left == 0 && plan.columns == s.input[2];
    const uint8_t* channels =
        x + (s.x_blocked ? image * volume(s.input) * s.groups + group : (image * s.groups + group) * volume(s.input)) * s.in_channels;
    for (int64_t row = 0; row < rows;) {
      const int64_t y = h + row * plan.step[0];
      // rows without padding follow one another in x as they do here
      const int64_t count = joined && y >= 0 && y < s.input[1] ? smaller(rows - row, s.input[1] - y) : 1;
      for (int64_t tap = 0; tap < s.kernel[0]; tap++, slab += count * width) {
        const int64_t z = d * s.strides[0] - s.pads[0] + tap * s.dilations[0];
        const bool inside = z >= 0 && z < s.input[0] && y >= 0 && y < s.input[1] && left < right;
        const int64_t before = inside ? left : count * plan.columns, after = inside ? plan.columns - right : 0;
        format.pad(slab, before * s.in_channels);
        if (inside) {
          const uint8_t* from = channels + ((z * s.input[1] + y) * s.input[2] + left * step - s.pads[2]) * pixel;
          lay_pixels(from, (count - 1) * plan.columns + right - left, slab + left * s.in_channels);
        }
        format.pad(slab + count * width - after * s.in_channels, after * s.in_channels);
      }
      row += count;
    }
  }
};

// Where tiles begin and end: sums start as a block of `start` for each pixel, start_step apart.
struct Sums {
  const uint32_t* start;
  int64_t start_step;
  uint32_t* end;
};

// Sums tiles of R pixels by J vectors of channels over some runs.
template <class Format, int R, int J>
__attribute__((noinline)) void sum(const typename Format::Value* const* pixels, int64_t tiles, const Run* first, const Run* last,
                                   const uint32_t* weights, Sums sums) {
  // The weights that come next follow these. They are fetched into the second-level cache meanwhile: in a network they come from
  // memory each time. (Where four bytes are multiplied at once, and on vectors of 16, it was not measured.)
  constexpr bool FETCHES = Format::IN_WORD == 2 && LANES <= 8;
  int64_t ahead = 0;
  for (const Run* run = first; run < last; run++) ahead += run->words * J * LANES;
  for (; tiles > 0; tiles--, pixels += R) {
    vuint c[R][J];
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = load_words(sums.start + r * sums.start_step + j * LANES);
    const uint32_t* w = weights;
    for (const Run* run = first; run < last; run++) {
      const typename Format::Value* x[R];
      QF_UNROLL for (int r = 0; r < R; r++) x[r] = pixels[r] + run->offset;
      const int64_t words = run->words;
      for (int64_t k = 0; k < words; k++, w += J * LANES) {
        vuint v[J];
        if (FETCHES) __builtin_prefetch(w + ahead, 0, 2);
        QF_UNROLL for (int j = 0; j < J; j++) v[j] = load_words(w + j * LANES);
        QF_UNROLL for (int r = 0; r < R; r++)
          Format::add(c[r], *(const word_anywhere*)(x[r] + Format::IN_WORD * k) - (vuint){}, v);
      }
    }
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) store_words(sums.end + (r * J + j) * LANES, c[r][j]);
    sums.start += R * sums.start_step;
    sums.end += R * J * LANES;
  }
}

template <class Format, int J, int R = ROWS, class... Arguments>
QF_INLINE void sum_tiles(int64_t height, Arguments... arguments) {
  if (R == 1 || height == R)
    sum<Format, R, J>(arguments...);
  else if constexpr (R > 1)
    sum_tiles<Format, J, R - 1>(height, arguments...);
}

// Writes J vectors of channels from m on of `count` pixels to y, `pixel` bytes apart; `last` lanes of the last vector. Four
// vectors of sums make one of bytes: of four pixels, or of two, which are then stored in longer pieces.
template <int J>
void write_bytes(const Requantization& requantization, const float* multipliers, const uint32_t* sums, int64_t last, char* y,
                 int64_t count, int64_t pixel) {
  constexpr int PIXELS = 4 / J, SIZE = J * LANES;
  vfloat scales[4] = {};
  for (int64_t i = 0; i < (J - 1) * LANES + last; i++) scales[i / LANES][i % LANES] = multipliers[i];
  QF_UNROLL for (int i = J; i < 4; i++) scales[i] = scales[i - J];
  for (int64_t first = 0; first < count; first += PIXELS, sums += 4 * LANES, y += PIXELS * pixel) {
    vuint words[4];
    QF_UNROLL for (int i = 0; i < 4; i++) words[i] = load_words(sums + i * LANES);
    const vuint bytes = requantization.bytes<ByteOrder::SEQUENCE>(words, scales);
    QF_UNROLL for (int i = 0; i < PIXELS; i++) {
      if (first + i >= count) break;
      if (last == LANES)
        memcpy(y + i * pixel, (const char*)&bytes + i * SIZE, SIZE);
      else
        memcpy(y + i * pixel, (const char*)&bytes + i * SIZE, SIZE - LANES + last);
    }
  }
}

// As write_planes, where the channels of y are last, for `channels` of them, which are one or COLUMNS vectors of sums for each
// pixel; `pixel` elements of y from a pixel to the next.
void write_pixels(const ConvQuantization& q, const ConvCall& call, const uint32_t* sums, int64_t m, int64_t channels,
                  int64_t at, int64_t count, int64_t pixel) {
  const Requantization requantization(q);
  const int64_t step = divide_up(channels, LANES) * LANES, last = channels - (step - LANES);
  if (!requantization.wanted)
    for (int64_t i = 0; i < count; i++) memcpy((uint32_t*)call.y + at + i * pixel, sums + i * step, channels * sizeof *sums);
  else if (step == BLOCK)
    write_bytes<COLUMNS>(requantization, q.multipliers + m, sums, last, (char*)call.y + at, count, pixel);
  else
    write_bytes<1>(requantization, q.multipliers + m, sums, last, (char*)call.y + at, count, pixel);
}

// Writes `count` pixels of `lanes` channels from m on, the first of them to element `at` of y. sums: of pixels `step`
// apart.
void write_planes(const ConvShape& s, const ConvQuantization& q, const ConvCall& call, const uint32_t* sums, int64_t step,
                  int64_t m, int64_t lanes, int64_t at, int64_t count) {
  const Requantization requantization(q);
  const int64_t pixels = requantization.wanted ? 4 : 1, size = 4 / pixels;  // of a word; bytes of a pixel
  const int64_t row = volume(s.output) * size;
  char* y = (char*)call.y + at * size;
  vfloat multiplier = {};
  if (requantization.wanted)
    for (int64_t i = 0; i < lanes; i++) multiplier[i] = q.multipliers[m + i];
  for (int64_t first = 0; first < count; first += pixels * LANES, y += 4 * LANES) {
    vfloat rows[LANES];  // moved as they are, whatever they mean
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      const int64_t pixel = first + i * pixels;
      const uint32_t* from = sums + pixel * step;
      vuint word = {};
      if (pixel < count) word = load_words(from);
      if (pixel < count && requantization.wanted)
        word = requantization.bytes<ByteOrder::QUADS>(word, load_words(from + step), load_words(from + 2 * step),
                                                      load_words(from + 3 * step), multiplier);
      rows[i] = (vfloat)word;
    }
    transpose(rows);
    const int64_t bytes = smaller(4 * LANES, (count - first) * size);
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      if (i >= lanes) break;
      if (bytes == 4 * LANES)
        store_words(y + i * row, (vuint)rows[i]);
      else
        memcpy(y + i * row, &rows[i], bytes);
    }
  }
}

}  // namespace
