// Depthwise convolution (one input channel a group) on plain NCHW. Vectors lie along a row of y.
//
// 3x3 kernels with the same stride, 1 or 2, along both axes are computed from x itself, a band of rows that stays in
// the first-level cache at a time, down the band at one vector of columns after the other. Each line is loaded once
// for the output rows that it belongs to, whose sums stay in registers with all weights. A vector of outputs takes
// 9 multiply-adds for 3 loads with stride 1. With stride 2 an output has two neighbouring lanes, one for the first tap
// of a row and half of the second, one for the other half and the third, which are added at the end: 12 multiply-adds
// and 3 shuffles for 8 loads, and x need not be parted into even and odd columns. Rows narrower than a vector of a whole
// cache line are loaded once and shifted: 9 multiply-adds and 2 shuffles for a load, with stride 2 6 shuffles for 4.
// Vectors that hang over an end of a row are loaded under a mask, which is an operation more, where outputs need zeros
// there; lines above and below the plane are read from a row of zeros. Planes that no cache holds are fetched a band ahead,
// y too.
//
// Down a column every line is loaded once, but memory is read in pieces of a vector. Where vectors are shorter than a cache
// line and rows long or planes far, two rows of y go along the width instead: 12 loads for two vectors (20 with stride 2), and
// x from end to end, so that the processor fetches it ahead.
//
// Other square kernels of 3, 5 and 7 are computed in tiles of ROWS rows by one vector of columns, a band of rows at a
// time that is copied with its padding into the first-level cache (conv_padded.h). A tile goes through the columns of
// the kernel: one column's weights stay in registers, each line is loaded once and meets every output row that it
// belongs to. (One load for several rows is the register blocking of Zhang, Lo and Lu, "High performance depthwise and
// pointwise convolutions on mobile devices", 2020.)
//
// The rest, dilations along the height and volumes take a plain loop over the taps for a row of y, VECTORS vectors of
// it together. Threads share the channels. Weights are read as they are: (M, 1, kernel).
#include "conv_epilogue.h"
#include "conv_padded.h"

namespace {

constexpr int ROWS = 7;  // of a tile: divides the planes of most networks; with 7 weights and a line, 15 registers
constexpr int VECTORS = 8;
constexpr int64_t BAND_FLOATS = 3072;  // 12 KiB, so that y and what is copied next find room beside it
constexpr int64_t DIRECT_BAND_FLOATS = 4096;  // the same where x is not copied
constexpr int64_t FAR_FLOATS = 1 << 21;       // of x and y from which they are fetched ahead: 8 MiB
constexpr int ROWS_ALONG = 2;                 // that are computed along the width together
constexpr int64_t NEAR_FLOATS = 1 << 18, FAR_ALONG_FLOATS = 5 << 18;  // of x and y: 1 and 5 MiB

QF_INLINE bool in_tiles(const ConvShape& s) {
  const bool flat = s.kernel[0] == 1 && s.input[0] == 1 && s.output[0] == 1 && s.strides[0] == 1 && s.pads[0] == 0;
  const int64_t k = s.kernel[1];
  return flat && s.dilations[1] == 1 && k == s.kernel[2] && (k == 3 || k == 5 || k == 7) && s.strides[1] <= 2 &&
         s.strides[2] <= 2;
}

// How the rows of x go through the buffer.
struct Bands {
  int64_t rows, lines;  // of y and of x in one band
  QF_INLINE explicit Bands(const ConvShape& s, int64_t pitch) {
    if (!in_tiles(s)) {
      rows = 1;
      lines = s.kernel[0] * s.kernel[1];
      return;
    }
    rows = divide_up(smaller(BAND_FLOATS / (pitch * s.strides[1]), s.output[1]), ROWS) * ROWS;
    if (rows == 0) rows = ROWS;
    lines = (rows - 1) * s.strides[1] + s.kernel[1];
  }
};

// One channel of one image.
struct Plane {
  const float *x, *weights;
  float bias;
  const float* residual;  // null without
  float* y;
  bool followed;  // by another one of y that is still to be written
};

// What goes into y at p. spills: whether the lanes that do not exist may be written too.
QF_INLINE void write(vfloat sum, float* p, const float* residual, const Epilogue& epilogue, int lanes, bool spills) {
  if (residual) sum += lanes == LANES ? load(residual) : load_first(residual, lanes);
  if (epilogue.clamps) sum = epilogue.clamp(sum);
  if (spills || lanes == LANES)
    store(p, sum);
  else
    store_first(p, sum, lanes);
}

// What becomes of a vector of sums: it is stored, or clamped first, or all that `write` does.
enum Finish { STORED, CLAMPED, WRITTEN };

// All planes of a call.
struct Planes {
  const ConvShape& s;
  const ConvCall& call;
  const Epilogue& epilogue;
  int64_t channels = s.groups * s.out_channels, taps = volume(s.kernel);
  int64_t x_size = volume(s.input), y_size = volume(s.output);

