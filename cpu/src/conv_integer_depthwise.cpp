// Depthwise integer convolution (one input channel a group), 1 to 3 axes, any kernel, stride and dilation, exact in
// int32 (wrapping).
//
// A channel of x is laid out once, with its zero point taken off and padding as zeros. Its rows are laid in pairs, so
// that a product of int16 pairs (conv_pairs.h) does the taps of two rows of the kernel: a row of y that begins at an
// odd row of x has its weights shifted by one. A row's columns are laid in 4 * stride runs, column c in run c % (4 *
// stride): lane i of four vectors then holds the neighbouring outputs 4 i to 4 i + 3, each tap reads whole vectors, and
// the lane takes the outputs' four bytes once they are requantised.
//
// x is uint8 or int8. Weights come as int16 (M, 1, kernel) and are packed as (M, parity of the first row, tap of depth,
// pair of rows, column). Threads share the channels. Squares of 3 and 5 taps have a body of their own, without address
// arithmetic, which is limited by the products: two a cycle.
#include <omp.h>

#include "conv_pairs.h"

namespace {

typedef int16_t vshorts __attribute__((vector_size(LANES * 4)));

// Where things lie in a laid channel, [depth][pair of rows][run][place], in words of two int16.
struct Laid {
  int64_t extent[2];       // depths and rows, with padding
  int64_t runs, run;       // runs of a row, and the places of one
  int64_t pairs, row;      // pairs of rows of a depth, and the words of one
  int64_t quads;           // groups of four outputs in a row of y
  int64_t kernel_pairs[2]; // pairs of rows that the kernel meets from an even and from an odd row on

  explicit Laid(const ConvShape& s) {
    for (int axis = 0; axis < 2; axis++)
      extent[axis] = (s.output[axis] - 1) * s.strides[axis] + (s.kernel[axis] - 1) * s.dilations[axis] + 1;
    runs = 4 * s.strides[2];
    quads = divide_up(s.output[2], 4);
    run = divide_up(quads + (3 * s.strides[2] + (s.kernel[2] - 1) * s.dilations[2]) / runs, LANES) * LANES;
    pairs = divide_up(extent[1], 2);
    row = runs * run;
    for (int parity = 0; parity < 2; parity++)
      kernel_pairs[parity] = ((s.kernel[1] - 1) * s.dilations[1] + parity) / 2 + 1;
  }

  // With what vectors may read behind the last row, and drop.
  QF_INLINE int64_t words() const { return extent[0] * pairs * row + LANES; }
  // With the channel's bytes between their padding.
  QF_INLINE int64_t padded_bytes() const { return extent[0] * 2 * pairs * row + 4 * LANES; }
  QF_INLINE int64_t bytes() const { return divide_up(words() * 4 + padded_bytes(), 64) * 64; }
  QF_INLINE int64_t weights(const ConvShape& s) const { return 2 * s.kernel[0] * kernel_pairs[1] * s.kernel[2]; }
};

// Every step-th word from `from` on.
QF_INLINE vuint load_stepping(const uint8_t* from, int64_t step) {
  if (step == 1) return load_words(from);
  if (step == 2) return (vuint)even_lanes((vfloat)load_words(from), (vfloat)load_words(from + 4 * LANES));
  uint32_t words[LANES];
  for (int lane = 0; lane < LANES; lane++) memcpy(words + lane, from + 4 * lane * step, 4);
  return load_words(words);
}

// Copies count bytes, N or more, in pieces of N of which the last overlaps; nothing outside is touched.
template <int N>
QF_INLINE void copy_pieces(const uint8_t* from, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count - N; i += N) memcpy(to + i, from + i, N);
  memcpy(to + count - N, from + count - N, N);
}

// Copies a channel of x between its padding.
void pad(const ConvShape& s, const Laid& laid, const uint8_t* x, uint8_t* padded) {
  const int64_t count = smaller(s.input[2], laid.row - s.pads[2]);
  if (count < 1) return;
  for (int64_t d = 0; d < smaller(s.input[0], laid.extent[0] - s.pads[0]); d++)
    for (int64_t h = 0; h < smaller(s.input[1], laid.extent[1] - s.pads[1]); h++) {
      const int64_t row = (d + s.pads[0]) * 2 * laid.pairs + h + s.pads[1];
      const uint8_t* from = x + (d * s.input[1] + h) * s.input[2];
      uint8_t* to = padded + row * laid.row + s.pads[2];
      if (count >= 32)
        copy_pieces<32>(from, count, to);
      else if (count >= 8)
        copy_pieces<8>(from, count, to);
      else
        copy_pieces<1>(from, count, to);
    }
}

// Lays out a padded channel. Signed values are taken as unsigned ones 128 higher.
template <int STRIDE>
void lay(const ConvShape& s, const Laid& laid, const uint8_t* padded, uint32_t flip, int16_t zero, uint32_t* to) {
  const int64_t stride = STRIDE ? STRIDE : s.strides[2], run = laid.run;
  for (int64_t pair = 0; pair < laid.extent[0] * laid.pairs; pair++, padded += 2 * laid.row)
    for (int64_t quarter = 0; quarter < stride; quarter++, to += 4 * run)
      for (int64_t place = 0; place < run; place += LANES) {
        const uint8_t* from = padded + 4 * (place * stride + quarter);
        const vuint a = load_stepping(from, stride) ^ flip, b = load_stepping(from + laid.row, stride) ^ flip;
        const vuint even_a = a & 0xFF00FF, odd_a = a >> 8 & 0xFF00FF, even_b = b & 0xFF00FF, odd_b = b >> 8 & 0xFF00FF;
        const vuint words[4] = {(even_a & 0xFFFF) | even_b << 16, (odd_a & 0xFFFF) | odd_b << 16,
                                even_a >> 16 | (even_b & 0xFFFF0000), odd_a >> 16 | (odd_b & 0xFFFF0000)};
        QF_UNROLL for (int i = 0; i < 4; i++) store_words(to + i * run + place, (vuint)((vshorts)words[i] - zero));
      }
}

