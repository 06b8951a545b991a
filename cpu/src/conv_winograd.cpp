// Convolution by Winograd's minimal filtering (Winograd, 1980; Lavin and Gray, "Fast algorithms for convolutional neural
// networks", 2016), always on six interpolation points along an axis: F(5,2), F(4,3) and F(2,5). A tile of 6x6 stands
// for 100, 144 or 100 multiplications of a direct evaluation by 36, a row of 6 for 10, 12 or 10, so it passes the
// arithmetic peak that is counted in taps.
//
// Other windows are brought to these along each axis (struct Axis):
//   longer kernels    are cut into sets of taps ("sources"), which are summed like further input channels
//   stride 2          likewise: even and odd taps read the even and the odd places of x
//   dilation d        outputs that are d apart ("phases") make tiles of their own
//   a kernel of one   has tiles of one; taps along the depth are further input channels, too
//   transposed        outputs that share a remainder by the stride are phases as well, each with taps of its own: a dense
//                     convolution of x (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016)
//
// Vectors hold channels. For a block of tiles:
//   input   for each source a band of rows is brought into channel blocks with its padding (channel_blocks.h), each tile
//           becomes B^T d B: V[point][depth][source][channel block][tile][LANES], to stay in the second-level cache
//   product for some vectors of output channels: a matrix product M = V U for each point, with the register tile of
//           microkernel.h (pixels are scalars, weights vectors); each point's weights pass through the first-level cache
//           once a block
//   output  A^T M A, bias, residual, activation, written in channel blocks or, after a transpose, to plain planes
// Plain planes of which columns are skipped, or that many sources read, are brought into channel blocks as a whole
// first, some images at a time; outputs that do not lie side by side likewise.
// Limited by the multiply-adds of the products; the transforms take 10 to 25 % of the time, the more the fewer channels.
//
// Error: fp32 stays within 2e-5 of the largest output by the choice of the interpolation points below (measured
// 1e-6 to 3e-6). An output that is not finite is computed anew by direct taps: infinities and NaN spread over a whole
// tile here, and transforms may overflow where the sum does not.
//
// Takes what Axis takes, with dilation or stride 1 along each axis and no dilation along the depth, transposed planes
// without dilation. Weights are packed as (groups, phases that have their own, blocks of output channels, points, taps
// along the depth, sources, C, vectors).
#include <omp.h>

#include "cache_size.h"
#include "channel_blocks.h"
#include "conv_epilogue.h"
#include "conv_taps.h"
#include "microkernel.h"

namespace {

constexpr int TILE = 6;

// The interpolation points are 0, A, -A, B, -B and infinity. Their product being 1, A^2 = 1/2 and B^2 = 2 keep the
// transforms' coefficients small, and a third of the error of the usual 1 and 2 (measured; Alam et al., "Winograd convolution
// for deep neural networks: efficient point selection", 2022).
constexpr double A = 0.70710678118654752, B = 1.4142135623730950;

// B^T d along one axis: the product of all (x - point) but one, applied to d.
QF_INLINE void transform_input(const vfloat (&d)[TILE], vfloat (&t)[TILE]) {
  constexpr float a = float(A), b = float(B);
  const vfloat even_a = d[4] - 2.0f * d[2], odd_a = d[3] - 2.0f * d[1];
  const vfloat even_b = d[4] - 0.5f * d[2], odd_b = d[3] - 0.5f * d[1];
  t[0] = d[0] - 2.5f * d[2] + d[4];
  t[1] = even_a + a * odd_a;
  t[2] = even_a - a * odd_a;
  t[3] = even_b + b * odd_b;
  t[4] = even_b - b * odd_b;
  t[5] = d[1] - 2.5f * d[3] + d[5];
}

QF_INLINE void transform_input(const vfloat (&d)[1], vfloat (&t)[1]) { t[0] = d[0]; }

// A^T m: the M outputs along one axis, sums of m times powers of the points.
template <int M>
QF_INLINE void transform_output(const vfloat (&m)[TILE], vfloat (&y)[M]) {
  constexpr float a = float(A), b = float(B);
  const vfloat sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  y[0] = m[0] + sum_a + sum_b;
  y[1] = a * difference_a + b * difference_b;
  if constexpr (M > 2) {
    y[2] = 0.5f * sum_a + 2.0f * sum_b;
    y[3] = 0.5f * a * difference_a + 2.0f * b * difference_b;
  }
  if constexpr (M > 4) y[4] = 0.25f * sum_a + 4.0f * sum_b;
  y[M - 1] += m[5];
}
template <int M>
QF_INLINE void transform_output(const vfloat (&m)[1], vfloat (&y)[1]) { y[0] = m[0]; }

// G g: a row of K weights evaluated at the six points, and divided by the product of that point's distances; K = 1: as
// it is.
template <int K>
QF_INLINE void transform_weights(const vfloat (&g)[K], vfloat (&u)[K == 1 ? 1 : TILE]) {
  if constexpr (K == 1) {
    u[0] = g[0];
  } else {
    constexpr float POINT[TILE - 1] = {0, float(A), float(-A), float(B), float(-B)};
    constexpr float SCALE[TILE - 1] = {1, float(-1 / 1.5), float(-1 / 1.5), float(1.0 / 6), float(1.0 / 6)};
    QF_UNROLL for (int i = 0; i < TILE - 1; i++) {
      vfloat value = g[K - 1];
      QF_UNROLL for (int k = K - 2; k >= 0; k--) value = value * POINT[i] + g[k];
      u[i] = value * SCALE[i];
    }
    u[TILE - 1] = g[K - 1];
  }
}

// The products' register tile: R tiles times J vectors of output channels, over blocks of LANES channels.
struct Product {
  typedef void (*TileFunction)(const float* v, int64_t block_step, const float* u, int64_t blocks, float* m, Ahead ahead);
  template <int R, int J>
  __attribute__((noinline)) static void tile(const float* v, int64_t block_step, const float* u, int64_t blocks,
                                             float* m, Ahead ahead) {
    vfloat c[R][J] = {};
    multiply_add_blocks<R, J>(c, v, LANES, block_step, u, blocks, ahead);
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) store(m + (r * J + j) * LANES, c[r][j]);
  }
};

