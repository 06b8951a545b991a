// Depthwise convolution (each channel has its own kernel) over channel blocks (channel_blocks.h): a pixel is a vector,
// so every tap of a row of outputs is one multiply-add with its operand from memory, and no lane is ever empty at the
// edge of a plane. Sums of up to PIXELS neighbouring outputs stay in registers, which hides the latency.
//
// Takes kernels of up to MOST_KERNEL_ROWS rows, any stride, dilation, padding and number of spatial axes; one output channel
// for each input channel.
// Limited by a load for each multiply-add, and for large planes by the bandwidth of the cache that holds them. Plain
// x and y go through a scratch of one block of channels. Threads share images and blocks of channels.
//
// Weights are packed as (blocks of channels, taps, LANES).
#include <omp.h>

#include "channel_blocks.h"
#include "conv_epilogue.h"

namespace {

constexpr int PIXELS = 8;
constexpr int MOST_KERNEL_ROWS = 64;  // conv.py accepts no more

// The taps of some rows of x that one row of y meets.
struct Row {
  const float* rows[MOST_KERNEL_ROWS];     // where column 0 of each lies
  const float* weights[MOST_KERNEL_ROWS];  // of each row's first tap
  int count;
};

// P neighbouring outputs of a row; `column` is where the first one's first tap lies.
template <int P, int STRIDE>
QF_INLINE void sum_pixels(const ConvShape& s, const Row& row, int64_t column, vfloat bias, float* y) {
  const int64_t stride = (STRIDE ? STRIDE : s.strides[2]) * LANES, dilation = s.dilations[2] * LANES;
  vfloat sums[P];
  QF_UNROLL for (int p = 0; p < P; p++) sums[p] = bias;
  for (int r = 0; r < row.count; r++) {
    const float* x = row.rows[r] + column * LANES;
    for (int64_t tap = 0; tap < s.kernel[2]; tap++) {
      const vfloat w = load(row.weights[r] + tap * LANES);
      QF_UNROLL for (int p = 0; p < P; p++) sums[p] += w * load(x + tap * dilation + p * stride);
    }
  }
  QF_UNROLL for (int p = 0; p < P; p++) store(y + p * LANES, sums[p]);
}

// One output at an edge, some of whose taps fall on padding. Four sums at a time hide the latency.
inline void sum_edge(const ConvShape& s, const Row& row, int64_t column, int64_t first, int64_t last, vfloat bias,
                     float* y) {
  constexpr int SUMS = 4;
  const int64_t dilation = s.dilations[2] * LANES;
  vfloat sums[SUMS] = {bias};
  int r = 0;
  for (; r + SUMS <= row.count; r += SUMS)
    for (int64_t tap = first; tap < last; tap++)
      QF_UNROLL for (int i = 0; i < SUMS; i++)
        sums[i] += load(row.weights[r + i] + tap * LANES) * load(row.rows[r + i] + column * LANES + tap * dilation);
  for (int64_t tap = first; tap < last; tap++)
    QF_UNROLL for (int i = 0; i < SUMS - 1; i++)
      if (r + i < row.count)
        sums[i] += load(row.weights[r + i] + tap * LANES) * load(row.rows[r + i] + column * LANES + tap * dilation);
  store(y, (sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <int STRIDE>
void sum_row(const ConvShape& s, const Row& row, vfloat bias, float* y) {
  const int64_t width = s.output[2], taps = s.kernel[2];
  const auto column = [&](int64_t w) { return w * s.strides[2] - s.pads[2]; };
  for (int64_t w = 0; w < width;) {
    const int64_t at = column(w), reach = (taps - 1) * s.dilations[2];
    // Whether the next n outputs have all their taps inside.
    const auto inside = [&](int64_t n) { return at >= 0 && w + n <= width && column(w + n - 1) + reach < s.input[2]; };
    float* to = y + w * LANES;
    if (inside(PIXELS)) {
      sum_pixels<PIXELS, STRIDE>(s, row, at, bias, to);
      w += PIXELS;
    } else if (inside(PIXELS / 2)) {
      sum_pixels<PIXELS / 2, STRIDE>(s, row, at, bias, to);
      w += PIXELS / 2;
    } else {
      const int64_t first = at < 0 ? divide_up(-at, s.dilations[2]) : 0;
      const int64_t last = at < s.input[2] ? smaller(taps, divide_up(s.input[2] - at, s.dilations[2])) : 0;
      sum_edge(s, row, at, first, last, bias, to);
      w++;
    }
  }
}

// One block of channels of an image. finish: what makes the sums y; null where they wait for it.
void sum_plane(const ConvShape& s, const float* x, const float* weights, vfloat bias, const float* residual,
               const Epilogue* finish, float* y) {
  const auto sum = s.strides[2] == 1 ? sum_row<1> : s.strides[2] == 2 ? sum_row<2> : sum_row<0>;
  for (int64_t d = 0; d < s.output[0]; d++)
    for (int64_t h = 0; h < s.output[1]; h++, y += s.output[2] * LANES) {
      Row row;
      row.count = 0;
      for (int64_t kd = 0; kd < s.kernel[0]; kd++)
        for (int64_t kh = 0; kh < s.kernel[1]; kh++) {
          const int64_t id = d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
          const int64_t ih = h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
          if (id < 0 || id >= s.input[0] || ih < 0 || ih >= s.input[1]) continue;
          row.rows[row.count] = x + (id * s.input[1] + ih) * s.input[2] * LANES;
          row.weights[row.count++] = weights + (kd * s.kernel[1] + kh) * s.kernel[2] * LANES;
        }
      sum(s, row, bias, y);
      if (finish) {
        for (int64_t w = 0; w < s.output[2]; w++) {
          vfloat value = load(y + w * LANES);
          if (residual) value += load(residual + w * LANES);
          store(y + w * LANES, finish->apply(value));
        }
        if (residual) residual += s.output[2] * LANES;
      }
    }
}

int64_t workspace_floats(const ConvShape& s) {
  return (s.x_blocked ? 0 : volume(s.input) * LANES) + (s.y_blocked ? 0 : volume(s.output) * LANES);
}

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_blocked_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  *needs = {sizeof(float) * divide_up(s->groups, LANES) * volume(s->kernel) * LANES,
            sizeof(float) * size_t(divide_up(workspace_floats(*s), 16) * 16)};
}

extern "C" void QF_EXPORT(conv_depthwise_blocked_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const int64_t taps = volume(s->kernel);
  for (int64_t block = 0; block < divide_up(s->groups, LANES); block++)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t m = block * LANES; m < (block + 1) * LANES; m++)
        *packed++ = m < s->groups ? weights[m * taps + tap] : 0.0f;
}

extern "C" void QF_EXPORT(conv_depthwise_blocked_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Epilogue epilogue(s);
  const int64_t blocks = divide_up(s.groups, LANES), in_plane = volume(s.input), out_plane = volume(s.output);
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < s.batch * blocks; part++) {
    const int64_t image = part / blocks, block = part % blocks, first = block * LANES;
    const int channels = int(smaller(LANES, s.groups - first));
    float* room = (float*)call->workspace + omp_get_thread_num() * divide_up(workspace_floats(s), 16) * 16;
    const float *x = (const float*)call->x, *residual = (const float*)call->residual;
    float *y = (float*)call->y, *sums = y + part * out_plane * LANES;
    if (s.x_blocked) {
      x += part * in_plane * LANES;
    } else {
      const int64_t height = s.input[0] * s.input[1];
      turn_band(x + (image * s.groups + first) * in_plane, height, s.input[2], channels, {0, height, 0, s.input[2]}, room);
      x = room;
      room += in_plane * LANES;
    }
    if (!s.y_blocked) sums = room;
    vfloat bias = {};
    if (call->bias) bias = load_first((const float*)call->bias + first, channels);
    sum_plane(s, x, (const float*)call->weights + block * volume(s.kernel) * LANES, bias,
              residual && s.y_blocked ? residual + part * out_plane * LANES : nullptr, s.y_blocked ? &epilogue : nullptr,
              sums);
    if (!s.y_blocked) {
      const int64_t at = (image * s.groups + first) * out_plane;
      write_planes(epilogue, sums, channels, out_plane, out_plane, residual ? residual + at : nullptr, y + at);
    }
  }
}