  // Plane i, of output channel m.
  QF_INLINE Plane plane(int64_t i, int64_t m, bool followed) const {
    return {(const float*)call.x + i / s.out_channels * x_size,
            (const float*)call.weights + m * taps,
            call.bias ? ((const float*)call.bias)[m] : 0.0f,
            call.residual ? (const float*)call.residual + i * y_size : nullptr,
            (float*)call.y + i * y_size,
            followed};
  }
};

// Whether a 3x3 kernel can read x itself: of the lines above a plane it reads only what comes before the first row.
QF_INLINE bool is_direct(const ConvShape& s) {
  return in_tiles(s) && s.kernel[1] == 3 && s.dilations[2] == 1 && s.strides[1] == s.strides[2] &&
         s.pads[1] <= 3 - s.strides[1];
}

// What is loaded under a mask, which is an operation more: nothing, few vectors, or all.
enum Masked { NONE, FEW, ALL };
template <Masked MASKED>
struct Masks {};

QF_INLINE lanemask lanes_inside(int64_t column, int64_t width, int64_t lanes = LANES) {
  return lanes_between(clamped(-column, lanes), clamped(width - column, lanes));
}

// What a row of a 3x3 kernel reads of a line for a vector of outputs, whose first tap is at `column`; columns outside the line
// are zero. With stride 1 a vector for each tap, with stride 2 two pairs of vectors, the second a column further, that
// `alternating` weights are for.
template <int STRIDE, bool SHIFTED>
struct RowTaps {
  static constexpr int LOADS = 4 - STRIDE, SUMS = STRIDE;
  int64_t column;
  lanemask inside[LOADS][STRIDE];

  QF_INLINE RowTaps(int64_t column, int64_t width) : column(column) {
    QF_UNROLL for (int t = 0; t < LOADS; t++)
      QF_UNROLL for (int v = 0; v < STRIDE; v++) inside[t][v] = lanes_inside(column + t + v * LANES, width);
  }
  // Whether so many outputs need zeros in few vectors alone: the first, and with stride 1 the last. The others load what x
  // has beside the line, if it is `roomy`.
  QF_INLINE static bool in_few(int64_t column, int lanes, int64_t width, bool roomy) {
    return roomy && column >= -1 && column + (lanes - 1) * STRIDE + STRIDE < width;
  }
  // first: where a line has `column`.
  template <Masked MASKED>
  QF_INLINE void load_line(Masks<MASKED>, const float* first, vfloat (&x)[LOADS][SUMS]) const {
    QF_UNROLL for (int t = 0; t < LOADS; t++)
      QF_UNROLL for (int v = 0; v < STRIDE; v++) {
        const bool outer = (t == 0 && v == 0) || (STRIDE == 1 && t == 2);
        x[t][v] = MASKED == ALL || (MASKED == FEW && outer) ? load_masked(first + t + v * LANES, inside[t][v])
                                                            : load(first + t + v * LANES);
      }
  }
};

// The lanes from SHIFT on of a, then the first ones of b.
template <int SHIFT>
QF_INLINE vfloat shifted(vfloat a, vfloat b) {
  vint places;
  QF_UNROLL for (int i = 0; i < LANES; i++) places[i] = i + SHIFT;
  return __builtin_shuffle(a, b, places);
}

// The same for rows of fewer outputs than a vector has lanes, where a vector is a cache line: those that do not begin with one,
// which here are nearly all, take twice as long to load. So every value is loaded once, and taps come out of registers, a
// vector for each with either stride.
template <int STRIDE>
struct RowTaps<STRIDE, true> {
  static constexpr int LOADS = 3, SUMS = 1, BEHIND = 3 - STRIDE;  // values behind the vectors
  int64_t column;
  lanemask inside[STRIDE], behind;