// How one axis of the window becomes minimal filters of K taps that make M outputs.
struct Axis {
  int K, M, points;
  bool transposed;
  int64_t stride, dilation, pad, kernel, outputs;  // as given
  int64_t phases, sources, step;  // outputs phases apart make tiles of their own; step: between places of x in a tile
  int64_t tiles;                  // of a phase

  Axis(const ConvShape& s, int axis, bool transposed)
      : transposed(transposed), stride(s.strides[axis]), dilation(s.kernel[axis] == 1 ? 1 : s.dilations[axis]),
        pad(s.pads[axis]), kernel(s.kernel[axis]), outputs(s.output[axis]) {
    const int64_t taps = divide_up(kernel, stride);  // of each remainder by the stride
    K = taps == 1 ? 1 : taps == 2 || taps == 4 ? 2 : taps == 5 ? 5 : 3;
    points = K == 1 ? 1 : TILE;
    M = points - K + 1;
    phases = transposed ? stride : dilation;
    sources = (transposed ? 1 : smaller(stride, kernel)) * divide_up(taps, K);
    step = transposed ? 1 : stride * dilation;
    tiles = divide_up(divide_up(outputs, phases), M);
  }
  // The kernel's tap that is tap j of a source; not below `kernel` where there is none. Places of x ascend with j, which
  // those of a transposed kernel do against its taps.
  int64_t tap(int64_t phase, int64_t source, int64_t j) const {
    if (transposed) return (phase + pad) % stride + stride * ((sources - source) * K - 1 - j);
    return source % stride + stride * (source / stride * K + j);
  }
  // Where the first tap of a source reads x for the first output of a phase.
  int64_t first(int64_t phase, int64_t source) const {
    if (transposed) return (phase + pad) / stride - ((sources - source) * K - 1);
    return phase + tap(phase, source, 0) * dilation - pad;
  }
  // How many outputs exist from `output` on, counted within the phase, at most `most`.
  int count(int64_t phase, int64_t output, int64_t most) const {
    return clamped(divide_up(outputs - phase, phases) - output, most);
  }
};

struct Plan {
  Axis high, wide;
  int points;
  int64_t in_blocks, out_blocks;  // vectors of channels, of one group
  int64_t sources;                // of both axes
  int64_t run, runs, slices;      // planes of y that a block computes; runs in an image; planes of x that a run reads
  int64_t depth;                  // blocks that are summed for one output
  int columns;                    // vectors of output channels that are computed together
  int64_t planes;                 // of tiles in an image: runs and phases
  int64_t weight_phases;          // that have weights of their own
  int64_t rows, pieces;           // a block has some rows of tiles, or one of several pieces of a row
  int64_t span;                   // rows of tiles that blocks may have together: of all images, or of one plane
  int64_t blocks;                 // for all images
  int64_t most_tiles, room;       // in a block, and that there is room for: of fewer images, a block may have more