// Adds the taps of 4 * LANES neighbouring outputs. x: where their first row and column lie; pairs: of rows that the
// kernel meets from there. KERNEL and STRIDE: of both axes, without dilation, or 0 for any.
template <int KERNEL, int STRIDE>
QF_INLINE void add_taps(const ConvShape& s, const Laid& laid, const uint32_t* x, const uint32_t* weights, int64_t pairs,
                        vuint (&sums)[4]) {
  const int64_t kernel = KERNEL ? KERNEL : s.kernel[2], stride = STRIDE ? STRIDE : s.strides[2];
  const int64_t dilation = KERNEL ? 1 : s.dilations[2], runs = 4 * stride;
  const int64_t depths = KERNEL ? 1 : s.kernel[0];
  if (KERNEL) pairs = KERNEL / 2 + 1;
  for (int64_t depth = 0; depth < depths; depth++, weights += laid.kernel_pairs[1] * kernel)
    _Pragma("GCC unroll 5") for (int64_t pair = 0; pair < pairs; pair++) {
      const uint32_t* row = x + (depth * s.dilations[0] * laid.pairs + pair) * laid.row;
      _Pragma("GCC unroll 5") for (int64_t tap = 0; tap < kernel; tap++) {
        vuint read[4];
        QF_UNROLL for (int i = 0; i < 4; i++) {
          const int64_t column = i * stride + tap * dilation;
          read[i] = load_words(row + column % runs * laid.run + column / runs);
        }
        add_products<false>(sums, weights[pair * kernel + tap] - (vuint){}, read);
      }
    }
}

// One output channel from its laid input channel on. weights: of the channel; at: its place in y.
template <int KERNEL, int STRIDE>
void convolve(const ConvShape& s, const ConvQuantization& q, const ConvCall& call, const Laid& laid, const uint32_t* x,
              const uint32_t* weights, int64_t m, int64_t at) {
  const Requantization requantization(q);
  const uint32_t bias = call.bias ? ((const uint32_t*)call.bias)[m] : 0;
  const vfloat multiplier = broadcast(q.multipliers ? q.multipliers[m] : 0);
  const int64_t end = at + volume(s.output);
  for (int64_t d = 0; d < s.output[0]; d++)
    for (int64_t h = 0; h < s.output[1]; h++, at += s.output[2]) {
      const int64_t first = h * s.strides[1], parity = first % 2;
      const uint32_t* row = x + (d * s.strides[0] * laid.pairs + first / 2) * laid.row;
      const uint32_t* taps = weights + parity * laid.weights(s) / 2;
      for (int64_t column = 0; column < s.output[2]; column += 4 * LANES) {
        vuint sums[4];
        QF_UNROLL for (int i = 0; i < 4; i++) sums[i] = bias - (vuint){};
        add_taps<KERNEL, STRIDE>(s, laid, row + column / 4, taps, laid.kernel_pairs[parity], sums);
        const int64_t to = at + column, count = smaller(4 * LANES, s.output[2] - column);
        if (!q.multipliers) {
          uint32_t lanes[4][LANES];
          QF_UNROLL for (int i = 0; i < 4; i++) store_words(lanes[i], sums[i]);
          for (int64_t i = 0; i < count; i++) ((uint32_t*)call.y)[to + i] = lanes[i % 4][i / 4];
          continue;
        }
        const vuint words = requantization.bytes(sums[0], sums[1], sums[2], sums[3], multiplier);
        if (to + 4 * LANES <= end)  // what it writes behind its row, the next row overwrites
          store_words((uint8_t*)call.y + to, words);
        else
          memcpy((uint8_t*)call.y + to, &words, count);
      }
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
  const int16_t zero = int16_t(q->x_zero + (q->x_signed ? 128 : 0));
  const uint32_t flip = q->x_signed ? 0x80808080 : 0;
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    uint32_t* x = (uint32_t*)(call->workspace + omp_get_thread_num() * laid.bytes());
    uint8_t* padded = (uint8_t*)(x + laid.words());
    memset(padded, q->x_zero, laid.padded_bytes());
#pragma omp for schedule(static)
    for (int64_t part = 0; part < s.batch * s.groups; part++) {
      pad(s, laid, (const uint8_t*)call->x + part * volume(s.input), padded);
      if (s.strides[2] == 1)
        lay<1>(s, laid, padded, flip, zero, x);
      else if (s.strides[2] == 2)
        lay<2>(s, laid, padded, flip, zero, x);
      else
        lay<0>(s, laid, padded, flip, zero, x);
      for (int64_t i = 0; i < s.out_channels; i++) {
        const int64_t m = part % s.groups * s.out_channels + i;
        const uint32_t* weights = (const uint32_t*)call->weights + m * laid.weights(s);
        convolve(s, *q, *call, laid, x, weights, m, (part * s.out_channels + i) * volume(s.output));
      }
    }
  }
}
