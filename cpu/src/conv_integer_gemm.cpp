// Integer convolution as a matrix product, exact in int32 (wrapping); x and y hold planes, or their channels last.
//
// A slab of x, some planes or a band of rows of one, is laid out once with its channels last (Format): as int16 with the
// zero point taken off and padding as zeros, or with VNNI as bytes that keep it. What a pixel's taps read are then runs of the slab, the same for every pixel: a
// row of the kernel times the channels, or one tap's channels where columns are dilated. So every shape is one product,
// y[pixel][m] = sum over the runs' values, that reads x where it lies ("indirect convolution": Dukhan, 2019), and no
// stride, kernel or small plane leaves more of a remainder than the last tile of pixels.
//
// A tile holds ROWS pixels by COLUMNS vectors of output channels in registers and multiplies words of two int16 values
// (conv_words.h) or four bytes: one of x, broadcast, by vectors of such words of weights. Depth is cut such that a block's weights stay
// in the first-level cache while the tiles of up to CHUNK pixels pass over them; sums wait in an int32 scratch. There
// they are requantised, for planes to vectors whose lanes hold four pixels' bytes, transposed, and written row by row. What limits
// it is the arithmetic: two products of LANES words a cycle.
//
// x is uint8 or int8. Weights come as int16 (M, C / groups, kernel), which have to be in -128 to 127 where they are to be
// bytes, and are packed as (block of channels, run, word, channel). Threads share bands of rows, and blocks of channels where there is little to lay out.
#include <omp.h>

#include "conv_words.h"

