// Integer convolution as a matrix product, exact in int32 (wrapping), on plain NCHW.
//
// A slab of x, some planes or a band of rows of one, is laid out once with its channels last, as int16 with the zero
// point taken off and padding as zeros. What a pixel's taps read are then runs of the slab, the same for every pixel: a
// row of the kernel times the channels, or one tap's channels where columns are dilated. So every shape is one product,
// y[pixel][m] = sum over the runs' values, that reads x where it lies ("indirect convolution": Dukhan, 2019), and no
// stride, kernel or small plane leaves more of a remainder than the last tile of pixels.
//
// A tile holds ROWS pixels by COLUMNS vectors of output channels in registers and multiplies int16 pairs
// (conv_pairs.h): a pair of x, broadcast, by vectors of pairs of weights. Depth is cut such that a block's weights stay
// in the first-level cache while the tiles of up to CHUNK pixels pass over them; sums wait in an int32 scratch. There
// they are requantised to vectors whose lanes hold four pixels' bytes, transposed, and written row by row. What limits
// it is the arithmetic: two products of LANES pairs a cycle.
//
// x is uint8 or int8. Weights come as int16 (M, C / groups, kernel) and are packed as (block of channels, run, pair,
// channel). Threads share bands of rows, and blocks of channels where there is little to lay out.
#include <omp.h>

#include "conv_pairs.h"

namespace {

constexpr int COLUMNS = 2, ROWS = (REGISTERS - 4) / COLUMNS;
constexpr int BLOCK = COLUMNS * LANES;          // output channels that pass together
constexpr int GROUP = 4 * LANES;                // pixels that are written together
constexpr int64_t CHUNK = 256;                  // the most pixels that pass over a block's weights
constexpr int64_t DEPTH = 16384 / (4 * BLOCK);  // pairs whose weights stay in the first-level cache
constexpr int64_t SLAB_VALUES = 1 << 17;        // values of laid x that stay in the second-level cache
constexpr int64_t SLACK = 16;                   // values behind a slab that stores and loads may touch
constexpr int64_t SUMS = (CHUNK + GROUP) * BLOCK;

// Values that follow one another in the slab: where they begin, seen from a pixel's first; how many pairs; and which
// weights they meet: `value` counts channels from tap `tap` on.
struct Run {
  int64_t offset, pairs, tap, value;
};

// The layout of a slab, [plane][row][tap of depth][column][channel], and the runs. A plane is one depth of y.
struct Plan {
  int64_t step[2], stride[2];  // of rows and columns: places of x for one of the slab, of the slab for one of y
  int64_t columns, row_size;   // columns of a slab, and values of a row
  int64_t run_columns;         // of the kernel in a run
  int64_t pieces, runs;        // a run is cut into pieces; all of them
  int64_t depth;               // pairs of all runs
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
    const int64_t pairs = divide_up(run_columns * s.in_channels, 2), whole = volume(s.kernel) / run_columns;
    pieces = divide_up(pairs, DEPTH);
    runs = whole * pieces;
    depth = whole * pairs;
    const int64_t fitting = SLAB_VALUES / row_size;
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
    return divide_up((planes * laid_rows(s, rows) * row_size + SLACK) * int64_t(sizeof(int16_t)), 64) * 64;
  }
  QF_INLINE int64_t blocks(const ConvShape& s) const { return divide_up(s.out_channels, BLOCK); }
  QF_INLINE int64_t packed_channels(const ConvShape& s) const { return divide_up(s.out_channels, LANES) * LANES; }
  QF_INLINE int64_t header_bytes() const {
    return divide_up(int64_t(sizeof(Plan)) + runs * int64_t(sizeof(Run)), 64) * 64;
  }
};

typedef uint8_t sixteen_bytes __attribute__((vector_size(16)));
typedef uint8_t sixteen_bytes_anywhere __attribute__((vector_size(16), aligned(1), may_alias));
typedef int16_t sixteen_values __attribute__((vector_size(32)));
typedef int16_t sixteen_values_anywhere __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint32_t pair_anywhere __attribute__((aligned(2), may_alias));

// rows[i][j] becomes rows[j][i]: four rounds, each interleaving rows that are eight apart.
QF_INLINE void transpose_bytes(sixteen_bytes (&rows)[16]) {
  constexpr sixteen_bytes LOW = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  constexpr sixteen_bytes HIGH = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  QF_UNROLL for (int round = 0; round < 4; round++) {
    sixteen_bytes turned[16];
    QF_UNROLL for (int i = 0; i < 8; i++) {
      turned[2 * i] = __builtin_shuffle(rows[i], rows[i + 8], LOW);
      turned[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + 8], HIGH);
    }
    QF_UNROLL for (int i = 0; i < 16; i++) rows[i] = turned[i];
  }
}

