// Maximum pooling over bytes with their channels last, (N, spatial, C): an output pixel is a row of C maxima, taken tap by tap
// in vectors of channels. Any window, stride, dilation and padding, in one to three dimensions; the window is cut to what lies
// inside. Limited by loads from the first-level cache, one a tap.
//
// `planes` counts images. The channels that are left behind whole vectors are taken in the last 16 once more, or one by one
// where there are fewer. Signed bytes are compared as unsigned ones 128 higher.
#include "pool_vector.h"

namespace {

constexpr int GROUP = 4 * LANES;
typedef uint8_t vbytes __attribute__((vector_size(GROUP)));
typedef uint8_t vfew __attribute__((vector_size(16)));

QF_INLINE uint8_t larger(uint8_t a, uint8_t b) { return a > b ? a : b; }
QF_INLINE vfew larger(vfew a, vfew b) {
#if defined(__SSE2__)
  return (vfew)_mm_max_epu8((__m128i)a, (__m128i)b);
#else
  return a > b ? a : b;
#endif
}
#if defined(QF_ISA_V4) || defined(QF_ISA_V3)
QF_INLINE vbytes larger(vbytes a, vbytes b) {
#if defined(QF_AVX512)
  return (vbytes)_mm512_maskz_max_epu8(~__mmask64(0), (__m512i)a, (__m512i)b);
#elif defined(QF_ISA_V3)
  return (vbytes)_mm256_max_epu8((__m256i)a, (__m256i)b);
#else
  return a > b ? a : b;
#endif
}
#endif

// The taps of a window along one axis that are inside: `count` of them, the first at place `first` of x.
struct Inside {
  int64_t first, count;
  QF_INLINE Inside(const PoolArguments& a, int axis, int64_t place) {
    const int64_t dilation = a.dilations[axis], size = a.input[axis], start = place * a.strides[axis] - a.pads[axis];
    const int64_t before = start < 0 ? divide_up(-start, dilation) : 0;
    const int64_t end = size <= start ? 0 : smaller(divide_up(size - start, dilation), a.kernel[axis]);
    first = start + before * dilation;
    count = end > before ? end - before : 0;
  }
};

// The maxima of one V of channels.
template <class V>
QF_INLINE void window(const PoolArguments& a, const uint8_t* x, const Inside& depth, const Inside& height, const Inside& width,
                      uint8_t flip, uint8_t* y) {
  const int64_t step = a.dilations[2] * a.channels;
  V all = {};
  for (int64_t d = 0; d < depth.count; d++)
    for (int64_t h = 0; h < height.count; h++) {
      const int64_t line = (depth.first + d * a.dilations[0]) * a.input[1] + height.first + h * a.dilations[1];
      const uint8_t* tap = x + (line * a.input[2] + width.first) * a.channels;
      for (int64_t w = 0; w < width.count; w++, tap += step) {
        V value;
        memcpy(&value, tap, sizeof value);
        all = larger(all, V(value ^ flip));
      }
    }
  all = V(all ^ flip);
  memcpy(y, &all, sizeof all);
}

}  // namespace

extern "C" int QF_EXPORT(pool_bytes)(const PoolArguments* arguments) {
  const PoolArguments& a = *arguments;
  const int64_t rows = a.output[0] * a.output[1], columns = a.output[2], channels = a.channels;
  const uint8_t flip = a.type == POOL_INT8 ? 128 : 0;
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    const uint8_t* x = static_cast<const uint8_t*>(a.x) + plane * a.input[0] * a.input[1] * a.input[2] * channels;
    for (int64_t row = begin; row < end; row++) {
      const Inside depth(a, 0, row / a.output[1]), height(a, 1, row % a.output[1]);
      uint8_t* y = static_cast<uint8_t*>(a.y) + ((plane * rows + row) * columns) * channels;
      for (int64_t column = 0; column < columns; column++, y += channels) {
        const Inside width(a, 2, column);
        int64_t c = 0;
        for (; c + GROUP <= channels; c += GROUP) window<vbytes>(a, x + c, depth, height, width, flip, y + c);
        for (; c + 16 <= channels; c += 16) window<vfew>(a, x + c, depth, height, width, flip, y + c);
        if (c < channels && channels >= 16)
          window<vfew>(a, x + channels - 16, depth, height, width, flip, y + channels - 16);
        else
          for (; c < channels; c++) window<uint8_t>(a, x + c, depth, height, width, flip, y + c);
      }
    }
  });
  return 0;
}
