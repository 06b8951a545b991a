// float32 convolution on tile registers (conv_tiles.h): x and w are each split into three bfloat16 values, the second for
// what the first lacks and the third for what both lack, and x w is summed in float32 as
//
//   x1 w1 + x1 w2 + x2 w1 + x1 w3 + x2 w2 + x3 w1
//
// (Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
// 2019). The parts hold all 24 bits of a value and the products that are left out are below 2^-24: errors are those of
// float32 sums. Two parts and three products were up to twice as fast, with errors of 4e-6 that add up over the layers of a
// network. Six products of 512 multiply-adds a cycle are 2.7 times the peak of vectors.
//
// Tiles take denormal values for zero. So where all of a slab's x are below 2^-40, as well as where an output is not
// finite, outputs are computed by their taps; weights are not as small (cpu/conv.py).
#include "conv_epilogue.h"
#include "conv_taps.h"
#include "conv_tiles.h"

namespace {

// Two floats a word, their high halves as bfloat16, rounded to the nearest even.
QF_INLINE vint bfloat16_words(vfloat a, vfloat b) {
#if defined(__AVX512BF16__)
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (vint)_mm512_maskz_permutexvar_epi16(0xFFFFFFFF, turns, both);
#else
  auto rounded = [](vfloat x) {
    const vint bits = (vint)x, nan = (vint){} + 0x7FC00000;
    return x == x ? bits + 0x7FFF + ((bits >> 16) & 1) : nan;
  };
  return ((rounded(a) >> 16) & 0xFFFF) | (rounded(b) & int(0xFFFF0000));
#endif
}

QF_INLINE vint larger(vint a, vint b) { return a > b ? a : b; }

struct Halves {
  typedef float Value;
  static constexpr int IN_WORD = 2, PARTS = 3;
  static constexpr int TOGETHER = LANES;                           // sums that are finished together
  static constexpr int32_t LEAST_BITS = (127 - 40) << 23;  // of 2^-40
  static constexpr int64_t STEP_BYTES = 2 * PARTS * TILE_ROWS * TILE_BYTES;  // of the weights of a step for 32 channels

  // The largest of x, as the bits of a float, in each lane.
  struct Seen {
    vint most = {};
  };

  Epilogue epilogue;

  QF_INLINE bool fit(const Seen& seen) const {
    int32_t most = 0;
    for (int i = 0; i < LANES; i++) most = seen.most[i] > most ? seen.most[i] : most;
    return most == 0 || most >= LEAST_BITS;
  }

  template <int C, int A, int B>
  QF_INLINE static void add() { tile_add_halves<C, A, B>(); }

  template <int I>
  QF_INLINE static void load_weights(const char* weights, int part) {
    constexpr int64_t TILE = TILE_ROWS * TILE_BYTES;
    tile_load<4>(weights + part * I * TILE, TILE_BYTES);
    if (I == 2) tile_load<5>(weights + (part * I + 1) * TILE, TILE_BYTES);
  }
  template <int J>
  QF_INLINE static void load_places(const uint32_t* slab, int64_t step) {
    tile_load<6>(slab, step);
    if (J == 2) tile_load<7>(slab + TILE_WORDS, step);
  }

  // In an order that loads few tiles twice.
  template <int I, int J>
  QF_INLINE static void add_step(const uint32_t* slab, int64_t words, int64_t part, const char* weights) {
    const int64_t step = words * 4;
    load_weights<I>(weights, 2);
    load_places<J>(slab, step);
    add_tiles<Halves, I, J>();
    load_weights<I>(weights, 1);
    add_tiles<Halves, I, J>();
    load_places<J>(slab + part, step);
    add_tiles<Halves, I, J>();
    load_weights<I>(weights, 0);
    add_tiles<Halves, I, J>();
    load_places<J>(slab + 2 * part, step);
    add_tiles<Halves, I, J>();
    load_places<J>(slab, step);
    add_tiles<Halves, I, J>();
  }

  QF_INLINE void fill(uint32_t* to, int64_t count, int64_t part) const {
    for (int i = 0; i < PARTS; i++) memset(to + i * part, 0, count * sizeof *to);
  }

  // Every step-th of some floats from p on.
  QF_INLINE static vfloat columns(const float* p, int64_t step, int64_t count) {
    if (step == 1) return count >= LANES ? load(p) : load_first(p, int(count));
    if (step == 2) {
      const int reach = int(2 * smaller(count, LANES) - 1);
      return even_lanes(load_first(p, reach < LANES ? reach : LANES), load_first(p + LANES, reach < LANES ? 0 : reach - LANES));
    }
    vfloat v = {};
    for (int i = 0; i < smaller(count, LANES); i++) v[i] = p[i * step];
    return v;
  }