// x as one thread reads it. Signed values are taken as unsigned ones 128 higher.
struct Source {
  const ConvShape& s;
  const Plan& plan;
  const uint8_t *x, *end;
  uint8_t flip;
  int16_t zero;

  Source(const ConvShape& s, const Plan& plan, const ConvCall& call, const ConvQuantization& q)
      : s(s), plan(plan), x((const uint8_t*)call.x), end(x + s.batch * s.groups * s.in_channels * volume(s.input)),
        flip(q.x_signed ? 128 : 0), zero(int16_t(q.x_zero + flip)) {}

  QF_INLINE sixteen_bytes load(const uint8_t* from, int64_t count) const {
    if (plan.step[1] == 1 && end - from >= 16) return *(const sixteen_bytes_anywhere*)from;
    sixteen_bytes v = {};
    for (int64_t i = 0; i < count; i++) v[i] = from[i * plan.step[1]];
    return v;
  }

  // Lays out `count` pixels. Stores are of 16 channels, and what they leave behind a pixel's last is overwritten by the
  // next pixel's: the last channels go first.
  void lay_pixels(const uint8_t* from, int64_t count, int16_t* to) const {
    const int64_t channel = volume(s.input), channels = s.in_channels;
    for (int64_t first = 0; first < count; first += 16)
      for (int64_t c = (channels - 1) / 16 * 16; c >= 0; c -= 16) {
        const int64_t pixels = smaller(16, count - first);
        sixteen_bytes v[16];
        QF_UNROLL for (int i = 0; i < 16; i++)
          v[i] = c + i < channels ? load(from + (c + i) * channel + first * plan.step[1], pixels) : (sixteen_bytes){};
        transpose_bytes(v);
        QF_UNROLL for (int i = 0; i < 16; i++)
          if (i < pixels)
            *(sixteen_values_anywhere*)(to + (first + i) * channels + c) =
                __builtin_convertvector(v[i] ^ flip, sixteen_values) - zero;
      }
  }

  // Lays out `rows` rows of the group's plane of y's depth d, the first of them at row h of x.
  void lay(int64_t image, int64_t group, int64_t d, int64_t h, int64_t rows, int16_t* slab) const {
    const int64_t step = plan.step[1], width = plan.columns * s.in_channels;
    const int64_t left = smaller(divide_up(s.pads[2], step), plan.columns);
    const int64_t right = smaller(divide_up(s.input[2] + s.pads[2], step), plan.columns);
    const bool joined = s.kernel[0] == 1 && plan.step[0] == 1 && step == 1 && left == 0 && plan.columns == s.input[2];
    const uint8_t* channels = x + (image * s.groups + group) * s.in_channels * volume(s.input);
    for (int64_t row = 0; row < rows;) {
      const int64_t y = h + row * plan.step[0];
      // rows without padding follow one another in x as they do here
      const int64_t count = joined && y >= 0 && y < s.input[1] ? smaller(rows - row, s.input[1] - y) : 1;
      for (int64_t tap = 0; tap < s.kernel[0]; tap++, slab += count * width) {
        const int64_t z = d * s.strides[0] - s.pads[0] + tap * s.dilations[0];
        const bool inside = z >= 0 && z < s.input[0] && y >= 0 && y < s.input[1] && left < right;
        const int64_t before = inside ? left : plan.columns, after = inside ? plan.columns - right : 0;
        memset(slab, 0, before * s.in_channels * sizeof(int16_t));
        if (inside) {
          const uint8_t* from = channels + (z * s.input[1] + y) * s.input[2] + left * step - s.pads[2];
          lay_pixels(from, (count - 1) * plan.columns + right - left, slab + left * s.in_channels);
        }
        memset(slab + count * width - after * s.in_channels, 0, after * s.in_channels * sizeof(int16_t));
      }
      row += count;
    }
  }
};

// Sums R pixels by J vectors of channels over some runs.
template <bool VNNI, int R, int J>
__attribute__((noinline)) void tile(const int16_t* const* pixels, const Run* run, const Run* end,
                                    const uint32_t* weights, uint32_t* sums, bool add) {
  vuint c[R][J];
  QF_UNROLL for (int r = 0; r < R; r++)
    QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = add ? load_words(sums + (r * J + j) * LANES) : (vuint){};
  for (; run < end; run++) {
    const int16_t* x[R];
    QF_UNROLL for (int r = 0; r < R; r++) x[r] = pixels[r] + run->offset;
    const int64_t pairs = run->pairs;
    _Pragma("GCC unroll 2") for (int64_t k = 0; k < pairs; k++, weights += J * LANES) {
      vuint w[J];
      QF_UNROLL for (int j = 0; j < J; j++) w[j] = load_words(weights + j * LANES);
      QF_UNROLL for (int r = 0; r < R; r++)
        add_products<VNNI>(c[r], *(const pair_anywhere*)(x[r] + 2 * k) - (vuint){}, w);
    }
  }
  QF_UNROLL for (int r = 0; r < R; r++)
    QF_UNROLL for (int j = 0; j < J; j++) store_words(sums + (r * J + j) * LANES, c[r][j]);
}