  QF_INLINE RowTaps(int64_t column, int64_t width) : column(column) {
    QF_UNROLL for (int v = 0; v < STRIDE; v++) inside[v] = lanes_inside(column + v * LANES, width);
    behind = lanes_inside(column + STRIDE * LANES, width, BEHIND);
  }
  // Whether outputs need none of the values behind; with stride 2 the first is at column -1 and needs the only zero.
  QF_INLINE static bool in_few(int64_t column, int lanes, int64_t width, bool roomy) {
    return STRIDE == 1 ? lanes <= LANES - BEHIND : roomy && column == -1 && lanes * STRIDE <= width;
  }
  template <Masked MASKED>
  QF_INLINE void load_line(Masks<MASKED>, const float* first, vfloat (&x)[LOADS][SUMS]) const {
    const vfloat zero = {};
    if constexpr (STRIDE == 1) {
      x[0][0] = load_masked(first, inside[0]);
      const vfloat last = MASKED == ALL ? load_masked(first + LANES, behind) : zero;
      x[1][0] = shifted<1>(x[0][0], last);
      x[2][0] = shifted<2>(x[0][0], last);
    } else if constexpr (MASKED == ALL) {
      const vfloat a = load_masked(first, inside[0]), b = load_masked(first + LANES, inside[1]);
      x[0][0] = even_lanes(a, b);
      x[1][0] = odd_lanes(a, b);
      x[2][0] = shifted<1>(x[0][0], load_masked(first + 2 * LANES, behind));
    } else {
      const vfloat a = load(first + 1), b = load(first + 1 + LANES);
      x[1][0] = even_lanes(a, b);
      x[2][0] = odd_lanes(a, b);
      x[0][0] = shifted<LANES - 1>(zero, x[2][0]);
    }
  }
};

// a in even lanes and b in odd ones.
QF_INLINE vfloat alternating(float a, float b) {
  vint odd;
  QF_UNROLL for (int i = 0; i < LANES; i++) odd[i] = -(i % 2);
  return select(odd, broadcast(b), broadcast(a));
}

// The sums of pairs of neighbours in a, then in b.
QF_INLINE vfloat pair_sums(vfloat a, vfloat b) {
  return in_order(merge_fours<0, 2, 0, 2, false>(a, b) + merge_fours<1, 3, 1, 3, false>(a, b));
}

// The weights of a plane as they meet what RowTaps loads, and the bias that sums begin with.
template <class Taps>
struct TapWeights {
  vfloat rows[3][Taps::LOADS], bias;

