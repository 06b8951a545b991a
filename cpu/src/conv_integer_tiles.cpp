// Integer convolution on tile registers (tile_registers.h), exact in int32 (wrapping): bytes of x times signed bytes of w,
// 1024 products a cycle; x and y hold planes, or their channels last.
//
// x lies, or is laid once as a slab, with its channels last and its padding around it. A tile of x is 16 neighbouring outputs
// by 64 bytes that they read, loaded as it lies: a stride along a row is a larger step from row to row of the tile. So that
// outputs can be neighbours across the end of a row, rows of the slab lie by their remainder by the stride, and the padding
// to the right of one is that to the left of the next; what falls between two rows is computed and dropped ("implicit GEMM"
// without im2col). Rows of a tile have to begin at a cache line: those that cross two take five times as long to be loaded.
// So a place of the slab is whole lines; or what each output reads is gathered into whole lines of its own, where
// channels are so few that most of a line would be empty. A convolution of one tap without stride or padding reads x itself.
//
// For up to `chunk` outputs along a line
//   for 32 output channels, two tiles of weights
//     for each 32 outputs (64 where y holds planes): two by two products for each step of the depth, into a scratch
//       meanwhile the sums before are finished: two outputs of 32 channels make a vector of bytes, stored in two pieces;
//       where y holds planes, 64 outputs of 16 channels are transposed.
// Weights of 32 channels stay in the first-level cache where they are few, and then chunks are long; else x stays there. A
// product takes 16 cycles and a tile 10 to be loaded, or 22 from the second-level cache: products limit it.
//
// Padding has x's zero point; what the zero point adds to the sums is taken off with the bias (cpu/conv.py). Weights come as
// int16 with their zero points taken off, have to be in -128 to 127, and are packed as (group, 32 channels, step, tile).
// Threads share planes or bands of their rows, then channels.
#include "conv_tile_parts.h"
#include "conv_words.h"

namespace {

constexpr int64_t BLOCK = 2 * TILE_WORDS, UNIT = 2 * TILE_ROWS;  // channels and outputs of two tiles
constexpr int64_t STEP = TILE_ROWS * TILE_BYTES;                 // bytes of a tile
constexpr int64_t MOST_UNITS = 32, FEW_UNITS = 2;                // of a chunk
constexpr int64_t GATHERED_TOGETHER = FEW_UNITS * UNIT;
constexpr int64_t NEAR_BYTES = 20 << 10;    // of weights, that stay in the first-level cache
constexpr int64_t SLAB_BYTES = 512 << 10;   // that stay in the second-level cache
constexpr int64_t SUMS = 2 * UNIT * BLOCK;  // of a scratch: where y holds planes, of two units

// Bytes that follow one another: where they begin, seen from an output's first byte, and which tap of the kernel, and how many
// along a row, they are.
struct Run {
  int64_t offset, bytes, tap;
};

struct Plan {
  int64_t step[2], stride[2];  // of rows and columns: places of x for one of the slab, of the slab for one of y
  int64_t phases;              // of the slab's rows
  int64_t left, columns;       // laid columns: of padding, and all of a row
  int64_t pitch, phase_rows, plane;  // places from row to row; rows of a phase; places of a plane of y
  int64_t place;               // bytes from place to place
  int64_t planes, rows;        // of y, for which there is room
  int64_t runs, run_taps, steps;  // runs; taps of each; steps of the depth
  int64_t chunk_units;
  bool flat, in_place, turns, gathers;  // one tap; x itself is read; it is turned, chunk by chunk; it is gathered so

