// Integer convolution on tile registers (tile_registers.h), exact in int32 (wrapping): bytes of x times signed bytes of w,
// 1024 products a cycle; x and y hold planes, or their channels last.
//
// x lies, or is laid once as a slab, with its channels last and its padding around it. Then what an output reads is a few
// runs of bytes, the same for every output (Source): a row of the kernel times the channels, or one tap's channels where
// they fill whole steps of 64 bytes or columns are dilated. A tile of x is 16 neighbouring outputs by 64 bytes of a run,
// loaded as it lies: a stride along a row is a larger step from row to row of the tile. So that outputs can be neighbours
// across the end of a row, rows of the slab lie by their remainder by the stride, and the padding to the right of one is
// that to the left of the next; what falls between two rows is computed and dropped ("implicit GEMM" without im2col).
// Where runs are so short that most of a step is empty, they are gathered: the outputs of a chunk get rows of their own.
// A convolution of one tap without stride or padding reads x itself.
//
// For up to CHUNK outputs along a line
//   for four tiles of 16 output channels
//     for each piece of the depth, whose x stays in the first-level cache
//       for each tile of channels: a tile of weights by four of x, step by step; tiles of sums go to a scratch
//       the tile before is finished meanwhile: four outputs' sums make a vector of bytes, of which 16 go to each output
// or, where y holds planes, 64 outputs of 16 channels are transposed.
//
// Padding has x's zero point; what the zero point adds to the sums is taken off with the bias (cpu/conv.py). Weights come as
// int16 with their zero points taken off, have to be in -128 to 127, and are packed as (group, tile of channels, step).
// Threads share planes or bands of their rows, then tiles of channels.
#include <omp.h>

#include "conv_words.h"
#include "tile_registers.h"

namespace {

constexpr int64_t CHUNK = 4 * TILE_ROWS;           // outputs, of four tiles
constexpr int64_t STEP = TILE_ROWS * TILE_BYTES;   // bytes of a tile
constexpr int64_t TOGETHER = 4;                    // tiles of channels that pass over a piece of the depth
constexpr int64_t SLAB_BYTES = 512 << 10;          // that stay in the second-level cache
constexpr int64_t PIECE_BYTES = 16 << 10;          // of x, that stay in the first-level cache
constexpr int64_t MOST_SLOTS = TOGETHER + 1;       // tiles of sums: those of a piece, and the one that is being finished

// A run of bytes that outputs read: where it begins, seen from an output's first byte, and how many; and which weights it
// meets: `taps` of the kernel from `tap` on.
struct Source {
  int64_t offset, bytes, tap;
};

struct Plan {
  int64_t step[2], stride[2];  // of rows and columns: places of x for one of the slab, of the slab for one of y
  int64_t phases;              // of the slab's rows
  int64_t left, columns;       // laid columns: of padding, and all of a row
  int64_t pitch, phase_rows, plane;  // places from row to row; rows of a phase; places of a plane of y
  int64_t place;               // bytes from place to place
  int64_t planes, rows;        // of y, for which there is room
  int64_t sources, source_taps, steps, piece;  // runs; taps of each; steps of the depth, and of a piece of it
  bool flat, in_place, gathers;

