// Depthwise convolution (one input channel a group) on plain NCHW, by a register sliding window: vectors lie along a
// row of y, the window slides down, and the partial sums of the output rows that a row of x contributes to stay in
// registers and move up by one as it does. Each value of x is loaded once for each column of the kernel, not once for
// each tap. Several channels slide together, so that their independent sums hide the latency of the multiply-adds.
//
// 3x3 and 5x5 of strides 1x1, 2x2 and 2x1 slide; other kernels, dilations and depths take a plain loop over the taps. Lanes that
// fall on padding beside a row are masked, rows above and below are skipped. Threads share the channels.
// Weights are read as they are: (M, 1, kernel).
#include "conv_epilogue.h"
#include "conv_panel.h"
#include "conv_window.h"

namespace {

// Some channels of one image.
struct Planes {
  const float* x[4];
  const float* weights[4];
  float bias[4];
  const float* residual[4];  // null without
  float* y[4];
};

// One column of LANES outputs from column `first` (of y), for V channels.
template <int K, int DOWN, int STRIDE, int V, bool MASKED>
__attribute__((noinline)) void slide_down(const ConvShape& s, const Planes& planes, const Epilogue& epilogue,
                                          int64_t first) {
  typedef RowWindow<K, STRIDE, MASKED> Window;
  constexpr int SUMS = (K + DOWN - 1) / DOWN;  // output rows that one row of x contributes to
  const Window window(s, first);
  constexpr bool KEEP_WEIGHTS = REGISTERS == 32 && K * K * V <= 18;
  [[maybe_unused]] vfloat kept[V][K * K];
  if constexpr (KEEP_WEIGHTS)
    QF_UNROLL for (int v = 0; v < V; v++)
      QF_UNROLL for (int k = 0; k < K * K; k++) kept[v][k] = broadcast(planes.weights[v][k]);
  vfloat sums[V][SUMS] = {};  // sums[v][i] belongs to output row step - i
  for (int64_t step = 0; step < s.output[1] + SUMS - 1; step++) {
    QF_UNROLL for (int v = 0; v < V; v++) {
      QF_UNROLL for (int i = SUMS - 1; i > 0; i--) sums[v][i] = sums[v][i - 1];
      sums[v][0] = broadcast(planes.bias[v]);
    }
    QF_UNROLL for (int phase = 0; phase < DOWN; phase++) {
      const int64_t row = step * DOWN + phase - s.pads[1];
      if (row < 0 || row >= s.input[1]) continue;
      QF_UNROLL for (int v = 0; v < V; v++) {
        vfloat x[Window::LOADS];
        window.read(planes.x[v] + row * s.input[2], x);
        QF_UNROLL for (int i = 0; i < SUMS; i++) {
          const int k = phase + DOWN * i;
          if (k < K)
            QF_UNROLL for (int tap = 0; tap < K; tap++) {
              if constexpr (KEEP_WEIGHTS)
                sums[v][i] += kept[v][k * K + tap] * x[tap];
              else
                sums[v][i] += planes.weights[v][k * K + tap] * x[tap];
            }
        }
      }
    }
    const int64_t done = step - (SUMS - 1);
    if (done < 0) continue;
    QF_UNROLL for (int v = 0; v < V; v++) {
      const int64_t at = done * s.output[2] + first;
      vfloat sum = sums[v][SUMS - 1];
      if (planes.residual[v]) sum += window.read_outputs(planes.residual[v] + at);
      if (epilogue.clamps) sum = epilogue.clamp(sum);
      window.write_outputs(planes.y[v] + at, sum);
    }
  }
}

template <int K, int DOWN, int STRIDE, int V>
void slide(const ConvShape& s, const Planes& planes, const Epilogue& epilogue) {
  for (int64_t first = 0; first < s.output[2]; first += LANES) {
    if (RowWindow<K, STRIDE, false>::inside(s, first))
      slide_down<K, DOWN, STRIDE, V, false>(s, planes, epilogue, first);
    else
      slide_down<K, DOWN, STRIDE, V, true>(s, planes, epilogue, first);
  }
}

template <int K, int DOWN, int STRIDE>
void slide_channels(const ConvShape& s, const Planes& planes, const Epilogue& epilogue, int channels) {
  if (channels == 1)
    slide<K, DOWN, STRIDE, 1>(s, planes, epilogue);
  else
    slide<K, DOWN, STRIDE, 2>(s, planes, epilogue);
}

template <int K>
void slide_strides(const ConvShape& s, const Planes& planes, const Epilogue& epilogue, int channels) {
  if (s.strides[2] == 2)
    slide_channels<K, 2, 2>(s, planes, epilogue, channels);
  else if (s.strides[1] == 2)
    slide_channels<K, 2, 1>(s, planes, epilogue, channels);
  else
    slide_channels<K, 1, 1>(s, planes, epilogue, channels);
}

// Any kernel, stride and dilation: taps one by one, up to COLUMNS vectors of a row together.
constexpr int COLUMNS = 4;

template <int STRIDE>
void plain(const ConvShape& s, const float* x, const float* weights, float bias, const float* residual, float* y,
           const Epilogue& epilogue) {
  const int64_t width = s.output[2];
  for (int64_t d = 0; d < s.output[0]; d++)
    for (int64_t h = 0; h < s.output[1]; h++)
      for (int64_t first = 0; first < width; first += COLUMNS * LANES) {
        vfloat sums[COLUMNS];
        QF_UNROLL for (int i = 0; i < COLUMNS; i++) sums[i] = broadcast(bias);
        for (int64_t kd = 0; kd < s.kernel[0]; kd++)
          for (int64_t kh = 0; kh < s.kernel[1]; kh++) {
            const int64_t id = d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
            const int64_t ih = h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
            if (id < 0 || id >= s.input[0] || ih < 0 || ih >= s.input[1]) continue;
            const float* row = x + (id * s.input[1] + ih) * s.input[2];
            const float* taps = weights + (kd * s.kernel[1] + kh) * s.kernel[2];
            for (int64_t kw = 0; kw < s.kernel[2]; kw++)
              QF_UNROLL for (int i = 0; i < COLUMNS; i++) {
                const int64_t at = first + i * LANES;
                if (at >= width) continue;
                sums[i] += taps[kw] * load_pixels<STRIDE>(row, at * s.strides[2] + kw * s.dilations[2] - s.pads[2],
                                                          s.strides[2], s.input[2], int(smaller(LANES, width - at)));
              }
          }
        QF_UNROLL for (int i = 0; i < COLUMNS; i++) {
          const int64_t column = first + i * LANES, at = (d * s.output[1] + h) * width + column;
          if (column >= width) continue;
          const int lanes = int(smaller(LANES, width - column));
          if (residual) sums[i] += load_first(residual + at, lanes);
          if (epilogue.clamps) sums[i] = epilogue.clamp(sums[i]);
          store_first(y + at, sums[i], lanes);
        }
      }
}

QF_INLINE int sliding_kernel(const ConvShape& s) {
  const bool flat = s.kernel[0] == 1 && s.input[0] == 1 && s.output[0] == 1 && s.strides[0] == 1 && s.pads[0] == 0;
  const bool dense = s.dilations[1] == 1 && s.dilations[2] == 1;
  const bool square = s.kernel[1] == s.kernel[2] && s.strides[1] <= 2 && s.strides[2] <= s.strides[1];
  return flat && dense && square && (s.kernel[1] == 3 || s.kernel[1] == 5) ? int(s.kernel[1]) : 0;
}

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Epilogue epilogue(s);
  const int64_t channels = s.groups * s.out_channels, taps = volume(s.kernel);
  const int64_t x_size = volume(s.input), y_size = volume(s.output);
  const int kernel = sliding_kernel(s);
  const int together = kernel ? 2 : 1;
  const int64_t blocks = divide_up(channels, together);
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t part = 0; part < s.batch * blocks; part++) {
    const int64_t image = part / blocks, first = part % blocks * together;
    const int count = int(smaller(together, channels - first));
    Planes planes;
    for (int i = 0; i < count; i++) {
      const int64_t m = first + i, plane = image * channels + m;
      planes.x[i] = (const float*)call->x + (image * s.groups + m / s.out_channels) * x_size;
      planes.weights[i] = (const float*)call->weights + m * taps;
      planes.bias[i] = call->bias ? ((const float*)call->bias)[m] : 0.0f;
      planes.residual[i] = call->residual ? (const float*)call->residual + plane * y_size : nullptr;
      planes.y[i] = (float*)call->y + plane * y_size;
    }
    if (kernel == 3)
      slide_strides<3>(s, planes, epilogue, count);
    else if (kernel == 5)
      slide_strides<5>(s, planes, epilogue, count);
    else
      (s.strides[2] == 1   ? plain<1>
       : s.strides[2] == 2 ? plain<2>
                           : plain<0>)(s, planes.x[0], planes.weights[0], planes.bias[0], planes.residual[0],
                                       planes.y[0], epilogue);
    if (epilogue.later)
      for (int i = 0; i < count; i++) epilogue.activate_row(planes.y[i], y_size);
  }
}
