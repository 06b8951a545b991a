// Integer convolution of 3x3 by minimal filtering, exact in int32: F(M x M, 3 x 3) with M = 2 or 4 (Winograd, "Arithmetic
// complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016) in whole
// numbers.
//
// The points are 0, 1, -1, with 2 and -2 for M = 4, and infinity. Rows of the weights' transform are multiplied by their
// denominators, so that transformed weights are whole, below 2^14 where weights are in -255 to 255; transformed x is below
// 10 * 10 * 255 < 2^15. So both are int16, as without transforms (Pairs, conv_words.h), and products take a fourth of
// the multiplications, or 4/9. What comes out of the transform back is y times an odd number and a power of two, modulo 2^32. The
// odd number is taken off by its inverse modulo 2^32, the power by a shift, both exactly, where the sum without its bias lies in
// 2^(31 - SHIFT) either way: the caller sees to that (cpu/conv.py).
//
// For a band of rows of tiles: x is laid out with its channels last, padding as zeros (conv_laid.h), and transformed, as
// [point][tile][channel]. For each block of output channels and each point a matrix product over channels on the register tile
// of the other integer kernels, then the transform back, bias and requantisation. A band has so many tiles that transformed x and the
// sums of a block stay in the second-level cache, through which the weights stream. What limits it is the multiplications
// where there are many tiles, and reading the weights, 36 or 16 words for nine, where there are few.
//
// Packed weights: (group, block, point, word, channel). Threads share groups, bands, and blocks of channels where bands are few.
#include <omp.h>

#include "conv_laid.h"

namespace {

constexpr int64_t LAID_BYTES = 192 << 10;   // of transformed x that stay in the second-level cache beside sums and weights
constexpr int64_t FEWEST = 2 * ROWS;        // tiles of a band, which weights are read for

constexpr int HALVES = 2 * LANES;  // channels of a vector of int16
typedef int16_t vhalves __attribute__((vector_size(4 * LANES)));
typedef int16_t vhalves_anywhere __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

// The transforms along one axis. forth: of x; weights; back: to multiples of y, where 2^SHIFT[i] is the power of two in the factor
// of y[i], and INVERSE that of its odd part modulo 2^32.
template <int M>
struct Filter;

template <>
struct Filter<2> {
  static constexpr int SHIFT[2] = {1, 1};
  static constexpr uint32_t INVERSE = 1;
  template <class V>
  QF_INLINE static void forth(const V (&x)[4], V (&to)[4]) {
    to[0] = x[0] - x[2], to[1] = x[1] + x[2], to[2] = x[2] - x[1], to[3] = x[1] - x[3];
  }
  static void weights(const int (&w)[3], int (&to)[4]) {
    to[0] = 2 * w[0], to[1] = w[0] + w[1] + w[2], to[2] = w[0] - w[1] + w[2], to[3] = 2 * w[2];
  }
  QF_INLINE static void back(const vuint (&sums)[4], vuint (&y)[2]) {
    y[0] = sums[0] + sums[1] + sums[2], y[1] = sums[1] - sums[2] - sums[3];
  }
};

template <>
struct Filter<4> {
  static constexpr int SHIFT[4] = {3, 2, 1, 1};  // of 24, 12, 6 and 6
  static constexpr uint32_t INVERSE = 0xAAAAAAAB;  // of 3
  template <class V>
  QF_INLINE static void forth(const V (&x)[6], V (&to)[6]) {
    const V a = x[4] - 4 * x[2], b = x[3] - 4 * x[1], c = x[4] - x[2], d = 2 * (x[3] - x[1]);
    to[0] = 4 * (x[0] - x[2]) + c, to[1] = a + b, to[2] = a - b, to[3] = c + d, to[4] = c - d;
    to[5] = 4 * (x[1] - x[3]) + x[5] - x[3];
  }
  static void weights(const int (&w)[3], int (&to)[6]) {
    to[0] = 6 * w[0], to[1] = -w[0] - w[1] - w[2], to[2] = -w[0] + w[1] - w[2];
    to[3] = w[0] + 2 * w[1] + 4 * w[2], to[4] = w[0] - 2 * w[1] + 4 * w[2], to[5] = 6 * w[2];
  }
  QF_INLINE static void back(const vuint (&sums)[6], vuint (&y)[4]) {
    const vuint even = sums[1] + sums[2], odd = sums[1] - sums[2], far = sums[3] + sums[4], turn = sums[3] - sums[4];
    y[0] = sums[0] + 4 * even + far, y[1] = 2 * odd + turn, y[2] = even + far, y[3] = odd + 2 * turn + sums[5];
  }
};

template <int M>
struct Minimal {
  static constexpr int POINTS = M + 2, ALL = POINTS * POINTS;
  ConvShape s;  // y's extents whole tiles
  Plan<Pairs> laid;
  int64_t across, down;    // tiles of a plane
  int64_t channels;        // of transformed x, whole vectors
  int64_t words, pieces;   // of the depth, whose weights stay in the first-level cache
  int64_t planes, rows;    // of a band; rows of tiles
  int64_t point, sums;     // from a point to the next: values of x; words of sums