  // columns: 0 for those that suit the shape.
  Plan(const ConvShape& s, bool transposed, int given_columns = 0)
      : high(s, 1, transposed), wide(s, 2, transposed), points(high.points * wide.points) {
    in_blocks = divide_up(s.in_channels, LANES);
    out_blocks = divide_up(s.out_channels, LANES);
    sources = high.sources * wide.sources;
    run = s.kernel[0] == 1 ? 1 : smaller(s.output[0], MOST_RUN);
    runs = divide_up(s.output[0], run);
    slices = (run - 1) * s.strides[0] + s.kernel[0];
    depth = s.kernel[0] * sources * in_blocks;
    planes = runs * high.phases * wide.phases;
    weight_phases = transposed ? planes : 1;
    // The tiles whose V takes 192 KiB. Where weights leave the second-level cache, more tiles make up for their way back, as
    // many as V has half of that cache for, and still more where weights come from memory.
    const int64_t bytes = points * slices * sources * in_blocks * LANES * sizeof(float);
    const int64_t weights = points * depth * LANES * out_blocks * LANES * sizeof(float);
    const int64_t half = second_level_cache() / 2, least = weights > (16 << 20) ? 32 : 12;
    int64_t fit = (weights > half ? half : 192 << 10) / bytes;
    fit = fit < least ? least : fit > MOST_TILES ? MOST_TILES : fit;
    const int64_t strip = this->strip();
    span = transposed ? high.tiles : s.batch * planes * high.tiles;
    if (wide.tiles <= fit) {
      rows = divide_up(span, divide_up(span, fit / wide.tiles));
      pieces = 1;
      most_tiles = rows * wide.tiles;
      room = smaller(span, fit / wide.tiles) * wide.tiles;
    } else {
      rows = 1;
      pieces = divide_up(wide.tiles, fit < strip ? strip : fit / strip * strip);
      most_tiles = room = divide_up(divide_up(wide.tiles, strip), pieces) * strip;
    }
    blocks = (transposed ? s.batch * planes : 1) * divide_up(span, rows) * pieces;
    columns = given_columns ? given_columns : best_columns(out_blocks, most_tiles);
  }

  // Tiles whose outputs fill a vector of a plain row.
  int strip() const { return LANES % wide.M == 0 ? LANES / wide.M : 1; }
  int64_t out_groups() const { return divide_up(out_blocks, columns); }
  // One cache line more than a power of two keeps the points of a tile apart in the cache.
  int64_t v_step() const { return slices * sources * in_blocks * room * LANES + 16; }
  int64_t m_step() const { return room * columns * LANES + 16; }
  int64_t band_floats() const {
    const int64_t across = pieces == 1 ? wide.tiles : room, deep = room / across;
    return deep * (high.M + high.K - 1) * (across * wide.M + wide.K - 1) * LANES;
  }
  int64_t own_floats() const { return points * m_step() + band_floats(); }
  int64_t workspace_floats() const { return divide_up(points * v_step() + own_floats(), 16) * 16; }
  int64_t phase_floats() const { return points * depth * LANES * out_blocks * LANES; }
  int64_t packed_floats(int64_t groups) const { return groups * weight_phases * phase_floats(); }

 private:
  static constexpr int64_t MOST_RUN = 4, MOST_TILES = 48;
};

// Rows of tiles of one plane, side by side in a block.
struct TileRows {
  int64_t image, plane, run, high_phase, wide_phase;  // run: the first plane of y
  int64_t first, count;                               // rows of tiles
};

struct Block {
  const Plan& plan;
  const ConvShape& s;
  int64_t first_row, last_row;  // rows of tiles, counted over all planes and images
  int64_t first, count;         // tiles of each row

  Block(const Plan& plan, const ConvShape& s, int64_t number) : plan(plan), s(s) {
    const int64_t strip = plan.strip(), strips = divide_up(plan.wide.tiles, strip), piece = number % plan.pieces;
    const int64_t in_span = divide_up(plan.span, plan.rows), place = number / plan.pieces;
    const int64_t begin = place / in_span * plan.span;
    first_row = begin + place % in_span * plan.rows;
    last_row = smaller(first_row + plan.rows, begin + plan.span);
    first = strips * piece / plan.pieces * strip;
    count = smaller(strips * (piece + 1) / plan.pieces * strip, plan.wide.tiles) - first;
  }
  int64_t tiles() const { return (last_row - first_row) * count; }
  int64_t weight_phase() const { return first_row / plan.high.tiles % plan.weight_phases; }

  // The block's rows, plane by plane.
  template <class Visit>
  QF_INLINE void each_plane(const Visit& visit) const {
    const int64_t tiles = plan.high.tiles;
    for (int64_t row = first_row; row < last_row;) {
      const int64_t plane = row / tiles % plan.planes, phase = plane % (plan.high.phases * plan.wide.phases);
      const TileRows rows{row / tiles / plan.planes, plane, plane / (plan.high.phases * plan.wide.phases) * plan.run,
                          phase / plan.wide.phases, phase % plan.wide.phases, row % tiles,
                          smaller(last_row - row, tiles - row % tiles)};
      visit(rows);
      row += rows.count;
    }
  }
};

