// Changes of layout in a sequence: plain planes (N, C, P) into blocks of channels (N, ceil(C / LANES), P, LANES), the
// channels that the last block lacks being zero, and back.
//
// LANES pixels of LANES channels are loaded, transposed in registers and stored. Limited by memory; threads share
// blocks. Bytes lie with their channels last, (N, 1, P, C), on the other side: squares of SIDE are transposed by SIDE's
// logarithm of interleavings, and two to four planes, as of an image, are interleaved at once.
#include <omp.h>

#include "sequence.h"
#include "simd.h"

namespace {

void into_block(const float* x, int64_t plane, int channels, float* y) {
  for (int64_t p = 0; p < plane; p += LANES) {
    const int pixels = int(smaller(LANES, plane - p));
    vfloat rows[LANES];
    for (int c = 0; c < LANES; c++) {
      const float* from = x + c * plane + p;
      rows[c] = c >= channels ? (vfloat){} : pixels == LANES ? load(from) : load_first(from, pixels);
    }
    transpose(rows);
    for (int i = 0; i < pixels; i++) store(y + (p + i) * LANES, rows[i]);
  }
}

void out_of_block(const float* x, int64_t plane, int channels, float* y) {
  for (int64_t p = 0; p < plane; p += LANES) {
    const int pixels = int(smaller(LANES, plane - p));
    vfloat rows[LANES];
    for (int i = 0; i < LANES; i++) rows[i] = i < pixels ? load(x + (p + i) * LANES) : (vfloat){};
    transpose(rows);
    for (int c = 0; c < channels; c++)
      if (pixels == LANES) store(y + c * plane + p, rows[c]);
      else store_first(y + c * plane + p, rows[c], pixels);
  }
}

constexpr int SIDE = 16;
typedef uint8_t vside __attribute__((vector_size(SIDE)));

// Rows r and r + 8 interleaved become rows 2r and 2r + 1; four times is a transposition, as the bits of row and column turn.
QF_INLINE void transpose_bytes(vside (&rows)[SIDE]) {
  vside low, high;
  QF_UNROLL for (int i = 0; i < SIDE; i++) {
    low[i] = uint8_t(i / 2 + i % 2 * SIDE);
    high[i] = uint8_t(low[i] + SIDE / 2);
  }
  QF_UNROLL for (int turn = 0; turn < 4; turn++) {
    vside next[SIDE];
    QF_UNROLL for (int i = 0; i < SIDE / 2; i++) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + SIDE / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + SIDE / 2], high);
    }
    QF_UNROLL for (int i = 0; i < SIDE; i++) rows[i] = next[i];
  }
}

// x (height, width) becomes y (width, height), from column `begin` to `end` of x.
void transpose_matrix(const uint8_t* x, int64_t height, int64_t width, int64_t begin, int64_t end, uint8_t* y) {
  for (int64_t column = begin; column < end; column += SIDE)
    for (int64_t row = 0; row < height; row += SIDE) {
      const int64_t wide = smaller(SIDE, end - column), high = smaller(SIDE, height - row);
      const uint8_t* from = x + row * width + column;
      uint8_t* to = y + column * height + row;
      vside rows[SIDE];
      if (wide == SIDE && high == SIDE) {
        QF_UNROLL for (int i = 0; i < SIDE; i++) memcpy(&rows[i], from + i * width, SIDE);
        transpose_bytes(rows);
        QF_UNROLL for (int i = 0; i < SIDE; i++) memcpy(to + i * height, &rows[i], SIDE);
        continue;
      }
      QF_UNROLL for (int i = 0; i < SIDE; i++) rows[i] = (vside){};
      for (int64_t i = 0; i < high; i++) memcpy(&rows[i], from + i * width, size_t(wide));
      transpose_bytes(rows);
      for (int64_t i = 0; i < wide; i++) memcpy(to + i * height, &rows[i], size_t(high));
    }
}