  static ConvShape whole(ConvShape s) {
    for (int i = 1; i < 3; i++) s.output[i] = divide_up(s.output[i], M) * M;
    return s;
  }
  explicit Minimal(const ConvShape& of) : s(whole(of)), laid(s) {
    across = s.output[2] / M, down = s.output[1] / M;
    channels = divide_up(s.in_channels, HALVES) * HALVES;
    words = divide_up(s.in_channels, 2), pieces = divide_up(words, DEPTH);
    const int64_t fitting = LAID_BYTES / (ALL * channels * 2), most = fitting < FEWEST ? FEWEST : fitting;
    planes = smaller(most / (across * down), s.batch * s.output[0]);
    rows = planes ? down : most / across;
    rows = rows < 1 ? 1 : divide_up(down, divide_up(down, rows));
    if (!planes) planes = 1;
    // A cache line more, lest all points be a power of two apart and meet in a few sets of the cache.
    point = tiles() * channels + 32, sums = tiles() * BLOCK + 16;
  }
  QF_INLINE int64_t tiles() const { return planes * rows * across; }
  QF_INLINE int64_t blocks() const { return divide_up(s.out_channels, BLOCK); }
  QF_INLINE int64_t packed_channels() const { return divide_up(s.out_channels, LANES) * LANES; }
  static int64_t header_bytes() { return divide_up(int64_t(sizeof(Minimal)), 64) * 64; }

