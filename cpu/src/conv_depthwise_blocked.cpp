// Depthwise convolution (each channel has its own kernel) over channel blocks (channel_blocks.h): a pixel is a vector,
// and no lane is ever empty at the edge of a plane.
//
// 3x3 kernels of stride 1 keep their weights in registers and roll over the columns of two rows of y at once: a column of
// four values of x is loaded once and added to the outputs of three columns, of which one is then done. That takes two
// loads and nine multiply-adds for an output, and padding costs nothing.
// In others every tap of a row of outputs is one multiply-add with its operand from memory; sums of up to PIXELS
// neighbouring outputs stay in registers, which hides the latency. The last ones inside overlap those before.
//
// Takes kernels of up to MOST_KERNEL_ROWS rows, any stride, dilation, padding and number of spatial axes; one output channel
// for each input channel.
// Limited by the multiply-adds or the loads, and for large planes by the bandwidth of the cache that holds them. Plain x
// and y go through a scratch of one block of channels. Threads share images and blocks of channels.
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

// What makes sums y: nothing where they wait for it.
struct Finish {
  const Epilogue* epilogue;  // null: plain sums are wanted
  const float* residual;     // laid out like y, or null

  QF_INLINE vfloat apply(vfloat sum, int64_t place) const {
    if (residual) sum += load(residual + place);
    return epilogue && epilogue->clamps ? epilogue->clamp(sum) : sum;
  }
  QF_INLINE void end_row(float* y, int64_t count) const {
    if (epilogue && epilogue->later) epilogue->activate_row(y, count);
  }
};

// P neighbouring outputs of a row, the first at `place` of y; `column` is where its first tap lies.
template <int P, int STRIDE>
QF_INLINE void sum_pixels(const ConvShape& s, const Row& row, int64_t column, vfloat bias, const Finish& finish, float* y,
                          int64_t place) {
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
  QF_UNROLL for (int p = 0; p < P; p++) store(y + place + p * LANES, finish.apply(sums[p], place + p * LANES));
}

