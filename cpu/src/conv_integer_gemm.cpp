// Integer convolution as a matrix product, exact in int32 (wrapping); x and y hold planes, or their channels last.
//
// A slab of x, some planes or a band of rows of one, is laid out once with its channels last (Format): as int16 with the
// zero point taken off and padding as zeros, or with VNNI as bytes that keep it. What a pixel's taps read are then runs of
// the slab, the same for every pixel: a row of the kernel times the channels, or one tap's channels where columns are
// dilated. So every shape is one product, y[pixel][m] = sum over the runs' values, that reads x where it lies ("indirect
// convolution": Dukhan, 2019), and no stride, kernel or small plane leaves more of a remainder than the last tile of pixels.
//
// A tile holds ROWS pixels by COLUMNS vectors of output channels in registers and multiplies words of two int16 values
// (conv_words.h) or four bytes: one of x, broadcast, by vectors of such words of weights. Depth is cut such that a block's weights stay
// in the first-level cache while the tiles of up to CHUNK pixels pass over them; sums wait in an int32 scratch. There
// they are requantised, for planes to vectors whose lanes hold four pixels' bytes, transposed, and written row by row. What limits
// it is the arithmetic: two products of LANES words a cycle. Zen 3 reaches 80 % of that at most, since its sums also take the two
// pipes of products: 162 Gop/s of 202, in whatever order they come, and large layers reach 135 to 155.
//
// What was tried on AVX2 and is not here. Products of bytes summed in twos (pmaddubsw) and again (pmaddwd) reach 193 Gop/s, but two
// products must stay in int16: for x up to 255 the positive ones of two neighbouring weights in 128, likewise the negative ones. A
// fourth of uniform pairs does not, nor some hundredths of normal ones scaled to their largest, which is half of the words of a
// block of channels; each would take a second product. Winograd's inner product of 1968, (x0 + w1)(x1 + w0) without x0 x1 and
// w0 w1, is exact and multiplies half as often: 166 Gop/s on tiles of 4 by 2 vectors, 178 on 3 by 3, before what corrects it.
//
// x is uint8 or int8. Weights come as int16 (M, C / groups, kernel), which have to be in -128 to 127 where they are to be
// bytes, and are packed as (block of channels, run, word, channel). Threads share bands of rows, and blocks of channels where
// there is little to lay out.
#include <omp.h>

#include "conv_laid.h"