template <bool VNNI, int J, int R = ROWS, class... Arguments>
QF_INLINE void run_tile(int64_t rows, Arguments... arguments) {
  if (R == 1 || rows == R)
    tile<VNNI, R, J>(arguments...);
  else if constexpr (R > 1)
    run_tile<VNNI, J, R - 1>(rows, arguments...);
}

// Writes `count` pixels of LANES channels from m on; sums: J vectors for each pixel.
void write(const ConvShape& s, const ConvQuantization& q, const ConvCall& call, const uint32_t* sums, int64_t step,
           int64_t m, int64_t lanes, int64_t at, int64_t count) {
  const int64_t row = volume(s.output), pixels = q.multipliers ? 4 : 1;  // in a word
  char* y = (char*)call.y + at * (4 / pixels);
  const Requantization requantization(q);
  vuint bias = {};
  vfloat multiplier = {};
  for (int64_t i = 0; i < lanes; i++) {
    if (call.bias) bias[i] = ((const uint32_t*)call.bias)[m + i];
    if (q.multipliers) multiplier[i] = q.multipliers[m + i];
  }
  for (int64_t first = 0; first < count; first += pixels * LANES) {
    vfloat rows[LANES];  // moved as they are, whatever they mean
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      const uint32_t* from = sums + (first + i * pixels) * step;
      vuint word = load_words(from) + bias;
      if (q.multipliers)
        word = requantization.bytes(word, load_words(from + step) + bias, load_words(from + 2 * step) + bias,
                                    load_words(from + 3 * step) + bias, multiplier);
      rows[i] = (vfloat)word;
    }
    transpose(rows);
    const int64_t bytes = smaller(4 * LANES, (count - first) * (4 / pixels));
    char* to = y + first * (4 / pixels);
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      if (i >= lanes) break;
      if (bytes == 4 * LANES)
        store_words(to + i * row * (4 / pixels), (vuint)rows[i]);
      else
        memcpy(to + i * row * (4 / pixels), &rows[i], bytes);
    }
  }
}

// One thread's part: planes from `plane` on and `rows` of their rows of y, one group, some blocks of channels.
template <bool VNNI>
void multiply(const Source& source, const ConvQuantization& q, const ConvCall& call, char* workspace, int64_t group,
              int64_t plane, int64_t planes, int64_t row, int64_t rows, int64_t block, int64_t blocks) {
  const ConvShape& s = source.s;
  const Plan& plan = source.plan;
  const Run *runs = (const Run*)(&plan + 1), *runs_end = runs + plan.runs;
  const uint32_t* packed = (const uint32_t*)((const char*)&plan + plan.header_bytes());
  packed += group * plan.packed_channels(s) * plan.depth;
  uint32_t* sums = (uint32_t*)workspace;
  int16_t* slab = (int16_t*)(sums + SUMS);
  const int64_t laid_rows = plan.laid_rows(s, rows), laid_plane = laid_rows * plan.row_size;
  for (int64_t p = 0; p < planes; p++) {
    const int64_t first = row * s.strides[1] - s.pads[1];
    source.lay((plane + p) / s.output[0], group, (plane + p) % s.output[0], first, laid_rows, slab + p * laid_plane);
  }
  const int64_t each = rows * s.output[2], pixels = planes * each;
  const int64_t chunk = divide_up(divide_up(pixels, divide_up(pixels, CHUNK)), GROUP) * GROUP;
  for (int64_t first = 0; first < pixels; first += chunk) {
    const int64_t count = smaller(chunk, pixels - first), tiles = divide_up(count, ROWS);
    const int16_t* at[CHUNK];
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
      for (const Run *run = runs, *last; run < runs_end; run = last) {
        int64_t depth = 0;
        for (last = run; last < runs_end && (last == run || depth + last->pairs <= DEPTH); last++) depth += last->pairs;
        for (int64_t i = 0; i < tiles; i++) {
          const int64_t begin = count * i / tiles, height = count * (i + 1) / tiles - begin;
          uint32_t* to = sums + begin * columns * LANES;
          if (columns == COLUMNS)
            run_tile<VNNI, COLUMNS>(height, at + begin, run, last, weights, to, run > runs);
          else
            run_tile<VNNI, 1>(height, at + begin, run, last, weights, to, run > runs);
        }
        weights += depth * columns * LANES;
      }
      for (int64_t i = 0; i < count;) {
        const int64_t p = (first + i) / each, place = (first + i) % each, length = smaller(count - i, each - place);
        const int64_t image = (plane + p) / s.output[0], depth = (plane + p) % s.output[0];
        for (int64_t j = 0; j < columns; j++) {
          const int64_t in_group = channel + j * LANES, m = group * s.out_channels + in_group;
          const int64_t y = (image * s.groups * s.out_channels + m) * volume(s.output) +
                            (depth * s.output[1] + row) * s.output[2] + place;
          write(s, q, call, sums + (i * columns + j) * LANES, columns * LANES, m,
                smaller(LANES, s.out_channels - in_group), y, length);
        }
        i += length;
      }
    }
  }
}

