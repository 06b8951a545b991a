// Depthwise integer convolution (one input channel a group), 1 to 3 axes, any kernel, stride and dilation, exact in
// int32 (wrapping).
//
// A channel of x is laid out once, with its zero point taken off and padding as zeros. Its rows are laid in pairs, so
// that a product of int16 pairs (conv_pairs.h) does the taps of two rows of the kernel: a row of y that begins at an
// odd row of x has its weights shifted by one. Columns a stride apart share a run of memory, so that a vector of
// outputs reads a vector for every tap. The sums of up to VECTORS vectors stay in registers until they are requantised.
//
// x is uint8 or int8. Weights come as int16 (M, 1, kernel) and are packed as (M, parity of the first row, tap of depth,
// pair of rows, column). Threads share the channels. Squares of 3 and 5 taps have a body of their own, without address
// arithmetic. What limits it are the products and their sums, and then the requantisation.
#include <omp.h>

#include "conv_pairs.h"

namespace {

constexpr int VECTORS = 4;

// Where things lie in a laid channel, [depth][pair of rows][run][place], in words of two int16.
struct Laid {
  int64_t extent[2];        // depths and rows, with padding
  int64_t run, row, pairs;  // places of a run, words of a pair of rows, and pairs of rows in a depth
  int64_t kernel_pairs[2];  // pairs of rows that the kernel meets from an even and from an odd row on

  explicit Laid(const ConvShape& s) {
    for (int axis = 0; axis < 2; axis++)
      extent[axis] = (s.output[axis] - 1) * s.strides[axis] + (s.kernel[axis] - 1) * s.dilations[axis] + 1;
    run = divide_up(s.output[2] + (s.kernel[2] - 1) * s.dilations[2] / s.strides[2], 16) * 16;
    row = s.strides[2] * run;
    pairs = divide_up(extent[1], 2);
    for (int parity = 0; parity < 2; parity++)
      kernel_pairs[parity] = ((s.kernel[1] - 1) * s.dilations[1] + parity) / 2 + 1;
  }

  // With what vectors may read behind the last row, and drop.
  QF_INLINE int64_t words() const { return extent[0] * pairs * row + LANES; }
  // Then a row's mask, and three rows of bytes.
  QF_INLINE int64_t bytes() const { return divide_up(words() * 4 + row * 4 + 3 * row + 16, 64) * 64; }
  QF_INLINE int64_t weights(const ConvShape& s) const { return 2 * s.kernel[0] * kernel_pairs[1] * s.kernel[2]; }
};

// Sixteen bytes of a row that are `stride` apart.
QF_INLINE sixteen_bytes load_stepping(const uint8_t* row, int64_t stride) {
  sixteen_bytes v = *(const sixteen_bytes_anywhere*)row;
  if (stride == 2) {
    const sixteen_bytes next = *(const sixteen_bytes_anywhere*)(row + 16);
    const sixteen_bytes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    return __builtin_shuffle(v, next, even);
  }
  if (stride > 2)
    for (int i = 0; i < 16; i++) v[i] = row[i * stride];
  return v;
}

// What lays out the channels of x.
struct Source {
  const ConvShape& s;
  const Laid& laid;
  Centring centring;
  const uint8_t *x, *end;
  uint32_t* mask;  // of the words of a row that are not padding
  uint8_t* rows;   // three of them: two that were copied, and one of zero points

  // mask: where there is room for what Laid::bytes counts behind the words.
  Source(const ConvShape& s, const Laid& laid, const ConvQuantization& q, const ConvCall& call, uint32_t* mask)
      : s(s), laid(laid), centring(q), x((const uint8_t*)call.x), end(x + s.batch * s.groups * volume(s.input)),
        mask(mask), rows((uint8_t*)(mask + laid.row)) {
    for (int64_t i = 0; i < laid.row; i++) {
      const int64_t column = i % laid.run * s.strides[2] + i / laid.run - s.pads[2];
      mask[i] = column >= 0 && column < s.input[2] ? 0xFFFFFFFF : 0;
    }
    memset(rows, q.x_zero, 3 * laid.row + 16);
  }