  explicit Plan(const ConvShape& s) {
    for (int i = 0; i < 2; i++) {
      step[i] = s.kernel[i + 1] == 1 ? s.strides[i + 1] : 1;
      stride[i] = s.strides[i + 1] / step[i];
    }
    flat = volume(s.kernel) == 1;
    bool plain = flat;
    for (int i = 0; i < 3; i++) plain = plain && s.strides[i] == 1 && s.pads[i] == 0 && s.input[i] == s.output[i];
    in_place = plain && s.x_blocked;
    turns = plain && !s.x_blocked;
    // A step of products of two tiles takes 64 cycles, and to copy a line for an output, with what goes with it, two.
    const int64_t taps = volume(s.kernel), lines = divide_up(s.in_channels, TILE_BYTES), blocks = divide_up(s.out_channels, BLOCK);
    const int64_t gathered = divide_up(taps * s.in_channels, TILE_BYTES);
    run_taps = s.dilations[2] == 1 ? s.kernel[2] : 1;
    runs = taps / run_taps;
    const int64_t copies = UNIT * 2 * runs * divide_up(run_taps * s.in_channels, TILE_BYTES);
    gathers = in_place ? s.groups * s.in_channels % TILE_BYTES != 0 || s.in_channels % TILE_BYTES != 0
                       : !turns && 64 * blocks * gathered + copies < 64 * blocks * taps * lines;
    if (!gathers) runs = taps, run_taps = 1;
    steps = gathers ? gathered : taps * lines;

    phases = stride[0];
    place = in_place ? s.groups * s.in_channels : gathers ? s.in_channels : lines * TILE_BYTES;
    left = divide_up(s.pads[2], step[1]);
    columns = (s.output[2] - 1) * stride[1] + (s.kernel[2] - 1) * s.dilations[2] + 1;
    if (left > columns) left = columns;
    const int64_t inside = smaller(divide_up(s.input[2] + s.pads[2], step[1]), columns) - left;
    const int64_t right = inside > 0 ? columns - left - inside : 0;
    const int64_t shared = flat || inside <= 0 ? 0 : smaller(left, right);
    pitch = divide_up(columns - shared, stride[1]) * stride[1];

    const int64_t weights = steps * 2 * STEP;
    chunk_units = !gathers && !turns && weights <= NEAR_BYTES && blocks * weights > NEAR_BYTES ? MOST_UNITS : FEW_UNITS;

    const int64_t most = SLAB_BYTES / place;
    const bool laid = !in_place && !turns;
    planes = laid ? smaller(most / plane_of(s, s.output[1]), s.batch * s.output[0]) : s.batch * s.output[0];
    rows = s.output[1];
    if (!planes) {
      planes = 1;
      while (rows > 1 && plane_of(s, rows) > most) rows = divide_up(rows, 2);
      rows = divide_up(s.output[1], divide_up(s.output[1], rows));
    }
    phase_rows = divide_up(laid_rows(s, rows), phases);
    plane = plane_of(s, rows);
  }

  QF_INLINE int64_t laid_rows(const ConvShape& s, int64_t count) const {
    return (count - 1) * stride[0] + (s.kernel[1] - 1) * s.dilations[1] + 1;
  }
  QF_INLINE int64_t plane_of(const ConvShape& s, int64_t count) const {
    return s.kernel[0] * phases * divide_up(laid_rows(s, count), phases) * pitch;
  }
  // The row of the slab, in a plane of y, that holds row `row` of what depth tap `tap` reads.
  QF_INLINE int64_t row_at(int64_t tap, int64_t row) const { return (tap * phases + row % phases) * phase_rows + row / phases; }

