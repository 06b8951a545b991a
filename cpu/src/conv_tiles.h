// Convolution by the tile registers of AMX (tile_registers.h), on plain NCHW: for each tap an outer product of 32 output
// channels by 32 neighbouring places over 32 or 64 input channels, which the tiles sum.
//
// Places are brought into a slab of words once: a word holds a few channels of one place (Format: two bfloat16 values or
// four bytes), [part][words of channels][plane][tap of depth][row phase][column phase][row][column]. Rows and columns of
// a strided window are laid out by their remainder, so that what neighbouring outputs read by one tap always lies side by
// side, and a tile is loaded from there as it is: its 16 rows are 16 words of channels, its columns 16 places. Rows
// follow one another with their padding, so outputs are computed along one line through all rows; what falls between two
// rows is dropped ("implicit GEMM" without im2col). Outputs come out as vectors of places of one channel: neither side
// is transposed.
//
// For up to CHUNK pairs of tiles of places
//   for 32 channels
//     for each pair of tiles: two by two products for each step of the depth, into the scratch
//     the sums are finished (bias has been there from the start), the places between rows squeezed out, and stored.
// A product takes 16 cycles and a tile 8 to 16 to be loaded, from the second-level cache too, where slab and weights stay:
// so products limit it. All taps of some channels follow one another, so that places come from there for the first tap alone. (Weights of a piece of the depth in the first-level cache would have sums loaded and stored for
// each piece, which costs more.) With few channels it is laying x out and writing y.
//
// Weights are packed as (group, block of 32 channels, step of the depth, part, tile).
#pragma once

#include "conv_tile_parts.h"

namespace {

constexpr int BLOCK = 2 * TILE_ROWS;             // channels of y, and places, that are computed together
constexpr int64_t CHUNK = 32, PLACES = CHUNK * BLOCK;  // of pairs of tiles: longer runs of y are written faster
constexpr int64_t SUM_STEP = PLACES + TILE_WORDS;  // of the scratch, from a channel to the next
constexpr int64_t SLAB_BYTES = 512 << 10;           // that stay in the second-level cache

// The slab's layout, and the steps of the depth.
template <class Format>
struct Plan {
  int64_t step[2], phases[2], stride[2];  // places of x from one laid row or column to the next; phases; places of x
                                          // from one row or column of y to the next
  int64_t pitch;                          // places from a row of a phase to the next
  int64_t planes, rows;                   // of y, for which there is room
  int64_t phase_rows, plane, words, part; // rows of a phase; places of a plane of y; of a word of channels; words of a part
  int64_t channel_words;                  // words of channels, whole tiles
  int64_t steps;                          // of the depth: for some channels all taps, then the next channels
  bool flat;                              // rows follow one another without gaps

  explicit Plan(const ConvShape& s) {
    for (int i = 0; i < 2; i++) {
      step[i] = s.kernel[i + 1] == 1 ? s.strides[i + 1] : 1;
      phases[i] = s.strides[i + 1] / step[i];
      stride[i] = s.strides[i + 1];
    }
    flat = volume(s.kernel) == 1;
    pitch = divide_up((s.output[2] - 1) * phases[1] + (s.kernel[2] - 1) * s.dilations[2] + 1, phases[1]);
    channel_words = divide_up(s.in_channels, TILE_ROWS * Format::IN_WORD) * TILE_ROWS;
    steps = volume(s.kernel) * channel_words / TILE_ROWS;
    // Each slab has all weights pass by.
    const int64_t bytes = group_bytes(s) > SLAB_BYTES ? 2 * SLAB_BYTES : SLAB_BYTES;
    const int64_t most = bytes / int64_t(sizeof(uint32_t)) / (Format::PARTS * channel_words);
    planes = smaller(most / plane_of(s, s.output[1]), s.batch * s.output[0]);
    rows = s.output[1];
    if (!planes) {
      planes = 1;
      while (rows > 1 && plane_of(s, rows) > most) rows = divide_up(rows, 2);
      rows = divide_up(s.output[1], divide_up(s.output[1], rows));
    }
    phase_rows = divide_up(laid_rows(s, rows), phases[0]);
    plane = plane_of(s, rows);
    words = divide_up(planes * plane, TILE_WORDS) * TILE_WORDS;
    if (words / TILE_WORDS % 2 == 0) words += TILE_WORDS;  // rows of a tile do not meet in the same sets of a cache
    part = channel_words * words + SLACK;
  }

