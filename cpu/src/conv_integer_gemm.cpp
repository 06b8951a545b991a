// The matrix product of conv_blocking.h in integers, exact: an element is a pair of int16, x and w with their zero
// points taken off, of two neighbouring channels; one instruction multiplies pairs and adds the two products
// (pmaddwd, or with the accumulation vpdpwssd where the processor has AVX-512 VNNI). Sums are int32, wrapping.
//
// x is uint8 or int8. Weights come as int16 (M, C / groups, kernel).
#include "conv_blocking.h"
#include "conv_requantize.h"

namespace {

typedef uint32_t vuint __attribute__((vector_size(LANES * 4)));  // unsigned: sums wrap
typedef int32_t vint_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

QF_INLINE vint load_pairs(const int32_t* p) { return *reinterpret_cast<const vint_unaligned*>(p); }
QF_INLINE void store_pairs(int32_t* p, vint v) { *reinterpret_cast<vint_unaligned*>(p) = v; }

// low(a) * low(b) + high(a) * high(b) in each lane.
QF_INLINE vuint multiply_pairs(vint a, vint b) {
#if defined(QF_ISA_V4)
  return (vuint)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(QF_ISA_V3)
  return (vuint)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (vuint)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return (vuint)(((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16));
#endif
}

struct SumsTarget {
  int32_t* sums;
  int64_t row_step;
};

typedef void (*IntegerTile)(const int32_t*, int64_t, const int32_t*, int64_t, int64_t, const SumsTarget&);

struct PlainTiles {
  template <int R, int J>
  __attribute__((noinline)) static void tile(const int32_t* scalars, int64_t scalar_step, const int32_t* vectors,
                                             int64_t vector_step, int64_t depth, const SumsTarget& target) {
    vuint c[R][J] = {};
    for (int64_t k = 0; k < depth; k++, scalars += scalar_step, vectors += vector_step) {
      vint v[J];
      QF_UNROLL for (int j = 0; j < J; j++) v[j] = load_pairs(vectors + j * LANES);
      QF_UNROLL for (int r = 0; r < R; r++) {
        const vint scalar = scalars[r] - (vint){};
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += multiply_pairs(scalar, v[j]);
      }
    }
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) store_pairs(target.sums + r * target.row_step + j * LANES, (vint)c[r][j]);
  }
};

#if defined(QF_ISA_V4)
struct DotProductTiles {
  template <int R, int J>
  __attribute__((noinline, target("avx512vnni"))) static void tile(const int32_t* scalars, int64_t scalar_step,
                                                                   const int32_t* vectors, int64_t vector_step,
                                                                   int64_t depth, const SumsTarget& target) {
    __m512i c[R][J];
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k++, scalars += scalar_step, vectors += vector_step) {
      __m512i v[J];
      QF_UNROLL for (int j = 0; j < J; j++) v[j] = _mm512_loadu_si512(vectors + j * LANES);
      QF_UNROLL for (int r = 0; r < R; r++) {
        const __m512i scalar = _mm512_set1_epi32(scalars[r]);
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] = _mm512_dpwssd_epi32(c[r][j], scalar, v[j]);
      }
    }
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++)
        _mm512_storeu_si512(target.sums + r * target.row_step + j * LANES, c[r][j]);
  }
};
#endif

// Values of one channel: lane i is from[i * stride] where begin <= i * stride < end, with the zero point taken off,
// and 0 elsewhere.
template <class X, int STRIDE>
QF_INLINE vint load_centred(const X* from, int64_t stride, int64_t begin, int64_t end, int zero) {
#if defined(QF_ISA_V4)
  constexpr bool SIGNED = X(-1) < X(0);
  if constexpr (STRIDE == 1) {
    const __mmask16 lanes = lanes_between(int(begin), int(end));
    const __m128i bytes = _mm_maskz_loadu_epi8(lanes, from);
    const __m512i wide = SIGNED ? _mm512_maskz_cvtepi8_epi32(lanes, bytes) : _mm512_maskz_cvtepu8_epi32(lanes, bytes);
    return (vint)_mm512_maskz_sub_epi32(lanes, wide, _mm512_set1_epi32(zero));
  }
  if constexpr (STRIDE == 2) {
    const __mmask32 memory = __mmask32((uint64_t(1) << end) - (uint64_t(1) << begin));
    const __mmask16 lanes = lanes_between(int(begin + 1) / 2, int(end + 1) / 2);
    const __m512i pairs = _mm512_maskz_cvtepu16_epi32(lanes, _mm256_maskz_loadu_epi8(memory, from));
    const __m512i high = _mm512_maskz_slli_epi32(lanes, pairs, 24);
    const __m512i wide = SIGNED ? _mm512_maskz_srai_epi32(lanes, high, 24) : _mm512_maskz_srli_epi32(lanes, high, 24);
    return (vint)_mm512_maskz_sub_epi32(lanes, wide, _mm512_set1_epi32(zero));
  }
#endif
  vint v = {};
  for (int64_t i = divide_up(begin, stride); i * stride < end; i++) v[i] = from[i * stride] - zero;
  return v;
}