  QF_INLINE int64_t blocks(const ConvShape& s) const { return divide_up(s.out_channels, BLOCK); }
  QF_INLINE int64_t group_bytes(const ConvShape& s) const { return divide_up(s.out_channels, TILE_WORDS) * steps * STEP; }
  QF_INLINE int64_t header_bytes() const {
    return divide_up(int64_t(sizeof(Plan)) + steps * 8 + runs * int64_t(sizeof(Run)), 64) * 64;
  }
  QF_INLINE int64_t row_bytes() const { return steps * TILE_BYTES; }  // of a gathered output
  QF_INLINE int64_t gathered_bytes() const { return GATHERED_TOGETHER * row_bytes() + TILE_BYTES; }
  QF_INLINE int64_t slab_bytes() const {
    if (in_place || turns) return 0;
    const int64_t behind = (UNIT * stride[1] + columns) * place + 2 * TILE_BYTES;
    return divide_up(planes * plane * place + behind, 64) * 64;
  }
  QF_INLINE int64_t workspace_bytes(const ConvShape& s) const {
    return (2 * SUMS + blocks(s) * BLOCK) * 4 + gathered_bytes() + slab_bytes();
  }
};

typedef uint8_t vbytes_anywhere __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

// The first `count` bytes (at most 4 * LANES) from p on.
QF_INLINE vbytes first_bytes(const uint8_t* p, int64_t count) {
#if defined(QF_AVX512)
  return (vbytes)_mm512_maskz_loadu_epi8(count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1, p);
#else
  vbytes v = {};
  memcpy(&v, p, smaller(count, 4 * LANES));
  return v;
#endif
}

QF_INLINE void store_bytes(uint8_t* to, vbytes v, int64_t count) {
#if defined(QF_AVX512)
  _mm512_mask_storeu_epi8(to, count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1, (__m512i)v);
#else
  memcpy(to, &v, count);
#endif
}

// Every step-th of `count` bytes (at most 16) from p on.
QF_INLINE sixteen_bytes spaced_bytes(const uint8_t* p, int64_t step, int64_t count) {
#if defined(QF_AVX512)
  if (step == 1) return (sixteen_bytes)_mm_maskz_loadu_epi8(__mmask16((1u << count) - 1), p);
  if (step == 2)  // words' lower bytes
    return (sixteen_bytes)_mm256_maskz_cvtepi16_epi8(0xFFFF, _mm256_maskz_loadu_epi8(uint32_t((uint64_t(1) << (2 * count - 1)) - 1), p));
#endif
  sixteen_bytes v = {};
  for (int64_t i = 0; i < count; i++) v[i] = p[i * step];
  return v;
}

// A block of at most 16 * GROUPS channels of some planes, `channel` bytes apart, with its channels last: so many places that
// vectors are full, each quarter 16 channels of a place. WHOLE: it is full. spills: whether what is stored behind a place's
// channels is stored again later, as the next place.
template <int GROUPS, bool WHOLE>
QF_INLINE void turn_block(const uint8_t* x, int64_t channel, int64_t channels, int64_t step, int64_t places, uint8_t* to, int64_t place,
                          bool spills) {
  constexpr int QUARTERS = LANES / 4, WIDTH = 16 * GROUPS;
  vbytes v[16];
  QF_UNROLL for (int i = 0; i < 16; i++) {
    v[i] = (vbytes){};
    QF_UNROLL for (int quarter = 0; quarter < QUARTERS; quarter++) {
      const int64_t of = quarter % GROUPS * 16 + i, at = quarter / GROUPS * 16;
      if (!WHOLE && (of >= channels || at >= places)) continue;
      const uint8_t* from = x + of * channel + at * step;
      const sixteen_bytes bytes =
          WHOLE ? *(const sixteen_bytes_anywhere*)from : spaced_bytes(from, step, smaller(places - at, 16));
#if defined(QF_AVX512)
      v[i] = (vbytes)_mm512_mask_broadcast_i32x4((__m512i)v[i], __mmask16(0xF << 4 * quarter), (__m128i)bytes);
#else
      memcpy((uint8_t*)&v[i] + quarter * 16, &bytes, 16);
#endif
    }
  }
  QF_UNROLL for (int round = 0; round < 4; round++) {
    vbytes turned[16];
    QF_UNROLL for (int i = 0; i < 8; i++) {
      turned[2 * i] = interleave_within<1, false>(v[i], v[i + 8]);
      turned[2 * i + 1] = interleave_within<1, true>(v[i], v[i + 8]);
    }
    QF_UNROLL for (int i = 0; i < 16; i++) v[i] = turned[i];
  }
  QF_UNROLL for (int part = 0; part < QUARTERS / GROUPS; part++)
    QF_UNROLL for (int i = 0; i < 16; i++) {
      const int64_t p = part * 16 + i;
      if (!WHOLE && p >= places) continue;
      const uint8_t* bytes = (const uint8_t*)&v[i] + part * WIDTH;
      if (WHOLE || channels == WIDTH || (spills && p + 1 < places))
        memcpy(to + p * place, bytes, WIDTH);
      else
        memcpy(to + p * place, bytes, channels);
    }
}

template <int GROUPS>
__attribute__((noinline)) void turn_places(const uint8_t* x, int64_t channel, int64_t channels, int64_t step, int64_t count, uint8_t* to,
                                           int64_t place) {
  constexpr int PLACES = 4 * LANES / GROUPS, WIDTH = 16 * GROUPS;
  for (int64_t c = 0; c < channels; c += WIDTH, x += WIDTH * channel, to += WIDTH) {
    const int64_t here = smaller(channels - c, WIDTH);
    for (int64_t first = 0; first < count; first += PLACES) {
      const int64_t places = smaller(PLACES, count - first);
      if (here == WIDTH && places == PLACES && step == 1)
        turn_block<GROUPS, true>(x + first, channel, WIDTH, 1, PLACES, to + first * place, place, false);
      else
        turn_block<GROUPS, false>(x + first * step, channel, here, step, places, to + first * place, place,
                                  channels <= WIDTH && place < WIDTH);
    }
  }
}

QF_INLINE void turn(const uint8_t* x, int64_t channel, int64_t channels, int64_t step, int64_t count, uint8_t* to, int64_t place) {
  (channels <= 16 ? turn_places<1> : channels <= 32 ? turn_places<2> : turn_places<4>)(x, channel, channels, step, count, to, place);
}

void lay_slab(const ConvShape& s, const ConvCall& call, const Plan& plan, uint8_t zero, const Part& part, uint8_t* slab) {
  const int64_t step = plan.step[1], laid = plan.laid_rows(s, part.rows), place = plan.place, all = s.groups * s.in_channels;
  const int64_t right = smaller(divide_up(s.input[2] + s.pads[2], step), plan.columns), inside = right - plan.left;
  for (int64_t p = 0; p < part.planes; p++) {
    const int64_t image = (part.plane + p) / s.output[0], depth = (part.plane + p) % s.output[0];
    for (int64_t tap = 0; tap < s.kernel[0]; tap++) {
      const int64_t z = depth * s.strides[0] - s.pads[0] + tap * s.dilations[0];
      for (int64_t r = 0; r < laid; r++) {
        const int64_t y = part.row * s.strides[1] - s.pads[1] + r * plan.step[0];
        uint8_t* to = slab + (p * plan.plane + plan.row_at(tap, r) * plan.pitch) * place;
        if (z < 0 || z >= s.input[0] || y < 0 || y >= s.input[1] || inside <= 0) {
          memset(to, zero, plan.columns * place);
          continue;
        }
        memset(to, zero, plan.left * place);
        const int64_t from = (z * s.input[1] + y) * s.input[2] + plan.left * step - s.pads[2];
        const uint8_t* x = (const uint8_t*)call.x;
        uint8_t* first = to + plan.left * place;
        if (!s.x_blocked) {
          x += (image * s.groups + part.group) * s.in_channels * volume(s.input) + from;
          turn(x, volume(s.input), s.in_channels, step, inside, first, place);
        } else {
          x += (image * volume(s.input) + from) * all + part.group * s.in_channels;
          if (step * all == place)
            memcpy(first, x, inside * place);
          else
            for (int64_t i = 0; i < inside; i++)
              for (int64_t c = 0; c < s.in_channels; c += 4 * LANES)
                store_bytes(first + i * place + c, first_bytes(x + i * step * all + c, s.in_channels - c),
                            smaller(s.in_channels - c, 4 * LANES));
        }
        memset(to + right * place, zero, (plan.columns - right) * place);
      }
    }
  }
}

// Outputs of a tile or more that are kept: which rows of the tiles, and which outputs, from `first` on, counted through the
// batch.
struct Kept {
  int64_t first, count;
  uint8_t rows[2 * UNIT + 4];
};

// Requantises sums of some outputs by up to 32 channels, where y has its channels last: two outputs at a time. All that it
// needs is a copy of its own, which can stay in registers between the products.
struct PixelWriter {
  Requantization made;
  vfloat low, high;
  const uint32_t* sums;
  const uint8_t* rows;
  char* y;
  int64_t pixel, channels, next, count;