  template <int STRIDE>
  __attribute__((noinline)) void lay(int64_t channel, uint32_t* to) const {
    // Copies, which stores cannot change.
    const Centring centred = centring;
    const int64_t stride = STRIDE ? STRIDE : s.strides[2], run = laid.run, pairs = laid.pairs, height = s.input[1];
    const int64_t width = s.input[2], left = s.pads[2], above = s.pads[1], row_bytes = laid.row;
    const uint32_t* const masks = mask;
    const uint8_t* const blank = rows + 2 * row_bytes;
    const uint8_t *const first = x + left, *const last = end + left - row_bytes - 16;
    for (int64_t d = 0; d < laid.extent[0]; d++) {
      const int64_t z = d - s.pads[0];
      const bool inside = z >= 0 && z < s.input[0];
      const uint8_t* plane = x + (channel * s.input[0] + z) * height * width;
      // A row of x with its padding, whose bytes may be any.
      auto row = [&](int64_t h, int64_t half) {
        const uint8_t* from = plane + h * width;
        if (!inside || h < 0 || h >= height) return blank;
        if (from >= first && from <= last) return from - left;
        uint8_t* copy = rows + half * row_bytes;
        const int64_t count = smaller(width, row_bytes - left);
        if (count > 0) memcpy(copy + left, from, count);
        return (const uint8_t*)copy;
      };
      for (int64_t pair = 0; pair < pairs; pair++) {
        const uint8_t *top = row(2 * pair - above, 0), *bottom = row(2 * pair + 1 - above, 1);
        const uint32_t* valid = masks;
        for (int64_t column = 0; column < stride; column++)
          for (int64_t place = 0; place < run; place += 16, to += 16, valid += 16) {
            const sixteen_bytes a = load_stepping(top + place * stride + column, stride);
            const sixteen_bytes b = load_stepping(bottom + place * stride + column, stride);
            centred.store(to, interleave_low(a, b), valid);
            centred.store(to + 8, interleave_high(a, b), valid + 8);
          }
      }
    }
  }
};

// Sums the taps of a row's outputs from `column` on, N vectors of them, and writes them. x: where the row's first tap
// lies; pairs: of rows that the kernel meets from there; at: the row's place in y, whose channel goes up to `end`.
// KERNEL and STRIDE: of both axes, without dilation, or 0 for any.
template <int KERNEL, int STRIDE, int N>
QF_INLINE void sum_vectors(const ConvShape& s, const Laid& laid, const uint32_t* x, const uint32_t* weights,
                           int64_t pairs, uint32_t bias, const Requantization& requantization, vfloat multiplier,
                           void* y, int64_t at, int64_t column, int64_t end) {
  const int64_t kernel = KERNEL ? KERNEL : s.kernel[2], stride = STRIDE ? STRIDE : s.strides[2];
  const int64_t dilation = KERNEL ? 1 : s.dilations[2], depths = KERNEL ? 1 : s.kernel[0];
  if (KERNEL) pairs = KERNEL / 2 + 1;
  vuint sums[N];
  QF_UNROLL for (int i = 0; i < N; i++) sums[i] = bias - (vuint){};
  for (int64_t depth = 0; depth < depths; depth++, weights += laid.kernel_pairs[1] * kernel)
    _Pragma("GCC unroll 5") for (int64_t pair = 0; pair < pairs; pair++) {
      const uint32_t* row = x + (depth * s.dilations[0] * laid.pairs + pair) * laid.row + column;
      _Pragma("GCC unroll 5") for (int64_t tap = 0; tap < kernel; tap++) {
        const uint32_t* from = row + tap * dilation % stride * laid.run + tap * dilation / stride;
        vuint read[N];
        QF_UNROLL for (int i = 0; i < N; i++) read[i] = load_words(from + i * LANES);
        add_products<false>(sums, weights[pair * kernel + tap] - (vuint){}, read);
      }
    }
  requantization.write_row(sums, multiplier, y, at + column, smaller(N * LANES, s.output[2] - column), end);
}

// The rest of a row, in N vectors at most.
template <int KERNEL, int STRIDE, int N = VECTORS, class... Arguments>
QF_INLINE void sum_rest(int64_t vectors, Arguments&&... arguments) {
  if (N == 1 || vectors >= N)
    sum_vectors<KERNEL, STRIDE, N>(arguments...);
  else if constexpr (N > 1)
    sum_rest<KERNEL, STRIDE, N - 1>(vectors, arguments...);
}

// One output channel from its laid input channel on. weights: of the channel; at: its place in y.
template <int KERNEL, int STRIDE>
void convolve(const ConvShape& s, const ConvQuantization& q, const ConvCall& call, const Laid& laid, const uint32_t* x,
              const uint32_t* weights, int64_t m, int64_t at) {
  const Requantization requantization(q);
  const vfloat multiplier = broadcast(requantization.wanted ? q.multipliers[m] : 0);
  const uint32_t bias = call.bias ? ((const uint32_t*)call.bias)[m] : 0;
  const int64_t end = at + volume(s.output);
  for (int64_t d = 0; d < s.output[0]; d++)
    for (int64_t h = 0; h < s.output[1]; h++, at += s.output[2]) {
      const int64_t first = h * s.strides[1], parity = first % 2;
      const uint32_t* row = x + (d * s.strides[0] * laid.pairs + first / 2) * laid.row;
      const uint32_t* taps = weights + parity * laid.weights(s) / 2;
      // What whole vectors write behind their row, the next row overwrites.
      for (int64_t column = 0; column < s.output[2]; column += VECTORS * LANES)
        sum_rest<KERNEL, STRIDE>(divide_up(s.output[2] - column, LANES), s, laid, row, taps,
                                 laid.kernel_pairs[parity], bias, requantization, multiplier, call.y, at, column, end);
    }
}

typedef void (*Convolve)(const ConvShape&, const ConvQuantization&, const ConvCall&, const Laid&, const uint32_t*,
                         const uint32_t*, int64_t, int64_t);

Convolve convolve_of(const ConvShape& s) {
  const bool square = s.kernel[0] == 1 && s.kernel[1] == s.kernel[2] && s.dilations[1] == 1 && s.dilations[2] == 1;
  if (square && s.kernel[2] == 3 && s.strides[2] == 1) return convolve<3, 1>;
  if (square && s.kernel[2] == 3 && s.strides[2] == 2) return convolve<3, 2>;
  if (square && s.kernel[2] == 5 && s.strides[2] == 1) return convolve<5, 1>;
  if (square && s.kernel[2] == 5 && s.strides[2] == 2) return convolve<5, 2>;
  return convolve<0, 0>;
}

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_integer_needs)(const ConvShape* shape, ConvNeeds* needs) {
  const Laid laid(*shape);
  const int64_t weights = shape->groups * shape->out_channels * laid.weights(*shape);
  *needs = {size_t(weights) * sizeof(uint32_t), size_t(laid.bytes())};
}