  QF_INLINE int64_t laid_rows(const ConvShape& s, int64_t count) const {
    return (count - 1) * phases[0] + (s.kernel[1] - 1) * s.dilations[1] + 1;
  }
  QF_INLINE int64_t plane_of(const ConvShape& s, int64_t count) const {
    return s.kernel[0] * phases[0] * phases[1] * divide_up(laid_rows(s, count), phases[0]) * pitch;
  }
  // Where the place of a tap lies, seen from the place itself.
  QF_INLINE int64_t offset(const ConvShape& s, int64_t tap) const {
    const int64_t across = tap % s.kernel[2] * s.dilations[2], down = tap / s.kernel[2] % s.kernel[1] * s.dilations[1];
    const int64_t phase = (tap / s.kernel[2] / s.kernel[1] * phases[0] + down % phases[0]) * phases[1] + across % phases[1];
    return (phase * phase_rows + down / phases[0]) * pitch + across / phases[1];
  }
  QF_INLINE int64_t header_bytes() const { return divide_up(int64_t(sizeof(Plan)) + steps * int64_t(sizeof(int64_t)), 64) * 64; }
  QF_INLINE int64_t blocks(const ConvShape& s) const { return divide_up(s.out_channels, BLOCK); }
  QF_INLINE int64_t group_bytes(const ConvShape& s) const {
    return divide_up(s.out_channels, TILE_ROWS) * steps * (Format::STEP_BYTES / 2);
  }
  QF_INLINE int64_t workspace_bytes() const {
    return int64_t(sizeof(uint32_t)) * (BLOCK * (SUM_STEP + TILE_WORDS) + divide_up(Format::PARTS * part, 16) * 16);
  }

