// Depthwise integer convolution (one input channel a group), 1 to 3 axes, any kernel, stride and dilation, exact in
// int32 (wrapping).
//
// A strip of a channel of x, as many rows as the first-level cache holds well, is laid out as int16 with its zero point
// taken off and padding as zeros. Two neighbours of a row are a pair as they lie, so that a product of int16 pairs
// (conv_pairs.h) does two taps of a row of the kernel and nothing is shuffled. At a stride of 2 a vector of pairs makes
// a vector of outputs. At a stride of 1 it makes the even columns, the vector that begins a value later the odd ones,
// and packing the bytes brings them in order. Any other stride, and dilated columns, take one tap a product; columns a
// stride apart then share a run of memory.
//
// A block of y is PIECES of COLUMNS, or half as many, whose sums stay in registers until they are requantised. Pieces
// are rows, which share what they read of x; where y has one row alone, they lie side by side in it; and where half a
// piece is as wide as y, a piece is two rows. What whole vectors write behind a row is written again later, by the
// block or the channel that it belongs to.
//
// x is uint8 or int8. Weights come as int16 (M, 1, kernel) and are packed as (M, row of the kernel, product). Threads
// share the channels, a run of them each. Squares of 3 and 5 taps have a body of their own. What limits it is how many
// vector instructions the processor takes: for 64 outputs of 3x3 on AVX2 there are 48 products, 48 sums, 50 to
// requantise and 16 to lay out x, which Zen 3 does in 67 cycles instead of the 41 that four a cycle would take.
#include <omp.h>

#include "conv_pairs.h"

namespace {

constexpr int PIECES = 4;
constexpr int COLUMNS = 2 * LANES;
constexpr int64_t STRIP = 6144;  // values, of 32 KiB in the first-level cache: y and the channel's x pass there too

// The rows of x that `height` rows of y meet, with padding, and where their values lie:
// [depth of the kernel][row][phase of the stride][place].
struct Strip {
  bool paired;       // whether a product does two taps
  int64_t products;  // of a row of the kernel
  int64_t height, rows;
  int64_t phases, run, row;
  int64_t lead, first;  // the place where a row of x begins, behind its padding; and that of its first tap

  explicit Strip(const ConvShape& s) {
    auto reach = [&](int axis) { return (s.kernel[axis] - 1) * s.dilations[axis] + 1; };
    const int64_t columns = (s.output[2] - 1) * s.strides[2] + reach(2);
    paired = s.strides[2] <= 2 && s.dilations[2] == 1;
    products = paired ? divide_up(s.kernel[2], 2) : s.kernel[2];
    phases = paired ? 1 : s.strides[2];
    lead = phases == 1 ? divide_up(s.pads[2], 16) * 16 : 0;
    first = phases == 1 ? lead - s.pads[2] : 0;
    const int64_t laid = lead + s.input[2], met = first + columns;
    run = divide_up(phases == 1 && laid > met ? laid : divide_up(met, phases), 16) * 16;
    row = phases * run;
    const int64_t room = (STRIP / row / s.kernel[0] - reach(1)) / s.strides[1] + 1;
    height = smaller(room < PIECES ? PIECES : room / PIECES * PIECES, s.output[1]);
    rows = (height - 1) * s.strides[1] + reach(1);
  }

  // With what the last block may read behind them, and drop.
  QF_INLINE int64_t bytes(const ConvShape& s) const {
    const int64_t values = (s.kernel[0] * rows + 2 * PIECES * s.strides[1]) * row + 2 * (PIECES + 1) * COLUMNS;
    return divide_up(values * int64_t(sizeof(int16_t)), 64) * 64;
  }
  QF_INLINE int64_t weights(const ConvShape& s) const { return s.kernel[0] * s.kernel[1] * products; }
};

// Lays out strips of x.
struct Source {
  const ConvShape& s;
  const Strip& strip;
  const Centring centring;
  const uint8_t *x, *end;
  int16_t* to;

  Source(const ConvShape& s, const Strip& strip, const ConvQuantization& q, const ConvCall& call, int16_t* to)
      : s(s), strip(strip), centring(q), x((const uint8_t*)call.x), end(x + s.batch * s.groups * volume(s.input)),
        to(to) {
    memset(to, 0, strip.bytes(s));  // no row is laid where its padding is
  }