extern "C" void QF_EXPORT(conv_depthwise_integer_pack)(const ConvShape* shape, const int16_t* weights,
                                                       int32_t* packed) {
  const ConvShape& s = *shape;
  const Laid laid(s);
  for (int64_t m = 0; m < s.groups * s.out_channels; m++, weights += volume(s.kernel))
    for (int64_t parity = 0; parity < 2; parity++)
      for (int64_t depth = 0; depth < s.kernel[0]; depth++)
        for (int64_t pair = 0; pair < laid.kernel_pairs[1]; pair++)
          for (int64_t column = 0; column < s.kernel[2]; column++) {
            auto weight = [&](int64_t row) {
              const bool met = row >= 0 && row % s.dilations[1] == 0 && row / s.dilations[1] < s.kernel[1];
              const int64_t tap = (depth * s.kernel[1] + row / s.dilations[1]) * s.kernel[2] + column;
              return met ? uint32_t(weights[tap]) & 0xFFFF : 0;
            };
            *packed++ = int32_t(weight(2 * pair - parity) | weight(2 * pair + 1 - parity) << 16);
          }
}

extern "C" void QF_EXPORT(conv_depthwise_integer)(const ConvShape* shape, const ConvQuantization* q,
                                                  const ConvCall* call) {
  const ConvShape& s = *shape;
  const Laid laid(s);
  const Convolve convolve = convolve_of(s);
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    uint32_t* x = (uint32_t*)(call->workspace + omp_get_thread_num() * laid.bytes());
    const Source source(s, laid, *q, *call, x + laid.words());
#pragma omp for schedule(static)
    for (int64_t part = 0; part < s.batch * s.groups; part++) {
      if (s.strides[2] == 1)
        source.lay<1>(part, x);
      else if (s.strides[2] == 2)
        source.lay<2>(part, x);
      else
        source.lay<0>(part, x);
      for (int64_t i = 0; i < s.out_channels; i++) {
        const int64_t m = part % s.groups * s.out_channels + i;
        const uint32_t* weights = (const uint32_t*)call->weights + m * laid.weights(s);
        convolve(s, *q, *call, laid, x, weights, m, (part * s.out_channels + i) * volume(s.output));
      }
    }
  }
}