  QF_INLINE void write_two() {
    const uint32_t *a = sums + rows[next] * BLOCK, *b = sums + rows[next + 1] * BLOCK;
    const vuint v[4] = {load_words(a), load_words(a + LANES), load_words(b), load_words(b + LANES)};
    const vfloat scales[4] = {low, high, low, high};
    const vuint bytes = made.bytes<ByteOrder::SEQUENCE>(v, scales);
    if (channels == BLOCK && next + 1 < count) {
      memcpy(y, &bytes, BLOCK);
      memcpy(y + pixel, (const char*)&bytes + BLOCK, BLOCK);
    } else {
      memcpy(y, &bytes, channels);
      if (next + 1 < count) memcpy(y + pixel, (const char*)&bytes + BLOCK, channels);
    }
    y += 2 * pixel;
    next += 2;
  }
};

// Finishes sums of some outputs by up to 32 channels from `channel` on.
struct Finisher {
  const ConvShape& s;
  const ConvQuantization& q;
  const Requantization requantization;
  void* const y;
  const uint32_t* sums = nullptr;  // what is to be finished, if anything
  const Kept* kept = nullptr;
  int64_t channel = 0, channels = 0;

  Finisher(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) : s(s), q(q), requantization(q), y(call.y) {}

  // What can be finished between products, which then is no longer to be finished here.
  QF_INLINE PixelWriter writer() {
    PixelWriter writer = {requantization, {}, {}, sums, nullptr, nullptr, s.groups * s.out_channels, channels, 0, 0};
    if (!sums || !requantization.wanted || !s.y_blocked) return writer;
    writer.low = multipliers(0), writer.high = multipliers(LANES);
    writer.rows = kept->rows, writer.count = kept->count;
    writer.y = (char*)y + kept->first * writer.pixel + channel;
    sums = nullptr;
    return writer;
  }