  QF_INLINE explicit TapWeights(const Plane& plane) {
    QF_UNROLL for (int k = 0; k < 3; k++) {
      const float* w = plane.weights + 3 * k;
      if constexpr (Taps::SUMS == 1) {
        QF_UNROLL for (int t = 0; t < 3; t++) rows[k][t] = broadcast(w[t]);
      } else {
        rows[k][0] = alternating(w[0], 0.5f * w[1]);
        rows[k][1] = alternating(0.5f * w[1], w[2]);
      }
      QF_UNROLL for (int t = 0; t < Taps::LOADS; t++) settle(rows[k][t]);
    }
    bias = Taps::SUMS == 1 ? broadcast(plane.bias) : alternating(plane.bias, 0.0f);
  }
};

// The planes first to last of 3x3 kernels from x itself. followed: whether more of them are written later. zeros: a
// row of them.
template <int STRIDE, bool SHIFTED, Finish FINISH>
__attribute__((noinline)) void convolve_directly(const Planes& planes, int64_t first, int64_t last, bool followed,
                                                 const float* zeros) {
  typedef RowTaps<STRIDE, SHIFTED> Taps;
  constexpr int LOADS = Taps::LOADS, SUMS = Taps::SUMS;
  const ConvShape& s = planes.s;
  const Epilogue& epilogue = planes.epilogue;
  const vfloat low = epilogue.low, high = epilogue.high;
  const int64_t width = s.output[2], height = s.output[1], x_width = s.input[2], x_height = s.input[1];
  const int lanes = int(smaller(LANES, width));
  const int64_t band = DIRECT_BAND_FLOATS / (x_width * STRIDE) + 4;
  const bool far = s.batch * planes.channels * (planes.x_size + planes.y_size) > FAR_FLOATS;
  const int64_t rows_inside = (x_height + s.pads[1] - 3 + STRIDE) / STRIDE;  // that read no line below the plane
  const int64_t columns_inside = x_width - (LANES - 1) * STRIDE - 3;  // first taps from which vectors are all inside
  Taps edges[2] = {{-s.pads[2], x_width}, {(width - LANES) * STRIDE - s.pads[2], x_width}};
  int64_t m = first % planes.channels;
  for (int64_t i = first; i < last; i++) {
    const Plane plane = planes.plane(i, m, i + 1 < last || followed);
    if (++m == planes.channels) m = 0;
    // Whether vectors that hang over a line's end read x, if not the line.
    const bool roomy = (s.batch * planes.channels - 1 - i) * planes.x_size >= 2 * STRIDE * LANES;
    const TapWeights<Taps> weights(plane);
    const vfloat bias = weights.bias;
    for (int64_t top = 0; top < height; top += band) {
      const int64_t bottom = smaller(top + band, height);
      const auto go_down = [&](int64_t column, const Taps& taps, auto masks) __attribute__((always_inline)) {
        int64_t row = top, at = row * STRIDE - s.pads[1];
        const float *from = plane.x + at * x_width + taps.column, *nothing = zeros + taps.column;
        float* y = plane.y + row * width + column;
        vfloat x[LOADS][SUMS];
        const auto next_line = [&](bool inside) __attribute__((always_inline)) {
          taps.load_line(masks, inside || (at >= 0 && at < x_height) ? from : nothing, x);
          at++;
          from += x_width;
        };
        const auto add = [&](int k, vfloat (&sum)[SUMS]) __attribute__((always_inline)) {
          QF_UNROLL for (int t = 0; t < LOADS; t++)
            QF_UNROLL for (int v = 0; v < SUMS; v++) sum[v] += weights.rows[k][t] * x[t][v];
        };
        const auto begin = [&](vfloat (&sum)[SUMS]) __attribute__((always_inline)) {
          QF_UNROLL for (int v = 0; v < SUMS; v++) sum[v] = bias;
          add(0, sum);
        };
        const auto finish = [&](const vfloat (&sum)[SUMS]) __attribute__((always_inline)) {
          const vfloat v = SUMS == 1 ? sum[0] : pair_sums(sum[0], sum[SUMS - 1]);
          if constexpr (FINISH == WRITTEN)
            write(v, y, plane.residual ? plane.residual + (y - plane.y) : nullptr, epilogue, lanes,
                  plane.followed || (height - row) * width >= LANES);
          else
            store(y, FINISH == CLAMPED ? at_most(at_least(v, low), high) : v);
          y += width;
        };
        vfloat sum[SUMS], later[SUMS];  // of this row, and with stride 1 of the next
        next_line(false);
        begin(sum);
        if (STRIDE == 1) {
          next_line(false);
          add(1, sum);
          begin(later);
        }
        const auto rows_until = [&](int64_t end, bool inside) __attribute__((always_inline)) {
          if constexpr (STRIDE == 1) {
#pragma GCC unroll 2
            for (; row < end; row++) {
              next_line(inside);
              add(2, sum);
              finish(sum);
              add(1, later);
              sum[0] = later[0];
              begin(later);
            }
          } else {
#pragma GCC unroll 2
            for (; row < end; row++) {
              next_line(inside);
              add(1, sum);
              next_line(inside);
              add(2, sum);
              finish(sum);
              begin(sum);
            }
          }
        };
        rows_until(smaller(bottom, rows_inside), true);
        rows_until(bottom, false);
      };
      // What follows this band in memory, in equal parts.
      const int64_t x_part = (bottom - top) * STRIDE * STRIDE * LANES, y_part = (bottom - top) * LANES;
      const float* x_ahead = plane.x + (top + band) * STRIDE * x_width;
      const float* y_ahead = plane.y + (top + band) * width;
      for (int64_t next = 0; next < width; next += LANES, x_ahead += x_part, y_ahead += y_part) {
        if (far) {
          for (int64_t k = 0; k < x_part; k += 16) __builtin_prefetch(x_ahead + k);
          for (int64_t k = 0; k < y_part; k += 16) __builtin_prefetch(y_ahead + k);
        }
        const int64_t column = next + LANES <= width || width < LANES ? next : width - LANES;
        const int64_t from = column * STRIDE - s.pads[2];
        Taps& taps = edges[column > 0];
        if (taps.column != from) taps = Taps(from, x_width);
        if (!SHIFTED && from >= 0 && from <= columns_inside)
          go_down(column, taps, Masks<NONE>{});
        else if (Taps::in_few(from, lanes, x_width, roomy))
          go_down(column, taps, Masks<FEW>{});
        else
          go_down(column, taps, Masks<ALL>{});
      }
    }
    if (epilogue.later) epilogue.activate_row(plane.y, planes.y_size);
  }
}

// Whether rows are so long, or planes so far, that going along rows is faster than down columns (measured on AVX2): lines are
// loaded more often, but memory is read from end to end.
QF_INLINE bool goes_along_rows(const Planes& planes) {
  const ConvShape& s = planes.s;
  const int64_t width = s.output[2], floats = s.batch * planes.channels * (planes.x_size + planes.y_size);
  if (LANES == 16 || s.output[1] < ROWS_ALONG) return false;
  return s.strides[2] == 2 ? width >= 24 : width >= 80 || (width >= 56 && floats > NEAR_FLOATS);
}

// The planes first to last, along ROWS_ALONG rows of y at a time, which share the lines between them. Rows hold a vector and
// more; the last rows overlap the ones before.
template <int STRIDE, Finish FINISH>
__attribute__((noinline)) void convolve_along_rows(const Planes& planes, int64_t first, int64_t last, const float* zeros) {
  typedef RowTaps<STRIDE, false> Taps;
  constexpr int LOADS = Taps::LOADS, SUMS = Taps::SUMS, LINES = (ROWS_ALONG - 1) * STRIDE + 3;
  constexpr int NEW_LINES = ROWS_ALONG * STRIDE;  // that the rows before have not read
  const ConvShape& s = planes.s;
  const Epilogue& epilogue = planes.epilogue;
  const vfloat low = epilogue.low, high = epilogue.high;
  const int64_t width = s.output[2], height = s.output[1], x_width = s.input[2], x_height = s.input[1], pad = s.pads[2];
  const bool far = s.batch * planes.channels * (planes.x_size + planes.y_size) > FAR_ALONG_FLOATS;
  const int64_t columns_inside = x_width - (LANES - 1) * STRIDE - 3;  // first taps from which vectors are all inside
  Taps edges[2] = {{-pad, x_width}, {(width - LANES) * STRIDE - pad, x_width}};
  for (int64_t i = first; i < last; i++) {
    const Plane plane = planes.plane(i, i % planes.channels, true);
    const bool roomy = (s.batch * planes.channels - 1 - i) * planes.x_size >= 2 * STRIDE * LANES;
    const TapWeights<Taps> weights(plane);
    const vfloat bias = weights.bias;
    for (int64_t next = 0; next < height; next += ROWS_ALONG) {
      const int64_t row = smaller(next, height - ROWS_ALONG);
      const float* lines[LINES];
      QF_UNROLL for (int k = 0; k < LINES; k++) {
        const int64_t at = row * STRIDE - s.pads[1] + k;
        lines[k] = (at >= 0 && at < x_height ? plane.x + at * x_width : zeros) - pad;
      }
      float* y = plane.y + row * width;
      const auto go = [&](int64_t column, const Taps& taps, auto masks, bool fetches) __attribute__((always_inline)) {
        vfloat sum[ROWS_ALONG][SUMS];
        QF_UNROLL for (int r = 0; r < ROWS_ALONG; r++)
          QF_UNROLL for (int v = 0; v < SUMS; v++) sum[r][v] = bias;
        QF_UNROLL for (int k = 0; k < LINES; k++) {
          const float* from = lines[k] + column * STRIDE;
          if (fetches && k >= LINES - NEW_LINES) __builtin_prefetch(from + NEW_LINES * x_width);
          vfloat x[LOADS][SUMS];
          taps.load_line(masks, from, x);
          QF_UNROLL for (int t = 0; t < LOADS; t++)
            QF_UNROLL for (int v = 0; v < SUMS; v++) {
              if (k >= STRIDE && k < LINES - STRIDE) settle(x[t][v]);  // else it would be loaded for each row
              QF_UNROLL for (int r = 0; r < ROWS_ALONG; r++) {
                const int tap = k - r * STRIDE;
                if (tap >= 0 && tap < 3) sum[r][v] += weights.rows[tap][t] * x[t][v];
              }
            }
        }
        QF_UNROLL for (int r = 0; r < ROWS_ALONG; r++) {
          const vfloat v = SUMS == 1 ? sum[r][0] : pair_sums(sum[r][0], sum[r][SUMS - 1]);
          float* to = y + r * width + column;
          if constexpr (FINISH == WRITTEN)
            write(v, to, plane.residual ? plane.residual + (to - plane.y) : nullptr, epilogue, LANES, true);
          else
            store(to, FINISH == CLAMPED ? at_most(at_least(v, low), high) : v);
        }
      };
      const auto go_edge = [&](int64_t column) __attribute__((always_inline)) {
        const int64_t from = column * STRIDE - pad;
        Taps& taps = edges[column > 0];
        if (taps.column != from) taps = Taps(from, x_width);
        if (Taps::in_few(from, LANES, x_width, roomy))
          go(column, taps, Masks<FEW>{}, false);
        else
          go(column, taps, Masks<ALL>{}, false);
      };
      // The last column from which a vector is all inside; the first is taken to be at an edge.
      const int64_t inside = smaller(width - LANES, columns_inside + pad < 0 ? 0 : (columns_inside + pad) / STRIDE);
      go_edge(0);
      int64_t column = LANES;
      if (far)
        for (; column <= inside; column += LANES) go(column, edges[0], Masks<NONE>{}, true);
      else
        for (; column <= inside; column += LANES) go(column, edges[0], Masks<NONE>{}, false);
      for (; column < width; column += LANES) {
        const int64_t at = smaller(column, width - LANES);
        if (at <= inside)
          go(at, edges[0], Masks<NONE>{}, false);
        else
          go_edge(at);
      }
    }
    if (epilogue.later) epilogue.activate_row(plane.y, planes.y_size);
  }
}

// Rows narrower than a vector spill into what is written later; nothing is behind the last plane.
template <int STRIDE, bool SHIFTED>
void convolve_planes(const Planes& planes, int64_t begin, int64_t end, const float* zeros) {
  if (!SHIFTED && goes_along_rows(planes)) {
    if (planes.call.residual)
      convolve_along_rows<STRIDE, WRITTEN>(planes, begin, end, zeros);
    else if (planes.epilogue.clamps)
      convolve_along_rows<STRIDE, CLAMPED>(planes, begin, end, zeros);
    else
      convolve_along_rows<STRIDE, STORED>(planes, begin, end, zeros);
    return;
  }
  const bool spills = planes.s.output[2] < LANES;
  const int64_t plain = !spills ? end : planes.y_size < LANES || end == begin ? begin : end - 1;
  if (planes.call.residual)
    convolve_directly<STRIDE, SHIFTED, WRITTEN>(planes, begin, plain, plain < end, zeros);
  else if (planes.epilogue.clamps)
    convolve_directly<STRIDE, SHIFTED, CLAMPED>(planes, begin, plain, plain < end, zeros);
  else
    convolve_directly<STRIDE, SHIFTED, STORED>(planes, begin, plain, plain < end, zeros);
  for (int64_t i = plain; i < end; i++)
    convolve_directly<STRIDE, SHIFTED, WRITTEN>(planes, i, i + 1, false, zeros);
}

template <int STRIDE>
void convolve_directly(const Planes& planes, int64_t begin, int64_t end, const float* zeros) {
  constexpr bool LINES = LANES * sizeof(float) == 64;
  if (LINES && planes.s.output[2] < LANES)
    convolve_planes<STRIDE, LINES>(planes, begin, end, zeros);
  else
    convolve_planes<STRIDE, false>(planes, begin, end, zeros);
}

// The output rows from `row` on that a band's lines hold. Vectors at the end of a row overlap the one before; a row
// narrower than one spills into the next, which is written later.
template <int K, int DOWN>
__attribute__((noinline)) void tiles(const ConvShape& s, int64_t pitch, const int64_t* places, const float* lines,
                                     const Plane& plane, const Epilogue& epilogue, int64_t row, int64_t end) {
  constexpr int LINES = (ROWS - 1) * DOWN + K;
  const int64_t width = s.output[2];
  const int lanes = int(smaller(LANES, width));
  const vfloat bias = broadcast(plane.bias);
  const bool plain = !plane.residual && !epilogue.clamps;
  for (; row < end; row += ROWS, lines += ROWS * DOWN * pitch) {
    const bool spills = (s.output[1] - row - (ROWS - 1)) * width >= LANES || plane.followed;
    for (int64_t first = 0; first < width; first += LANES) {
      const int64_t column = first + LANES <= width || width < LANES ? first : width - LANES;
      vfloat sums[ROWS];
      QF_UNROLL for (int r = 0; r < ROWS; r++) sums[r] = bias;
      QF_UNROLL for (int tap = 0; tap < K; tap++) {
        vfloat weights[K];
        QF_UNROLL for (int k = 0; k < K; k++) weights[k] = broadcast(plane.weights[k * K + tap]);
        const float* line = lines + places[tap] + column;
        QF_UNROLL for (int i = 0; i < LINES; i++) {
          const vfloat x = load(line + i * pitch);
          QF_UNROLL for (int r = 0; r < ROWS; r++) {
            const int k = i - r * DOWN;
            if (k >= 0 && k < K) sums[r] += weights[k] * x;
          }
        }
      }
      // Sums must not be put off to where they are written: the lines would have to be kept for them.
      QF_UNROLL for (int r = 0; r < ROWS; r++) settle(sums[r]);
      float* y = plane.y + row * width + column;
      if (plain && row + ROWS <= end && (spills || lanes == LANES)) {
        QF_UNROLL for (int r = 0; r < ROWS; r++) store(y + r * width, sums[r]);
      } else {
        QF_UNROLL for (int r = 0; r < ROWS; r++) {
          if (row + r >= end) break;
          const float* residual = plane.residual ? plane.residual + (y - plane.y) + r * width : nullptr;
          write(sums[r], y + r * width, residual, epilogue, lanes, spills || (s.output[1] - row - r) * width >= LANES);
        }
      }
    }
  }
}

// V vectors of a row of y from `column` on; the lines of x follow one another, each with its row of weights.
template <int V>
QF_INLINE void sum_taps(const ConvShape& s, int64_t pitch, const int64_t* places, const float* lines, int64_t count,
                        const float* const* weights, const Plane& plane, const Epilogue& epilogue, int64_t at,
                        int64_t column) {
  vfloat sums[V];
  QF_UNROLL for (int v = 0; v < V; v++) sums[v] = broadcast(plane.bias);
  for (int64_t i = 0; i < count; i++)
    for (int64_t tap = 0; tap < s.kernel[2]; tap++) {
      const vfloat weight = broadcast(weights[i][tap]);
      const float* line = lines + i * pitch + places[tap] + column;
      QF_UNROLL for (int v = 0; v < V; v++) sums[v] += weight * load(line + v * LANES);
    }
  const int lanes = int(smaller(LANES, s.output[2] - column));
  QF_UNROLL for (int v = 0; v < V; v++) {
    const int64_t to = at + column + v * LANES;
    write(sums[v], plane.y + to, plane.residual ? plane.residual + to : nullptr, epilogue, lanes, false);
  }
}

struct Depthwise {
  const ConvShape& s;
  const Epilogue& epilogue;
  PaddedRows padded;
  Bands bands;

