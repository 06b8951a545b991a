// Depthwise integer convolution with channels last in memory, 1 to 3 axes, any kernel, stride and dilation, exact in int32
// (wrapping). One output channel a group.
//
// Vectors are channels, words of them taps (conv_words.h): columns 2i and 2i + 1, with bytes 2i + 2 and 2i + 3 as well, make
// unit i of a row. At a stride of 1 a unit serves two outputs, whose weights are shifted by one column; at 2 it serves one.
// So each row of x is brought into words once, by interleaving whole vectors of neighbouring columns, and a word of the
// kernel's row is one product of 4 * LANES outputs.
//
// Interleaving leaves each 16 channels' words spread over four vectors, four in each, and packing sums to bytes undoes that:
// nothing is permuted. So 16 bytes of a vector can be 16 channels of any place: where few channels are left, they are
// neighbouring places instead of more channels.
//
// For a block of channels, a band of rows of y and so many of their columns that a few rows of x stay at hand
//   rows of x are laid in a ring in the first-level cache: a row of bytes with its padding, then words [vector][unit]
//   for each row of y: tiles of outputs, whose sums stay in registers until they are requantised and stored.
//
// x is uint8 or int8; planes (x or y, where the other one has its channels last) are read and written by columns, without
// haste. Weights come as int16 (M, 1, kernel) and are packed as (block, row of the kernel, word, vector, parity). Threads
// share blocks of channels and bands of rows. What limits it is packing: 22 instructions for 64 outputs, where products of
// 3x3 take 12.
#include <omp.h>

#include "conv_words.h"

namespace {

constexpr int MOST_GROUPS = LANES / 4;  // of 16 channels in a vector of bytes
constexpr int TILE = REGISTERS == 32 ? 4 : 2;  // vectors of outputs that are summed together
constexpr int64_t BAND_BYTES = 256 << 10;      // of the rows of x that a band reads
constexpr int64_t NEAR_UNITS = 40;             // of a row, of which a few stay in the first-level cache

// 16 * groups channels from `first` on; those that are missing at the end are computed and dropped.
struct Block {
  int64_t first;
  int groups;
};

template <class Format>
struct Plan {
  int64_t kernel_rows, words;  // words of a row of the kernel
  int parities;
  int64_t band;                // columns of y that are computed together
  int64_t reach;               // units that an output's words lie behind its first one at most
  int64_t units, stage;        // of a laid row; bytes of a row of bytes
  int64_t row, ring;           // words of a laid row; rows of the ring, for each depth of the kernel
  int64_t most_groups;         // of blocks

  explicit Plan(const ConvShape& s) {
    kernel_rows = s.kernel[0] * s.kernel[1];
    parities = s.strides[2] % 2 ? 2 : 1;
    words = reach = 0;
    for (int parity = 0; parity < parities; parity++) {
      int64_t count = 0, end = -1;
      for (int64_t tap = 0; tap < s.kernel[2]; tap++) {
        const int64_t column = parity + tap * s.dilations[2];
        if (column < end) continue;
        count++, end = column / 2 * 2 + Format::IN_WORD, reach = column / 2;
      }
      if (count > words) words = count;
    }
    const int64_t across = TILE * MOST_GROUPS, bands = divide_up(s.output[2] * s.strides[2] / 2, NEAR_UNITS);
    band = divide_up(divide_up(s.output[2], bands ? bands : 1), across) * across;
    const int64_t outputs = band + across;
    units = divide_up(outputs * s.strides[2] / 2 + reach + 1 + MOST_GROUPS, MOST_GROUPS) * MOST_GROUPS;
    most_groups = block(s, 0).groups;
    stage = divide_up((2 * units + Format::IN_WORD + 2 * MOST_GROUPS) * most_groups * 16, 64) * 64;
    row = 4 * units * most_groups * 4;
    ring = (s.kernel[1] - 1) * s.dilations[1] + 1;
  }