  void finish() {
    PixelWriter last = writer();
    while (last.next < last.count) last.write_two();
    if (!sums) return;
    if (!requantization.wanted)
      store_sums();
    else
      for (int64_t c = 0; c < channels; c += LANES) store_planes(c);
    sums = nullptr;
  }

 private:
  QF_INLINE vfloat multipliers(int64_t c) const {
    return channels - c >= LANES ? load(q.multipliers + channel + c)
                                 : load_first(q.multipliers + channel + c, clamped(channels - c, LANES));
  }

  QF_INLINE void* place(int64_t output, int64_t c, int64_t size) const {
    const int64_t plane = volume(s.output), image = output / plane;
    return (char*)y + ((image * s.groups * s.out_channels + channel + c) * plane + output % plane) * size;
  }

  void store_sums() const {
    const int64_t all = s.groups * s.out_channels;
    for (int64_t i = 0; i < kept->count; i++) {
      const uint32_t* from = sums + kept->rows[i] * BLOCK;
      if (s.y_blocked)
        memcpy((uint32_t*)y + (kept->first + i) * all + channel, from, channels * 4);
      else
        for (int64_t c = 0; c < channels; c++) memcpy(place(kept->first + i, c, 4), from + c, 4);
    }
  }

  // 16 channels of up to 64 outputs: words of four outputs' bytes, transposed.
  __attribute__((noinline)) void store_planes(int64_t c) const {
    const Requantization made = requantization;
    const vfloat scale = multipliers(c);
    const int64_t all = kept->count, lanes = smaller(LANES, channels - c), plane = volume(s.output);
    vfloat rows[LANES];
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      vuint v[4] = {};
      if (4 * i < all)
        QF_UNROLL for (int j = 0; j < 4; j++) v[j] = load_words(sums + kept->rows[4 * i + j] * BLOCK + c);
      rows[i] = (vfloat)made.bytes<ByteOrder::QUADS>(v[0], v[1], v[2], v[3], scale);
    }
    transpose(rows);
    for (int64_t i = 0; i < all;) {
      const int64_t count = smaller(all - i, plane - (kept->first + i) % plane);
      char* to = (char*)place(kept->first + i, c, 1);
#if defined(QF_AVX512)
      const __mmask64 mask = (count == 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1) << i;
      QF_UNROLL for (int lane = 0; lane < LANES; lane++)
        if (lane < lanes) _mm512_mask_storeu_epi8(to + lane * plane - i, mask, (__m512i)rows[lane]);
#else
      for (int64_t lane = 0; lane < lanes; lane++) memcpy(to + lane * plane, (const char*)&rows[lane] + i, count);
#endif
      i += count;
    }
  }
};