  QF_INLINE Depthwise(const ConvShape& s, const Epilogue& epilogue)
      : s(s), epilogue(epilogue), padded(s), bands(s, padded.pitch) {}

  // A thread's workspace: the lines, then where each tap of a row lies in them, then the rows of weights in use; or a
  // row of zeros.
  static int64_t workspace(const ConvShape& s) {
    const PaddedRows padded(s);
    const Bands bands(s, padded.pitch);
    if (is_direct(s)) return divide_up(4 * (s.input[2] + 4 * LANES), 64) * 64;
    const int64_t bytes = 4 * bands.lines * padded.pitch + 8 * (s.kernel[2] + s.kernel[0] * s.kernel[1]);
    return divide_up(bytes, 64) * 64;
  }
  QF_INLINE int64_t* places(float* lines) const { return (int64_t*)(lines + bands.lines * padded.pitch); }

  QF_INLINE void prepare(float* lines) const {
    if (is_direct(s)) {
      memset(lines, 0, workspace(s));
      return;
    }
    padded.clear(lines, bands.lines);
    for (int64_t tap = 0; tap < s.kernel[2]; tap++) places(lines)[tap] = padded.place(tap * s.dilations[2]);
  }

  template <int K, int DOWN>
  QF_INLINE void plane_in_tiles(const Plane& plane, float* lines) const {
    const int64_t height = s.input[1], ahead = smaller(bands.rows, s.output[1]) * DOWN * s.input[2];
    for (int64_t row = 0; row < s.output[1]; row += bands.rows) {
      const int64_t end = smaller(row + bands.rows, s.output[1]), top = row * DOWN - s.pads[1];
      const int64_t count = (end - row - 1) * DOWN + K;
      const int64_t first = clamped(-top, count), last = clamped(height - top, count);
      if (bands.rows < s.output[1]) {  // in a single band what lies outside is clear already
        padded.clear(lines, first);
        padded.clear(lines + last * padded.pitch, count - last);
      }
      padded.copy(plane.x + (top + first) * s.input[2], last - first, lines + first * padded.pitch, ahead);
      tiles<K, DOWN>(s, padded.pitch, places(lines), lines, plane, epilogue, row, end);
    }
  }