  // The block at `number`: whole vectors, then as few channels as there are.
  QF_INLINE Block block(const ConvShape& s, int64_t number) const {
    const int64_t first = number * MOST_GROUPS * 16, left = s.groups - first;
    // places beside each other make a vector where their units lie beside each other
    const bool joins = s.strides[2] <= 2 && s.dilations[2] == 1;
    return {first, left <= 16 && joins ? 1 : left <= 32 && joins && MOST_GROUPS >= 2 ? 2 : MOST_GROUPS};
  }
  QF_INLINE int64_t blocks(const ConvShape& s) const { return divide_up(s.groups, MOST_GROUPS * 16); }
  QF_INLINE int64_t block_words() const { return kernel_rows * words * 4 * parities * LANES; }
  QF_INLINE int64_t header_bytes() const {
    return divide_up(int64_t(sizeof(Plan)) + 2 * words * int64_t(sizeof(int64_t)), 64) * 64;
  }
  QF_INLINE int64_t workspace_bytes(const ConvShape& s) const {
    const int64_t written = band * MOST_GROUPS * 16 * 4;
    const int64_t pointers = divide_up(kernel_rows * int64_t(sizeof(void*)), 64) * 64;
    return stage + s.kernel[0] * ring * row * 4 + pointers + written;
  }
};

// One thread's part: some rows of one depth of y of an image, a block of channels.
template <class Format>
struct Part {
  const ConvShape& s;
  const ConvQuantization& q;
  const ConvCall& call;
  const Plan<Format>& plan;
  const int64_t *offsets;  // of words, in units, for each parity
  const uint32_t* weights;
  Block block;
  int64_t image, depth, first_row, rows, column, width;  // of y
  uint8_t* stage;
  uint32_t *ring;
  const uint32_t** laid;  // the rows that a row of y meets, row of the kernel by row of the kernel
  char* written;          // a row of y, where it holds planes
};

// A vector of PLACES runs of bytes, `step` apart. (Put together in memory, it would wait for its parts to be stored.)
template <int PLACES>
QF_INLINE vbytes load_places(const uint8_t* from, int64_t step) {
  if constexpr (PLACES == 1) return (vbytes)load_words(from);
  if constexpr (PLACES == 2) return (vbytes)load_halves(from, from + step);
#if defined(QF_AVX512)
  __m512i v = _mm512_maskz_broadcast_i32x4(0xF, _mm_loadu_si128((const __m128i*)from));
  QF_UNROLL for (int i = 1; i < 4; i++)
    v = _mm512_mask_broadcast_i32x4(v, __mmask16(0xF << 4 * i), _mm_loadu_si128((const __m128i*)(from + i * step)));
  return (vbytes)v;
#else
  vbytes v = {};
  for (int i = 0; i < PLACES; i++) memcpy((uint8_t*)&v + i * (sizeof v / PLACES), from + i * step, sizeof v / PLACES);
  return v;
#endif
}

// Lays row (z, y) of x; outside of x it is padding.
template <class Format, int GROUPS>
void lay_row(const Part<Format>& part, const Format& format, int64_t z, int64_t y, uint32_t* to) {
  constexpr int PLACES = MOST_GROUPS / GROUPS;  // units of a vector
  constexpr int64_t PITCH = 16 * GROUPS;
  const ConvShape& s = part.s;
  uint8_t* stage = part.stage;
  const int64_t channels = smaller(PITCH, s.groups - part.block.first), units = part.plan.units;
  const int64_t columns = part.plan.stage / (part.plan.most_groups * 16);
  const int64_t begin = part.column * s.strides[2] - s.pads[2], start = begin < 0 ? 0 : smaller(begin, s.input[2]);
  const int64_t left = begin < 0 ? smaller(-begin, columns) : 0, width = smaller(s.input[2] - start, columns - left);
  const uint8_t* x = (const uint8_t*)part.call.x;
  const bool inside = z >= 0 && z < s.input[0] && y >= 0 && y < s.input[1];
  if (!inside) {
    memset(stage, uint8_t(part.q.x_zero), columns * PITCH);
  } else {
    memset(stage, uint8_t(part.q.x_zero), left * PITCH);
    if (s.x_blocked) {
      const uint8_t* from = x + (((part.image * s.input[0] + z) * s.input[1] + y) * s.input[2] + start) * s.groups + part.block.first;
      for (int64_t i = 0; i < width; i++, from += s.groups) {
        if (channels == PITCH)
          memcpy(stage + (left + i) * PITCH, from, PITCH);
        else
          memcpy(stage + (left + i) * PITCH, from, channels);
      }
    } else {
      for (int64_t c = 0; c < channels; c++) {
        const uint8_t* from = x + (((part.image * s.groups + part.block.first + c) * s.input[0] + z) * s.input[1] + y) * s.input[2] + start;
        for (int64_t i = 0; i < width; i++) stage[(left + i) * PITCH + c] = from[i];
      }
    }
    memset(stage + (left + width) * PITCH, uint8_t(part.q.x_zero), (columns - left - width) * PITCH);
  }
  const int64_t met = (part.width - 1) * s.strides[2] / 2 + part.plan.reach + 1;  // units; what lies behind them is dropped
  if constexpr (Format::IN_WORD == 4 && PLACES == 1) {
    // Columns 2i + 2 and 2i + 3 are the first ones of the next unit.
    const auto turns = [&](int64_t column) {
      vbytes a, b;
      memcpy(&a, stage + column * PITCH, PITCH);
      memcpy(&b, stage + (column + 1) * PITCH, PITCH);
      return format.turns(a, b);
    };
    auto first = turns(0);
    for (int64_t unit = 0; unit < met; unit++) {
      const auto second = turns(2 * unit + 2);
      vuint words[4];
      format.words(first, second, words);
      QF_UNROLL for (int i = 0; i < 4; i++) store_words(to + (i * units + unit) * 4 * GROUPS, words[i]);
      first = second;
    }
    return;
  }
  for (int64_t unit = 0; unit < met; unit += PLACES) {
    vbytes near[Format::IN_WORD];
    QF_UNROLL for (int i = 0; i < Format::IN_WORD; i++) near[i] = load_places<PLACES>(stage + (2 * unit + i) * PITCH, 2 * PITCH);
    vuint words[4];
    format.words(near, words);
    QF_UNROLL for (int i = 0; i < 4; i++) store_words(to + (i * units + unit) * 4 * GROUPS, words[i]);
  }
}

// A row of y. STRIDE: 1 or 2 without dilation, or 0 for any; ROWS, WORDS: of the kernel, or 0 for any.
template <class Format, int GROUPS, int STRIDE, int ROWS, int WORDS>
__attribute__((noinline)) void sum_row(const Part<Format>& part, const Requantization& requantization, const vuint* start,
                                       const vfloat* scales, char* y, int64_t pixel) {
  constexpr int PLACES = MOST_GROUPS / GROUPS, OUTPUTS = TILE * PLACES;
  constexpr int PARITIES = STRIDE == 1 ? 2 : 1;
  const ConvShape& s = part.s;
  const int64_t units = part.plan.units, width = part.width, stride = s.strides[2];
  const int64_t rows = ROWS ? ROWS : part.plan.kernel_rows, words = WORDS ? WORDS : part.plan.words;
  const int64_t parities = STRIDE ? PARITIES : part.plan.parities;
  const int64_t channels = smaller(16 * GROUPS, s.groups - part.block.first);
  const bool wanted = requantization.wanted;
  vfloat multipliers[4];
  QF_UNROLL for (int i = 0; i < 4; i++) multipliers[i] = scales[i];
  for (int64_t w = 0; w < width; w += OUTPUTS) {
    vuint sums[TILE][4];
    QF_UNROLL for (int t = 0; t < TILE; t++)
      QF_UNROLL for (int i = 0; i < 4; i++) sums[t][i] = start[i];
    const uint32_t* weights = part.weights;
    for (int64_t r = 0; r < rows; r++) {
      const uint32_t* row = part.laid[r];
      for (int64_t k = 0; k < words; k++, weights += 4 * parities * LANES) {
        QF_UNROLL for (int i = 0; i < 4; i++) {
          const uint32_t* of_vector = row + i * units * 4 * GROUPS;
          vuint near[PARITIES];
          if constexpr (STRIDE > 0)
            QF_UNROLL for (int p = 0; p < PARITIES; p++) near[p] = load_words(weights + (i * PARITIES + p) * LANES);
          QF_UNROLL for (int t = 0; t < TILE; t++) {
            if constexpr (STRIDE > 0) {
              const int64_t unit = (STRIDE == 1 ? w / 2 + t / 2 * PLACES : w + t * PLACES) + k * (Format::IN_WORD / 2);
              const vuint weight[1] = {near[STRIDE == 1 ? t % 2 : 0]};
              vuint sum[1] = {sums[t][i]};
              Format::add(sum, load_words(of_vector + unit * 4 * GROUPS), weight);
              sums[t][i] = sum[0];
            } else {
              const int64_t column = (w + t) * stride, parity = column % 2;
              const int64_t unit = column / 2 + part.offsets[parity * words + k];
              const vuint weight[1] = {load_words(weights + (i * parities + parity) * LANES)};
              vuint sum[1] = {sums[t][i]};
              Format::add(sum, load_words(of_vector + unit * 4 * GROUPS), weight);
              sums[t][i] = sum[0];
            }
          }
        }
      }
    }
    QF_UNROLL for (int t = 0; t < TILE; t++) {
      const vuint bytes = wanted ? requantization.bytes<ByteOrder::FOURS>(sums[t], multipliers) : (vuint){};
      QF_UNROLL for (int place = 0; place < PLACES; place++) {
        const int64_t at = w + (STRIDE == 1 ? (t / 2 * PLACES + place) * 2 + t % 2 : t * PLACES + place);
        if (at >= width) continue;
        if (!wanted) {
          int32_t values[16 * GROUPS];
          for (int g = 0; g < GROUPS; g++)
            QF_UNROLL for (int i = 0; i < 4; i++)
              memcpy(values + g * 16 + i * 4, (const char*)&sums[t][i] + (place * GROUPS + g) * 16, 16);
          memcpy(y + at * pixel * 4, values, channels * 4);
        } else if (channels == 16 * GROUPS) {
          memcpy(y + at * pixel, (const char*)&bytes + place * 16 * GROUPS, 16 * GROUPS);
        } else {
          memcpy(y + at * pixel, (const char*)&bytes + place * 16 * GROUPS, channels);
        }
      }
    }
  }
}

template <class Format, int GROUPS, int STRIDE, int ROWS, int WORDS>
void convolve(const Part<Format>& part) {
  const ConvShape& s = part.s;
  const Plan<Format>& plan = part.plan;
  const Format format(part.q);
  const Requantization requantization(part.q);
  const int64_t channels = smaller(16 * GROUPS, s.groups - part.block.first), size = requantization.wanted ? 1 : 4;
  vuint start[4];
  vfloat scales[4];
  QF_UNROLL for (int i = 0; i < 4; i++)
    for (int j = 0; j < LANES; j++) {
      const int64_t c = j / 4 % GROUPS * 16 + i * 4 + j % 4, m = part.block.first + c;
      start[i][j] = part.call.bias && c < channels ? ((const uint32_t*)part.call.bias)[m] : 0;
      scales[i][j] = requantization.wanted && c < channels ? part.q.multipliers[m] : 0;
    }
  int64_t laid = part.first_row * s.strides[1] - s.pads[1];  // the next row of x that is to be laid
  const int64_t pixel = s.y_blocked ? s.groups : 16 * GROUPS;
  for (int64_t h = part.first_row; h < part.first_row + part.rows; h++) {
    const int64_t top = h * s.strides[1] - s.pads[1];
    if (laid < top) laid = top;
    for (; laid < top + plan.ring; laid++)
      for (int64_t kd = 0; kd < s.kernel[0]; kd++) {
        const int64_t z = part.depth * s.strides[0] + kd * s.dilations[0] - s.pads[0];
        const int64_t slot = kd * plan.ring + (laid + s.pads[1]) % plan.ring;
        lay_row<Format, GROUPS>(part, format, z, laid, part.ring + slot * plan.row);
      }
    for (int64_t kd = 0; kd < s.kernel[0]; kd++)
      for (int64_t kh = 0; kh < s.kernel[1]; kh++)
        part.laid[kd * s.kernel[1] + kh] =
            part.ring + (kd * plan.ring + (top + s.pads[1] + kh * s.dilations[1]) % plan.ring) * plan.row;
    const int64_t place = (part.depth * s.output[1] + h) * s.output[2] + part.column;
    char* y = s.y_blocked ? (char*)part.call.y + ((part.image * volume(s.output) + place) * s.groups + part.block.first) * size
                          : part.written;
    sum_row<Format, GROUPS, STRIDE, ROWS, WORDS>(part, requantization, start, scales, y, pixel);
    if (s.y_blocked) continue;
    for (int64_t c = 0; c < channels; c++) {
      char* plane = (char*)part.call.y + ((part.image * s.groups + part.block.first + c) * volume(s.output) + place) * size;
      for (int64_t w = 0; w < part.width; w++) memcpy(plane + w * size, part.written + (w * pixel + c) * size, size);
    }
  }
}

template <class Format, int GROUPS>
void convolve_block(const Part<Format>& part) {
  const ConvShape& s = part.s;
  const bool plain = s.dilations[2] == 1, threes = plain && part.plan.kernel_rows == 3 && s.kernel[2] == 3;
  constexpr int OF_THREE = Format::IN_WORD == 4 ? 1 : 2;
  if (plain && s.strides[2] == 1)
    return threes ? convolve<Format, GROUPS, 1, 3, OF_THREE>(part) : convolve<Format, GROUPS, 1, 0, 0>(part);
  if (plain && s.strides[2] == 2)
    return threes ? convolve<Format, GROUPS, 2, 3, OF_THREE>(part) : convolve<Format, GROUPS, 2, 0, 0>(part);
  if constexpr (GROUPS == MOST_GROUPS) convolve<Format, GROUPS, 0, 0, 0>(part);
}

template <class Format>
void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Plan<Format>& plan = *(const Plan<Format>*)call.weights;
  const int64_t blocks = plan.blocks(s), planes = s.batch * s.output[0];
  // Blocks of channels lie in the same lines of x and y: they pass over a band of rows before the next one is read.
  const int64_t met = s.output[1] * s.strides[1] * s.input[2] * s.groups * s.kernel[0], wanted = divide_up(met, BAND_BYTES);
  const int64_t shares = divide_up(call.threads, blocks * planes), most = wanted > shares ? wanted : shares;
  const int64_t bands = smaller(most, s.output[1]), all = planes * blocks * bands;
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t i = 0; i < all; i++) {
    const int64_t block = i % blocks, band = i / blocks % bands, plane = i / blocks / bands;
    const int64_t first = s.output[1] * band / bands, end = s.output[1] * (band + 1) / bands;
    char* workspace = call.workspace + omp_get_thread_num() * plan.workspace_bytes(s);
    auto ring = (uint32_t*)(workspace + plan.stage);
    auto laid = (const uint32_t**)(ring + s.kernel[0] * plan.ring * plan.row);
    char* written = (char*)laid + divide_up(plan.kernel_rows * int64_t(sizeof(void*)), 64) * 64;
    Part<Format> part = {
        s, q, call, plan, (const int64_t*)(&plan + 1),
        (const uint32_t*)((const char*)&plan + plan.header_bytes()) + block * plan.block_words(), plan.block(s, block),
        plane / s.output[0], plane % s.output[0], first, end - first, 0, 0, (uint8_t*)workspace, ring, laid, written};
    for (; part.column < s.output[2]; part.column += plan.band) {
      part.width = smaller(plan.band, s.output[2] - part.column);
      if (part.block.groups == MOST_GROUPS) convolve_block<Format, MOST_GROUPS>(part);
      if constexpr (MOST_GROUPS > 2)
        if (part.block.groups == 2) convolve_block<Format, 2>(part);
      if constexpr (MOST_GROUPS > 1)
        if (part.block.groups == 1) convolve_block<Format, 1>(part);
    }
  }
}