 private:
  static constexpr int64_t SLACK = 2 * BLOCK;  // words behind a part that tiles may read
};

// Sums of I tiles of channels by J tiles of places, over all steps of the depth: `start` for each channel, a row of a tile
// each, and the products. offsets: of the steps, in words.
template <class Format, int I, int J>
__attribute__((noinline)) void sum_steps(const uint32_t* slab, int64_t words, int64_t part, const int64_t* offsets,
                                         int64_t steps, const char* weights, const uint32_t* start, uint32_t* sums) {
  tile_load<0>(start, TILE_BYTES);
  if (J == 2) tile_load<1>(start, TILE_BYTES);
  if (I == 2) tile_load<2>(start + TILE_ROWS * TILE_WORDS, TILE_BYTES);
  if (I == 2 && J == 2) tile_load<3>(start + TILE_ROWS * TILE_WORDS, TILE_BYTES);
  for (int64_t i = 0; i < steps; i++, weights += I * (Format::STEP_BYTES / 2))
    Format::template add_step<I, J>(slab + offsets[i], words, part, weights);
  constexpr int64_t step = SUM_STEP * sizeof(uint32_t);
  tile_store<0>(sums, step);
  if (J == 2) tile_store<1>(sums + TILE_WORDS, step);
  if (I == 2) tile_store<2>(sums + TILE_ROWS * SUM_STEP, step);
  if (I == 2 && J == 2) tile_store<3>(sums + TILE_ROWS * SUM_STEP + TILE_WORDS, step);
}

// Tiles 0 to 3 += tiles 4 and 5 (weights) by tiles 6 and 7 (places).
template <class Format, int I, int J>
QF_INLINE void add_tiles() {
  Format::template add<0, 4, 6>();
  if (J == 2) Format::template add<1, 4, 7>();
  if (I == 2) Format::template add<2, 5, 6>();
  if (I == 2 && J == 2) Format::template add<3, 5, 7>();
}

// Some sums of one vector that are outputs that follow one another: sum `from` on, where the mask says so, go to place
// `place` of an image's channel on.
struct Piece {
  int64_t from, image, place;
  uint64_t mask;
};

// Lays out what the part reads.
template <class Format>
void lay_slab(const ConvShape& s, const ConvCall& call, const Format& format, const Plan<Format>& plan, const Part& part,
              uint32_t* slab, typename Format::Seen& seen) {
  typedef typename Format::Value Value;
  const int64_t channel = volume(s.input), laid = plan.laid_rows(s, part.rows), row_words = plan.pitch;
  const int64_t used_words = divide_up(s.in_channels, Format::IN_WORD);
  const bool joined = plan.flat && plan.step[0] == 1 && plan.step[1] == 1 && s.pads[1] == 0 && s.pads[2] == 0 &&
                      s.input[2] == s.output[2];
  for (int p = 0; p < Format::PARTS; p++) {
    uint32_t* unused = slab + p * plan.part + used_words * plan.words;
    memset(unused, 0, sizeof(uint32_t) * (plan.part - used_words * plan.words));
  }
  for (int64_t word = 0; word < used_words; word++) {
    const int count = int(smaller(Format::IN_WORD, s.in_channels - word * Format::IN_WORD));
    for (int64_t p = 0; p < part.planes; p++) {
      const int64_t image = (part.plane + p) / s.output[0], depth = (part.plane + p) % s.output[0];
      const Value* x = (const Value*)call.x +
                       ((image * s.groups + part.group) * s.in_channels + word * Format::IN_WORD) * channel;
      uint32_t* plane = slab + word * plan.words + p * plan.plane;
      if (joined) {
        const int64_t z = depth * s.strides[0] - s.pads[0];
        if (z < 0 || z >= s.input[0])
          format.fill(plane, part.rows * row_words, plan.part);
        else
          format.lay(x + (z * s.input[1] + part.row) * s.input[2], channel, count, 1, part.rows * row_words, plane,
                     plan.part, seen);
        continue;
      }
      for (int64_t tap = 0; tap < s.kernel[0]; tap++) {
        const int64_t z = depth * s.strides[0] - s.pads[0] + tap * s.dilations[0];
        for (int64_t r = 0; r < plan.phase_rows * plan.phases[0]; r++) {
          const int64_t y = part.row * plan.stride[0] - s.pads[1] + r * plan.step[0];
          const bool inside = z >= 0 && z < s.input[0] && y >= 0 && y < s.input[1] && r < laid;
          for (int64_t phase = 0; phase < plan.phases[1]; phase++) {
            uint32_t* to = plane + ((tap * plan.phases[0] + r % plan.phases[0]) * plan.phases[1] + phase) *
                                       plan.phase_rows * row_words + r / plan.phases[0] * row_words;
            if (!inside) {
              format.fill(to, row_words, plan.part);
              continue;
            }
            const int64_t left = phase * plan.step[1] - s.pads[2], step = plan.stride[1];
            const int64_t begin = left < 0 ? smaller(divide_up(-left, step), row_words) : 0;
            const int64_t end = left < s.input[2] ? smaller(divide_up(s.input[2] - left, step), row_words) : 0;
            format.fill(to, begin, plan.part);
            if (begin < end)
              format.lay(x + (z * s.input[1] + y) * s.input[2] + left + begin * step, channel, count, step, end - begin,
                         to + begin, plan.part, seen);
            if (end < row_words) format.fill(to + (end < begin ? begin : end), row_words - (end < begin ? begin : end), plan.part);
          }
        }
      }
    }
  }
}

template <class Format>
void multiply(const ConvShape& s, const ConvCall& call, const Format& format, const Plan<Format>& plan, const Part& part,
              char* workspace) {
  const int64_t* offsets = (const int64_t*)(&plan + 1);
  const char* packed = (const char*)&plan + plan.header_bytes() + part.group * plan.group_bytes(s);
  uint32_t *sums = (uint32_t*)workspace, *start = sums + BLOCK * SUM_STEP, *slab = start + BLOCK * TILE_WORDS;
  typename Format::Seen seen;
  lay_slab(s, call, format, plan, part, slab, seen);
  const bool fit = format.fit(seen);  // else the sums are not used

  // One line for all planes where there are no gaps, else one each. Rows of a line: whole planes where there are no gaps.
  const int64_t row_width = plan.flat ? part.rows * s.output[2] : s.output[2];
  const int64_t pitch = plan.flat ? row_width : plan.pitch;
  const int64_t lines = plan.flat ? 1 : part.planes, rows_of_line = plan.flat ? part.planes : part.rows;
  const int64_t length = (rows_of_line - 1) * pitch + row_width, plane_of_y = s.output[1] * s.output[2];
  const int64_t line_step = plan.flat ? 0 : plan.plane;
  int64_t line = 0, first = 0;
  while (line < lines) {
    int64_t at[CHUNK];
    bool single[CHUNK];
    Piece pieces[PLACES];
    int64_t count = 0, piece_count = 0;
    for (; count < CHUNK && line < lines; count++) {
      at[count] = line * line_step + first;
      single[count] = length - first <= TILE_WORDS;
      const int64_t end = smaller(length, first + BLOCK);
      for (int64_t v = first; v < end;) {
        const int64_t row = v / pitch, column = v % pitch;
        if (column >= row_width) {
          v += pitch - column;
          continue;
        }
        const int64_t from = count * BLOCK + v - first, group = from / Format::TOGETHER * Format::TOGETHER;
        const int64_t run = smaller(smaller(row_width - column, end - v), group + Format::TOGETHER - from);
        const int64_t p = part.plane + (plan.flat ? row : line);
        const int64_t image = p / s.output[0];
        const int64_t place = p % s.output[0] * plane_of_y + part.row * s.output[2] +
                              (plan.flat ? column : row * row_width + column);
        const uint64_t mask = (run == 64 ? ~uint64_t(0) : (uint64_t(1) << run) - 1) << (from - group);
        Piece* last = piece_count ? pieces + piece_count - 1 : nullptr;
        if (last && last->from == group && last->image == image && last->place + __builtin_popcountll(last->mask) == place)
          last->mask |= mask;
        else
          pieces[piece_count++] = {group, image, place, mask};
        v += run;
      }
      first += BLOCK;
      if (first >= length) first = 0, line++;
    }
    for (int64_t b = part.block; b < part.blocks; b++) {
      const int64_t channels = smaller(BLOCK, s.out_channels - b * BLOCK);
      const bool one = channels <= TILE_ROWS;
      const char* weights = packed + b * plan.steps * Format::STEP_BYTES;
      format.start(s, call, part.group, b * BLOCK, channels, start);
      for (int64_t i = 0; i < count; i++)
        (single[i] ? one ? sum_steps<Format, 1, 1> : sum_steps<Format, 2, 1>
                   : one ? sum_steps<Format, 1, 2> : sum_steps<Format, 2, 2>)(
            slab + at[i], plan.words, plan.part, offsets, plan.steps, weights, start, sums + i * BLOCK);
      format.finish(s, call, part.group, b * BLOCK, channels, sums, pieces, piece_count, fit);
    }
  }
}

template <class Format>
void share(const ConvShape& s, const ConvCall& call, const Format& format) {
  const Plan<Format>& plan = *(const Plan<Format>*)call.weights;
  const int64_t workspace = plan.workspace_bytes();
  share_parts(s, call.threads, plan.planes, plan.rows, plan.blocks(s), [&](const Part& part, int thread) {
    multiply(s, call, format, plan, part, call.workspace + thread * workspace);
  });
}

template <class Format>
void needs_of(const ConvShape& s, ConvNeeds* needs) {
  const Plan<Format> plan(s);
  needs->packed = size_t(plan.header_bytes() + s.groups * plan.group_bytes(s));
  needs->workspace = size_t(plan.workspace_bytes());
}

// Packed: the plan, the steps' offsets, then the weights.
template <class Format, class Weight>
void pack_all(const ConvShape& s, const Weight* weights, char* packed) {
  const Plan<Format> plan(s);
  constexpr int64_t DEEP = TILE_ROWS * Format::IN_WORD;
  if (s.out_channels % TILE_ROWS || s.in_channels % DEEP) memset(packed, 0, plan.header_bytes() + s.groups * plan.group_bytes(s));
  memcpy(packed, &plan, sizeof plan);
  int64_t* offsets = (int64_t*)(packed + sizeof plan);
  const int64_t taps = volume(s.kernel);
  for (int64_t i = 0; i < plan.steps; i++)
    offsets[i] = plan.offset(s, i % taps) + i / taps * TILE_ROWS * plan.words;
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t block = 0; block < plan.blocks(s); block++) {
      const int64_t in_block = smaller(BLOCK, s.out_channels - block * BLOCK), tiles = in_block <= TILE_ROWS ? 1 : 2;
      const Weight* from = weights + (group * s.out_channels + block * BLOCK) * s.in_channels * taps;
      char* to = packed + plan.header_bytes() + group * plan.group_bytes(s) + block * plan.steps * Format::STEP_BYTES;
      for (int64_t i = 0; i < plan.steps; i++, to += tiles * (Format::STEP_BYTES / 2)) {
        const int64_t tap = i % taps, first = i / taps * DEEP, count = smaller(DEEP, s.in_channels - first);
        for (int64_t m = 0; m < in_block; m++)
          Format::pack(from + (m * s.in_channels + first) * taps + tap, taps, count, to + m * TILE_BYTES,
                       tiles * TILE_ROWS * TILE_BYTES);
      }
    }
}

}  // namespace