  // For y from row h of depth `depth` on.
  __attribute__((noinline)) void lay(int64_t channel, int64_t depth, int64_t h) const {
    const int64_t top = h * s.strides[1] - s.pads[1], row = strip.row;
    const int64_t above = clamped(-top, strip.rows), below = clamped(top + strip.rows - s.input[1], strip.rows - above);
    const int64_t inside = strip.rows - above - below;
    // One strip a channel has its rows of padding where the channel before had them.
    const bool padded = strip.height == s.output[1] && s.output[0] == 1;
    auto blank = [&](int16_t* from, int64_t count) {
      if (!padded) memset(from, 0, count * row * sizeof *from);
    };
    int16_t* values = to;
    for (int64_t kd = 0; kd < s.kernel[0]; kd++, values += strip.rows * row) {
      const int64_t z = depth * s.strides[0] + kd * s.dilations[0] - s.pads[0];
      if (z < 0 || z >= s.input[0]) {
        blank(values, strip.rows);
        continue;
      }
      blank(values, above);
      lay_rows(x + ((channel * s.input[0] + z) * s.input[1] + top + above) * s.input[2], inside, values + above * row);
      blank(values + (above + inside) * row, below);
    }
  }

 private:
  void lay_rows(const uint8_t* from, int64_t rows, int16_t* values) const {
    const Centring centred = centring;  // copies, which stores cannot change
    const int64_t width = s.input[2], row = strip.row, run = strip.run, phases = strip.phases, left = s.pads[2];
    if (phases > 1) {
      for (; rows > 0; rows--, from += width, values += row)
        for (int64_t i = 0; i < row; i++) {
          const int64_t column = i % run * phases + i / run - left;
          if (column >= 0 && column < width) values[i] = centred.value(from[column]);
        }
      return;
    }
    values += strip.lead;
    const uint8_t* last = end - divide_up(width, 16) * 16;
    for (; rows > 0 && from <= last; rows--, from += width, values += row) {
      _Pragma("GCC unroll 2") for (int64_t i = 0; i < width; i += 16)
        centred.store(values + i, *(const sixteen_bytes_anywhere*)(from + i));
      *(sixteen_values_anywhere*)(values + width) = (sixteen_values){};
    }
    for (; rows > 0; rows--, from += width, values += row)
      for (int64_t i = 0; i < width; i++) values[i] = centred.value(from[i]);
  }
};

// The sums of a block, whose pieces lie `step` apart in x. x: where its first tap lies. STRIDE: 2 where a vector of
// pairs makes a vector of outputs. KERNEL: of both axes, without dilation and with strides of STRIDE, its weights in
// `square`; or 0 for any. NARROW: whether a piece is two rows.
template <int KERNEL, int STRIDE, bool NARROW, int N>
QF_INLINE void sum_block(const ConvShape& s, const Strip& strip, const int16_t* x, const uint32_t* weights,
                         const vuint* square, vuint bias, int64_t step, vuint (&sums)[N]) {
  // From a piece's first vector to its second, and from a piece to the next one.
  const int64_t half = STRIDE == 1 ? 1 : NARROW ? STRIDE * strip.row : COLUMNS;
  constexpr int DOWN = NARROW ? 2 * STRIDE : STRIDE;
  QF_UNROLL for (int i = 0; i < N; i++) sums[i] = bias;
  if constexpr (KERNEL > 0) {
    constexpr int PRODUCTS = (KERNEL + 1) / 2;
    // Row by row of x, each for all pieces that it meets.
    QF_UNROLL for (int row = 0; row < (N / 2 - 1) * DOWN + KERNEL; row++, x += strip.row)
      QF_UNROLL for (int product = 0; product < PRODUCTS; product++) {
        vuint read[2];
        QF_UNROLL for (int i = 0; i < 2; i++) {
          const int16_t* from = x + 2 * product + i * half;
          read[i] = NARROW && STRIDE == 1 ? load_halves(from, from + strip.row) : load_words(from);
        }
        vuint products[N];
        QF_UNROLL for (int i = 0; i < N; i++) {
          const int tap = row - i / 2 * DOWN;
          if (tap < 0 || tap >= KERNEL) continue;
          products[i] = multiply_pairs(square[tap * PRODUCTS + product], read[i % 2]);
          stay(products[i]);
        }
        QF_UNROLL for (int i = 0; i < N; i++) {
          const int tap = row - i / 2 * DOWN;
          if (tap < 0 || tap >= KERNEL) continue;
          sums[i] += products[i];
          stay(sums[i]);
        }
      }
  } else {
    const int64_t dilation = s.dilations[2], phases = strip.phases;
    const int64_t phase_step = dilation % phases, place_step = phase_step * strip.run + dilation / phases;
    for (int64_t depth = 0; depth < s.kernel[0]; depth++)
      for (int64_t row = 0; row < s.kernel[1]; row++) {
        const int16_t* from = x + (depth * strip.rows + row * s.dilations[1]) * strip.row;
        int64_t phase = 0;
        for (int64_t product = 0; product < strip.products; product++) {
          vuint read[N];
          QF_UNROLL for (int i = 0; i < N; i++) read[i] = load_words(from + i / 2 * step + i % 2 * half);
          add_products(sums, *weights++ - (vuint){}, read);
          from += strip.paired ? 2 : place_step;
          phase += phase_step;
          if (phase >= phases) phase -= phases, from += 1 - strip.row;
        }
      }
  }
}

// A strip of output channel m, `height` rows. x: where it is laid; weights: of the channel; at: the strip's place in y;
// end: up to where y is written again later. Not inlined, or what its callers keep takes its registers.
template <int KERNEL, int STRIDE, bool NARROW>
__attribute__((noinline)) void convolve_strip(const ConvShape& s, const ConvQuantization& q, const ConvCall& call,
                                              const Strip& strip, const Requantization& requantization,
                                              const int16_t* x, const uint32_t* weights, int64_t m, int64_t height,
                                              int64_t at, int64_t end) {
  constexpr int SQUARE = KERNEL * (KERNEL + 1) / 2;
  vuint square[SQUARE + 1];
  QF_UNROLL for (int i = 0; i < SQUARE; i++) {
    square[i] = weights[i] - (vuint){};
    stay(square[i]);
  }
  const vfloat multiplier = broadcast(requantization.wanted ? q.multipliers[m] : 0);
  const vuint bias = (call.bias ? ((const uint32_t*)call.bias)[m] : 0) - (vuint){};
  const int64_t width = s.output[2], size = requantization.wanted ? 1 : 4;
  const bool flat = s.output[1] == 1;
  const int64_t down = flat ? 1 : NARROW ? 2 * PIECES : PIECES, across = flat ? PIECES * COLUMNS : COLUMNS;
  const int64_t x_step = flat ? COLUMNS * STRIDE : s.strides[1] * strip.row, y_step = flat ? COLUMNS : width;
  const int64_t last_column = (width - 1) / across * across, row_step = down * s.strides[1] * strip.row;
  char rest[PIECES * COLUMNS * 4];
  // A row of blocks, of which `rows` rows are of the strip. From the right, because what is written behind a row is the
  // next row's.
  auto convolve_row = [&](auto& sums, int64_t rows) __attribute__((always_inline)) {
    constexpr int LENGTH = NARROW ? LANES : COLUMNS, COUNT = sizeof sums / sizeof *sums * LANES / LENGTH;  // of rows
    for (int64_t column = last_column; column >= 0; column -= across) {
      sum_block<KERNEL, STRIDE, NARROW>(s, strip, x + column * STRIDE, weights, square, bias, x_step, sums);
      const bool whole = at + column + (COUNT - 1) * y_step + LENGTH <= end;
      char* const y = (char*)call.y + (at + column) * size;
      if constexpr (NARROW) {
        requantization.write_rows<STRIDE == 1>(sums, multiplier, rest, COLUMNS * size);
        if (whole && size == 1) {
          QF_UNROLL for (int i = 0; i < COUNT; i++) memcpy(y + i * width, rest + i * LENGTH, LENGTH);
          continue;
        }
      } else {
        requantization.write_rows<STRIDE == 1>(sums, multiplier, whole ? y : rest, (whole ? y_step : COLUMNS) * size);
        if (whole) continue;
      }
      for (int64_t i = 0; i < COUNT; i++) {
        const int64_t left = flat ? width - column - i * COLUMNS : i < rows ? width - column : 0;
        if (left > 0) memcpy(y + i * y_step * size, rest + i * LENGTH * size, smaller(left, LENGTH) * size);
      }
    }
  };
  for (int64_t h = 0; h < height; h += down, x += row_step, at += down * width) {
    vuint sums[2 * PIECES], half[PIECES];
    if (flat || height - h > down / 2)
      convolve_row(sums, height - h);
    else
      convolve_row(half, height - h);
  }
}

// The input channels from `first` to `last`, counted through the batch.
template <int KERNEL, int STRIDE, bool NARROW = false>
void convolve(const ConvShape& shape, const ConvQuantization& q, const ConvCall& c, int16_t* x, int64_t first,
              int64_t last) {
  // Copies, which stores to y cannot change.
  const ConvShape s = shape;
  const ConvCall call = c;
  const Strip strip(s);
  const Source source(s, strip, q, call, x);
  const Requantization requantization(q);
  const int64_t plane = volume(s.output), weights = strip.weights(s);
  for (int64_t part = first; part < last; part++)
    for (int64_t d = 0; d < s.output[0]; d++)
      for (int64_t h = 0; h < s.output[1]; h += strip.height) {
        source.lay(part, d, h);
        for (int64_t i = 0; i < s.out_channels; i++) {
          const int64_t m = part % s.groups * s.out_channels + i, channel = part * s.out_channels + i;
          const int64_t end = (s.out_channels == 1 ? last : channel + 1) * plane;
          convolve_strip<KERNEL, STRIDE, NARROW>(s, q, call, strip, requantization, x + strip.first,
                                         (const uint32_t*)call.weights + m * weights, m,
                                         smaller(strip.height, s.output[1] - h),
                                         channel * plane + (d * s.output[1] + h) * s.output[2], end);
        }
      }
}

typedef void (*Convolve)(const ConvShape&, const ConvQuantization&, const ConvCall&, int16_t*, int64_t, int64_t);

Convolve convolve_of(const ConvShape& s, const Strip& strip) {
  const bool square = s.kernel[0] == 1 && s.kernel[1] == s.kernel[2] && s.strides[1] == s.strides[2] &&
                      s.dilations[1] == 1 && s.output[1] > 1;
  const bool narrow = s.output[2] <= LANES;
  if (!strip.paired || s.strides[2] == 1) {
    if (square && strip.paired && s.kernel[2] == 3) return narrow ? convolve<3, 1, true> : convolve<3, 1>;
    if (square && strip.paired && s.kernel[2] == 5) return narrow ? convolve<5, 1, true> : convolve<5, 1>;
    return convolve<0, 1>;
  }
  if (square && s.kernel[2] == 3) return narrow ? convolve<3, 2, true> : convolve<3, 2>;
  if (square && s.kernel[2] == 5) return narrow ? convolve<5, 2, true> : convolve<5, 2>;
  return convolve<0, 2>;
}

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_integer_needs)(const ConvShape* shape, ConvNeeds* needs) {
  const Strip strip(*shape);
  const int64_t weights = shape->groups * shape->out_channels * strip.weights(*shape);
  *needs = {size_t(weights) * sizeof(uint32_t), size_t(strip.bytes(*shape))};
}

extern "C" void QF_EXPORT(conv_depthwise_integer_pack)(const ConvShape* shape, const int16_t* weights,
                                                       int32_t* packed) {
  const ConvShape& s = *shape;
  const bool paired = Strip(s).paired;
  const int64_t rows = s.groups * s.out_channels * s.kernel[0] * s.kernel[1], columns = s.kernel[2];
  for (int64_t row = 0; row < rows; row++, weights += columns)
    for (int64_t tap = 0; tap < columns; tap += paired ? 2 : 1) {
      const uint32_t next = paired && tap + 1 < columns ? uint32_t(weights[tap + 1]) << 16 : 0;
      *packed++ = int32_t((uint32_t(weights[tap]) & 0xFFFF) | next);
    }
}

extern "C" void QF_EXPORT(conv_depthwise_integer)(const ConvShape* shape, const ConvQuantization* q,
                                                  const ConvCall* call) {
  const ConvShape& s = *shape;
  const Strip strip(s);
  const Convolve convolve = convolve_of(s, strip);
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num(), parts = s.batch * s.groups;
    convolve(s, *q, *call, (int16_t*)(call->workspace + thread * strip.bytes(s)), parts * thread / threads,
             parts * (thread + 1) / threads);
  }
}