  // Every step-th of some weights as a row of a tile, filled up with zeros; their further parts are `part` bytes on each.
  QF_INLINE static void pack(const float* weights, int64_t step, int64_t count, char* row, int64_t part) {
    vfloat a = columns(weights, 2 * step, divide_up(count, 2));
    vfloat b = count > 1 ? columns(weights + step, 2 * step, count / 2) : (vfloat){};
    for (int i = 0; i < PARTS; i++, row += part) {
      const vint words = bfloat16_words(a, b);
      a -= (vfloat)(words << 16);
      b -= (vfloat)(words & int(0xFFFF0000));
      store((float*)row, (vfloat)words);
    }
  }

  QF_INLINE void lay(const float* x, int64_t channel, int count, int64_t step, int64_t columns_left, uint32_t* to,
                     int64_t part, Seen& seen) const {
    for (; columns_left > 0; columns_left -= LANES, x += step * LANES, to += LANES) {
      vfloat a = columns(x, step, columns_left);
      vfloat b = count > 1 ? columns(x + channel, step, columns_left) : (vfloat){};
      seen.most = larger(seen.most, larger((vint)a & 0x7FFFFFFF, (vint)b & 0x7FFFFFFF));
      QF_UNROLL for (int i = 0; i < PARTS; i++) {
        const vint words = bfloat16_words(a, b);
        a -= (vfloat)(words << 16);
        b -= (vfloat)(words & int(0xFFFF0000));
        if (columns_left >= LANES)
          store((float*)to + i * part, (vfloat)words);
        else
          store_first((float*)to + i * part, (vfloat)words, int(columns_left));
      }
    }
  }

  void start(const ConvShape& s, const ConvCall& call, int64_t group, int64_t first, int64_t channels, uint32_t* to) const {
    const float* bias = call.bias ? (const float*)call.bias + group * s.out_channels + first : nullptr;
    for (int64_t c = 0; c < BLOCK; c++, to += TILE_WORDS)
      for (int i = 0; i < TILE_WORDS; i += LANES) store((float*)to + i, broadcast(bias && c < channels ? bias[c] : 0.0f));
  }

  // The lanes of the mask, next to each other, and the others zero.
  QF_INLINE static vfloat squeezed(vfloat v, uint32_t mask) {
#if defined(QF_AVX512)
    return (vfloat)_mm512_maskz_compress_ps(__mmask16(mask), (__m512)v);
#else
    vfloat squeezed = {};
    for (int i = 0, to = 0; i < LANES; i++)
      if (mask >> i & 1) squeezed[to++] = v[i];
    return squeezed;
#endif
  }

  void finish(const ConvShape& s, const ConvCall& call, int64_t group, int64_t first, int64_t channels,
              const uint32_t* sums, const Piece* pieces, int64_t count, bool fit) const {
    const int64_t size = volume(s.output);
    for (int64_t c = 0; c < channels; c++, sums += SUM_STEP) {
      const int64_t channel = group * s.out_channels + first + c;
      vfloat check = {};
      for (const Piece* piece = pieces; piece < pieces + count; piece++) {
        const int64_t at = (piece->image * s.groups * s.out_channels + channel) * size + piece->place;
        float* y = (float*)call.y + at;
        vfloat sum = load((const float*)sums + piece->from);
        constexpr uint64_t ALL = (uint64_t(1) << LANES) - 1;
        const bool whole = piece->mask == ALL;
        const int values = __builtin_popcountll(piece->mask);
        if (!whole) sum = squeezed(sum, uint32_t(piece->mask));
        check += sum * 0.0f;
        if (call.residual) {
          const float* residual = (const float*)call.residual + at;
          sum += whole ? load(residual) : load_first(residual, values);
        }
        sum = epilogue.apply(sum);
        if (whole)
          store(y, sum);
        else
          store_first(y, sum, values);
      }
      bool wrong = !fit;
      for (int i = 0; i < LANES; i++) wrong |= check[i] != check[i];
      if (!wrong) continue;
      for (const Piece* piece = pieces; piece < pieces + count; piece++)
        for (int64_t i = 0; i < __builtin_popcountll(piece->mask); i++) {
          const int64_t place = piece->place + i, row = place / s.output[2];
          write_by_taps(s, call, piece->image, group, first + c, row / s.output[1], row % s.output[1],
                        place % s.output[2]);
        }
    }
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_tiles_f32_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Halves>(*s, needs); }
extern "C" void QF_EXPORT(conv_tiles_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  pack_all<Halves>(*s, weights, (char*)packed);
}
extern "C" void QF_EXPORT(conv_tiles_f32)(const ConvShape* s, const ConvCall* call) {
  share(*s, *call, Halves{Epilogue(*s)});
}