// SIDE places of CHANNELS planes interleaved: each vector of the result takes from one plane after the other.
template <int CHANNELS>
QF_INLINE void interleave(const vside (&planes)[CHANNELS], vside (&y)[CHANNELS]) {
  QF_UNROLL for (int k = 0; k < CHANNELS; k++) {
    y[k] = planes[0];
    QF_UNROLL for (int c = 0; c < CHANNELS; c++) {
      vside from = {};
      QF_UNROLL for (int j = 0; j < SIDE; j++) {
        const int at = k * SIDE + j;
        from[j] = uint8_t(at % CHANNELS == c ? SIDE + at / CHANNELS : j);
      }
      y[k] = __builtin_shuffle(y[k], planes[c], from);
    }
  }
}

// As transpose_matrix, for CHANNELS rows: too few for squares.
template <int CHANNELS>
void interleave_rows(const uint8_t* x, int64_t width, int64_t begin, int64_t end, uint8_t* y) {
  for (int64_t column = begin; column < end; column += SIDE) {
    const size_t wide = size_t(smaller(SIDE, end - column));
    vside planes[CHANNELS] = {}, rows[CHANNELS];
    QF_UNROLL for (int c = 0; c < CHANNELS; c++) {
      if (wide == SIDE) memcpy(&planes[c], x + c * width + column, SIDE);
      else memcpy(&planes[c], x + c * width + column, wide);
    }
    interleave<CHANNELS>(planes, rows);
    if (wide == SIDE) memcpy(y + column * CHANNELS, rows, sizeof rows);
    else memcpy(y + column * CHANNELS, rows, wide * CHANNELS);
  }
}

void transpose_columns(const uint8_t* x, int64_t height, int64_t width, int64_t begin, int64_t end, uint8_t* y) {
  switch (height) {
    case 2: return interleave_rows<2>(x, width, begin, end, y);
    case 3: return interleave_rows<3>(x, width, begin, end, y);
    case 4: return interleave_rows<4>(x, width, begin, end, y);
    default: return transpose_matrix(x, height, width, begin, end, y);
  }
}

}  // namespace

extern "C" void QF_EXPORT(sequence_reorder_bytes)(const void* context, const void* const* inputs, void* const* outputs, char*,
                                                  int threads) {
  const ReorderContext& s = *static_cast<const ReorderContext*>(context);
  const int64_t height = s.into_blocks ? s.channels : s.plane, width = s.into_blocks ? s.plane : s.channels;
  constexpr int64_t STRIP = 16 * SIDE;  // columns that a thread takes at once
  const int64_t strips = divide_up(width, STRIP), tasks = s.batch * strips;
  const int team = s.batch * height * width < (1 << 17) ? 1 : int(smaller(threads, tasks));
#pragma omp parallel for num_threads(team) if (team > 1)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t image = task / strips * height * width, begin = task % strips * STRIP;
    transpose_columns((const uint8_t*)inputs[0] + image, height, width, begin, smaller(width, begin + STRIP),
                      (uint8_t*)outputs[0] + image);
  }
}

extern "C" void QF_EXPORT(sequence_reorder)(const void* context, const void* const* inputs, void* const* outputs, char*,
                                            int threads) {
  const ReorderContext& s = *static_cast<const ReorderContext*>(context);
  const int64_t blocks = divide_up(s.channels, LANES), tasks = s.batch * blocks;
  const int team = tasks * s.plane * LANES < (1 << 16) ? 1 : int(smaller(threads, tasks));
#pragma omp parallel for num_threads(team) if (team > 1)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t block = task % blocks, image = task / blocks;
    const int channels = int(smaller(LANES, s.channels - block * LANES));
    const int64_t plain = (image * s.channels + block * LANES) * s.plane, blocked = task * s.plane * LANES;
    const float* x = static_cast<const float*>(inputs[0]);
    float* y = static_cast<float*>(outputs[0]);
    if (s.into_blocks) into_block(x + plain, s.plane, channels, y + blocked);
    else out_of_block(x + blocked, s.plane, channels, y + plain);
  }
}