  explicit Plan(const ConvShape& s) {
    for (int i = 0; i < 2; i++) {
      step[i] = s.kernel[i + 1] == 1 ? s.strides[i + 1] : 1;
      stride[i] = s.strides[i + 1] / step[i];
    }
    const bool one = volume(s.kernel) == 1;
    bool plain = one;
    for (int i = 0; i < 3; i++) plain = plain && s.strides[i] == 1 && s.pads[i] == 0 && s.input[i] == s.output[i];
    in_place = s.x_blocked && plain;
    flat = one;
    phases = stride[0];
    place = in_place ? s.groups * s.in_channels : s.in_channels;
    left = divide_up(s.pads[2], step[1]);
    columns = (s.output[2] - 1) * stride[1] + (s.kernel[2] - 1) * s.dilations[2] + 1;
    if (left > columns) left = columns;
    const int64_t inside = smaller(divide_up(s.input[2] + s.pads[2], step[1]), columns) - left;
    const int64_t right = inside > 0 ? columns - left - inside : 0;
    const int64_t shared = one || inside <= 0 ? 0 : smaller(left, right);
    pitch = divide_up(columns - shared, stride[1]) * stride[1];

    const bool whole = s.in_channels % TILE_BYTES == 0 || s.dilations[2] > 1;
    source_taps = whole ? 1 : s.kernel[2];
    sources = volume(s.kernel) / source_taps;
    const int64_t of_source = divide_up(source_taps * s.in_channels, TILE_BYTES);
    const int64_t gathered = divide_up(volume(s.kernel) * s.in_channels, TILE_BYTES);
    steps = sources * of_source;
    gathers = 4 * gathered <= 3 * steps;
    if (gathers) steps = gathered;
    const int64_t reach = CHUNK * stride[1] + (s.kernel[1] - 1) * pitch;
    const int64_t each = gathers ? 1 : sources, bytes = smaller(place, TILE_BYTES) * (gathers ? CHUNK : reach);
    piece = steps;
    if (steps * STEP / TILE_ROWS * CHUNK > 2 * PIECE_BYTES) {
      const int64_t pieces = bytes > PIECE_BYTES ? 1 : PIECE_BYTES / bytes;
      if (pieces * each < steps) piece = pieces * each;
    }

    const int64_t most = SLAB_BYTES / place;
    planes = in_place ? s.batch * s.output[0] : smaller(most / plane_of(s, s.output[1]), s.batch * s.output[0]);
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

  QF_INLINE int64_t tiles(const ConvShape& s) const { return divide_up(s.out_channels, TILE_WORDS); }
  QF_INLINE int64_t header_bytes() const {
    return divide_up(int64_t(sizeof(Plan)) + steps * 8 + sources * int64_t(sizeof(Source)), 64) * 64;
  }
  QF_INLINE int64_t row_bytes() const { return steps * TILE_BYTES; }  // of a gathered output
  QF_INLINE int64_t slab_bytes() const {
    if (in_place) return 0;
    const int64_t behind = (TILE_ROWS * stride[1] + columns) * place + 2 * TILE_BYTES;
    return divide_up(planes * plane * place + behind, 64) * 64;
  }
  QF_INLINE int64_t workspace_bytes() const { return MOST_SLOTS * CHUNK * 64 + CHUNK * row_bytes() + slab_bytes() + 64; }
};

typedef uint8_t vbytes_anywhere __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

// Every step-th of `count` bytes (at most 4 * LANES) from p on.
QF_INLINE vbytes spaced_bytes(const uint8_t* p, int64_t step, int64_t count) {
  vbytes v = {};
#if defined(QF_AVX512)
  const auto bytes = [&](const uint8_t* from, int64_t n) {
    return _mm512_maskz_loadu_epi8(n >= 64 ? ~__mmask64(0) : n <= 0 ? 0 : (__mmask64(1) << n) - 1, from);
  };
  if (step == 1) return (vbytes)bytes(p, count);
  if (step == 2) {
    vbytes even;
    QF_UNROLL for (int i = 0; i < 64; i++) even[i] = uint8_t(2 * i);
    return (vbytes)_mm512_permutex2var_epi8(bytes(p, 2 * count - 1), (__m512i)even, bytes(p + 64, 2 * count - 65));
  }
#endif
  for (int64_t i = 0; i < count; i++) v[i] = p[i * step];
  return v;
}

// `count` places of some planes, `channel` bytes apart, with their channels last. Stores of 16 channels may reach into the
// next place, which is stored later.
void turn_places(const uint8_t* x, int64_t channel, int64_t channels, int64_t step, int64_t count, uint8_t* to, int64_t place) {
  for (int64_t first = 0; first < count; first += 4 * LANES) {
    const int64_t places = smaller(4 * LANES, count - first);
    for (int64_t c = (channels - 1) / 16 * 16; c >= 0; c -= 16) {
      vbytes v[16];
      QF_UNROLL for (int i = 0; i < 16; i++)
        v[i] = c + i < channels ? spaced_bytes(x + (c + i) * channel + first * step, step, places) : (vbytes){};
      QF_UNROLL for (int round = 0; round < 4; round++) {
        vbytes turned[16];
        QF_UNROLL for (int i = 0; i < 8; i++) {
          turned[2 * i] = interleave_within<1, false>(v[i], v[i + 8]);
          turned[2 * i + 1] = interleave_within<1, true>(v[i], v[i + 8]);
        }
        QF_UNROLL for (int i = 0; i < 16; i++) v[i] = turned[i];
      }
      uint8_t* at = to + first * place + c;
      const bool whole = c + 16 <= channels;
      QF_UNROLL for (int lane = 0; lane < LANES / 4; lane++)
        QF_UNROLL for (int i = 0; i < 16; i++) {
          const int64_t p = lane * 16 + i;
          if (p < places - 1 || (whole && p < places))
            memcpy(at + p * place, (const uint8_t*)&v[i] + lane * 16, 16);
          else if (p < places)
            memcpy(at + p * place, (const uint8_t*)&v[i] + lane * 16, channels - c);
        }
    }
  }
}

// A part of the work: planes from `plane` on, rows of each, one group, some tiles of channels.
struct Part {
  int64_t group, plane, planes, row, rows, tile, tiles;
};

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
          turn_places(x, volume(s.input), s.in_channels, step, inside, first, place);
        } else {
          x += (image * volume(s.input) + from) * all + part.group * s.in_channels;
          if (step * all == place)
            memcpy(first, x, inside * place);
          else
            for (int64_t i = 0; i < inside; i++) memcpy(first + i * place, x + i * step * all, s.in_channels);
        }
        memset(to + right * place, zero, (plan.columns - right) * place);
      }
    }
  }
}