// As pack_panel of conv_panel.h, of channel pairs.
template <class X, int STRIDE>
void pack_pairs(const ConvShape& s, const Segments& segments, const X* x, int zero, int32_t* panel, int64_t width) {
  const int64_t channel = volume(s.input), stride = s.strides[2];
  for (int64_t kd = 0; kd < s.kernel[0]; kd++)
    for (int64_t kh = 0; kh < s.kernel[1]; kh++)
      for (int64_t kw = 0; kw < s.kernel[2]; kw++) {
        const X* from[MOST_PIXELS];
        int64_t begin[MOST_PIXELS], end[MOST_PIXELS];
        for (int i = 0; i < segments.count; i++) {
          const Segment& segment = segments.list[i];
          const int64_t d = segment.depth + kd * s.dilations[0], h = segment.row + kh * s.dilations[1];
          const int64_t column = segment.column + kw * s.dilations[2];
          const bool valid = d >= 0 && d < s.input[0] && h >= 0 && h < s.input[1];
          const int64_t reach = valid ? (segment.count - 1) * stride + 1 : 0;
          from[i] = x + segment.image + (valid ? (d * s.input[1] + h) * s.input[2] : 0) + column;
          begin[i] = column < 0 ? smaller(-column, reach) : 0;
          end[i] = s.input[2] > column ? smaller(s.input[2] - column, reach) : 0;
          if (end[i] < begin[i]) end[i] = begin[i];
        }
        for (int64_t c = 0; c < s.in_channels; c += 2, panel += width)
          for (int i = 0; i < segments.count; i++) {
            const X* at = from[i] + c * channel;
            vint pairs = load_centred<X, STRIDE>(at, stride, begin[i], end[i], zero) & 0xFFFF;
            if (c + 1 < s.in_channels)
              pairs |= load_centred<X, STRIDE>(at + channel, stride, begin[i], end[i], zero) << 16;
            store_pairs(panel + segments.list[i].lane, pairs);
          }
      }
}

template <class X>
void pack_pairs_of(const ConvShape& s, const Segments& segments, const X* x, int zero, int32_t* panel, int64_t width) {
  if (s.strides[2] == 1)
    pack_pairs<X, 1>(s, segments, x, zero, panel, width);
  else if (s.strides[2] == 2)
    pack_pairs<X, 2>(s, segments, x, zero, panel, width);
  else
    pack_pairs<X, 0>(s, segments, x, zero, panel, width);
}

template <class Tiles>
struct IntegerArithmetic : Tiles {
  typedef int32_t Element;
  typedef int32_t Sum;
  typedef IntegerTile TileFunction;
  static constexpr bool WRITES_TILES = false;

  const ConvShape& s;
  const ConvCall& call;
  const ConvQuantization& quantization;

  IntegerArithmetic(const ConvShape& s, const ConvCall& call, const ConvQuantization& quantization)
      : s(s), call(call), quantization(quantization) {}

  void pack(int64_t x_offset, const Segments& segments, int32_t* panel, int64_t width) const {
    if (quantization.x_signed)
      pack_pairs_of(s, segments, (const int8_t*)call.x + x_offset, quantization.x_zero, panel, width);
    else
      pack_pairs_of(s, segments, (const uint8_t*)call.x + x_offset, quantization.x_zero, panel, width);
  }
  QF_INLINE SumsTarget sums_target(int32_t* sums, int64_t row_step) const { return {sums, row_step}; }
  void write_rows(const int32_t* sums, int64_t step, int64_t channel, int64_t rows, int64_t at, int64_t row_step,
                  int64_t count) const {
    for (int64_t r = 0; r < rows; r++) {
      const uint32_t bias = call.bias ? ((const uint32_t*)call.bias)[channel + r] : 0;
      int32_t row[MOST_PIXELS];
      for (int64_t i = 0; i < count; i++) row[i] = int32_t(uint32_t(sums[r * step + i]) + bias);
      store_sums(quantization, call, row, channel + r, at + r * row_step, count);
    }
  }
};

Blocking blocking_of(const ConvShape& s) {
  return Blocking(s, divide_up(s.in_channels, 2) * volume(s.kernel), false);
}

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_integer_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Blocking plan = blocking_of(*s);
  // Whole cache lines, so that several packed weights can follow one another.
  const int64_t packed = divide_up(BLOCKING_BYTES + plan.packed_bytes(s->groups), 64) * 64;
  *needs = {size_t(packed), size_t(plan.workspace_bytes())};
}

// Packed: the blocking, so that calls need not think again; then pairs in conv_gemm.cpp's order.
extern "C" void QF_EXPORT(conv_gemm_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  const Blocking plan = blocking_of(*s);
  const int64_t taps = volume(s->kernel);
  memcpy(packed, &plan, sizeof plan);
  packed += BLOCKING_BYTES / sizeof(int32_t);
  for (int64_t group = 0; group < s->groups; group++)
    for (int64_t block = 0; block < plan.channel_blocks; block++) {
      const int64_t first = plan.first_channel(block), count = plan.channels(block);
      for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t c = 0; c < s->in_channels; c += 2)
          for (int64_t m = first; m < first + count; m++) {
            auto weight = [&](int64_t channel) {
              if (m >= s->out_channels || channel >= s->in_channels) return uint32_t(0);
              const int64_t at = (group * s->out_channels + m) * s->in_channels + channel;
              return uint32_t(weights[at * taps + tap]) & 0xFFFF;
            };
            *packed++ = int32_t(weight(c) | weight(c + 1) << 16);
          }
    }
}

extern "C" void QF_EXPORT(conv_gemm_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  const Blocking& plan = *(const Blocking*)call->weights;
#if defined(QF_ISA_V4)
  if (__builtin_cpu_supports("avx512vnni")) {
    multiply(*s, *call, plan, IntegerArithmetic<DotProductTiles>(*s, *call, *q));
    return;
  }
#endif
  multiply(*s, *call, plan, IntegerArithmetic<PlainTiles>(*s, *call, *q));
}