  template <int K>
  void plane_in_tiles(const Plane& plane, float* lines) const {
    if (s.strides[1] == 2)
      plane_in_tiles<K, 2>(plane, lines);
    else
      plane_in_tiles<K, 1>(plane, lines);
  }

  void plane_by_taps(const Plane& plane, float* lines) const {
    const float** weights = (const float**)(places(lines) + s.kernel[2]);
    const int64_t width = s.output[2];
    for (int64_t row = 0; row < s.output[0] * s.output[1]; row++) {
      int64_t count = 0;
      for (int64_t tap = 0; tap < s.kernel[0] * s.kernel[1]; tap++) {
        const int64_t kd = tap / s.kernel[1], kh = tap % s.kernel[1];
        const int64_t d = row / s.output[1] * s.strides[0] + kd * s.dilations[0] - s.pads[0];
        const int64_t h = row % s.output[1] * s.strides[1] + kh * s.dilations[1] - s.pads[1];
        if (d < 0 || d >= s.input[0] || h < 0 || h >= s.input[1]) continue;
        padded.copy(plane.x + (d * s.input[1] + h) * s.input[2], 1, lines + count * padded.pitch, s.input[2]);
        weights[count++] = plane.weights + tap * s.kernel[2];
      }
      int64_t column = 0;
      for (; column + VECTORS * LANES <= width; column += VECTORS * LANES)
        sum_taps<VECTORS>(s, padded.pitch, places(lines), lines, count, weights, plane, epilogue, row * width, column);
      for (; column < width; column += LANES)
        sum_taps<1>(s, padded.pitch, places(lines), lines, count, weights, plane, epilogue, row * width, column);
    }
  }

