// Direct convolution with few input channels a group, from padded rows of plain NCHW: no panel is packed.
//
// A band of rows of x, of all the group's channels, is copied with its padding into the first-level cache
// (conv_padded.h). There every tap of every channel lies at a fixed distance from an output's place, whatever the
// stride, the dilation and the number of axes; the distances are in a table (the idea of Dukhan, "The indirect
// convolution algorithm", 2019, with offsets in place of pointers). A register tile of CHANNELS output channels by
// VECTORS vectors of outputs runs over that table: for each tap it loads the vectors, multiplies them by broadcast
// weights and adds, so that the multiply-adds bound it. The last vector of a row overlaps the one before; rows narrower
// than a vector spill into the next one, which is written later.
//
// Takes everything in float32; it pays while a band of a group's channels stays in the first-level cache.
// Packed: the table of the taps, that of a band's vectors, then for each group and block of channels the weights of its
// channels side by side, tap by tap. All blocks of channels pass over a band before the next. Threads share images,
// groups and bands.
#include "conv_epilogue.h"
#include "conv_padded.h"

namespace {

constexpr int VECTORS = 3;
constexpr int CHANNELS = REGISTERS == 32 ? 8 : 4;
constexpr int64_t BAND_FLOATS = 6144;  // 24 KiB

// One vector of a band's outputs: where its first tap lies, and its place in the band's rows of y.
struct Vector {
  int64_t line, place;
};

struct Target {
  const float* bias;      // of the block's first channel, or null
  const float* residual;  // laid out like y, or null
  float* y;               // the block's first channel
  int64_t channel;        // floats from one channel to the next
  int64_t end;            // of the band in a channel: whole vectors may be written up to here
  int lanes;              // of a vector that exist
};

template <int M, int V>
__attribute__((noinline)) void tile(const float* lines, const Vector* vectors, const int64_t* offsets, int64_t taps,
                                    const float* weights, const Target& target, const Epilogue& epilogue) {
  const float* from[V];
  QF_UNROLL for (int v = 0; v < V; v++) from[v] = lines + vectors[v].line;
  vfloat sums[M][V];
  QF_UNROLL for (int m = 0; m < M; m++)
    QF_UNROLL for (int v = 0; v < V; v++) sums[m][v] = target.bias ? broadcast(target.bias[m]) : (vfloat){};
#pragma GCC unroll 3
  for (int64_t tap = 0; tap < taps; tap++, weights += M) {
    const int64_t offset = offsets[tap];
    vfloat x[V];
    QF_UNROLL for (int v = 0; v < V; v++) x[v] = load(from[v] + offset);
    QF_UNROLL for (int m = 0; m < M; m++) {
      const vfloat weight = broadcast(weights[m]);
      QF_UNROLL for (int v = 0; v < V; v++) sums[m][v] += weight * x[v];
    }
  }
  const bool whole = vectors[V - 1].place + LANES <= target.end;
  if (whole && !target.residual && !epilogue.clamps) {
    QF_UNROLL for (int m = 0; m < M; m++)
      QF_UNROLL for (int v = 0; v < V; v++) store(target.y + m * target.channel + vectors[v].place, sums[m][v]);
    return;
  }
  QF_UNROLL for (int m = 0; m < M; m++)
    QF_UNROLL for (int v = 0; v < V; v++) {
      const int64_t place = vectors[v].place, at = m * target.channel + place;
      vfloat sum = sums[m][v];
      if (target.residual) sum += load_first(target.residual + at, target.lanes);
      if (epilogue.clamps) sum = epilogue.clamp(sum);
      if (place + LANES <= target.end)
        store(target.y + at, sum);
      else
        store_first(target.y + at, sum, target.lanes);
    }
}

// The instance for numbers of channels and vectors known at run time, M and V and below.
template <int M, int V>
QF_INLINE void tile_of(int64_t channels, int64_t count, const float* lines, const Vector* vectors,
                       const int64_t* offsets, int64_t taps, const float* weights, const Target& target,
                       const Epilogue& epilogue) {
  if constexpr (M > 1)
    if (channels < M)
      return tile_of<M - 1, V>(channels, count, lines, vectors, offsets, taps, weights, target, epilogue);
  if constexpr (V > 1)
    if (count < V)
      return tile_of<M, V - 1>(channels, count, lines, vectors, offsets, taps, weights, target, epilogue);
  tile<M, V>(lines, vectors, offsets, taps, weights, target, epilogue);
}

struct Plan {
  PaddedRows padded;
  int64_t rows, lines;        // of y and of x in one band
  int64_t bands, row_vectors;
  int64_t taps, blocks;       // blocks of output channels, all but some of block_channels, those one more
  int64_t block_channels, larger_blocks;

  QF_INLINE explicit Plan(const ConvShape& s) : padded(s) {
    taps = s.in_channels * volume(s.kernel);
    blocks = divide_up(s.out_channels, CHANNELS);
    block_channels = s.out_channels / blocks;
    larger_blocks = s.out_channels % blocks;
    const int64_t span = (s.kernel[1] - 1) * s.dilations[1] + 1;
    const int64_t fit = BAND_FLOATS / (s.in_channels * s.kernel[0] * padded.pitch);
    const int64_t most = fit > span ? (fit - span) / s.strides[1] + 1 : 1;
    bands = divide_up(s.output[1], most);
    rows = divide_up(s.output[1], bands);
    lines = (rows - 1) * s.strides[1] + span;
    row_vectors = divide_up(s.output[2], LANES);
  }