namespace {

constexpr int64_t CHUNK = 256;                  // the most pixels that pass over a block's weights
constexpr int64_t SUMS = (CHUNK + GROUP) * BLOCK;

// One thread's part: planes from `plane` on and `rows` of their rows of y, one group, some blocks of channels.
template <class Format>
void multiply(const Source<Format>& source, const ConvQuantization& q, const ConvCall& call, char* workspace, int64_t group,
              int64_t plane, int64_t planes, int64_t row, int64_t rows, int64_t block, int64_t blocks) {
  const ConvShape& s = source.s;
  const Plan<Format>& plan = source.plan;
  const Run *runs = (const Run*)(&plan + 1), *runs_end = runs + plan.runs;
  const uint32_t* packed = (const uint32_t*)((const char*)&plan + plan.header_bytes());
  packed += group * plan.packed_channels(s) * plan.depth;
  uint32_t* sums = (uint32_t*)workspace;
  auto slab = (typename Format::Value*)(sums + SUMS);
  const int64_t laid_rows = plan.laid_rows(s, rows), laid_plane = laid_rows * plan.row_size;
  for (int64_t p = 0; p < planes; p++) {
    const int64_t first = row * s.strides[1] - s.pads[1];
    source.lay((plane + p) / s.output[0], group, (plane + p) % s.output[0], first, laid_rows, slab + p * laid_plane);
  }
  const int64_t each = rows * s.output[2], pixels = planes * each;
  const int64_t chunk = divide_up(divide_up(pixels, divide_up(pixels, CHUNK)), GROUP) * GROUP;
  for (int64_t first = 0; first < pixels; first += chunk) {
    const int64_t count = smaller(chunk, pixels - first), tiles = divide_up(count, ROWS);
    const typename Format::Value* at[CHUNK];
    int64_t w = first % s.output[2], h = first % each / s.output[2], p = first / each;
    for (int64_t i = 0; i < count; i++) {
      at[i] = slab + p * laid_plane + h * plan.stride[0] * plan.row_size + w * plan.stride[1] * s.in_channels;
      if (++w < s.output[2]) continue;
      w = 0;
      if (++h == rows) h = 0, p++;
    }
    for (int64_t b = block; b < blocks; b++) {
      const int64_t channel = b * BLOCK, columns = divide_up(smaller(BLOCK, s.out_channels - channel), LANES);
      const uint32_t* weights = packed + channel * plan.depth;
      uint32_t bias[BLOCK] = {};
      if (call.bias)
        for (int64_t i = 0; i < smaller(BLOCK, s.out_channels - channel); i++)
          bias[i] = ((const uint32_t*)call.bias)[group * s.out_channels + channel + i];
      for (const Run *run = runs, *last; run < runs_end; run = last) {
        int64_t depth = 0;
        for (last = run; last < runs_end && (last == run || depth + last->words <= DEPTH); last++) depth += last->words;
        // tiles of two heights at most, one pixel apart
        for (int64_t taller = 1, pixel = 0; taller >= 0; taller--) {
          const int64_t height = count / tiles + taller, number = taller ? count % tiles : tiles - count % tiles;
          uint32_t* const end = sums + pixel * columns * LANES;
          const Sums to = run == runs ? Sums{bias, 0, end} : Sums{end, columns * LANES, end};
          if (number && columns == COLUMNS)
            sum_tiles<Format, COLUMNS>(height, at + pixel, number, run, last, weights, to);
          else if (number)
            sum_tiles<Format, 1>(height, at + pixel, number, run, last, weights, to);
          pixel += height * number;
        }
        weights += depth * columns * LANES;
      }
      for (int64_t i = 0; i < count;) {
        const int64_t p = (first + i) / each, place = (first + i) % each, length = smaller(count - i, each - place);
        const int64_t image = (plane + p) / s.output[0], depth = (plane + p) % s.output[0];
        const int64_t all = s.groups * s.out_channels, y = (depth * s.output[1] + row) * s.output[2] + place;
        const uint32_t* from = sums + i * columns * LANES;
        if (s.y_blocked)
          write_pixels(q, call, from, group * s.out_channels + channel, smaller(BLOCK, s.out_channels - channel),
                       (image * volume(s.output) + y) * all + group * s.out_channels + channel, length, all);
        for (int64_t j = 0; j < columns && !s.y_blocked; j++) {
          const int64_t in_group = channel + j * LANES, m = group * s.out_channels + in_group;
          write_planes(s, q, call, from + j * LANES, columns * LANES, m, smaller(LANES, s.out_channels - in_group),
                       (image * all + m) * volume(s.output) + y, length);
        }
        i += length;
      }
    }
  }
}

template <class Format>
void share(const ConvShape& s, const ConvQuantization& q, const ConvCall& call) {
  const Plan<Format>& plan = *(const Plan<Format>*)call.weights;
  const Source<Format> source(s, plan, call, q);
  const int64_t planes = s.batch * s.output[0], blocks = plan.blocks(s);
  const int64_t workspace = SUMS * int64_t(sizeof(uint32_t)) + plan.slab_bytes(s);
  int64_t rows = plan.rows, together = plan.planes;
  auto parts = [&] { return s.groups * divide_up(planes, together) * divide_up(s.output[1], rows); };
  if (parts() < call.threads) together = smaller(together, divide_up(planes, divide_up(call.threads, s.groups)));
  // Channels are shared where laying x out anew for each share costs little beside the arithmetic.
  const bool by_channels = s.out_channels * volume(s.kernel) >= 1024;
  if (parts() < call.threads && !by_channels) rows = divide_up(rows, divide_up(call.threads, parts()));
  const int64_t splits = smaller(blocks, divide_up(call.threads, parts())), all = parts() * splits;
  const int64_t bands = divide_up(s.output[1], rows);
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t part = 0; part < all; part++) {
    const int64_t split = part % splits, band = part / splits % bands, group = part / splits / bands % s.groups;
    const int64_t plane = part / splits / bands / s.groups * together, row = band * rows;
    multiply<Format>(source, q, call, call.workspace + omp_get_thread_num() * workspace, group, plane,
                   smaller(together, planes - plane), row, smaller(rows, s.output[1] - row), blocks * split / splits,
                   blocks * (split + 1) / splits);
  }
}

