// The gradient of a convolution's weight as a product whose depth is the places of dy: R scalars times J vectors for each
// place, summed in registers over a chunk of places (the outer-product kernel of microkernel.h, whose operands lie anywhere).
//
// Two ways round, by which one's vectors are better filled:
//   by inputs    vectors hold LANES input channels: a chunk of x is brought into channel blocks with its padding
//                (channel_blocks.h), where a tap is an offset; a vector of dw is a pair of a block and a tap. Scalars are dy
//                itself, R output channels on plain planes.
//   by outputs   for the few channels of a first layer: vectors hold LANES output channels, dy is brought into blocks, and
//                scalars are x, its rows copied with their padding (conv_padded.h); a scalar is a pair of a channel and a tap.
//
// So nothing is copied tap by tap; of x, rows and columns that a stride steps over are not brought where the kernel has one tap
// there. Sums of some vectors, and all output channels, are kept in the second-level cache
//   for each chunk of places, whose x and dy stay there too
//     for each tile of R scalars and J vectors: the chunk's places pass, and what they give is added to the sums
// and written to dw when all chunks are done. Many output channels leave room for few vectors and, a place of dy being as large,
// for few places, so that a tile does little but load and store its sums: these are split, and x is brought for each part again
// (1x1 from 256 to 1024 channels on planes of 14x14: 16.9 ms unsplit, 12 in three parts with 512 KiB of second-level cache).
// Neither chunks nor these parts depend on the number of threads, which share vectors and output channels, so neither do
// results. Limited by the multiply-adds.
//
// Padding is read as zeros, which an infinite dy would make NaN of: values that are not finite are computed anew by their
// definition.
#include <omp.h>

#include "cache_size.h"
#include "channel_blocks.h"
#include "conv_gradient.h"
#include "conv_padded.h"
#include "microkernel.h"

namespace {

constexpr int64_t ENOUGH_ROOM = 64 << 10, FLOATS_OF_LINE = 16;
// A tile that passes fewer places spends too much on its sums.
constexpr int64_t LEAST_PLACES = 64, MOST_SPLITS = 16;

// Of the sums that are kept in the second-level cache.
inline int64_t sums_bytes() { return second_level_cache() / 8 * 3; }

// The places that a tile passes: lines of dy in slabs (planes of an image or of a volume), and where in both operands they
// lie, in floats.
struct Places {
  int64_t slabs, rows, run;
  int64_t scalar_slab, scalar_row, scalar_step;
  int64_t vector_slab, vector_row, vector_step;
};

struct Product {
  typedef void (*TileFunction)(const float* scalars, const int64_t* scalar_at, const float* vectors,
                               const int64_t* vector_at, const Places& places, float* sums, int64_t sums_step, bool first);
  template <int R, int J>
  __attribute__((noinline)) static void tile(const float* scalars, const int64_t* scalar_at, const float* vectors,
                                             const int64_t* vector_at, const Places& places, float* sums,
                                             int64_t sums_step, bool first) {
    const float *s[R], *v[J];
    QF_UNROLL for (int r = 0; r < R; r++) s[r] = scalars + scalar_at[r];
    QF_UNROLL for (int j = 0; j < J; j++) v[j] = vectors + vector_at[j];
    vfloat c[R][J] = {};
    // The next tile reads as many planes further on, few lines of each, which the processor does not foresee.
    const int64_t ahead = (scalar_at[R - 1] - scalar_at[0]) / (R > 1 ? R - 1 : 1) * R;
    const int64_t scalar_step = places.scalar_step, vector_step = places.vector_step, run = places.run;
    for (int64_t slab = 0; slab < places.slabs; slab++)
      for (int64_t row = 0; row < places.rows; row++) {
        int64_t a = slab * places.scalar_slab + row * places.scalar_row;
        int64_t b = slab * places.vector_slab + row * places.vector_row;
        for (int64_t i = 0; i < run; i++, a += scalar_step, b += vector_step) {
          if (i % FLOATS_OF_LINE == 0) QF_UNROLL for (int r = 0; r < R; r++) __builtin_prefetch(s[r] + a + ahead);
          vfloat value[J];
          QF_UNROLL for (int j = 0; j < J; j++) value[j] = load(v[j] + b);
          QF_UNROLL for (int r = 0; r < R; r++)
            QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += s[r][a] * value[j];
        }
      }
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) {
        float* to = sums + r * sums_step + j * LANES;
        store(to, first ? c[r][j] : load(to) + c[r][j]);
      }
  }
};