namespace {

constexpr int COLUMNS = 2, ROWS = (REGISTERS - 4) / COLUMNS;
constexpr int BLOCK = COLUMNS * LANES;          // output channels that pass together
constexpr int GROUP = 4 * LANES;                // pixels that are written together
constexpr int64_t CHUNK = 256;                  // the most pixels that pass over a block's weights
constexpr int64_t DEPTH = 16384 / (4 * BLOCK);  // words whose weights stay in the first-level cache
constexpr int64_t SLAB_BYTES = 1 << 18;         // of laid x that stay in the second-level cache
constexpr int64_t SLACK = 16;                   // values behind a slab that stores and loads may touch
constexpr int64_t SUMS = (CHUNK + GROUP) * BLOCK;

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

// As write_planes, where the channels of y are last: `pixel` elements from a pixel of y to the next.
void write_pixels(const ConvQuantization& q, const ConvCall& call, const uint32_t* sums, int64_t step, int64_t m, int64_t lanes,
                  int64_t at, int64_t count, int64_t pixel) {
  const Requantization requantization(q);
  if (!requantization.wanted) {
    for (int64_t i = 0; i < count; i++) memcpy((uint32_t*)call.y + at + i * pixel, sums + i * step, lanes * sizeof *sums);
    return;
  }
  vfloat multiplier = {};
  for (int64_t i = 0; i < lanes; i++) multiplier[i] = q.multipliers[m + i];
  char* y = (char*)call.y + at;
  for (int64_t first = 0; first < count; first += 4, sums += 4 * step) {
    const vuint bytes = requantization.bytes<ByteOrder::SEQUENCE>(load_words(sums), load_words(sums + step),
                                                                  load_words(sums + 2 * step), load_words(sums + 3 * step),
                                                                  multiplier);
    QF_UNROLL for (int i = 0; i < 4; i++) {
      if (first + i >= count) break;
      if (lanes == LANES)
        memcpy(y + (first + i) * pixel, (const char*)&bytes + i * LANES, LANES);
      else
        memcpy(y + (first + i) * pixel, (const char*)&bytes + i * LANES, lanes);
    }
  }
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

// One thread's part: planes from `plane` on and `rows` of their rows of y, one group, some blocks of channels.
template <class Format>
void multiply(const Source<Format>& source, const ConvQuantization& q, const ConvCall& call, char* workspace, int64_t group,
              int64_t plane, int64_t planes, int64_t row, int64_t rows, int64_t block, int64_t blocks) {
  const ConvShape& s = source.s;
  const Plan<Format>& plan = source.plan;
  const Run *runs = (const Run*)(&plan + 1), *runs_end = runs + plan.runs;
  const uint32_t* packed = (const uint32_t*)((const char*)&plan + plan.header_bytes());
  packed += group * plan.packed_channels(s) * plan.depth;
  uint32_t* sums = (uint32_t*)workspace;
  auto slab = (typename Format::Value*)(sums + SUMS);
  const int64_t laid_rows = plan.laid_rows(s, rows), laid_plane = laid_rows * plan.row_size;
  for (int64_t p = 0; p < planes; p++) {
    const int64_t first = row * s.strides[1] - s.pads[1];
    source.lay((plane + p) / s.output[0], group, (plane + p) % s.output[0], first, laid_rows, slab + p * laid_plane);
  }
  const int64_t each = rows * s.output[2], pixels = planes * each;
  const int64_t chunk = divide_up(divide_up(pixels, divide_up(pixels, CHUNK)), GROUP) * GROUP;
  for (int64_t first = 0; first < pixels; first += chunk) {
    const int64_t count = smaller(chunk, pixels - first), tiles = divide_up(count, ROWS);
    const typename Format::Value* at[CHUNK];
    int64_t w = first % s.output[2], h = first % each / s.output[2], p = first / each;
    for (int64_t i = 0; i < count; i++) {
      at[i] = slab + p * laid_plane + h * plan.stride[0] * plan.row_size + w * plan.stride[1] * s.in_channels;
      if (++w < s.output[2]) continue;
      w = 0;
      if (++h == rows) h = 0, p++;
    }
    for (int64_t b = block; b < blocks; b++) {
      const int64_t channel = b * BLOCK, columns = divide_up(smaller(BLOCK, s.out_channels - channel), LANES);
      const uint32_t* weights = packed + channel * plan.depth;
      uint32_t bias[BLOCK] = {};
      if (call.bias)
        for (int64_t i = 0; i < smaller(BLOCK, s.out_channels - channel); i++)
          bias[i] = ((const uint32_t*)call.bias)[group * s.out_channels + channel + i];
      for (const Run *run = runs, *last; run < runs_end; run = last) {
        int64_t depth = 0;
        for (last = run; last < runs_end && (last == run || depth + last->words <= DEPTH); last++) depth += last->words;
        // tiles of two heights at most, one pixel apart
        for (int64_t taller = 1, pixel = 0; taller >= 0; taller--) {
          const int64_t height = count / tiles + taller, number = taller ? count % tiles : tiles - count % tiles;
          uint32_t* const end = sums + pixel * columns * LANES;
          const Sums to = run == runs ? Sums{bias, 0, end} : Sums{end, columns * LANES, end};
          if (number && columns == COLUMNS)
            sum_tiles<Format, COLUMNS>(height, at + pixel, number, run, last, weights, to);
          else if (number)
            sum_tiles<Format, 1>(height, at + pixel, number, run, last, weights, to);
          pixel += height * number;
        }
        weights += depth * columns * LANES;
      }
      for (int64_t i = 0; i < count;) {
        const int64_t p = (first + i) / each, place = (first + i) % each, length = smaller(count - i, each - place);
        const int64_t image = (plane + p) / s.output[0], depth = (plane + p) % s.output[0];
        for (int64_t j = 0; j < columns; j++) {
          const int64_t in_group = channel + j * LANES, m = group * s.out_channels + in_group;
          const int64_t lanes = smaller(LANES, s.out_channels - in_group), all = s.groups * s.out_channels;
          const int64_t y = (depth * s.output[1] + row) * s.output[2] + place;
          const uint32_t* from = sums + (i * columns + j) * LANES;
          if (s.y_blocked)
            write_pixels(q, call, from, columns * LANES, m, lanes, (image * volume(s.output) + y) * all + m, length, all);
          else
            write_planes(s, q, call, from, columns * LANES, m, lanes, (image * all + m) * volume(s.output) + y, length);
        }
        i += length;
      }
    }
  }
}

template <class Format>
void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Plan<Format>& plan = *(const Plan<Format>*)call.weights;
  const Source<Format> source(s, plan, call, q);
  const int64_t planes = s.batch * s.output[0], blocks = plan.blocks(s);
  const int64_t workspace = SUMS * int64_t(sizeof(uint32_t)) + plan.slab_bytes(s);
  int64_t rows = plan.rows, together = plan.planes;
  auto parts = [&] { return s.groups * divide_up(planes, together) * divide_up(s.output[1], rows); };
  if (parts() < call.threads) together = smaller(together, divide_up(planes, divide_up(call.threads, s.groups)));
  // Channels are shared where laying x out anew for each share costs little beside the arithmetic.
  const bool by_channels = s.out_channels * volume(s.kernel) >= 1024;
  if (parts() < call.threads && !by_channels) rows = divide_up(rows, divide_up(call.threads, parts()));
  const int64_t splits = smaller(blocks, divide_up(call.threads, parts())), all = parts() * splits;
  const int64_t bands = divide_up(s.output[1], rows);
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t part = 0; part < all; part++) {
    const int64_t split = part % splits, band = part / splits % bands, group = part / splits / bands % s.groups;
    const int64_t plane = part / splits / bands / s.groups * together, row = band * rows;
    multiply<Format>(source, q, call, call.workspace + omp_get_thread_num() * workspace, group, plane,
                   smaller(together, planes - plane), row, smaller(rows, s.output[1] - row), blocks * split / splits,
                   blocks * (split + 1) / splits);
  }
}