// Sums of I tiles of channels for J tiles of outputs over all steps, from their biases. x: the first output's; step: bytes
// from output to output.
template <int I, int J, bool SIGNED>
__attribute__((noinline)) void sum_steps(const uint8_t* x, int64_t step, const int64_t* offsets, int64_t steps,
                                         const char* weights, const uint32_t* bias, uint32_t* sums, Finisher& finisher) {
  PixelWriter writer = finisher.writer();
  const int64_t pace = divide_up(divide_up(writer.count, 2), steps) * 2;
  tile_load<0>(bias, 0);
  if (J == 2) tile_load<1>(bias, 0);
  if (I == 2) tile_load<2>(bias + TILE_WORDS, 0);
  if (I == 2 && J == 2) tile_load<3>(bias + TILE_WORDS, 0);
  const int64_t tile = TILE_ROWS * step;
  for (int64_t i = 0; i < steps; i++, weights += I * STEP) {
    const uint8_t* at = x + offsets[i];
    tile_load<4>(weights, TILE_BYTES);
    tile_load<6>(at, step);
    tile_add_bytes<0, 6, 4, SIGNED>();
    if (J == 2) {
      tile_load<7>(at + tile, step);
      tile_add_bytes<1, 7, 4, SIGNED>();
    }
    if (I == 2) {
      tile_load<5>(weights + STEP, TILE_BYTES);
      tile_add_bytes<2, 6, 5, SIGNED>();
      if (J == 2) tile_add_bytes<3, 7, 5, SIGNED>();
    }
    for (const int64_t until = smaller(writer.count, writer.next + pace); writer.next < until;) writer.write_two();
  }
  constexpr int64_t row = BLOCK * 4;
  tile_store<0>(sums, row);
  if (I == 2) tile_store<2>(sums + TILE_WORDS, row);
  if (J == 2) tile_store<1>(sums + TILE_ROWS * BLOCK, row);
  if (I == 2 && J == 2) tile_store<3>(sums + TILE_ROWS * BLOCK + TILE_WORDS, row);
}

typedef void (*SumSteps)(const uint8_t*, int64_t, const int64_t*, int64_t, const char*, const uint32_t*, uint32_t*,
                         Finisher&);

// What `count` outputs read, one after the other in a row of whole lines each.
void gather(const uint8_t* x, int64_t step, int64_t count, const Run* runs, int64_t number, int64_t row_bytes, uint8_t* to) {
  for (const Run* run = runs; run < runs + number; to += run->bytes, run++)
    for (int64_t done = 0; done < run->bytes; done += 4 * LANES) {
      const uint8_t* from = x + run->offset + done;
      uint8_t* row = to + done;
      const int64_t bytes = smaller(run->bytes - done, 4 * LANES);
#if defined(QF_AVX512)
      const __mmask64 mask = bytes == 64 ? ~__mmask64(0) : (__mmask64(1) << bytes) - 1;
      for (int64_t i = 0; i < count; i++, from += step, row += row_bytes)
        _mm512_mask_storeu_epi8(row, mask, _mm512_maskz_loadu_epi8(mask, from));
#else
      for (int64_t i = 0; i < count; i++, from += step, row += row_bytes) memcpy(row, from, bytes);
#endif
    }
}