template <class Format>
void needs_of(const ConvShape& s, ConvNeeds* needs) {
  const Plan<Format> plan(s);
  needs->packed = size_t(plan.header_bytes() + plan.blocks(s) * plan.block_words() * int64_t(sizeof(uint32_t)));
  needs->workspace = size_t(plan.workspace_bytes(s));
}

// Packed: the plan, the words' offsets, then the weights.
template <class Format>
void pack_all(const ConvShape& s, const int16_t* weights, int32_t* packed) {
  const Plan<Format> plan(s);
  memset(packed, 0, plan.header_bytes() + plan.blocks(s) * plan.block_words() * int64_t(sizeof(uint32_t)));
  memcpy(packed, &plan, sizeof plan);
  int64_t* offsets = (int64_t*)((char*)packed + sizeof plan);
  auto words = (uint32_t*)((char*)packed + plan.header_bytes());
  for (int parity = 0; parity < plan.parities; parity++) {
    int64_t word = -1, end = -1;
    for (int64_t tap = 0; tap < s.kernel[2]; tap++) {
      const int64_t column = parity + tap * s.dilations[2];
      if (column >= end) offsets[parity * plan.words + ++word] = column / 2, end = column / 2 * 2 + Format::IN_WORD;
      const int64_t within = column - offsets[parity * plan.words + word] * 2;
      for (int64_t number = 0; number < plan.blocks(s); number++) {
        const Block block = plan.block(s, number);
        for (int64_t r = 0; r < plan.kernel_rows; r++)
          for (int i = 0; i < 4; i++)
            for (int j = 0; j < LANES; j++) {
              const int64_t m = block.first + j / 4 % block.groups * 16 + i * 4 + j % 4;
              if (m >= s.groups) continue;
              words[number * plan.block_words() + (((r * plan.words + word) * 4 + i) * plan.parities + parity) * LANES + j] |=
                  Format::pack(weights[(m * plan.kernel_rows + r) * s.kernel[2] + tap], within);
            }
      }
    }
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_channels_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Pairs>(*s, needs); }
extern "C" void QF_EXPORT(conv_channels_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Pairs>(*s, weights, packed);
}
extern "C" void QF_EXPORT(conv_channels_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share<Pairs>(*s, *q, *call);
}

#if defined(QF_ISA_V4_VNNI)
extern "C" void QF_EXPORT(conv_channels_bytes_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Quads>(*s, needs); }
extern "C" void QF_EXPORT(conv_channels_bytes_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Quads>(*s, weights, packed);
}
extern "C" void QF_EXPORT(conv_channels_bytes_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share<Quads>(*s, *q, *call);
}
#endif