// V of one block of channels of one source and one plane of x, counted from the run's first, for all tiles of the block.
template <int KH, int KW>
void input_block(const Block& block, const ConvCall& call, int64_t group, int64_t slice, int64_t source,
                 int64_t channel_block, float* band_room, float* v) {
  constexpr int PH = KH == 1 ? 1 : TILE, PW = KW == 1 ? 1 : TILE, MH = PH - KH + 1, MW = PW - KW + 1;
  const ConvShape& s = block.s;
  const Plan& plan = block.plan;
  const int64_t height = s.input[1], width = s.input[2], plane = volume(s.input), step = plan.v_step();
  float* to = v + ((slice * plan.sources + source) * plan.in_blocks + channel_block) * block.tiles() * LANES;
  block.each_plane([&](const TileRows& tiles) {
    const int64_t d = tiles.run * s.strides[0] - s.pads[0] + slice;
    if (d < 0 || d >= s.input[0]) {
      for (int64_t end = tiles.count * block.count; end > 0; end--, to += LANES)
        for (int point = 0; point < PH * PW; point++) store(to + point * step, (vfloat){});
      return;
    }
    const Axis &high = plan.high, &wide = plan.wide;
    const Band band{high.first(tiles.high_phase, source / wide.sources) + tiles.first * MH * high.step,
                    tiles.count * MH + KH - 1,
                    wide.first(tiles.wide_phase, source % wide.sources) + block.first * MW * wide.step,
                    block.count * MW + KW - 1, high.step, wide.step};
    if (s.x_blocked) {
      const int64_t blocks = divide_up(s.groups * s.in_channels, LANES);
      const int64_t at = tiles.image * blocks + group * plan.in_blocks + channel_block;
      copy_band((const float*)call.x + (at * plane + d * height * width) * LANES, height, width, band, band_room);
    } else {
      const int64_t channel = channel_block * LANES, at = (tiles.image * s.groups + group) * s.in_channels + channel;
      turn_band((const float*)call.x + at * plane, height, width, smaller(LANES, s.in_channels - channel), band, band_room);
    }
    for (int64_t r = 0; r < tiles.count; r++)
      for (int64_t t = 0; t < block.count; t++, to += LANES) {
        const float* from = band_room + (r * MH * band.columns + t * MW) * LANES;
        vfloat half[PH][PW], column[PH], turned[PH], row[PW];
        QF_UNROLL for (int j = 0; j < PW; j++) {
          QF_UNROLL for (int i = 0; i < PH; i++) column[i] = load(from + (i * band.columns + j) * LANES);
          transform_input(column, turned);
          QF_UNROLL for (int i = 0; i < PH; i++) half[i][j] = turned[i];
        }
        QF_UNROLL for (int i = 0; i < PH; i++) {
          transform_input(half[i], row);
          QF_UNROLL for (int j = 0; j < PW; j++) store(to + (i * PW + j) * step, row[j]);
        }
      }
  });
}

// Whether any lane is not a number.
QF_INLINE bool any_nan(vfloat v) {
  const vint wrong = v != v;
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= wrong[i];
  return found != 0;
}