// Splits `total` into parts of at most `most` whose sizes differ by one at most.
struct Parts {
  int64_t total, count;
  QF_INLINE Parts(int64_t total, int64_t most) : total(total), count(divide_up(total, most)) {}
  QF_INLINE int64_t begin(int64_t part) const { return total * part / count; }
};

// How places are cut into chunks: some whole slabs, or some rows of one.
struct Chunks {
  int64_t slabs, rows;  // of one chunk
  int64_t slab_chunks, row_chunks;
  // row_floats: of x and dy for one row; extra: rows that each chunk brings beside its own
  Chunks(const ConvShape& s, int64_t row_floats, int64_t extra) {
    const int64_t height = s.output[1], all = s.batch * s.output[0];
    const int64_t room = (second_level_cache() - sums_bytes()) / 2, fit = (room > ENOUGH_ROOM ? room : ENOUGH_ROOM) / 4 / row_floats;
    rows = fit - extra;
    if (rows < 1) rows = 1;
    slabs = 1;
    if (rows >= height) {
      slabs = fit / (height + extra);
      slabs = slabs < 1 ? 1 : smaller(slabs, all);
      rows = height;
    }
    row_chunks = divide_up(height, rows);
    rows = divide_up(height, row_chunks);
    slab_chunks = divide_up(all, slabs);
  }
  int64_t places(const ConvShape& s) const { return slabs * rows * s.output[2]; }
  // visit(first slab, slabs, first row, rows, whether it is the first chunk)
  template <class Visit>
  QF_INLINE void each(const ConvShape& s, const Visit& visit) const {
    const int64_t all = s.batch * s.output[0];
    for (int64_t slab = 0; slab < all; slab += slabs)
      for (int64_t row = 0; row < s.output[1]; row += rows)
        visit(slab, smaller(slabs, all - slab), row, smaller(rows, s.output[1] - row), slab == 0 && row == 0);
  }
};

struct Plan {
  bool by_inputs;
  int64_t taps, reach[3];        // of the kernel: how many rows and columns of x it covers
  int64_t taken[3], strides[3];  // every how manieth row and column of x is brought; the strides among those
  int64_t vectors, scalars;      // of a group
  int64_t splits;                // parts of the scalars, each of which passes all places
  int columns;                   // vectors in a tile
  int64_t kept;                  // vectors whose sums are kept at a time: whole blocks of channels
  int64_t line, lines;           // floats of a row of a block or padded row, rows in a slab of a chunk with its depth
  Chunks chunks;
  PaddedRows padded;

  explicit Plan(const ConvShape& s) : taps(volume(s.kernel)), chunks(s, 1, 0), padded(s) {
    auto filled = [](int64_t channels) { return double(channels) / double(divide_up(channels, LANES) * LANES); };
    by_inputs = filled(s.in_channels) >= 0.8 * filled(s.out_channels);
    for (int axis = 0; axis < 3; axis++) reach[axis] = (s.kernel[axis] - 1) * s.dilations[axis] + 1;
    vectors = by_inputs ? divide_up(s.in_channels, LANES) * taps : divide_up(s.out_channels, LANES);
    scalars = by_inputs ? s.out_channels : s.in_channels * taps;
    for (int axis = 0; axis < 3; axis++) {
      taken[axis] = by_inputs && s.kernel[axis] == 1 ? s.strides[axis] : 1;
      strides[axis] = s.strides[axis] / taken[axis];
    }
    line = by_inputs ? ((s.output[2] - 1) * strides[2] + reach[2]) * LANES : padded.pitch;
    divide(s, 1);
    if (by_inputs) {
      int64_t best = 1, most = chunks.places(s);
      for (int64_t parts = 2; parts <= smaller(MOST_SPLITS, scalars) && most < LEAST_PLACES; parts++) {
        divide(s, parts);
        if (chunks.places(s) > most) most = chunks.places(s), best = parts;
      }
      divide(s, best);
    }
    columns = best_columns(kept, share());
    lines = (chunks.rows - 1) * strides[1] + reach[1];
  }
  // Vectors kept and chunks of places, where scalars are in so many parts.
  void divide(const ConvShape& s, int64_t parts) {
    splits = parts;
    const int64_t unit = by_inputs ? taps : 1, fit = sums_bytes() / (share() * unit * LANES * 4);
    kept = smaller(vectors, (fit < 1 ? 1 : fit) * unit);
    kept = divide_up(divide_up(vectors, unit), divide_up(vectors, kept)) * unit;
    const int64_t x_row = by_inputs ? line * (kept / taps) : line * s.in_channels;
    const int64_t dy_row = s.output[2] * (by_inputs ? share() : kept * LANES);
    chunks = Chunks(s, x_row * strides[1] * s.kernel[0] + dy_row, reach[1] > strides[1] ? reach[1] / strides[1] : 0);
  }
  int64_t share() const { return divide_up(scalars, splits); }
  int64_t passes() const { return divide_up(vectors, kept); }
  int64_t x_floats(const ConvShape& s) const {
    return divide_up(chunks.slabs * s.kernel[0] * lines * line * (by_inputs ? kept / taps : s.in_channels), 16) * 16;
  }
  int64_t dy_floats(const ConvShape& s) const {
    return by_inputs ? 0 : kept * chunks.slabs * chunks.rows * s.output[2] * LANES;
  }
  int64_t sums_floats() const { return share() * kept * LANES; }
  // offsets: of each scalar and vector
  int64_t floats(const ConvShape& s) const {
    return divide_up(x_floats(s) + dy_floats(s) + sums_floats() + 2 * (scalars + kept), 16) * 16;
  }
};