template <class Format>
void needs_of(const ConvShape& s, ConvNeeds* needs) {
  const Plan<Format> plan(s);
  const int64_t weights = s.groups * plan.packed_channels(s) * plan.depth * int64_t(sizeof(uint32_t));
  needs->packed = size_t(plan.header_bytes() + weights);
  needs->workspace = size_t(SUMS * int64_t(sizeof(uint32_t)) + plan.slab_bytes(s));
}

// Packed: the plan and its runs, so that calls need not think again; then the weights.
template <class Format>
void pack_all(const ConvShape& s, const int16_t* weights, int32_t* packed) {
  const Plan<Format> plan(s);
  memcpy(packed, &plan, sizeof plan);
  Run *const runs = (Run*)((char*)packed + sizeof plan), *end = runs;
  const int64_t values = plan.run_columns * s.in_channels, words = divide_up(values, Format::IN_WORD);
  const int64_t taps = volume(s.kernel);
  for (int64_t tap = 0; tap < taps; tap += plan.run_columns) {
    const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
    const int64_t place = (kh * s.dilations[1] * s.kernel[0] + kd) * plan.columns + kw * s.dilations[2];
    for (int64_t i = 0; i < plan.pieces; i++) {
      const int64_t first = words * i / plan.pieces, last = words * (i + 1) / plan.pieces;
      *end++ = {place * s.in_channels + Format::IN_WORD * first, last - first, tap, Format::IN_WORD * first};
    }
  }
  packed = (int32_t*)((char*)packed + plan.header_bytes());
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t first = 0; first < s.out_channels; first += BLOCK)
      for (const Run* run = runs; run < end; run++)
        for (int64_t k = 0; k < run->words; k++)
          for (int64_t m = first; m < smaller(first + BLOCK, plan.packed_channels(s)); m++) {
            uint32_t word = 0;
            for (int64_t i = 0; i < Format::IN_WORD; i++) {
              const int64_t value = run->value + Format::IN_WORD * k + i;
              if (m >= s.out_channels || value >= values) continue;
              const int64_t tap = run->tap + value / s.in_channels, channel = value % s.in_channels;
              word |= Format::pack(weights[((group * s.out_channels + m) * s.in_channels + channel) * taps + tap], i);
            }
            *packed++ = int32_t(word);
          }
}

}  // namespace

extern "C" void QF_EXPORT(conv_gemm_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Pairs>(*s, needs); }
extern "C" void QF_EXPORT(conv_gemm_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Pairs>(*s, weights, packed);
}
extern "C" void QF_EXPORT(conv_gemm_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share<Pairs>(*s, *q, *call);
}

#if defined(QF_ISA_V4_VNNI)
extern "C" void QF_EXPORT(conv_bytes_integer_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of<Quads>(*s, needs); }
extern "C" void QF_EXPORT(conv_bytes_integer_pack)(const ConvShape* s, const int16_t* weights, int32_t* packed) {
  pack_all<Quads>(*s, weights, packed);
}
extern "C" void QF_EXPORT(conv_bytes_integer)(const ConvShape* s, const ConvQuantization* q, const ConvCall* call) {
  share<Quads>(*s, *q, *call);
}
#endif