// Outputs of a chunk that are kept: which rows of its tiles, and which outputs, from `first` on, counted through the batch.
struct Chunk {
  int64_t first, count;
  uint8_t rows[CHUNK];
};

// Finishes tiles of sums, some outputs at a time.
struct Finisher {
  const ConvShape& s;
  const ConvQuantization& q;
  const Requantization requantization;
  void* const y;
  // What is being finished: sums of 16 channels from `channel` on, of which `lanes` are there.
  const uint32_t* sums = nullptr;
  const Chunk* chunk = nullptr;
  int64_t channel = 0, lanes = 0, next = 0, end = 0;
  vfloat multiplier = {};
  vuint turned[LANES];  // where y holds planes: a word of four outputs' bytes for each channel

  Finisher(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) : s(s), q(q), requantization(q), y(call.y) {}

  void begin(const uint32_t* of, const Chunk* outputs, int64_t first, int64_t count) {
    sums = of, chunk = outputs, channel = first, lanes = count, next = 0, end = outputs->count;
    if (requantization.wanted)
      multiplier = count == LANES ? load(q.multipliers + first) : load_first(q.multipliers + first, int(count));
  }

  // Up to four outputs more.
  QF_INLINE void advance() {
    if (next >= end) return;
    const int64_t at = next;
    next += 4;
    if (!requantization.wanted) return store_sums(at);
    vuint v[4];
    QF_UNROLL for (int i = 0; i < 4; i++) v[i] = load_words(sums + chunk->rows[at + i] * TILE_WORDS);
    if (s.y_blocked) {
      const vuint bytes = requantization.bytes<ByteOrder::SEQUENCE>(v[0], v[1], v[2], v[3], multiplier);
      const int64_t all = s.groups * s.out_channels;
      char* to = (char*)y + (chunk->first + at) * all + channel;
      if (lanes == LANES && at + 4 <= end) {
        QF_UNROLL for (int i = 0; i < 4; i++) memcpy(to + i * all, (const char*)&bytes + i * 16, 16);
      } else {
        for (int64_t i = 0; i < smaller(4, end - at); i++) memcpy(to + i * all, (const char*)&bytes + i * 16, lanes);
      }
    } else {
      turned[at / 4] = requantization.bytes<ByteOrder::QUADS>(v[0], v[1], v[2], v[3], multiplier);
      if (next >= end) store_planes();
    }
  }
  QF_INLINE void finish() {
    while (next < end) advance();
  }

 private:
  QF_INLINE void* place(int64_t output, int64_t c, int64_t size) const {
    const int64_t plane = volume(s.output), image = output / plane;
    return (char*)y + ((image * s.groups * s.out_channels + channel + c) * plane + output % plane) * size;
  }