template <class Format>
void needs_of(const ConvShape& s, ConvNeeds* needs) {
  const Plan<Format> plan(s);
  const int64_t weights = s.groups * plan.packed_channels(s) * plan.depth * int64_t(sizeof(uint32_t));
  needs->packed = size_t(plan.header_bytes() + weights);
  needs->workspace = size_t(SUMS * int64_t(sizeof(uint32_t)) + plan.slab_bytes(s));
}

// Packed: the plan and its runs, so that calls need not think again; then the weights.
template <class Format>
void pack_all(const ConvShape& s, const int16_t* weights, int32_t* packed) {
  const Plan<Format> plan(s);
  memcpy(packed, &plan, sizeof plan);
  Run *const runs = (Run*)((char*)packed + sizeof plan), *end = runs;
  const int64_t values = plan.run_columns * s.in_channels, words = divide_up(values, Format::IN_WORD);
  const int64_t taps = volume(s.kernel);
  for (int64_t tap = 0; tap < taps; tap += plan.run_columns) {
    const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
    const int64_t place = (kh * s.dilations[1] * s.kernel[0] + kd) * plan.columns + kw * s.dilations[2];
    for (int64_t i = 0; i < plan.pieces; i++) {
      const int64_t first = words * i / plan.pieces, last = words * (i + 1) / plan.pieces;
      *end++ = {place * s.in_channels + Format::IN_WORD * first, last - first, tap, Format::IN_WORD * first};
    }
  }
  packed = (int32_t*)((char*)packed + plan.header_bytes());
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t first = 0; first < s.out_channels; first += BLOCK)
      for (const Run* run = runs; run < end; run++)
        for (int64_t k = 0; k < run->words; k++)
          for (int64_t m = first; m < smaller(first + BLOCK, plan.packed_channels(s)); m++) {
            uint32_t word = 0;
            for (int64_t i = 0; i < Format::IN_WORD; i++) {
              const int64_t value = run->value + Format::IN_WORD * k + i;
              if (m >= s.out_channels || value >= values) continue;
              const int64_t tap = run->tap + value / s.in_channels, channel = value % s.in_channels;
              word |= Format::pack(weights[((group * s.out_channels + m) * s.in_channels + channel) * taps + tap], i);
            }
            *packed++ = int32_t(word);
          }
}

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Pairs>(*s, needs); }
extern "C" void QF_EXPORT(conv_gemm_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Pairs>(*s, weights, packed);
}
extern "C" void QF_EXPORT(conv_gemm_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share<Pairs>(*s, *q, *call);
}

#if defined(QF_ISA_V4_VNNI)
extern "C" void QF_EXPORT(conv_bytes_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Quads>(*s, needs); }
extern "C" void QF_EXPORT(conv_bytes_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Quads>(*s, weights, packed);
}
extern "C" void QF_EXPORT(conv_bytes_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share<Quads>(*s, *q, *call);
}
#endif