  // The parts of a workspace, in bytes.
  QF_INLINE int64_t slab_bytes() const { return divide_up((laid.laid_rows(s, M * rows) * laid.row_size + HALVES + SLACK) * 2, 64) * 64; }
  QF_INLINE int64_t transformed_bytes() const { return ALL * point * 2; }
  QF_INLINE int64_t sums_bytes() const { return ALL * sums * 4; }
  QF_INLINE int64_t y_bytes() const { return (rows * across * M * M + GROUP) * BLOCK * 4; }
  QF_INLINE int64_t tile_bytes() const { return divide_up(tiles() * int64_t(sizeof(void*)), 64) * 64; }
  QF_INLINE int64_t workspace() const { return slab_bytes() + transformed_bytes() + sums_bytes() + y_bytes() + tile_bytes(); }
};

// Transforms a row of tiles, whose first value of the slab is *slab.
template <int M>
void transform(const Minimal<M>& plan, const int16_t* slab, int16_t* to) {
  constexpr int POINTS = M + 2;
  for (int64_t tile = 0; tile < plan.across; tile++, slab += M * plan.s.in_channels, to += plan.channels)
    for (int64_t c = 0; c < plan.channels; c += HALVES) {
      vhalves columns[POINTS][POINTS];
      QF_UNROLL for (int w = 0; w < POINTS; w++) {
        vhalves x[POINTS];
        QF_UNROLL for (int h = 0; h < POINTS; h++)
          x[h] = *(const vhalves_anywhere*)(slab + h * plan.laid.row_size + w * plan.s.in_channels + c);
        Filter<M>::forth(x, columns[w]);
      }
      QF_UNROLL for (int h = 0; h < POINTS; h++) {
        vhalves x[POINTS], made[POINTS];
        QF_UNROLL for (int w = 0; w < POINTS; w++) x[w] = columns[w][h];
        Filter<M>::forth(x, made);
        QF_UNROLL for (int w = 0; w < POINTS; w++) *(vhalves_anywhere*)(to + (h * POINTS + w) * plan.point + c) = made[w];
      }
    }
}

// A tile of y for a vector of channels: y[h][w] is row h, column w.
template <int M>
QF_INLINE void transform_back(const uint32_t* sums, int64_t point, vuint bias, vuint (&y)[M][M]) {
  constexpr int POINTS = M + 2;
  vuint rows[M][POINTS];
  QF_UNROLL for (int w = 0; w < POINTS; w++) {
    vuint of_column[POINTS], made[M];
    QF_UNROLL for (int h = 0; h < POINTS; h++) of_column[h] = load_words(sums + (h * POINTS + w) * point);
    Filter<M>::back(of_column, made);
    QF_UNROLL for (int h = 0; h < M; h++) rows[h][w] = made[h];
  }
  QF_UNROLL for (int h = 0; h < M; h++) {
    Filter<M>::back(rows[h], y[h]);
    QF_UNROLL for (int w = 0; w < M; w++) {
      constexpr uint32_t INVERSE = Filter<M>::INVERSE * Filter<M>::INVERSE;
      const vint shifted = (vint)(y[h][w] * INVERSE) >> (Filter<M>::SHIFT[h] + Filter<M>::SHIFT[w]);
      y[h][w] = (vuint)shifted + bias;
    }
  }
}

// One thread's part: planes from `plane` on and `rows` of their rows of tiles from `row` on, one group, some blocks of channels.
template <int M>
void multiply(const Minimal<M>& plan, const Source<Pairs>& source, const ConvShape& s, const ConvQuantization& q,
              const ConvCall& call, char* workspace, int64_t group, int64_t plane, int64_t planes, int64_t row, int64_t rows,
              int64_t block, int64_t blocks) {
  constexpr int ALL = Minimal<M>::ALL;
  auto slab = (int16_t*)workspace;
  auto transformed = (int16_t*)(workspace + plan.slab_bytes());
  auto sums = (uint32_t*)((char*)transformed + plan.transformed_bytes());
  auto results = (uint32_t*)((char*)sums + plan.sums_bytes());
  auto at = (const int16_t**)((char*)results + plan.y_bytes());
  const int64_t tiles = planes * rows * plan.across, laid_rows = plan.laid.laid_rows(plan.s, M * rows);
  for (int64_t p = 0; p < planes; p++) {
    source.lay((plane + p) / s.output[0], group, (plane + p) % s.output[0], row * M - s.pads[1], laid_rows, slab);
    for (int64_t h = 0; h < rows; h++)
      transform<M>(plan, slab + h * M * plan.laid.row_size, transformed + (p * rows + h) * plan.across * plan.channels);
  }
  for (int64_t tile = 0; tile < tiles; tile++) at[tile] = transformed + tile * plan.channels;
  const uint32_t* packed = (const uint32_t*)((const char*)&plan + plan.header_bytes());
  packed += group * plan.packed_channels() * ALL * plan.words;
  const uint32_t zeros[BLOCK] = {};
  const int64_t height = smaller(M * rows, s.output[1] - row * M), width = s.output[2], each = height * width;
  for (int64_t b = block; b < blocks; b++) {
    const int64_t channel = b * BLOCK, columns = divide_up(smaller(BLOCK, s.out_channels - channel), LANES);
    const uint32_t* weights = packed + channel * ALL * plan.words;
    for (int64_t i = 0; i < ALL; i++)
      for (int64_t piece = 0; piece < plan.pieces; piece++) {
        const int64_t first = plan.words * piece / plan.pieces, last = plan.words * (piece + 1) / plan.pieces;
        const Run run = {i * plan.point + 2 * first, last - first, 0, 0};
        const int64_t passes = divide_up(tiles, ROWS);
        // register tiles of two heights at most
        for (int64_t taller = 1, tile = 0; taller >= 0; taller--) {
          const int64_t tall = tiles / passes + taller, number = taller ? tiles % passes : passes - tiles % passes;
          uint32_t* const end = sums + i * plan.sums + tile * columns * LANES;
          const Sums to = piece ? Sums{end, columns * LANES, end} : Sums{zeros, 0, end};
          if (number && columns == COLUMNS)
            sum_tiles<Pairs, COLUMNS>(tall, at + tile, number, &run, &run + 1, weights, to);
          else if (number)
            sum_tiles<Pairs, 1>(tall, at + tile, number, &run, &run + 1, weights, to);
          tile += tall * number;
        }
        weights += run.words * columns * LANES;
      }
    const int64_t m = group * s.out_channels + channel, all = s.groups * s.out_channels;
    for (int64_t p = 0; p < planes; p++) {
      for (int64_t j = 0; j < columns; j++) {
        vuint bias = {};
        if (call.bias)
          for (int64_t i = 0; i < smaller(LANES, s.out_channels - channel - j * LANES); i++)
            bias[i] = ((const uint32_t*)call.bias)[m + j * LANES + i];
        const uint32_t* from = sums + (p * rows * plan.across * columns + j) * LANES;
        for (int64_t h = 0; h < height; h += M)
          for (int64_t w = 0; w < width; w += M, from += columns * LANES) {
            vuint y[M][M];
            transform_back<M>(from, plan.sums, bias, y);
            uint32_t* to = results + ((h * width + w) * columns + j) * LANES;
            QF_UNROLL for (int i = 0; i < M; i++)
              QF_UNROLL for (int k = 0; k < M; k++)
                if (h + i < height && w + k < width) store_words(to + (i * width + k) * columns * LANES, y[i][k]);
          }
      }
      const int64_t image = (plane + p) / s.output[0], depth = (plane + p) % s.output[0];
      const int64_t place = (depth * s.output[1] + row * M) * width;
      if (s.y_blocked)
        write_pixels(q, call, results, m, smaller(BLOCK, s.out_channels - channel), (image * volume(s.output) + place) * all + m,
                     each, all);
      for (int64_t j = 0; j < columns && !s.y_blocked; j++)
        write_planes(s, q, call, results + j * LANES, columns * LANES, m + j * LANES,
                     smaller(LANES, s.out_channels - channel - j * LANES),
                     (image * all + m + j * LANES) * volume(s.output) + place, each);
    }
  }
}

template <int M>
void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Minimal<M>& plan = *(const Minimal<M>*)call.weights;
  const Source<Pairs> source(plan.s, plan.laid, call, q);
  const int64_t planes = s.batch * s.output[0], blocks = plan.blocks();
  const int64_t bands = divide_up(plan.down, plan.rows), parts = s.groups * divide_up(planes, plan.planes) * bands;
  // Sharing channels transforms x anew for each share, which costs little beside the products of many of them.
  const int64_t splits = parts < call.threads ? smaller(blocks, divide_up(call.threads, parts)) : 1;
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t part = 0; part < parts * splits; part++) {
    const int64_t split = part % splits, band = part / splits % bands, group = part / splits / bands % s.groups;
    const int64_t plane = part / splits / bands / s.groups * plan.planes, row = band * plan.rows;
    multiply<M>(plan, source, s, q, call, call.workspace + omp_get_thread_num() * plan.workspace(), group, plane,
                smaller(plan.planes, planes - plane), row, smaller(plan.rows, plan.down - row), blocks * split / splits,
                blocks * (split + 1) / splits);
  }
}