void multiply(const ConvShape& s, const ConvQuantization& q, const ConvCall& call, const Plan& plan, const Part& part,
              char* workspace) {
  static constexpr SumSteps SUM[2][2][2] = {{{sum_steps<1, 1, false>, sum_steps<1, 2, false>}, {sum_steps<2, 1, false>, sum_steps<2, 2, false>}},
                                            {{sum_steps<1, 1, true>, sum_steps<1, 2, true>}, {sum_steps<2, 1, true>, sum_steps<2, 2, true>}}};
  const int64_t* offsets = (const int64_t*)(&plan + 1);
  const Run* runs = (const Run*)(offsets + plan.steps);
  const char* packed = (const char*)&plan + plan.header_bytes() + part.group * plan.group_bytes(s);
  uint32_t *scratch = (uint32_t*)workspace, *biases = scratch + 2 * SUMS;
  uint8_t *gathered = (uint8_t*)(biases + plan.blocks(s) * BLOCK), *slab = gathered + plan.gathered_bytes();
  const bool joined = plan.flat && !plan.turns && part.rows == plan.rows && part.rows == s.output[1];
  const uint8_t *x = slab, *end = nullptr;
  if (plan.in_place) {
    x = (const uint8_t*)call.x + (part.plane * s.output[1] + part.row) * s.output[2] * plan.place + part.group * s.in_channels;
    end = (const uint8_t*)call.x + s.batch * volume(s.input) * plan.place;
  } else if (!plan.turns) {
    lay_slab(s, call, plan, uint8_t(q.x_zero), part, slab);
  }
  const int64_t row_width = plan.flat ? (joined ? part.planes : 1) * part.rows * s.output[2] : s.output[2];
  const int64_t pitch = plan.flat ? row_width : plan.pitch / plan.stride[1];
  const int64_t length = plan.flat ? row_width : (part.rows - 1) * pitch + row_width, lines = joined ? 1 : part.planes;
  const int64_t plane_step = plan.in_place ? s.output[1] * s.output[2] : plan.plane;
  const int64_t unit = s.y_blocked ? UNIT : 2 * UNIT;  // of outputs that are finished together
  for (int64_t m = 0; m < plan.blocks(s) * BLOCK; m++)
    biases[m] = call.bias && m < s.out_channels ? ((const uint32_t*)call.bias)[part.group * s.out_channels + m] : 0;
  Finisher finisher(s, q, call);
  Kept kept[MOST_UNITS];
  int number = 0;
  for (int64_t line = 0; line < lines; line++) {
    int64_t output = ((part.plane + line) * s.output[1] + part.row) * s.output[2], column = 0, chunk;
    for (int64_t first = 0; first < length; first += chunk) {
      const uint8_t* at = x + (line * plane_step + first * plan.stride[1]) * plan.place;
      int64_t step = plan.stride[1] * plan.place, units = 0;
      // x itself is gathered, too, where it does not begin at a line, or a tile would reach beyond its end
      const auto reaches = [&](int64_t outputs) {
        return end && ((uintptr_t)at % TILE_BYTES || end - at < (divide_up(outputs, TILE_ROWS) * TILE_ROWS - 1) * step + plan.row_bytes());
      };
      chunk = smaller(plan.chunk_units * UNIT, length - first);
      const bool gathers = plan.gathers || reaches(chunk);
      if (plan.turns) {
        const int64_t image = (part.plane + line) / s.output[0], depth = (part.plane + line) % s.output[0];
        const int64_t from = (depth * s.input[1] + part.row) * s.input[2] + first;
        turn((const uint8_t*)call.x + (image * s.groups + part.group) * s.in_channels * volume(s.input) + from, volume(s.input),
             s.in_channels, 1, chunk, gathered, plan.row_bytes());
        at = gathered, step = plan.row_bytes();
      } else if (gathers) {
        chunk = smaller(chunk, GATHERED_TOGETHER);
        gather(at, step, chunk, runs, plan.runs, plan.row_bytes(), gathered);
        at = gathered, step = plan.row_bytes();
      }
      for (int64_t i = 0; i < chunk; i += unit, units++) {
        Kept& of = kept[units];
        of.first = output, of.count = 0;
        const int64_t here = smaller(unit, chunk - i);
        for (int64_t j = 0; j < here; j++) {
          if (column < row_width) of.rows[of.count++] = uint8_t(j);
          if (++column == pitch) column = 0;
        }
        for (int64_t j = of.count; j < of.count + 4; j++) of.rows[j] = 0;
        output += of.count;
      }
      for (int64_t block = part.block; block < part.blocks; block++) {
        const int64_t channel = part.group * s.out_channels + block * BLOCK, channels = smaller(BLOCK, s.out_channels - block * BLOCK);
        const int wide = channels > TILE_WORDS;
        const char* weights = packed + block * 2 * plan.steps * STEP;
        for (int64_t u = 0; u < units; u++, number ^= 1) {
          uint32_t* sums = scratch + number * SUMS;
          for (int64_t i = u * unit; i < smaller((u + 1) * unit, chunk); i += UNIT)
            SUM[q.x_signed][wide][chunk - i > TILE_ROWS](at + i * step, step, offsets, plan.steps, weights, biases + block * BLOCK,
                                                         sums + (i - u * unit) * BLOCK, finisher);
          finisher.finish();
          finisher.sums = sums, finisher.kept = kept + u, finisher.channel = channel, finisher.channels = channels;
        }
      }
      finisher.finish();
    }
  }
}

