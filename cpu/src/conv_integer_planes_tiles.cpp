// Integer convolution on tile registers (conv_tiles.h), from planes to planes, exact in int32 (wrapping): signed bytes of w
// times unsigned ones of x, 1024 of them a cycle. Neither x nor y is transposed, which pays for kernels of one tap; those of
// several read across cache lines here, and are faster with channels last (conv_integer_tiles.cpp).
//
// Bytes, zero points and bias are as in conv_words.h's Quads. Weights come as int16 with their zero points taken
// off and have to be in -128 to 127.
#include "conv_requantize.h"
#include "conv_tiles.h"

namespace {

struct Bytes {
  typedef uint8_t Value;
  static constexpr int IN_WORD = 4, PARTS = 1;
  static constexpr int TOGETHER = 4 * LANES;                       // sums that are finished together
  static constexpr int64_t STEP_BYTES = 2 * TILE_ROWS * TILE_BYTES;  // of the weights of a step for 32 channels
  struct Seen {};

  const ConvQuantization& q;
  const Requantization requantization;
  const uint32_t flip, zero;  // in each byte of a word

  explicit Bytes(const ConvQuantization& q)
      : q(q), requantization(q), flip(q.x_signed ? 0x80808080 : 0),
        zero(uint32_t(uint8_t(q.x_zero + (q.x_signed ? 128 : 0))) * 0x01010101u) {}

  QF_INLINE bool fit(const Seen&) const { return true; }

  template <int C, int A, int B>
  QF_INLINE static void add() { tile_add_bytes<C, A, B, true, false>(); }

  template <int I, int J>
  QF_INLINE static void add_step(const uint32_t* slab, int64_t words, int64_t, const char* weights) {
    tile_load<4>(weights, TILE_BYTES);
    if (I == 2) tile_load<5>(weights + TILE_ROWS * TILE_BYTES, TILE_BYTES);
    tile_load<6>(slab, words * 4);
    if (J == 2) tile_load<7>(slab + TILE_WORDS, words * 4);
    add_tiles<Bytes, I, J>();
  }

  static void pack(const int16_t* weights, int64_t step, int64_t count, char* row, int64_t) {
    for (int64_t i = 0; i < count; i++) row[i] = char(int8_t(weights[i * step]));
  }

  QF_INLINE void fill(uint32_t* to, int64_t count, int64_t) const {
    for (int64_t i = 0; i < count; i++) to[i] = zero;
  }

  // Every step-th of `count` bytes (at most 4 * LANES) from p on.
  QF_INLINE static vuint columns(const uint8_t* p, int64_t step, int64_t count) {
    vuint v = {};
#if defined(QF_AVX512)
    if (step <= 2) {
      const auto bytes = [&](const uint8_t* from, int64_t n) {
        return _mm512_maskz_loadu_epi8(n >= 64 ? ~__mmask64(0) : n <= 0 ? 0 : (__mmask64(1) << n) - 1, from);
      };
      if (step == 1) return (vuint)bytes(p, count);
      const int64_t reach = 2 * count - 1;
      typedef uint8_t vbytes __attribute__((vector_size(64)));
      vbytes even;
      QF_UNROLL for (int i = 0; i < 64; i++) even[i] = uint8_t(2 * i);
      return (vuint)_mm512_permutex2var_epi8(bytes(p, reach), (__m512i)even, bytes(p + 64, reach - 64));
    }
#endif
    for (int64_t i = 0; i < count; i++) memcpy((uint8_t*)&v + i, p + i * step, 1);
    return v;
  }