  void store_sums(int64_t at) const {
    const int64_t all = s.groups * s.out_channels;
    for (int64_t i = at; i < smaller(at + 4, end); i++) {
      const uint32_t* from = sums + chunk->rows[i] * TILE_WORDS;
      if (s.y_blocked)
        memcpy((uint32_t*)y + (chunk->first + i) * all + channel, from, lanes * 4);
      else
        for (int64_t c = 0; c < lanes; c++) memcpy(place(chunk->first + i, c, 4), from + c, 4);
    }
  }

  __attribute__((noinline)) void store_planes() {
    vfloat rows[LANES];
    QF_UNROLL for (int i = 0; i < LANES; i++) rows[i] = (vfloat)turned[i];
    transpose(rows);
    const int64_t plane = volume(s.output);
    for (int64_t i = 0; i < end;) {
      const int64_t count = smaller(end - i, plane - (chunk->first + i) % plane);
      char* to = (char*)place(chunk->first + i, 0, 1);
      for (int64_t c = 0; c < lanes; c++, to += plane) {
#if defined(QF_AVX512)
        const __mmask64 mask = (count == 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1) << i;
        _mm512_mask_storeu_epi8(to - i, mask, (__m512i)rows[c]);
#else
        memcpy(to, (const char*)&rows[c] + i, count);
#endif
      }
      i += count;
    }
  }
};

// Sums of a tile of channels for J tiles of outputs over some steps, from what `start` holds for each output, `start_step`
// bytes apart. x: the chunk's first output; step: bytes from output to output.
template <int J, bool SIGNED>
__attribute__((noinline)) void sum_steps(const uint8_t* x, int64_t step, const int64_t* offsets, int64_t steps,
                                         const char* weights, const void* start, int64_t start_step, uint32_t* sums,
                                         Finisher& finisher, int64_t pace) {
  const char* from = (const char*)start;
  tile_load<0>(from, start_step);
  if (J > 1) tile_load<1>(from + TILE_ROWS * start_step, start_step);
  if (J > 2) tile_load<2>(from + 2 * TILE_ROWS * start_step, start_step);
  if (J > 3) tile_load<3>(from + 3 * TILE_ROWS * start_step, start_step);
  const int64_t tile = TILE_ROWS * step;
  for (int64_t i = 0; i < steps; i++, weights += STEP) {
    const uint8_t* at = x + offsets[i];
    tile_load<4>(weights, TILE_BYTES);
    tile_load<5>(at, step);
    tile_add_bytes<0, 5, 4, SIGNED>();
    if (J > 1) {
      tile_load<6>(at + tile, step);
      tile_add_bytes<1, 6, 4, SIGNED>();
    }
    if (J > 2) {
      tile_load<7>(at + 2 * tile, step);
      tile_add_bytes<2, 7, 4, SIGNED>();
    }
    if (J > 3) {
      tile_load<5>(at + 3 * tile, step);
      tile_add_bytes<3, 5, 4, SIGNED>();
    }
    for (int64_t n = 0; n < pace; n++) finisher.advance();
  }
  tile_store<0>(sums, TILE_BYTES);
  if (J > 1) tile_store<1>(sums + STEP / 4, TILE_BYTES);
  if (J > 2) tile_store<2>(sums + 2 * STEP / 4, TILE_BYTES);
  if (J > 3) tile_store<3>(sums + 3 * STEP / 4, TILE_BYTES);
}

typedef void (*SumSteps)(const uint8_t*, int64_t, const int64_t*, int64_t, const char*, const void*, int64_t, uint32_t*, Finisher&,
                         int64_t);