// Where tap `tap` lies in a slab of x that holds `lines` rows for each plane of the kernel's depth.
struct TapAt {
  int64_t line, column;
  QF_INLINE TapAt(const ConvShape& s, int64_t lines, int64_t tap) {
    const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
    line = kd * lines + kh * s.dilations[1];
    column = kw * s.dilations[2];
  }
};

// One share of a group's dw: vectors from `first` to `last`, scalars from `low` to `high`.
struct Share {
  int64_t group, first, last, low, high;
};

struct Worker {
  const ConvShape& s;
  const ConvGradientCall& call;
  const Plan& plan;
  float *x_room, *dy_room, *sums;
  int64_t *scalar_at, *vector_at;

  Worker(const ConvShape& s, const ConvGradientCall& call, const Plan& plan, float* room)
      : s(s), call(call), plan(plan), x_room(room), dy_room(room + plan.x_floats(s)), sums(dy_room + plan.dy_floats(s)),
        scalar_at((int64_t*)(sums + plan.sums_floats())), vector_at(scalar_at + plan.scalars) {}

  const float* x_plane(int64_t image, int64_t group, int64_t channel) const {
    return (const float*)call.x + ((image * s.groups + group) * s.in_channels + channel) * volume(s.input);
  }
  const float* dy_plane(int64_t image, int64_t group, int64_t channel) const {
    return (const float*)call.dy + ((image * s.groups + group) * s.out_channels + channel) * volume(s.output);
  }

  void run(const Share& share) {
    plan.chunks.each(s, [&](int64_t slab, int64_t slabs, int64_t row, int64_t rows, bool first) {
      if (plan.by_inputs)
        by_inputs(share, slab, slabs, row, rows, first);
      else
        by_outputs(share, slab, slabs, row, rows, first);
    });
    write(share);
  }