// Outputs of one vector of channels in plane `z` of the run, from M; false where one of them is not finite.
template <int KH, int KW>
bool output_block(const Block& block, const ConvCall& call, const Epilogue& epilogue, int64_t group, int64_t out_block,
                  int64_t z, const float* m, int columns) {
  constexpr int PH = KH == 1 ? 1 : TILE, PW = KW == 1 ? 1 : TILE, MH = PH - KH + 1, MW = PW - KW + 1;
  constexpr int STRIP = LANES % MW == 0 ? LANES / MW : 1, ACROSS = STRIP * MW > LANES ? STRIP * MW : LANES;
  const ConvShape& s = block.s;
  const Plan& plan = block.plan;
  const Axis &high = plan.high, &wide = plan.wide;
  const int64_t height = s.output[1], width = s.output[2], volume_of_y = volume(s.output), step = plan.m_step();
  const int64_t first_channel = out_block * LANES, channels = smaller(LANES, s.out_channels - first_channel);
  const int64_t total_blocks = divide_up(s.groups * s.out_channels, LANES);
  vfloat bias = {}, check = {};
  if (call.bias) bias = load_first((const float*)call.bias + group * s.out_channels + first_channel, int(channels));
  block.each_plane([&](const TileRows& tiles) {
    if (tiles.run + z >= s.output[0]) {
      m += tiles.count * block.count * columns * LANES;
      return;
    }
    const int64_t plane_at = (tiles.run + z) * height * width;
    for (int64_t r = 0; r < tiles.count; r++) {
      const int64_t top = (tiles.first + r) * MH;
      const int deep = high.count(tiles.high_phase, top, MH);
      const int64_t first_row = tiles.high_phase + top * high.phases;
      for (int64_t t = 0; t < block.count; t += STRIP) {
        const int64_t left = (block.first + t) * MW, first_column = tiles.wide_phase + left * wide.phases;
        const int count = int(smaller(STRIP, block.count - t));
        vfloat out[MH][ACROSS];
        for (int tile = 0; tile < count; tile++, m += columns * LANES) {
          vfloat half[MH][PW], column[PH], turned[MH], row[MW];
          QF_UNROLL for (int j = 0; j < PW; j++) {
            QF_UNROLL for (int i = 0; i < PH; i++) column[i] = load(m + (i * PW + j) * step);
            transform_output<MH>(column, turned);
            QF_UNROLL for (int i = 0; i < MH; i++) half[i][j] = turned[i];
          }
          QF_UNROLL for (int i = 0; i < MH; i++) {
            transform_output<MW>(half[i], row);
            QF_UNROLL for (int j = 0; j < MW; j++) {
              check += row[j] * 0.0f;
              out[i][tile * MW + j] = row[j] + bias;
            }
          }
        }
        const int across = wide.count(tiles.wide_phase, left, count * MW);
        if (s.y_blocked) {
          const int64_t at = ((tiles.image * total_blocks + group * plan.out_blocks + out_block) * volume_of_y + plane_at +
                              first_row * width + first_column) * LANES;
          for (int i = 0; i < deep; i++)
            for (int j = 0; j < across; j++) {
              const int64_t place = at + (i * high.phases * width + j * wide.phases) * LANES;
              vfloat value = out[i][j];
              if (call.residual) value += load((const float*)call.residual + place);
              store((float*)call.y + place, epilogue.apply(value));
            }
        } else if constexpr (LANES % MW == 0) {
          const int64_t at = ((tiles.image * s.groups + group) * s.out_channels + first_channel) * volume_of_y + plane_at +
                             first_row * width + first_column;
          const lanemask inside = lanes_between(0, across);
          for (int i = 0; i < deep; i++) {
            transpose(out[i]);
            for (int64_t c = 0; c < channels; c++) {
              const int64_t place = at + c * volume_of_y + i * high.phases * width;
              vfloat value = out[i][c];
              if (call.residual) value += load_masked((const float*)call.residual + place, inside);
              value = epilogue.apply(value);
              if (across == LANES)
                store((float*)call.y + place, value);
              else
                store_masked((float*)call.y + place, value, inside);
            }
          }
        }
      }
    }
  });
  return !any_nan(check);
}

// The same outputs by direct taps: for values that are not finite.
void direct_block(const Block& block, const ConvCall& call, int64_t group, int64_t out_block, int64_t z) {
  const ConvShape& s = block.s;
  const Axis &high = block.plan.high, &wide = block.plan.wide;
  block.each_plane([&](const TileRows& tiles) {
    if (tiles.run + z >= s.output[0]) return;
    const int64_t top = tiles.first * high.M, left = block.first * wide.M;
    for (int i = 0; i < high.count(tiles.high_phase, top, tiles.count * high.M); i++)
      for (int j = 0; j < wide.count(tiles.wide_phase, left, block.count * wide.M); j++)
        for (int64_t o = out_block * LANES; o < smaller(s.out_channels, (out_block + 1) * LANES); o++)
          (high.transposed ? write_transposed_by_taps : write_by_taps)(
              s, call, tiles.image, group, o, tiles.run + z, tiles.high_phase + (top + i) * high.phases,
              tiles.wide_phase + (left + j) * wide.phases);
  });
}

// A block's work, shared by `members` threads that wait for each other between its two halves.
template <int KH, int KW>
void run_block(const Block& block, const ConvCall& call, const Epilogue& epilogue, int64_t group, int member, int members,
               float* v, float* own) {
  const Plan& plan = block.plan;
  const ConvShape& s = block.s;
  float *m = own, *band = own + plan.points * plan.m_step();
  const int64_t inputs = plan.slices * plan.sources * plan.in_blocks;
  for (int64_t i = member; i < inputs; i += members)
    input_block<KH, KW>(block, call, group, i / plan.in_blocks / plan.sources, i / plan.in_blocks % plan.sources,
                        i % plan.in_blocks, band, v);
  if (members > 1) {
#pragma omp barrier
  }
  const int64_t tiles = block.tiles(), weights_block = plan.points * plan.depth * LANES * LANES;
  const float* weights = (const float*)call.weights +
                         (group * plan.weight_phases + block.weight_phase()) * plan.phase_floats();
  for (int64_t g = plan.out_groups() * member / members; g < plan.out_groups() * (member + 1) / members; g++) {
    const int64_t first = g * plan.columns;
    const int columns = int(smaller(plan.columns, plan.out_blocks - first));
    const int64_t row_tiles = divide_up(tiles, most_rows(columns));
    const int64_t point_floats = plan.depth * LANES * columns * LANES;
    for (int64_t z = 0; z < plan.run; z++) {
      const float* u = weights + first * weights_block;
      const float* from = v + z * s.strides[0] * plan.sources * plan.in_blocks * tiles * LANES;
      for (int point = 0; point < plan.points; point++, u += point_floats)
        for (int64_t i = 0; i < row_tiles; i++) {
          const int64_t begin = tiles * i / row_tiles, end = tiles * (i + 1) / row_tiles;
          TileTable<Product>::of[end - begin - 1][columns - 1](
              from + point * plan.v_step() + begin * LANES, tiles * LANES, u, plan.depth,
              m + point * plan.m_step() + begin * columns * LANES,
              share_of(u + point_floats, point_floats / 16, i, row_tiles, plan.depth));
        }
      for (int j = 0; j < columns; j++)
        if (!output_block<KH, KW>(block, call, epilogue, group, first + j, z, m + j * LANES, columns))
          direct_block(block, call, group, first + j, z);
    }
  }
  if (members > 1) {
#pragma omp barrier
  }
}