void multiply(const ConvShape& s, const ConvQuantization& q, const ConvCall& call, const Plan& plan, const Part& part,
              char* workspace) {
  static constexpr SumSteps OF_UNSIGNED[] = {sum_steps<1, false>, sum_steps<2, false>, sum_steps<3, false>, sum_steps<4, false>};
  static constexpr SumSteps OF_SIGNED[] = {sum_steps<1, true>, sum_steps<2, true>, sum_steps<3, true>, sum_steps<4, true>};
  const SumSteps* sum = q.x_signed ? OF_SIGNED : OF_UNSIGNED;
  const int64_t* offsets = (const int64_t*)(&plan + 1);
  const Source* sources = (const Source*)(offsets + plan.steps);
  const char* packed = (const char*)&plan + plan.header_bytes() + part.group * plan.tiles(s) * plan.steps * STEP;
  uint32_t* slots = (uint32_t*)workspace;
  uint8_t *gathered = (uint8_t*)(slots + MOST_SLOTS * CHUNK * TILE_WORDS), *slab = gathered + CHUNK * plan.row_bytes();
  const bool joined = plan.flat && part.rows == plan.rows && part.rows == s.output[1];
  const uint8_t *x = slab, *end = nullptr;
  if (plan.in_place) {
    x = (const uint8_t*)call.x + (part.plane * s.output[1] + part.row) * s.output[2] * plan.place + part.group * s.in_channels;
    end = (const uint8_t*)call.x + s.batch * volume(s.input) * plan.place;
  } else {
    lay_slab(s, call, plan, uint8_t(q.x_zero), part, slab);
  }
  const int64_t row_width = joined ? part.planes * part.rows * s.output[2] : plan.flat ? part.rows * s.output[2] : s.output[2];
  const int64_t pitch = plan.flat ? row_width : plan.pitch / plan.stride[1];
  const int64_t length = plan.flat ? row_width : (part.rows - 1) * pitch + row_width, lines = joined ? 1 : part.planes;
  const int64_t plane_step = plan.in_place ? s.output[1] * s.output[2] : plan.plane;
  const int64_t slots_used = plan.piece < plan.steps ? MOST_SLOTS : 2;
  Finisher finisher(s, q, call);
  Chunk chunks[2];
  int64_t number = 0, slot = 0;
  for (int64_t line = 0; line < lines; line++) {
    int64_t output = ((part.plane + line) * s.output[1] + part.row) * s.output[2], row = 0, column = 0;
    for (int64_t first = 0; first < length; first += CHUNK) {
      const int64_t here = smaller(CHUNK, length - first);
      Chunk& chunk = chunks[number++ % 2];
      chunk.first = output, chunk.count = 0;
      if (pitch == row_width) {
        for (int64_t i = 0; i < CHUNK; i++) chunk.rows[i] = uint8_t(i);
        chunk.count = here;
      } else {
        for (int64_t i = 0; i < here; i++) {
          if (column < row_width) chunk.rows[chunk.count++] = uint8_t(i);
          if (++column == pitch) column = 0, row++;
        }
        for (int64_t i = chunk.count; i < smaller(CHUNK, chunk.count + 3); i++) chunk.rows[i] = 0;
      }
      output += chunk.count;
      const uint8_t* at = x + (line * plane_step + first * plan.stride[1]) * plan.place;
      int64_t step = plan.stride[1] * plan.place;
      const int64_t tiles = divide_up(here, TILE_ROWS);
      if (plan.gathers || (end && at + (tiles * TILE_ROWS - 1) * step + plan.row_bytes() > end)) {
        uint8_t* to = gathered;
        for (int64_t i = 0; i < here; i++, to += plan.row_bytes()) {
          uint8_t* value = to;
          for (const Source* source = sources; source < sources + plan.sources; source++) {
            memcpy(value, at + i * step + source->offset, source->bytes);
            value += source->bytes;
          }
        }
        at = gathered, step = plan.row_bytes();
      }
      for (int64_t block = part.tile; block < part.tiles; block += TOGETHER) {
        const int64_t slot_of_block = slot, last = smaller(block + TOGETHER, part.tiles);
        for (int64_t done = 0, steps; done < plan.steps; done += steps) {
          steps = smaller(plan.piece, plan.steps - done);
          const bool finishes = done + steps == plan.steps;
          slot = slot_of_block;
          for (int64_t t = block; t < last; t++, slot = slot + 1 == slots_used ? 0 : slot + 1) {
            const int64_t in_group = t * TILE_WORDS, channel = part.group * s.out_channels + in_group;
            const int64_t lanes = smaller(TILE_WORDS, s.out_channels - in_group);
            uint32_t* sums = slots + slot * CHUNK * TILE_WORDS;
            uint32_t bias[TILE_WORDS] = {};
            if (call.bias) memcpy(bias, (const uint32_t*)call.bias + channel, lanes * 4);
            const int64_t pace = divide_up((finisher.end - finisher.next + 3) / 4, steps);
            sum[tiles - 1](at, step, offsets + done, steps, packed + (t * plan.steps + done) * STEP, done ? sums : bias,
                           done ? TILE_BYTES : 0, sums, finisher, pace);
            if (!finishes) continue;
            finisher.finish();
            finisher.begin(sums, &chunk, channel, lanes);
          }
        }
      }
    }
  }
  finisher.finish();
}