  // Vectors of x's channels, scalars of dy itself. A slab has kernel[0] planes of `lines` rows for each block of channels.
  void by_inputs(const Share& share, int64_t slab, int64_t slabs, int64_t row, int64_t rows, bool first) {
    const int64_t lines = (rows - 1) * plan.strides[1] + plan.reach[1], columns = plan.line / LANES;
    const int64_t plane = lines * plan.line, block_step = slabs * s.kernel[0] * plane;
    const int64_t first_block = share.first / plan.taps, blocks = (share.last - share.first) / plan.taps;
    for (int64_t block = 0; block < blocks; block++)
      for (int64_t i = 0; i < slabs; i++)
        for (int64_t kd = 0; kd < s.kernel[0]; kd++) {
          const int64_t image = (slab + i) / s.output[0], channel = (first_block + block) * LANES;
          const int64_t depth = (slab + i) % s.output[0] * s.strides[0] + kd * s.dilations[0] - s.pads[0];
          float* to = x_room + block * block_step + (i * s.kernel[0] + kd) * plane;
          if (depth < 0 || depth >= s.input[0]) {
            memset(to, 0, sizeof(float) * plane);
            continue;
          }
          turn_band(x_plane(image, share.group, channel) + depth * s.input[1] * s.input[2], s.input[1], s.input[2],
                    smaller(LANES, s.in_channels - channel),
                    {row * s.strides[1] - s.pads[1], lines, -s.pads[2], columns, plan.taken[1], plan.taken[2]}, to, volume(s.input));
        }
    for (int64_t v = 0; v < blocks * plan.taps; v++) {
      const TapAt at(s, lines, v % plan.taps);
      vector_at[v] = v / plan.taps * block_step + at.line * plan.line + at.column * LANES;
    }
    const int64_t out_plane = volume(s.output), image_step = s.groups * s.out_channels * out_plane;
    for (int64_t m = share.low; m < share.high; m++) scalar_at[m - share.low] = m * out_plane;
    // images of one plane lie image_step apart, planes of a volume one plane; a chunk of several slabs takes them image by image
    Places places{1, rows, s.output[2], 0, s.output[2], 1, 0, plan.strides[1] * plan.line, plan.strides[2] * LANES};
    if (columns == s.output[2] && plan.strides[1] == 1) {  // rows follow each other in both
      places.run *= rows;
      places.rows = 1;
    }
    if (s.output[0] == 1) {
      places.slabs = slabs;
      places.scalar_slab = image_step;
      places.vector_slab = s.kernel[0] * plane;
      tiles(share, dy_plane(slab, share.group, 0) + row * s.output[2], x_room, places, first);
      return;
    }
    for (int64_t i = 0; i < slabs; i++)
      tiles(share, dy_plane((slab + i) / s.output[0], share.group, 0) + ((slab + i) % s.output[0] * s.output[1] + row) * s.output[2],
            x_room + i * s.kernel[0] * plane, places, first && i == 0);
  }

  // Vectors of dy's channels, scalars of x with its padding. A slab has kernel[0] planes of lines for each channel.
  void by_outputs(const Share& share, int64_t slab, int64_t slabs, int64_t row, int64_t rows, bool first) {
    const int64_t lines = (rows - 1) * s.strides[1] + plan.reach[1], pitch = plan.padded.pitch;
    const int64_t slab_step = s.in_channels * s.kernel[0] * lines * pitch;
    const int64_t width = s.output[2] * LANES, block_step = slabs * rows * width;
    for (int64_t i = 0; i < slabs; i++) {
      const int64_t image = (slab + i) / s.output[0], d = (slab + i) % s.output[0];
      for (int64_t c = 0; c < s.in_channels; c++)
        for (int64_t kd = 0; kd < s.kernel[0]; kd++) {
          const int64_t depth = d * s.strides[0] + kd * s.dilations[0] - s.pads[0], top = row * s.strides[1] - s.pads[1];
          float* to = x_room + i * slab_step + (c * s.kernel[0] + kd) * lines * pitch;
          plan.padded.clear(to, lines);
          if (depth < 0 || depth >= s.input[0]) continue;
          const int64_t above = clamped(-top, lines), below = clamped(top + lines - s.input[1], lines - above);
          plan.padded.copy(x_plane(image, share.group, c) + (depth * s.input[1] + top + above) * s.input[2], lines - above - below,
                           to + above * pitch, 0);
        }
      for (int64_t v = share.first; v < share.last; v++)
        turn_band(dy_plane(image, share.group, v * LANES) + (d * s.output[1] + row) * s.output[2], rows, s.output[2],
                  smaller(LANES, s.out_channels - v * LANES), {0, rows, 0, s.output[2]},
                  dy_room + (v - share.first) * block_step + i * rows * width, volume(s.output));
    }
    for (int64_t v = 0; v < share.last - share.first; v++) vector_at[v] = v * block_step;
    for (int64_t k = share.low; k < share.high; k++) {
      const TapAt at(s, lines, k % plan.taps);
      scalar_at[k - share.low] = (k / plan.taps * s.kernel[0] * lines + at.line) * pitch + plan.padded.place(at.column);
    }
    tiles(share, x_room, dy_room,
          {slabs, rows, s.output[2], slab_step, s.strides[1] * pitch, 1, rows * width, width, LANES}, first);
  }