void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Plan& plan = *(const Plan*)call.weights;
  const int64_t workspace = plan.workspace_bytes(s);
  share_parts(s, call.threads, plan.planes, plan.rows, plan.blocks(s), [&](const Part& part, int thread) {
    multiply(s, q, call, plan, part, call.workspace + thread * workspace);
  });
}

}  // namespace

extern "C" void QF_EXPORT(conv_tiles_integer_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  needs->packed = size_t(plan.header_bytes() + s->groups * plan.group_bytes(*s));
  needs->workspace = size_t(divide_up(plan.workspace_bytes(*s), 64) * 64);
}

// Packed: the plan, the steps' offsets, the runs, then the weights.
extern "C" void QF_EXPORT(conv_tiles_integer_pack)(const ConvShape* shape, const int16_t* weights, int32_t* packed) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  memset(packed, 0, plan.header_bytes() + s.groups * plan.group_bytes(s));
  memcpy(packed, &plan, sizeof plan);
  int64_t* offsets = (int64_t*)((char*)packed + sizeof plan);
  Run* runs = (Run*)(offsets + plan.steps);
  const int64_t taps = volume(s.kernel), bytes = plan.run_taps * s.in_channels;
  for (int64_t i = 0; i < plan.runs; i++) {
    const int64_t tap = i * plan.run_taps, kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1];
    const int64_t row = plan.row_at(tap / s.kernel[2] / s.kernel[1], kh * s.dilations[1]);
    runs[i] = {(row * plan.pitch + kw * s.dilations[2]) * plan.place, bytes, tap};
  }
  // 64 channels of all taps, then the next ones: what neighbouring taps read stays at hand.
  for (int64_t i = 0; i < plan.steps; i++)
    offsets[i] = plan.gathers ? i * TILE_BYTES : runs[i % taps].offset + i / taps * TILE_BYTES;
  char* of_groups = (char*)packed + plan.header_bytes();
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t m = 0; m < s.out_channels; m++) {
      const int64_t block = m / BLOCK, tiles = s.out_channels - block * BLOCK > TILE_WORDS ? 2 : 1;
      char* column = of_groups + group * plan.group_bytes(s) + block * 2 * plan.steps * STEP + m % BLOCK / TILE_WORDS * STEP +
                     m % TILE_WORDS * 4;
      const int16_t* from = weights + (group * s.out_channels + m) * s.in_channels * taps;
      for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t channel = 0; channel < s.in_channels; channel++) {
          const int64_t whole = tap * s.in_channels + channel;
          const int64_t step = plan.gathers ? whole / TILE_BYTES : channel / TILE_BYTES * taps + tap;
          const int64_t within = (plan.gathers ? whole : channel) % TILE_BYTES;
          column[step * tiles * STEP + within / 4 * TILE_BYTES + within % 4] = char(int8_t(from[channel * taps + tap]));
        }
    }
}

extern "C" void QF_EXPORT(conv_tiles_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share(*s, *q, *call);
}