template <int KH, int KW>
void run_blocks(const ConvShape& s, const ConvCall& call, const Plan& plan, char* workspace, int64_t thread_bytes) {
  const Epilogue epilogue(s);
  const int64_t blocks = plan.blocks * s.groups;
  const int threads = call.threads;
  // Threads take one block after the other where there are enough; few blocks are shared by all.
  const bool together = threads > 1 && blocks < 2 * threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int member = threads > 1 ? omp_get_thread_num() : 0, members = threads > 1 ? omp_get_num_threads() : 1;
    float* room = (float*)workspace;
    float* mine = (float*)(workspace + member * thread_bytes);
    float* own = mine + plan.points * plan.v_step();
    if (together) {
      for (int64_t b = 0; b < blocks; b++)
        run_block<KH, KW>(Block(plan, s, b / s.groups), call, epilogue, b % s.groups, member, members, room, own);
    } else {
#pragma omp for schedule(dynamic) nowait
      for (int64_t b = 0; b < blocks; b++)
        run_block<KH, KW>(Block(plan, s, b / s.groups), call, epilogue, b % s.groups, 0, 1, mine, own);
    }
  }
}

typedef void (*RunFunction)(const ConvShape&, const ConvCall&, const Plan&, char*, int64_t);

// The instance for an axis' taps that are known at run time.
template <int KH>
RunFunction run_for(int wide) {
  switch (wide) {
    case 1: return run_blocks<KH, 1>;
    case 2: return run_blocks<KH, 2>;
    case 3: return run_blocks<KH, 3>;
    default: return run_blocks<KH, 5>;
  }
}
RunFunction run_for(int high, int wide) {
  switch (high) {
    case 1: return run_for<1>(wide);
    case 2: return run_for<2>(wide);
    case 3: return run_for<3>(wide);
    default: return run_for<5>(wide);
  }
}

// Images that are brought into channel blocks as a whole before tiles are read, or from there when all are written.
struct Rooms {
  bool x, y;
  int64_t x_floats, y_floats;  // of an image
  int64_t images;              // at a time

  Rooms(const ConvShape& s, const Plan& plan) {
    const bool skips = plan.wide.step > 1 || plan.sources > 1 || plan.weight_phases > 1 || s.kernel[0] > 1 || s.input[0] > 1;
    x = !s.x_blocked && skips;
    y = !s.y_blocked && (plan.wide.phases > 1 || LANES % plan.wide.M != 0);
    x_floats = x ? divide_up(s.groups * s.in_channels, LANES) * LANES * volume(s.input) : 0;
    y_floats = y ? divide_up(s.groups * s.out_channels, LANES) * LANES * volume(s.output) : 0;
    const int64_t fit = x || y ? ROOM_FLOATS / (x_floats + y_floats) : s.batch;
    images = fit < 1 ? 1 : smaller(fit, s.batch);
  }
  int64_t floats() const { return divide_up(images * (x_floats + y_floats), 16) * 16; }

 private:
  static constexpr int64_t ROOM_FLOATS = 1 << 20;
};

// Some of a shape's images, laid out as in its rooms.
ConvShape part_of(const ConvShape& s, const Rooms& rooms, int64_t images) {
  ConvShape part = s;
  part.batch = images;
  part.x_blocked = s.x_blocked || rooms.x;
  part.y_blocked = s.y_blocked || rooms.y;
  if (rooms.y) part.activation = QF_IDENTITY;
  return part;
}

// A transposed shape, whose `output` is x's extent, seen from x.
ConvShape seen_from_x(const ConvShape& s, bool transposed) {
  ConvShape seen = s;
  if (transposed)
    for (int axis = 0; axis < 3; axis++) seen.input[axis] = s.output[axis], seen.output[axis] = s.input[axis];
  return seen;
}