// Shares the work among threads: planes or bands of their rows, then tiles of channels.
void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Plan& plan = *(const Plan*)call.weights;
  const int64_t planes = s.batch * s.output[0], blocks = divide_up(plan.tiles(s), TOGETHER), workspace = plan.workspace_bytes();
  int64_t rows = plan.rows, together = plan.planes;
  auto parts = [&] { return s.groups * divide_up(planes, together) * divide_up(s.output[1], rows); };
  if (parts() < call.threads) together = smaller(together, divide_up(planes, divide_up(call.threads, s.groups)));
  const int64_t splits_wanted = divide_up(call.threads, parts());
  // Laying x out anew for each share of the channels costs less than it saves where there are many.
  const bool by_channels = blocks >= 2 * splits_wanted;
  if (parts() < call.threads && !by_channels) rows = divide_up(rows, splits_wanted);
  const int64_t splits = smaller(blocks, divide_up(call.threads, parts())), all = parts() * splits;
  const int64_t bands = divide_up(s.output[1], rows);
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
  {
    [[maybe_unused]] const TileRegisters registers;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < all; i++) {
      const int64_t split = i % splits, band = i / splits % bands, group = i / splits / bands % s.groups;
      const int64_t plane = i / splits / bands / s.groups * together, row = band * rows;
      multiply(s, q, call, plan,
               {group, plane, smaller(together, planes - plane), row, smaller(rows, s.output[1] - row),
                blocks * split / splits * TOGETHER, smaller(blocks * (split + 1) / splits * TOGETHER, plan.tiles(s))},
               call.workspace + omp_get_thread_num() * workspace);
    }
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_tiles_integer_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  needs->packed = size_t(plan.header_bytes() + s->groups * plan.tiles(*s) * plan.steps * STEP);
  needs->workspace = size_t(plan.workspace_bytes());
}

// Packed: the plan, the steps' offsets, the runs, then the weights.
extern "C" void QF_EXPORT(conv_tiles_integer_pack)(const ConvShape* shape, const int16_t* weights, int32_t* packed) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  memset(packed, 0, plan.header_bytes() + s.groups * plan.tiles(s) * plan.steps * STEP);
  memcpy(packed, &plan, sizeof plan);
  int64_t* offsets = (int64_t*)((char*)packed + sizeof plan);
  Source* sources = (Source*)(offsets + plan.steps);
  const int64_t taps = volume(s.kernel), bytes = plan.source_taps * s.in_channels;
  for (int64_t i = 0; i < plan.sources; i++) {
    const int64_t tap = i * plan.source_taps, kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1];
    const int64_t row = plan.row_at(tap / s.kernel[2] / s.kernel[1], kh * s.dilations[1]);
    sources[i] = {(row * plan.pitch + kw * s.dilations[2]) * plan.place, bytes, tap};
  }
  // Byte `value` of run i: where it meets its tile of weights. Runs' first steps come first, then their second ones.
  for (int64_t i = 0; i < plan.steps; i++)
    offsets[i] = plan.gathers ? i * TILE_BYTES : sources[i % plan.sources].offset + i / plan.sources * TILE_BYTES;
  char* tiles = (char*)packed + plan.header_bytes();
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t m = 0; m < s.out_channels; m++) {
      char* tile = tiles + (group * plan.tiles(s) + m / TILE_WORDS) * plan.steps * STEP + m % TILE_WORDS * 4;
      const int16_t* from = weights + (group * s.out_channels + m) * s.in_channels * taps;
      for (int64_t i = 0; i < plan.sources; i++)
        for (int64_t value = 0; value < bytes; value++) {
          const int64_t whole = i * bytes + value;
          const int64_t step = plan.gathers ? whole / TILE_BYTES : value / TILE_BYTES * plan.sources + i;
          const int64_t within = (plan.gathers ? whole : value) % TILE_BYTES;
          const int64_t tap = sources[i].tap + value / s.in_channels, channel = value % s.in_channels;
          tile[step * STEP + within / 4 * TILE_BYTES + within % 4] = char(int8_t(from[channel * taps + tap]));
        }
    }
}

extern "C" void QF_EXPORT(conv_tiles_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share(*s, *q, *call);
}