  void tiles(const Share& share, const float* scalars, const float* vectors, const Places& places, bool first) {
    const int64_t count = share.last - share.first, step = plan.kept * LANES;
    for (int64_t v = 0; v < count; v += plan.columns) {
      const int columns = int(smaller(plan.columns, count - v));
      const Parts rows(share.high - share.low, most_rows(columns));
      for (int64_t tile = 0; tile < rows.count; tile++) {
        const int64_t low = rows.begin(tile), high = rows.begin(tile + 1);
        TileTable<Product>::of[high - low - 1][columns - 1](scalars, scalar_at + low, vectors, vector_at + v, places,
                                                            sums + low * step + v * LANES, step, first);
      }
    }
  }

  // Transposes sums[row][LANES] of `rows` neighbours: lane l's go to to + l * step, for `lanes` lanes. Whether all are finite.
  static bool write_lanes(const float* from, int64_t row_step, int64_t rows, int64_t lanes, float* to, int64_t step) {
    vfloat check = {};
    int64_t first = 0;
    for (; first + LANES <= rows; first += LANES) {
      vfloat values[LANES];
      QF_UNROLL for (int i = 0; i < LANES; i++) values[i] = load(from + (first + i) * row_step);
      QF_UNROLL for (int i = 0; i < LANES; i++) check += values[i] * 0.0f;
      transpose(values);
      for (int64_t lane = 0; lane < lanes; lane++) store(to + lane * step + first, values[lane]);
    }
    for (; first < rows; first++) {
      const float* row = from + first * row_step;
      check += load(row) * 0.0f;
      if (step == 1)
        memcpy(to, row, sizeof(float) * lanes);
      else
        for (int64_t lane = 0; lane < lanes; lane++) to[lane * step + first] = row[lane];
    }
    for (int lane = 0; lane < LANES; lane++)
      if (check[lane] != 0.0f) return false;
    return true;
  }

  void write(const Share& share) {
    const int64_t each = s.in_channels * plan.taps, step = plan.kept * LANES;
    float* dw = (float*)call.dw + share.group * s.out_channels * each;
    if (plan.by_inputs) {
      for (int64_t m = share.low; m < share.high; m++)
        for (int64_t v = share.first; v < share.last; v += plan.taps) {
          const int64_t channel = v / plan.taps * LANES, channels = smaller(LANES, s.in_channels - channel);
          if (!write_lanes(sums + (m - share.low) * step + (v - share.first) * LANES, LANES, plan.taps, channels,
                           dw + m * each + channel * plan.taps, plan.taps))
            for (int64_t c = channel; c < channel + channels; c++) again(share.group, m, c);
        }
      return;
    }
    for (int64_t v = share.first; v < share.last; v++) {
      const int64_t m = v * LANES, channels = smaller(LANES, s.out_channels - m);
      if (!write_lanes(sums + (v - share.first) * LANES, step, share.high - share.low, channels, dw + m * each + share.low, each))
        for (int64_t i = m; i < m + channels; i++)
          for (int64_t c = 0; c < s.in_channels; c++) again(share.group, i, c);
    }
  }

  void again(int64_t group, int64_t m, int64_t c) {
    float* dw = (float*)call.dw + ((group * s.out_channels + m) * s.in_channels + c) * plan.taps;
    for (int64_t tap = 0; tap < plan.taps; tap++)
      if (!__builtin_isfinite(dw[tap])) dw[tap] = float(weight_by_taps<float>(s, call, group, m, c, tap));
  }
};

}  // namespace

extern "C" size_t QF_EXPORT(conv_gradient_product_f32_needs)(const ConvShape* s) { return sizeof(float) * Plan(*s).floats(*s); }

extern "C" void QF_EXPORT(conv_gradient_product_f32)(const ConvShape* shape, const ConvGradientCall* call) {
  const ConvShape& s = *shape;
  const Plan plan(s);
  const int64_t passes = plan.passes() * s.groups, threads = call->threads;
  // Where there are fewer passes than threads, output channels are shared, too.
  const int64_t wanted = plan.by_inputs ? smaller(divide_up(threads, passes), s.out_channels) : 1;
  const int64_t splits = wanted > plan.splits ? wanted : plan.splits, parts = passes * splits;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Worker worker(s, *call, plan, (float*)call->workspace + omp_get_thread_num() * plan.floats(s));
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < parts; part++) {
      const int64_t split = part % splits, pass = part / splits % plan.passes(), group = part / splits / plan.passes();
      const int64_t low = plan.scalars * split / splits, high = plan.scalars * (split + 1) / splits;
      worker.run({group, pass * plan.kept, smaller(plan.vectors, (pass + 1) * plan.kept), low, high});
    }
  }
}