// Images are planned for as many as there is room for.
Plan plan_of(const ConvShape& s, bool transposed) {
  const Rooms rooms(s, Plan(s, transposed));
  return Plan(part_of(s, rooms, rooms.images), transposed);
}

void needs_of(const ConvShape& given, bool transposed, ConvNeeds* needs) {
  const ConvShape s = seen_from_x(given, transposed);
  const Plan plan = plan_of(s, transposed);
  *needs = {sizeof(float) * plan.packed_floats(s.groups),
            sizeof(float) * (Rooms(s, plan).floats() + plan.workspace_floats())};
}

// Which taps of the kernel a source's filter has, as places among the weights of a pair of channels; -1 where there is none.
struct FilterTaps {
  int64_t at[5][5];
  FilterTaps(const ConvShape& s, const Plan& plan, int64_t phase, int64_t kd, int64_t source) {
    for (int a = 0; a < plan.high.K; a++)
      for (int b = 0; b < plan.wide.K; b++) {
        const int64_t kh = plan.high.tap(phase / plan.wide.phases, source / plan.wide.sources, a);
        const int64_t kw = plan.wide.tap(phase % plan.wide.phases, source % plan.wide.sources, b);
        at[a][b] = kh < s.kernel[1] && kw < s.kernel[2] ? (kd * s.kernel[1] + kh) * s.kernel[2] + kw : -1;
      }
  }
};

// The transformed filters between one channel of x and LANES of y, `count` of which are there: u[point * step ...]. weights: of
// the first one; o_step: from one channel of y to the next.
template <int KH, int KW>
void transform_filters(const FilterTaps& taps, const float* weights, int64_t o_step, int count, float* u, int64_t step) {
  constexpr int PH = KH == 1 ? 1 : TILE, PW = KW == 1 ? 1 : TILE;
  float given[KH][KW][LANES] = {};
  for (int i = 0; i < count; i++, weights += o_step)
    QF_UNROLL for (int a = 0; a < KH; a++)
      QF_UNROLL for (int b = 0; b < KW; b++)
        if (taps.at[a][b] >= 0) given[a][b][i] = weights[taps.at[a][b]];
  vfloat half[PH][KW];
  QF_UNROLL for (int b = 0; b < KW; b++) {
    vfloat column[KH], turned[PH];
    QF_UNROLL for (int a = 0; a < KH; a++)
      column[a] = load(given[a][b]);
    transform_weights<KH>(column, turned);
    QF_UNROLL for (int i = 0; i < PH; i++) half[i][b] = turned[i];
  }
  for (int i = 0; i < PH; i++) {
    vfloat across[PW];
    transform_weights<KW>(half[i], across);
    QF_UNROLL for (int j = 0; j < PW; j++, u += step) store(u, across[j]);
  }
}

typedef void (*FilterFunction)(const FilterTaps&, const float*, int64_t, int, float*, int64_t);
template <int KH>
FilterFunction filters_of(int wide) {
  return wide == 1 ? transform_filters<KH, 1> : wide == 2 ? transform_filters<KH, 2>
         : wide == 3 ? transform_filters<KH, 3> : transform_filters<KH, 5>;
}
FilterFunction filters_for(int high, int wide) {
  return high == 1 ? filters_of<1>(wide) : high == 2 ? filters_of<2>(wide) : high == 3 ? filters_of<3>(wide) : filters_of<5>(wide);
}

// Channels of x whose filters are transformed together: those of a point then go to memory as a piece, since points lie a
// power of two apart and would push each other out of the cache.
constexpr int64_t TOGETHER = 8;

void pack_all(const ConvShape& given, bool transposed, const float* weights, float* to) {
  const ConvShape s = seen_from_x(given, transposed);
  const Plan plan = plan_of(s, transposed);
  const int64_t taps = volume(s.kernel), channels = plan.in_blocks * LANES, rows = plan.depth * LANES;
  const int64_t o_step = transposed ? taps : s.in_channels * taps, c_step = transposed ? s.out_channels * taps : taps;
  const FilterFunction transform = filters_for(plan.high.K, plan.wide.K);
  float* room = new float[TILE * TILE * TOGETHER * plan.columns * LANES];
  for (int64_t group_phase = 0; group_phase < s.groups * plan.weight_phases; group_phase++) {
    const int64_t group = group_phase / plan.weight_phases, phase = group_phase % plan.weight_phases;
    const float* of_group = weights + group * s.in_channels * s.out_channels * taps;
    for (int64_t g = 0; g < plan.out_groups(); g++) {
      const int64_t first = g * plan.columns * LANES;
      const int64_t lanes = smaller(plan.columns, plan.out_blocks - g * plan.columns) * LANES, step = TOGETHER * lanes;
      for (int64_t set = 0; set < rows / channels; set++) {
        const FilterTaps filter(s, plan, phase, set / plan.sources, set % plan.sources);
        for (int64_t c = 0; c < channels; c += TOGETHER) {
          const int64_t together = smaller(TOGETHER, channels - c);
          for (int64_t i = 0; i < together; i++)
            for (int64_t lane = 0; lane < lanes; lane += LANES) {
              const int64_t o = first + lane;
              const int count = c + i < s.in_channels ? clamped(s.out_channels - o, LANES) : 0;
              transform(filter, of_group + o * o_step + (c + i) * c_step, o_step, count,
                                room + i * lanes + lane, step);
            }
          for (int point = 0; point < plan.points; point++)
            memcpy(to + (point * rows + set * channels + c) * lanes, room + point * step, sizeof(float) * together * lanes);
        }
      }
      to += plan.points * rows * lanes;
    }
  }
  delete[] room;
}

