// Convolution with few channels on plain NCHW, by a register sliding window: nothing is packed but the weights.
//
// Vectors lie along a row of y. For each row of x and each input channel the taps' vectors are loaded once
// (conv_window.h) and added to every output row that they meet, for R output channels at once; these partial sums, of
// all input channels, stay in registers and move up as the window slides down (the rolling row reuse of
// Chaudhary et al., "Efficient and generic 1D dilated convolution", 2021, taken to rows).
//
// Takes square kernels of 2, 3 and 5 with stride 1, and of 3 with stride 2, one image plane, no dilation, any padding.
// Weights are packed for blocks of R channels: (groups, M / R, C, kernel, R). All blocks pass over one column of x, some
// rows of it, before the next, so that it stays in the second-level cache. Threads share all of these.
#include "conv_epilogue.h"
#include "conv_window.h"

namespace {

// R such that the sums, the taps' vectors and a broadcast weight stay in registers.
constexpr int most_channels(int kernel, int stride) {
  const int sums = (kernel + stride - 1) / stride, loads = stride == 1 ? kernel : kernel + 1;
  const int fit = (REGISTERS - 1 - loads) / sums;
  return fit < 12 ? fit : 12;
}

// Some rows of one column of LANES outputs.
struct Strip {
  int64_t column, first_row, last_row;  // of y
  const float* x;        // the group's first channel
  const float* weights;  // of the block of channels
  const float* bias;     // or null
  const float* residual;  // like y, or null
  float* y;              // the block's first channel
};

template <int K, int STRIDE, int R, bool MASKED>
__attribute__((noinline)) void slide_down(const ConvShape& s, const Strip& strip, const Epilogue& epilogue) {
  typedef RowWindow<K, STRIDE, MASKED> Window;
  constexpr int SUMS = (K + STRIDE - 1) / STRIDE;  // output rows that one row of x contributes to
  const int64_t first = strip.column;
  const Window window(s, first);
  const int64_t channel = s.input[1] * s.input[2], y_channel = s.output[1] * s.output[2];
  vfloat sums[SUMS][R] = {};  // sums[i] belongs to output row step - i
  for (int64_t step = strip.first_row; step < strip.last_row + SUMS - 1; step++) {
    QF_UNROLL for (int r = 0; r < R; r++) {
      QF_UNROLL for (int i = SUMS - 1; i > 0; i--) sums[i][r] = sums[i - 1][r];
      sums[0][r] = strip.bias ? broadcast(strip.bias[r]) : (vfloat){};
    }
    QF_UNROLL for (int phase = 0; phase < STRIDE; phase++) {
      const int64_t row = step * STRIDE + phase - s.pads[1];
      if (row < 0 || row >= s.input[1]) continue;
      const float* from = strip.x + row * s.input[2];
      const float* weights = strip.weights;
      for (int64_t c = 0; c < s.in_channels; c++, from += channel, weights += K * K * R) {
        vfloat x[Window::LOADS];
        window.read(from, x);
        // Channels lie whole planes apart, which no hardware prefetcher follows.
        __builtin_prefetch(from + STRIDE * s.input[2] + window.column);
        QF_UNROLL for (int tap = 0; tap < K; tap++)
          QF_UNROLL for (int i = 0; i < SUMS; i++) {
            const int k = phase + STRIDE * i;
            if (k < K)
              QF_UNROLL for (int r = 0; r < R; r++) sums[i][r] += weights[(k * K + tap) * R + r] * x[tap];
          }
      }
    }
    const int64_t done = step - (SUMS - 1);
    if (done < strip.first_row) continue;
    QF_UNROLL for (int r = 0; r < R; r++) {
      const int64_t at = r * y_channel + done * s.output[2] + first;
      vfloat sum = sums[SUMS - 1][r];
      if (strip.residual) sum += window.read_outputs(strip.residual + at);
      if (epilogue.clamps) sum = epilogue.clamp(sum);
      window.write_outputs(strip.y + at, sum);
    }
  }
}

template <int K, int STRIDE, int R>
void slide(const ConvShape& s, const Strip& strip, const Epilogue& epilogue) {
  if (RowWindow<K, STRIDE, false>::inside(s, strip.column))
    slide_down<K, STRIDE, R, false>(s, strip, epilogue);
  else
    slide_down<K, STRIDE, R, true>(s, strip, epilogue);
}

// The instance for a number of channels known at run time, R and below.
template <int K, int STRIDE, int R>
void slide_channels(const ConvShape& s, const Strip& strip, const Epilogue& epilogue, int64_t channels) {
  if (channels == R)
    slide<K, STRIDE, R>(s, strip, epilogue);
  else if constexpr (R > 1)
    slide_channels<K, STRIDE, R - 1>(s, strip, epilogue, channels);
}

struct Channels {
  int64_t blocks, total;
  QF_INLINE explicit Channels(const ConvShape& s)
      : blocks(divide_up(s.out_channels, most_channels(int(s.kernel[2]), int(s.strides[2])))), total(s.out_channels) {}
  QF_INLINE int64_t begin(int64_t block) const { return total * block / blocks; }
  QF_INLINE int64_t count(int64_t block) const { return begin(block + 1) - begin(block); }
};

}  // namespace

