// Fixed-point convolution, dense layers among them: x is laid out with its padding and its channels last, so that every
// product's x lies at one offset from where its window begins, whatever order the products are added in.
//
// x, y int16 or int32, (N, C, spatial). A group's channels lie side by side; where channels make a few channels each
// (depthwise), those of as many output channels as a vector has. Images are laid out a few at a time, for a cache's
// sake; threads share the rows that are laid out, then the tiles of output places.
#include "fixed_vector.h"

namespace {

constexpr int PLACES = FIXED_PLACES;
constexpr int64_t BAND = 8;  // channels that are laid out together

// Eight columns of a band, from column `at` of each channel on.
template <class To>
QF_INLINE void lay_eight(const int16_t* const* channels, int64_t at, To* to, int64_t depth) {
  static_assert(BAND == 8);
  eight_values rows[8];
  QF_UNROLL for (int i = 0; i < 8; i++) memcpy(&rows[i], channels[i] + at, sizeof rows[i]);
  transpose_eight(rows);
  QF_UNROLL for (int i = 0; i < 8; i++) {
    typedef To laid __attribute__((vector_size(8 * sizeof(To))));
    const laid place = __builtin_convertvector(rows[i], laid);
    memcpy(to + i * depth, &place, sizeof place);
  }
}

// Row `row` of an image as it is laid out, counted over groups, depth and height: `reach` places of all channels of a
// group, zero where padding.
template <class X, class To>
void lay(const FixedConv& c, const X* image, int64_t row, To* to) {
  const int64_t h = row % c.reach[1] - c.pads[1], d = row / c.reach[1] % c.reach[0] - c.pads[0];
  const int64_t group = row / (c.reach[0] * c.reach[1]), depth = c.depth, reach = c.reach[2], pad = c.pads[2];
  const int64_t volume = c.input[0] * c.input[1] * c.input[2], last = c.in_channels - 1;
  const bool inside = d >= 0 && d < c.input[0] && h >= 0 && h < c.input[1];
  const int64_t begin = inside ? smaller(pad, reach) : reach, end = inside ? smaller(reach, pad + c.input[2]) : reach;
  for (int64_t i = 0; i < begin * depth; i++) to[i] = 0;
  for (int64_t i = end * depth; i < reach * depth; i++) to[i] = 0;
  if (begin >= end) return;
  const X* const plane = image + (d * c.input[1] + h) * c.input[2];
  if (volume == 1 && !c.products.lanewise) {
    for (int64_t i = 0; i < depth; i++) to[begin * depth + i] = To(plane[group * depth + i]);
    return;
  }
  for (int64_t first = 0; first < depth; first += BAND) {
    const X* from[BAND];
    const int64_t count = smaller(BAND, depth - first);
    for (int64_t i = 0; i < count; i++) {
      const int64_t channel = group * depth + first + i;
      from[i] = plane + (c.products.lanewise ? smaller(channel / c.each, last) : channel) * volume;
    }
    To* const band = to + first;
    if (count == BAND) {
      int64_t w = begin;
      if constexpr (sizeof(X) == 2)
        for (; w + 8 <= end; w += 8) lay_eight(from, w - pad, band + w * depth, depth);
      for (; w < end; w++)
        QF_UNROLL for (int i = 0; i < BAND; i++) band[w * depth + i] = To(from[i][w - pad]);
    } else {
      for (int64_t i = 0; i < count; i++)
        for (int64_t w = begin; w < end; w++) band[w * depth + i] = To(from[i][w - pad]);
    }
  }
}

template <class X, class To>
void run(const FixedConv& c, const X* x, char* y, char* workspace, int threads) {
  const FixedProducts& f = c.products;
  const int64_t groups = f.lanewise ? divide_up(f.channels, f.rows) : f.groups;
  const int64_t rows = groups * c.reach[0] * c.reach[1], row_size = c.reach[2] * c.depth;
  const int64_t group_size = c.reach[0] * c.reach[1] * row_size, image_size = groups * group_size;
  const int64_t places = c.output[0] * c.output[1] * c.output[2];
  const int64_t x_size = c.in_channels * c.input[0] * c.input[1] * c.input[2];
  To* const laid = reinterpret_cast<To*>(workspace);
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < c.batch; first += c.chunk) {
    const int64_t images = smaller(c.chunk, c.batch - first), all = images * places;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < images * rows; i++) lay(c, x + (first + i / rows) * x_size, i % rows, laid + i * row_size);
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < divide_up(all, PLACES); tile++) {
      const int64_t begin = tile * PLACES;
      FixedTarget to;
      to.y = y;
      to.stride = places;
      to.places = int(smaller(PLACES, all - begin));
      int64_t image = begin / places, place = begin % places;
      int64_t column = place % c.output[2], line = place / c.output[2] % c.output[1];
      int64_t sheet = place / c.output[2] / c.output[1];
      to.beside = place + to.places <= places;
      const To* at[PLACES];
      for (int p = 0; p < PLACES; p++) {
        at[p] = laid + image * image_size +
                ((sheet * c.strides[0] * c.reach[1] + line * c.strides[1]) * c.reach[2] + column * c.strides[2]) * c.depth;
        to.at[p] = (first + image) * f.channels * places + place;
        if (p + 1 >= to.places) continue;  // places behind the last one repeat it
        place++;
        if (++column < c.output[2]) continue;
        column = 0;
        if (++line < c.output[1]) continue;
        line = 0;
        if (++sheet < c.output[0]) continue;
        sheet = place = 0;
        image++;
      }
      for (int64_t group = 0; group < groups; group++) {
        const void* from[PLACES];
        for (int p = 0; p < PLACES; p++) from[p] = at[p] + group * group_size;
        if (to.places > 2 || !c.tiles.lone) {
          c.tiles.full(&f, group, from, &to);
          continue;
        }
        for (int p = 0; p < to.places; p++) {
          FixedTarget lone = to;
          lone.at[0] = to.at[p];
          lone.places = 1;
          c.tiles.lone(&f, group, from + p, &lone);
        }
      }
    }
  }
}

template <class X>
void run_x(const FixedConv& c, const X* x, char* y, char* workspace, int threads) {
  if (c.tiles.x_bytes == 2)
    run<X, int16_t>(c, x, y, workspace, threads);
  else
    run<X, int32_t>(c, x, y, workspace, threads);
}

}  // namespace

extern "C" void QF_EXPORT(fixed_conv)(const FixedConv* conv, const void* x, void* y, char* workspace, int threads) {
  if (conv->x_bytes == 2)
    run_x(*conv, (const int16_t*)x, (char*)y, workspace, threads);
  else
    run_x(*conv, (const int32_t*)x, (char*)y, workspace, threads);
}