void run_all(const ConvShape& given, bool transposed, const ConvCall* call) {
  const ConvShape s = seen_from_x(given, transposed);
  if (s.batch == 0) return;  // nothing to plan for
  const Plan plan = plan_of(s, transposed);
  const Rooms rooms(s, plan);
  const RunFunction run = run_for(plan.high.K, plan.wide.K);
  const int64_t thread_bytes = sizeof(float) * (rooms.floats() + plan.workspace_floats());
  float *x_room = (float*)call->workspace, *y_room = x_room + rooms.images * rooms.x_floats;
  char* rest = call->workspace + sizeof(float) * rooms.floats();
  if (!rooms.x && !rooms.y) return run(s, *call, plan, rest, thread_bytes);
  const Epilogue epilogue(s);
  const int64_t in_channels = s.groups * s.in_channels, out_channels = s.groups * s.out_channels;
  const int64_t in_blocks = divide_up(in_channels, LANES), out_blocks = divide_up(out_channels, LANES);
  const int64_t in_plane = volume(s.input), out_plane = volume(s.output);
  const int64_t x_image = (s.x_blocked ? in_blocks * LANES : in_channels) * in_plane;
  const int64_t y_image = (s.y_blocked ? out_blocks * LANES : out_channels) * out_plane;
  for (int64_t first = 0; first < s.batch; first += rooms.images) {
    const ConvShape part = part_of(s, rooms, smaller(rooms.images, s.batch - first));
    ConvCall inner = *call;
    inner.x = (const float*)call->x + first * x_image;
    inner.y = (float*)call->y + first * y_image;
    if (call->residual) inner.residual = (const float*)call->residual + first * y_image;
    if (rooms.x) {
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
      for (int64_t i = 0; i < part.batch * in_blocks; i++) {
        const int64_t channel = i % in_blocks * LANES, rows = s.input[0] * s.input[1];
        turn_band((const float*)inner.x + (i / in_blocks * in_channels + channel) * in_plane, rows, s.input[2],
                  smaller(LANES, in_channels - channel), {0, rows, 0, s.input[2]}, x_room + i * in_plane * LANES);
      }
      inner.x = x_room;
    }
    if (rooms.y) {
      inner.y = y_room;
      inner.residual = nullptr;
    }
    run(part, inner, part.batch == rooms.images ? plan : Plan(part, transposed, plan.columns), rest, thread_bytes);
    if (!rooms.y) continue;
    float* y = (float*)call->y + first * y_image;
    const float* residual = call->residual ? (const float*)call->residual + first * y_image : nullptr;
#pragma omp parallel for schedule(static) num_threads(call->threads) if (call->threads > 1)
    for (int64_t i = 0; i < part.batch * out_blocks; i++) {
      const int64_t channel = i % out_blocks * LANES, at = (i / out_blocks * out_channels + channel) * out_plane;
      write_planes(epilogue, y_room + i * out_plane * LANES, smaller(LANES, out_channels - channel), out_plane, out_plane,
                   residual ? residual + at : nullptr, y + at);
    }
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_winograd_f32_needs)(const ConvShape* s, ConvNeeds* needs) { needs_of(*s, false, needs); }
extern "C" void QF_EXPORT(conv_winograd_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  pack_all(*s, false, weights, packed);
}
extern "C" void QF_EXPORT(conv_winograd_f32)(const ConvShape* s, const ConvCall* call) { run_all(*s, false, call); }

extern "C" void QF_EXPORT(conv_transpose_winograd_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  needs_of(*s, true, needs);
}
extern "C" void QF_EXPORT(conv_transpose_winograd_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  pack_all(*s, true, weights, packed);
}
extern "C" void QF_EXPORT(conv_transpose_winograd_f32)(const ConvShape* s, const ConvCall* call) { run_all(*s, true, call); }