template <bool VNNI>
void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Plan& plan = *(const Plan*)call.weights;
  const Source source(s, plan, call, q);
  const int64_t planes = s.batch * s.output[0], blocks = plan.blocks(s);
  const int64_t workspace = SUMS * int64_t(sizeof(uint32_t)) + plan.slab_bytes(s);
  int64_t rows = plan.rows, together = plan.planes;
  auto parts = [&] { return s.groups * divide_up(planes, together) * divide_up(s.output[1], rows); };
  if (parts() < call.threads) together = divide_up(planes, divide_up(call.threads, s.groups));
  // Channels are shared where laying x out anew for each share costs little beside the arithmetic.
  const bool by_channels = s.out_channels * volume(s.kernel) >= 1024;
  if (parts() < call.threads && !by_channels)
    rows = divide_up(s.output[1], smaller(s.output[1], divide_up(call.threads, parts())));
  const int64_t splits = smaller(blocks, divide_up(call.threads, parts())), all = parts() * splits;
  const int64_t bands = divide_up(s.output[1], rows);
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t part = 0; part < all; part++) {
    const int64_t split = part % splits, band = part / splits % bands, group = part / splits / bands % s.groups;
    const int64_t plane = part / splits / bands / s.groups * together, row = band * rows;
    multiply<VNNI>(source, q, call, call.workspace + omp_get_thread_num() * workspace, group, plane,
                   smaller(together, planes - plane), row, smaller(rows, s.output[1] - row), blocks * split / splits,
                   blocks * (split + 1) / splits);
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_integer_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  const int64_t weights = s->groups * plan.packed_channels(*s) * plan.depth * int64_t(sizeof(uint32_t));
  needs->packed = size_t(plan.header_bytes() + weights);
  needs->workspace = size_t(SUMS * int64_t(sizeof(uint32_t)) + plan.slab_bytes(*s));
}

// Packed: the plan and its runs, so that calls need not think again; then the weights.
extern "C" void QF_EXPORT(conv_gemm_integer_pack)(const ConvShape* shape, const int16_t* weights, int32_t* packed) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  memcpy(packed, &plan, sizeof plan);
  Run *const runs = (Run*)((char*)packed + sizeof plan), *end = runs;
  const int64_t values = plan.run_columns * s.in_channels, pairs = divide_up(values, 2), taps = volume(s.kernel);
  for (int64_t tap = 0; tap < taps; tap += plan.run_columns) {
    const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
    const int64_t place = (kh * s.dilations[1] * s.kernel[0] + kd) * plan.columns + kw * s.dilations[2];
    for (int64_t i = 0; i < plan.pieces; i++) {
      const int64_t first = pairs * i / plan.pieces, last = pairs * (i + 1) / plan.pieces;
      *end++ = {place * s.in_channels + 2 * first, last - first, tap, 2 * first};
    }
  }
  packed = (int32_t*)((char*)packed + plan.header_bytes());
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t first = 0; first < s.out_channels; first += BLOCK)
      for (const Run* run = runs; run < end; run++)
        for (int64_t k = 0; k < run->pairs; k++)
          for (int64_t m = first; m < smaller(first + BLOCK, plan.packed_channels(s)); m++) {
            auto weight = [&](int64_t value) {
              if (m >= s.out_channels || value >= values) return uint32_t(0);
              const int64_t tap = run->tap + value / s.in_channels, channel = value % s.in_channels;
              return uint32_t(weights[((group * s.out_channels + m) * s.in_channels + channel) * taps + tap]) & 0xFFFF;
            };
            const int64_t value = run->value + 2 * k;
            *packed++ = int32_t(weight(value) | weight(value + 1) << 16);
          }
}

extern "C" void QF_EXPORT(conv_gemm_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
#if defined(QF_ISA_V4)
  if (__builtin_cpu_supports("avx512vnni")) {
    share<true>(*s, *q, *call);
    return;
  }
#endif
  share<false>(*s, *q, *call);
}
