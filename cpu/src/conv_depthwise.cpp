// Depthwise convolution (one input channel a group) on plain NCHW. Vectors lie along a row of y.
//
// Kernels of 3x3, 5x5 and 7x7 are computed in tiles of ROWS rows by one vector of columns, a band of rows at a time
// that is copied with its padding into the first-level cache (conv_padded.h). A tile goes through the columns of the
// kernel: one column's weights stay in registers, each line is loaded once and meets every output row that it belongs
// to. With 7 rows that is 5 loads for each vector of outputs of a 3x3 kernel, whose 9 multiply-adds then bound it (on
// AVX2: 4.5 cycles); most planes are bound by what moves them between the caches. (One load for several rows is the
// register blocking of Zhang, Lo and Lu, "High performance depthwise and pointwise convolutions on mobile devices",
// 2020.)
//
// Other kernels, dilations along the height and volumes take a plain loop over the taps for a row of y, VECTORS
// vectors of it together. Threads share the channels. Weights are read as they are: (M, 1, kernel).
#include "conv_epilogue.h"
#include "conv_padded.h"

namespace {

constexpr int ROWS = 7;  // of a tile: divides the planes of most networks; with 7 weights and a line, 15 registers
constexpr int VECTORS = 8;
constexpr int64_t BAND_FLOATS = 3072;  // 12 KiB, so that y and what is copied next find room beside it

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

  // A thread's workspace: the lines, then where each tap of a row lies in them, then the rows of weights in use.
  static int64_t workspace(const ConvShape& s) {
    const PaddedRows padded(s);
    const Bands bands(s, padded.pitch);
    const int64_t bytes = 4 * bands.lines * padded.pitch + 8 * (s.kernel[2] + s.kernel[0] * s.kernel[1]);
    return divide_up(bytes, 64) * 64;
  }
  QF_INLINE int64_t* places(float* lines) const { return (int64_t*)(lines + bands.lines * padded.pitch); }

  QF_INLINE void prepare(float* lines) const {
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
  const int64_t channels = s.groups * s.out_channels, planes = s.batch * channels, taps = volume(s.kernel);
  const int64_t x_size = volume(s.input), y_size = volume(s.output), workspace = Depthwise::workspace(s);
  const auto convolve_part = [&](int64_t part) {
    float* lines = (float*)(call->workspace + part * workspace);
    convolve.prepare(lines);
    const int64_t end = planes * (part + 1) / call->threads;
    for (int64_t i = planes * part / call->threads; i < end; i++) {
      const int64_t m = i % channels;
      const Plane plane{(const float*)call->x + i / s.out_channels * x_size,
                        (const float*)call->weights + m * taps,
                        call->bias ? ((const float*)call->bias)[m] : 0.0f,
                        call->residual ? (const float*)call->residual + i * y_size : nullptr,
                        (float*)call->y + i * y_size,
                        i + 1 < end && y_size >= LANES};
      convolve(plane, lines);
      if (epilogue.later) epilogue.activate_row(plane.y, y_size);
    }
  };
  if (call->threads == 1) return convolve_part(0);  // a parallel region takes longer than a small plane
#pragma omp parallel for schedule(static) num_threads(call->threads)
  for (int64_t part = 0; part < call->threads; part++) convolve_part(part);
}