// One output at an edge, some of whose taps fall on padding. Four sums at a time hide the latency.
inline vfloat sum_edge(const ConvShape& s, const Row& row, int64_t column, int64_t first, int64_t last, vfloat bias) {
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
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// A row of y, from `place` of it on.
template <int STRIDE>
void sum_row(const ConvShape& s, const Row& row, vfloat bias, const Finish& finish, float* y, int64_t place) {
  const int64_t width = s.output[2], taps = s.kernel[2], stride = s.strides[2], dilation = s.dilations[2];
  // Outputs from `first` to `last` have all their taps inside.
  const int64_t first = smaller(divide_up(s.pads[2], stride), width);
  const int64_t over = s.input[2] + s.pads[2] - (taps - 1) * dilation;  // columns that a first tap may lie at, with padding
  const int64_t last = over > 0 ? smaller(divide_up(over, stride), width) : 0;
  for (int64_t w = 0; w < width; w++) {
    if (w == first && first < last) {
      const auto some = [&](auto sum, int64_t count) {
        for (; w < last; w += count) {
          const int64_t from = smaller(w, last - count);
          sum(from * stride - s.pads[2], place + from * LANES);
        }
        w = last;
      };
      if (last - first >= PIXELS)
        some([&](int64_t column, int64_t at) { sum_pixels<PIXELS, STRIDE>(s, row, column, bias, finish, y, at); }, PIXELS);
      else if (last - first >= PIXELS / 2)
        some([&](int64_t column, int64_t at) { sum_pixels<PIXELS / 2, STRIDE>(s, row, column, bias, finish, y, at); },
             PIXELS / 2);
      if (w == width) break;
    }
    const int64_t column = w * stride - s.pads[2];
    const int64_t from = column < 0 ? divide_up(-column, dilation) : 0;
    const int64_t to = column < s.input[2] ? smaller(taps, divide_up(s.input[2] - column, dilation)) : 0;
    store(y + place + w * LANES, finish.apply(sum_edge(s, row, column, from, to, bias), place + w * LANES));
  }
  finish.end_row(y + place, width * LANES);
}

// ROWS rows of y of a 3x3 kernel of stride 1 out of ROWS + 2 rows of x, of which those from FIRST to LAST exist, column by
// column. weights: nine vectors; y is written from `place` on.
template <int ROWS, int FIRST, int LAST>
void roll_rows(const ConvShape& s, const float* const* x, const float* weights, vfloat bias, const Finish& finish, float* y,
               int64_t place) {
  const int64_t width = s.output[2], skipped = 2 - s.pads[2];
  vfloat w[3][3], done[ROWS], next[ROWS];
  QF_UNROLL for (int i = 0; i < 9; i++) w[i / 3][i % 3] = load(weights + i * LANES);
  QF_UNROLL for (int r = 0; r < ROWS; r++) done[r] = next[r] = bias;
  const auto finished = [&](int64_t column) {
    QF_UNROLL for (int r = 0; r < ROWS; r++) {
      const int64_t at = place + (r * width + column) * LANES;
      store(y + at, finish.apply(done[r], at));
    }
  };
  for (int64_t c = 0; c < s.input[2]; c++) {
    vfloat begun[ROWS];
    QF_UNROLL for (int r = 0; r < ROWS; r++) begun[r] = bias;
    QF_UNROLL for (int i = FIRST; i < LAST; i++) {
      const vfloat value = load(x[i] + c * LANES);
      QF_UNROLL for (int r = 0; r < ROWS; r++)
        if (i - r >= 0 && i - r < 3) {
          done[r] += w[i - r][2] * value;
          next[r] += w[i - r][1] * value;
          begun[r] += w[i - r][0] * value;
        }
    }
    if (c >= skipped) finished(c - skipped);
    QF_UNROLL for (int r = 0; r < ROWS; r++) done[r] = next[r], next[r] = begun[r];
  }
  // Outputs that reach over the right edge.
  for (int64_t column = s.input[2] - skipped; column < width; column++) {
    if (column >= 0) finished(column);
    QF_UNROLL for (int r = 0; r < ROWS; r++) done[r] = next[r], next[r] = bias;
  }
  QF_UNROLL for (int r = 0; r < ROWS; r++) finish.end_row(y + place + r * width * LANES, width * LANES);
}

// Whether roll_rows takes the shape: planes, with at most one row and two columns of padding on either side.
bool rolls(const ConvShape& s) {
  bool square = s.input[0] == 1 && s.output[0] == 1 && s.kernel[0] == 1 && s.pads[1] <= 1 && s.pads[2] <= 2;
  for (int axis = 1; axis < 3; axis++)
    square = square && s.kernel[axis] == 3 && s.strides[axis] == 1 && s.dilations[axis] == 1;
  return square && s.output[1] <= s.input[1] + s.pads[1] - 1 && s.output[2] <= s.input[2] + s.pads[2];
}

void roll_plane(const ConvShape& s, const float* x, const float* weights, vfloat bias, const Finish& finish, float* y) {
  for (int64_t h = 0; h < s.output[1];) {
    const int64_t top = h - s.pads[1], place = h * s.output[2] * LANES;
    const float* rows[4];
    for (int i = 0; i < 4; i++) rows[i] = x + (top + i) * s.input[2] * LANES;
    const bool first = top >= 0, last = top + 2 < s.input[1], pair = first && h + 1 < s.output[1] && top + 3 < s.input[1];
    const auto roll = pair            ? roll_rows<2, 0, 4>
                      : first && last ? roll_rows<1, 0, 3>
                      : last          ? roll_rows<1, 1, 3>
                      : first         ? roll_rows<1, 0, 2>
                                      : roll_rows<1, 1, 2>;
    roll(s, rows, weights, bias, finish, y, place);
    h += pair ? 2 : 1;
  }
}

// One block of channels of an image.
void sum_plane(const ConvShape& s, const float* x, const float* weights, vfloat bias, const Finish& finish, float* y) {
  if (rolls(s)) return roll_plane(s, x, weights, bias, finish, y);
  const auto sum = s.strides[2] == 1 ? sum_row<1> : s.strides[2] == 2 ? sum_row<2> : sum_row<0>;
  int64_t place = 0;
  for (int64_t d = 0; d < s.output[0]; d++)
    for (int64_t h = 0; h < s.output[1]; h++, place += s.output[2] * LANES) {
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
      sum(s, row, bias, finish, y, place);
    }
}

int64_t workspace_floats(const ConvShape& s) {
  const int64_t vectors = (s.x_blocked ? 0 : volume(s.input)) + (s.y_blocked ? 0 : volume(s.output));
  return divide_up(vectors * LANES, 16) * 16;
}

}  // namespace

extern "C" void QF_EXPORT(conv_depthwise_blocked_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  *needs = {sizeof(float) * divide_up(s->groups, LANES) * volume(s->kernel) * LANES,
            sizeof(float) * size_t(workspace_floats(*s))};
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
    float* room = (float*)call->workspace + omp_get_thread_num() * workspace_floats(s);
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
              {s.y_blocked ? &epilogue : nullptr, s.y_blocked && residual ? residual + part * out_plane * LANES : nullptr},
              sums);
    if (!s.y_blocked) {
      const int64_t at = (image * s.groups + first) * out_plane;
      write_planes(epilogue, sums, channels, out_plane, out_plane, residual ? residual + at : nullptr, y + at);
    }
  }
}
