// Integer convolution of any shape: the definition, tap by tap along a row of y, exact in int32 (wrapping).
//
// x is uint8 or int8; weights are int16 with their zero points taken off, (M, C / groups, kernel). x's zero point is
// taken off as x is read, so that taps on padding contribute nothing. Threads share the rows of y.
#include "conv_requantize.h"

namespace {

constexpr int64_t CHUNK = 512;  // outputs of a row that are summed together, on the stack

template <class X>
void sum_chunk(const ConvShape& s, const X* x, int x_zero, const int16_t* w, int64_t d, int64_t h, int64_t first,
               int64_t count, uint32_t* sums) {
  for (int64_t c = 0; c < s.in_channels; c++)
    for (int64_t kd = 0; kd < s.kernel[0]; kd++)
      for (int64_t kh = 0; kh < s.kernel[1]; kh++, w += s.kernel[2]) {
        const int64_t id = d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
        const int64_t ih = h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
        if (id < 0 || id >= s.input[0] || ih < 0 || ih >= s.input[1]) continue;
        const X* row = x + ((c * s.input[0] + id) * s.input[1] + ih) * s.input[2];
        for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
          const int64_t stride = s.strides[2], column = first * stride + kw * s.dilations[2] - s.pads[2];
          const int64_t begin = column < 0 ? divide_up(-column, stride) : 0;
          const int64_t room = s.input[2] - column;
          const int64_t end = room > 0 ? smaller(count, divide_up(room, stride)) : 0;
          const int32_t weight = w[kw];
          if (stride == 1)
            for (int64_t i = begin; i < end; i++) sums[i] += uint32_t(weight * (row[column + i] - x_zero));
          else
            for (int64_t i = begin; i < end; i++) sums[i] += uint32_t(weight * (row[column + i * stride] - x_zero));
        }
      }
}

}  // namespace

extern "C" void QF_EXPORT(conv_direct_integer)(const ConvShape* shape, const ConvQuantization* q, const ConvCall* call) {
  const ConvShape& s = *shape;
  const Requantization requantization(*q);
  const int64_t channels = s.groups * s.out_channels, rows = s.batch * channels * s.output[0] * s.output[1];
  const int64_t x_size = s.in_channels * volume(s.input), w_size = s.in_channels * volume(s.kernel);
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
  for (int64_t index = 0; index < rows; index++) {
    const int64_t h = index % s.output[1], d = index / s.output[1] % s.output[0];
    const int64_t m = index / s.output[1] / s.output[0] % channels, n = index / s.output[1] / s.output[0] / channels;
    const int64_t x_at = (n * s.groups + m / s.out_channels) * x_size;
    const int16_t* w = (const int16_t*)call->weights + m * w_size;
    for (int64_t first = 0; first < s.output[2]; first += CHUNK) {
      const int64_t count = smaller(CHUNK, s.output[2] - first);
      uint32_t sums[CHUNK];
      const uint32_t start = call->bias ? ((const uint32_t*)call->bias)[m] : 0;
      for (int64_t i = 0; i < count; i++) sums[i] = start;
      if (q->x_signed)
        sum_chunk(s, (const int8_t*)call->x + x_at, q->x_zero, w, d, h, first, count, sums);
      else
        sum_chunk(s, (const uint8_t*)call->x + x_at, q->x_zero, w, d, h, first, count, sums);
      const vfloat multiplier = broadcast(q->multipliers ? q->multipliers[m] : 0);
      const int64_t size = requantization.wanted ? 1 : 4;
      for (int64_t i = 0; i < count; i += 4 * LANES) {
        vuint vectors[4];
        QF_UNROLL for (int j = 0; j < 4; j++) vectors[j] = load_words(sums + i + j * LANES);
        char row[4 * LANES * 4];
        requantization.write_rows<false>(vectors, multiplier, row, 2 * LANES * size);
        memcpy((char*)call->y + (index * s.output[2] + first + i) * size, row, smaller(4 * LANES, count - i) * size);
      }
    }
  }
}