  // The bytes of four vectors as words of one of each.
  QF_INLINE static void interleave(vuint (&v)[4]) {
#if defined(QF_AVX512)
    // Words whose bytes meet in a quarter of a vector; then quarters hold what belongs into each of the four results.
    const __m512i quarters = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    QF_UNROLL for (int i = 0; i < 4; i++) v[i] = (vuint)_mm512_maskz_permutexvar_epi32(0xFFFF, quarters, (__m512i)v[i]);
    const __m512i a = (__m512i)v[0], b = (__m512i)v[1], c = (__m512i)v[2], d = (__m512i)v[3];
    const __m512i low_ab = _mm512_unpacklo_epi8(a, b), high_ab = _mm512_unpackhi_epi8(a, b);
    const __m512i low_cd = _mm512_unpacklo_epi8(c, d), high_cd = _mm512_unpackhi_epi8(c, d);
    v[0] = (vuint)_mm512_unpacklo_epi16(low_ab, low_cd);
    v[1] = (vuint)_mm512_unpackhi_epi16(low_ab, low_cd);
    v[2] = (vuint)_mm512_unpacklo_epi16(high_ab, high_cd);
    v[3] = (vuint)_mm512_unpackhi_epi16(high_ab, high_cd);
#else
    uint8_t from[4][4 * LANES], to[4 * LANES][4];
    memcpy(from, v, sizeof from);
    for (int i = 0; i < 4 * LANES; i++)
      for (int j = 0; j < 4; j++) to[i][j] = from[j][i];
    memcpy(v, to, sizeof to);
#endif
  }

  QF_INLINE void lay(const uint8_t* x, int64_t channel, int count, int64_t step, int64_t columns_left, uint32_t* to, int64_t,
                     Seen&) const {
    for (; columns_left > 0; columns_left -= 4 * LANES, x += step * 4 * LANES, to += 4 * LANES) {
      vuint v[4];
      QF_UNROLL for (int i = 0; i < 4; i++)
        v[i] = i < count ? columns(x + i * channel, step, smaller(columns_left, 4 * LANES)) ^ flip : (vuint){};
      interleave(v);
      QF_UNROLL for (int i = 0; i < 4; i++) {
        const int64_t left = columns_left - i * LANES;
        if (left >= LANES)
          store_words(to + i * LANES, v[i]);
        else if (left > 0)
          store_first((float*)to + i * LANES, (vfloat)v[i], int(left));
      }
    }
  }

  void start(const ConvShape& s, const ConvCall& call, int64_t group, int64_t first, int64_t channels, uint32_t* to) const {
    const uint32_t* bias = call.bias ? (const uint32_t*)call.bias + group * s.out_channels + first : nullptr;
    for (int64_t c = 0; c < BLOCK; c++)
      for (int i = 0; i < TILE_WORDS; i++) *to++ = bias && c < channels ? bias[c] : 0;
  }

  // Stores the bytes of the mask next to each other.
  QF_INLINE static void store_squeezed(void* to, vuint v, uint64_t mask) {
    if (mask == ~uint64_t(0)) return store_words(to, v);
#if defined(QF_AVX512)
    const int count = __builtin_popcountll(mask);
    _mm512_mask_storeu_epi8(to, (__mmask64(1) << count) - 1, _mm512_maskz_compress_epi8(mask, (__m512i)v));
#else
    for (int i = 0; i < 4 * LANES; i++)
      if (mask >> i & 1) *(*(uint8_t**)&to)++ = ((const uint8_t*)&v)[i];
#endif
  }

  void finish(const ConvShape& s, const ConvCall& call, int64_t group, int64_t first, int64_t channels,
              const uint32_t* sums, const Piece* pieces, int64_t count, bool) const {
    const int64_t size = volume(s.output);
    for (int64_t c = 0; c < channels; c++, sums += SUM_STEP) {
      const int64_t channel = group * s.out_channels + first + c;
      for (const Piece* piece = pieces; piece < pieces + count; piece++) {
        const int64_t at = (piece->image * s.groups * s.out_channels + channel) * size + piece->place;
        const uint32_t* from = sums + piece->from;
        if (requantization.wanted) {
          const vuint bytes = requantization.bytes<ByteOrder::SEQUENCE>(
              load_words(from), load_words(from + LANES), load_words(from + 2 * LANES), load_words(from + 3 * LANES),
              broadcast(q.multipliers[channel]));
          store_squeezed((uint8_t*)call.y + at, bytes, piece->mask);
        } else {
          uint32_t* y = (uint32_t*)call.y + at;
          for (uint64_t left = piece->mask; left; left &= left - 1) *y++ = from[__builtin_ctzll(left)];
        }
      }
    }
  }
};

}  // namespace

extern "C" void QF_EXPORT(conv_planes_tiles_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Bytes>(*s, needs); }
extern "C" void QF_EXPORT(conv_planes_tiles_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Bytes>(*s, weights, (char*)packed);
}
extern "C" void QF_EXPORT(conv_planes_tiles_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share(*s, *call, Bytes(*q));
}