  QF_INLINE void operator()(const Plane& plane, float* lines) const {
    if (!in_tiles(s))
      plane_by_taps(plane, lines);
    else if (s.kernel[1] == 3)
      plane_in_tiles<3>(plane, lines);
    else if (s.kernel[1] == 5)
      plane_in_tiles<5>(plane, lines);
    else
      plane_in_tiles<7>(plane, lines);
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  *needs = {sizeof(float) * s->groups * s->out_channels * volume(s->kernel), size_t(Depthwise::workspace(*s))};
}

extern "C" void QF_EXPORT(conv_depthwise_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  memcpy(packed, weights, sizeof(float) * s->groups * s->out_channels * volume(s->kernel));
}

extern "C" void QF_EXPORT(conv_depthwise_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Epilogue epilogue(s);
  const Depthwise convolve(s, epilogue);
  const Planes planes{s, *call, epilogue};
  const int64_t count = s.batch * planes.channels, workspace = Depthwise::workspace(s);
  const auto convolve_part = [&](int64_t part) {
    float* lines = (float*)(call->workspace + part * workspace);
    const int64_t begin = count * part / call->threads, end = count * (part + 1) / call->threads;
    convolve.prepare(lines);
    if (is_direct(s)) {
      (s.strides[1] == 1 ? convolve_directly<1> : convolve_directly<2>)(planes, begin, end, lines);
      return;
    }
    for (int64_t i = begin; i < end; i++) {
      const Plane plane = planes.plane(i, i % planes.channels, i + 1 < end && planes.y_size >= LANES);
      convolve(plane, lines);
      if (epilogue.later) epilogue.activate_row(plane.y, planes.y_size);
    }
  };
  if (call->threads == 1) return convolve_part(0);  // a parallel region takes longer than a small plane
#pragma omp parallel for schedule(static) num_threads(call->threads)
  for (int64_t part = 0; part < call->threads; part++) convolve_part(part);
}