template <int M>
void needs_of(const ConvShape& s, ConvNeeds* needs) {
  const Minimal<M> plan(s);
  needs->packed = size_t(plan.header_bytes() + s.groups * plan.packed_channels() * plan.ALL * plan.words * 4);
  needs->workspace = size_t(plan.workspace());
}

// Packed: the plan, so that calls need not think again; then the weights.
template <int M>
void pack_all(const ConvShape& s, const int16_t* weights, int32_t* packed) {
  constexpr int POINTS = M + 2;
  const Minimal<M> plan(s);
  memset(packed, 0, plan.header_bytes() + s.groups * plan.packed_channels() * plan.ALL * plan.words * 4);
  memcpy((void*)packed, &plan, sizeof plan);
  auto words = (uint32_t*)((char*)packed + plan.header_bytes());
  for (int64_t m = 0; m < s.groups * s.out_channels; m++) {
    const int64_t group = m / s.out_channels, channel = m % s.out_channels, block = channel / BLOCK * BLOCK;
    const int64_t width = smaller(BLOCK, plan.packed_channels() - block);
    uint32_t* to = words + (group * plan.packed_channels() + block) * plan.ALL * plan.words + channel - block;
    for (int64_t c = 0; c < s.in_channels; c++, weights += 9) {
      int columns[3][POINTS];
      for (int w = 0; w < 3; w++) Filter<M>::weights({weights[w], weights[3 + w], weights[6 + w]}, columns[w]);
      for (int h = 0; h < POINTS; h++) {
        int made[POINTS];
        Filter<M>::weights({columns[0][h], columns[1][h], columns[2][h]}, made);
        for (int w = 0; w < POINTS; w++)
          to[((h * POINTS + w) * plan.words + c / 2) * width] |= Pairs::pack(int16_t(made[w]), c % 2);
      }
    }
  }
}

}  // namespace

#define QF_MINIMAL(name, M)                                                                                       \
  extern "C" void QF_EXPORT(name##_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<M>(*s, needs); }       \
  extern "C" void QF_EXPORT(name##_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {           \
    pack_all<M>(*s, weights, packed);                                                                             \
  }                                                                                                               \
  extern "C" void QF_EXPORT(name)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {          \
    share<M>(*s, *q, *call);                                                                                      \
  }
QF_MINIMAL(conv_winograd2_integer, 2)
QF_MINIMAL(conv_winograd4_integer, 4)