  QF_INLINE int64_t first_channel(int64_t block) const {
    return block * block_channels + smaller(block, larger_blocks);
  }
  QF_INLINE int64_t buffer_floats(const ConvShape& s) const {
    return divide_up(s.in_channels * s.kernel[0] * lines * padded.pitch, 16) * 16;
  }

  // A band of one output depth of a group's channels.
  QF_INLINE void fill(const ConvShape& s, const float* x, int64_t depth, int64_t row, float* to) const {
    const int64_t top = row * s.strides[1] - s.pads[1], height = s.input[1];
    const int64_t ahead = bands > 1 ? rows * s.strides[1] * s.input[2] : s.in_channels * volume(s.input);
    for (int64_t c = 0; c < s.in_channels; c++)
      for (int64_t kd = 0; kd < s.kernel[0]; kd++) {
        const int64_t d = depth * s.strides[0] + kd * s.dilations[0] - s.pads[0];
        const bool inside = d >= 0 && d < s.input[0];
        const int64_t first = inside ? clamped(-top, lines) : lines;
        const int64_t last = inside ? clamped(height - top, lines) : lines;
        if (bands > 1 || s.kernel[0] > 1 || s.output[0] > 1) {  // else what lies outside is clear already
          padded.clear(to, first);
          padded.clear(to + last * padded.pitch, lines - last);
        }
        padded.copy(x + ((c * s.input[0] + d) * height + top + first) * s.input[2], last - first,
                    to + first * padded.pitch, ahead);
        to += lines * padded.pitch;
      }
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_padded_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  const int64_t vectors = plan.rows * plan.row_vectors;
  *needs = {size_t(sizeof(int64_t) * plan.taps + sizeof(Vector) * vectors +
                   sizeof(float) * plan.taps * s->groups * s->out_channels),
            size_t(sizeof(float) * plan.buffer_floats(*s))};
}

extern "C" void QF_EXPORT(conv_padded_f32_pack)(const ConvShape* shape, const float* weights, float* packed) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  int64_t* offset = (int64_t*)packed;
  for (int64_t slice = 0; slice < s.in_channels * s.kernel[0]; slice++)
    for (int64_t kh = 0; kh < s.kernel[1]; kh++)
      for (int64_t kw = 0; kw < s.kernel[2]; kw++)
        *offset++ = (slice * plan.lines + kh * s.dilations[1]) * plan.padded.pitch +
                    plan.padded.place(kw * s.dilations[2]);
  Vector* vector = (Vector*)offset;
  const int64_t last = s.output[2] > LANES ? s.output[2] - LANES : 0;
  for (int64_t row = 0; row < plan.rows; row++)
    for (int64_t i = 0; i < plan.row_vectors; i++) {
      const int64_t column = smaller(i * LANES, last);
      *vector++ = {row * s.strides[1] * plan.padded.pitch + column, row * s.output[2] + column};
    }
  packed = (float*)vector;
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t block = 0; block < plan.blocks; block++)
      for (int64_t tap = 0; tap < plan.taps; tap++)
        for (int64_t m = plan.first_channel(block); m < plan.first_channel(block + 1); m++)
          *packed++ = weights[(group * s.out_channels + m) * plan.taps + tap];
}

extern "C" void QF_EXPORT(conv_padded_f32)(const ConvShape* shape, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Epilogue epilogue(s);
  const Plan plan(s);
  const int64_t* offsets = (const int64_t*)call->weights;
  const Vector* vectors = (const Vector*)(offsets + plan.taps);
  const float* weights = (const float*)(vectors + plan.rows * plan.row_vectors);
  const int64_t x_group = s.in_channels * volume(s.input), y_channel = volume(s.output), width = s.output[2];
  const int64_t parts = s.batch * s.groups * s.output[0] * plan.bands, floats = plan.buffer_floats(s);
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t thread = 0; thread < call->threads; thread++) {
    float* buffer = (float*)call->workspace + thread * floats;
    for (int64_t i = 0; i < floats; i += LANES) store(buffer + i, (vfloat){});
    const int64_t end = parts * (thread + 1) / call->threads;
    for (int64_t part = parts * thread / call->threads; part < end; part++) {
      const int64_t band = part % plan.bands, depth = part / plan.bands % s.output[0];
      const int64_t image_group = part / plan.bands / s.output[0], group = image_group % s.groups;
      const int64_t row = band * plan.rows, rows = smaller(plan.rows, s.output[1] - row);
      plan.fill(s, (const float*)call->x + image_group * x_group, depth, row, buffer);
      for (int64_t block = 0; block < plan.blocks; block++) {
        const int64_t first = plan.first_channel(block), channels = plan.first_channel(block + 1) - first;
        const int64_t m = group * s.out_channels + first;
        const int64_t at = (image_group * s.out_channels + first) * y_channel + (depth * s.output[1] + row) * width;
        const Target target{call->bias ? (const float*)call->bias + m : nullptr,
                            call->residual ? (const float*)call->residual + at : nullptr,
                            (float*)call->y + at, y_channel, rows * width, int(smaller(LANES, width))};
        for (int64_t i = 0, left = rows * plan.row_vectors; left > 0;) {
          // Two and two rather than three and one.
          const int64_t count = left == VECTORS + 1 ? (VECTORS + 1) / 2 : smaller(left, VECTORS);
          tile_of<CHANNELS, VECTORS>(channels, count, buffer, vectors + i, offsets, plan.taps, weights + m * plan.taps,
                                     target, epilogue);
          i += count;
          left -= count;
        }
        if (epilogue.later)
          for (int64_t i = 0; i < channels; i++) epilogue.activate_row(target.y + i * y_channel, rows * width);
      }
    }
  }
}