extern "C" void QF_EXPORT(conv_sliding_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  *needs = {sizeof(float) * s->groups * s->out_channels * s->in_channels * volume(s->kernel), 0};
}

extern "C" void QF_EXPORT(conv_sliding_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Channels channels(*s);
  const int64_t taps = volume(s->kernel);
  for (int64_t group = 0; group < s->groups; group++)
    for (int64_t block = 0; block < channels.blocks; block++)
      for (int64_t c = 0; c < s->in_channels; c++)
        for (int64_t tap = 0; tap < taps; tap++)
          for (int64_t m = channels.begin(block); m < channels.begin(block + 1); m++)
            *packed++ = weights[((group * s->out_channels + m) * s->in_channels + c) * taps + tap];
}

extern "C" void QF_EXPORT(conv_sliding_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Epilogue epilogue(s);
  const Channels channels(s);
  const int64_t x_group = s.in_channels * volume(s.input), y_channel = volume(s.output);
  const int64_t weights_channel = s.in_channels * volume(s.kernel);
  // Rows of y whose rows of x, of all channels, take half a megabyte of cache lines.
  const int64_t fit = (512 << 10) / (64 * s.in_channels * s.strides[1]);
  const int64_t columns = divide_up(s.output[2], LANES), bands = divide_up(s.output[1], fit > 8 ? fit : 8);
  const int64_t images_groups = s.batch * s.groups;
  const int64_t splits = smaller(channels.blocks, divide_up(call->threads, images_groups * columns * bands));
#pragma omp parallel for schedule(dynamic) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < images_groups * columns * bands * splits; part++) {
    const int64_t split = part % splits, band = part / splits % bands;
    const int64_t column = part / splits / bands % columns, image_group = part / splits / bands / columns;
    for (int64_t block = channels.blocks * split / splits; block < channels.blocks * (split + 1) / splits; block++) {
      const int64_t m = image_group % s.groups * s.out_channels + channels.begin(block);
      const int64_t at = (image_group / s.groups * s.groups * s.out_channels + m) * y_channel;
      const Strip strip{column * LANES,
                        s.output[1] * band / bands,
                        s.output[1] * (band + 1) / bands,
                        (const float*)call->x + image_group * x_group,
                        (const float*)call->weights + m * weights_channel,
                        call->bias ? (const float*)call->bias + m : nullptr,
                        call->residual ? (const float*)call->residual + at : nullptr, (float*)call->y + at};
      const int64_t count = channels.count(block);
      if (s.kernel[2] == 2)
        slide_channels<2, 1, most_channels(2, 1)>(s, strip, epilogue, count);
      else if (s.kernel[2] == 5)
        slide_channels<5, 1, most_channels(5, 1)>(s, strip, epilogue, count);
      else if (s.strides[2] == 1)
        slide_channels<3, 1, most_channels(3, 1)>(s, strip, epilogue, count);
      else
        slide_channels<3, 2, most_channels(3, 2)>(s, strip, epilogue, count);
    }
  }
  if (epilogue.later) {
    const int64_t planes = images_groups * s.out_channels;
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
    for (int64_t plane = 0; plane < planes; plane++)
      epilogue.activate_row((float*)call->y + plane * y_channel, y_channel);
  }
}
