// Convolution by Winograd's minimal filtering: F(4x4, 3x3) and F(2x2, 5x5), both on tiles of 6x6 (Winograd, 1980; Lavin
// and Gray, "Fast algorithms for convolutional neural networks", 2016). 36 multiplications stand for 144 or 100, so it
// passes the arithmetic peak that is counted in taps.
//
// Vectors hold channels. For a block of tiles:
//   input   a band of rows is brought into channel blocks with its padding (channel_blocks.h), each 6x6 tile becomes
//           B^T d B: V[point][channel block][tile][LANES], sized to stay in the second-level cache
//   product for some vectors of output channels: 36 matrix products M = V U, with the register tile of microkernel.h
//           (pixels are scalars, weights vectors); each point's weights pass through the first-level cache once a block
//   output  A^T M A, bias, residual, activation, written in channel blocks or, after a transpose, to plain planes
// Limited by the multiply-adds of the products; the transforms take 10 to 25 % of the time, the more the fewer channels.
//
// Error: fp32 stays within 2e-5 of the largest output by the choice of the interpolation points below (measured
// 1e-6 to 3e-6). An output that is not finite is computed anew by direct taps: infinities and NaN spread over a whole
// tile here, and transforms may overflow where the sum does not.
//
// Takes square kernels of 3 and 5, stride and dilation 1, one plane deep. Weights are packed as
// (groups, blocks of output channels, 36, C, vectors).
#include <omp.h>

#include "channel_blocks.h"
#include "conv_epilogue.h"
#include "conv_taps.h"
#include "microkernel.h"

namespace {

constexpr int TILE = 6, POINTS = TILE * TILE;

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

// A^T m: the M outputs along one axis, sums of m times powers of the points.
template <int M>
QF_INLINE void transform_output(const vfloat (&m)[TILE], vfloat (&y)[M]) {
  constexpr float a = float(A), b = float(B);
  const vfloat sum_a = m[1] + m[2], difference_a = m[1] - m[2], sum_b = m[3] + m[4], difference_b = m[3] - m[4];
  y[0] = m[0] + sum_a + sum_b;
  y[1] = a * difference_a + b * difference_b;
  if constexpr (M == 2) {
    y[1] += m[5];
  } else {
    y[2] = 0.5f * sum_a + 2.0f * sum_b;
    y[3] = 0.5f * a * difference_a + 2.0f * b * difference_b + m[5];
  }
}

// G g: a row of K weights evaluated at the six points, and divided by the product of that point's distances.
void transform_weights(const double* g, int64_t step, int K, double (&u)[TILE]) {
  static const double POINT[TILE - 1] = {0, A, -A, B, -B}, DISTANCES[TILE - 1] = {1, -1.5, -1.5, 6, 6};
  for (int i = 0; i < TILE - 1; i++) {
    double value = 0;
    for (int k = K - 1; k >= 0; k--) value = value * POINT[i] + g[k * step];
    u[i] = value / DISTANCES[i];
  }
  u[TILE - 1] = g[(K - 1) * step];
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

struct Plan {
  int K, M;
  int64_t in_blocks, out_blocks;      // vectors of channels, of one group
  int columns;                        // vectors of output channels that are computed together
  int64_t tile_rows, tile_columns;    // tiles in an image
  int64_t rows, pieces;               // a block has some rows of tiles, or one of several pieces of a row
  int64_t blocks;                     // for all images
  int64_t most_tiles;                 // in a block

  explicit Plan(const ConvShape& s) : K(int(s.kernel[2])), M(TILE - K + 1) {
    in_blocks = divide_up(s.in_channels, LANES);
    out_blocks = divide_up(s.out_channels, LANES);
    tile_rows = divide_up(s.output[1], M);
    tile_columns = divide_up(s.output[2], M);
    // The tiles whose V takes 192 KiB, but at least as many as make up for the weights' way from the third-level cache
    // or from memory.
    const int64_t bytes = POINTS * in_blocks * LANES * sizeof(float);
    const int64_t least = bytes * out_blocks * LANES > (16 << 20) ? 32 : 12;
    int64_t fit = (192 << 10) / bytes;
    fit = fit < least ? least : fit > 48 ? 48 : fit;
    const int64_t all = s.batch * tile_rows, strip = LANES / M;
    if (tile_columns <= fit) {
      rows = divide_up(all, divide_up(all, fit / tile_columns));
      pieces = 1;
      most_tiles = rows * tile_columns;
    } else {
      rows = 1;
      pieces = divide_up(tile_columns, fit < strip ? strip : fit / strip * strip);
      most_tiles = divide_up(divide_up(tile_columns, strip), pieces) * strip;
    }
    blocks = divide_up(all, rows) * pieces;
    columns = best_columns(out_blocks, most_tiles);
  }

  int64_t out_groups() const { return divide_up(out_blocks, columns); }
  // One cache line more than a power of two keeps the points of a tile apart in the cache.
  int64_t v_step() const { return in_blocks * most_tiles * LANES + 16; }
  int64_t m_step() const { return most_tiles * columns * LANES + 16; }
  int64_t band_floats() const {
    const int64_t deep = rows * M + rows * (K - 1), wide = (pieces == 1 ? tile_columns : most_tiles) * M + K - 1;
    return deep * wide * LANES;
  }
  int64_t own_floats() const { return POINTS * m_step() + band_floats(); }
  int64_t workspace_floats() const { return POINTS * v_step() + own_floats(); }
  int64_t packed_floats(int64_t groups) const { return groups * POINTS * in_blocks * LANES * out_blocks * LANES; }
};

// Tiles of one row of tiles, side by side.
struct TileRow {
  int64_t image, row, first, count;  // in tiles
};

struct Block {
  const Plan& plan;
  const ConvShape& s;
  int64_t first_row, last_row;  // rows of tiles, counted over all images
  int64_t first, count;         // tiles of each row

  Block(const Plan& plan, const ConvShape& s, int64_t number) : plan(plan), s(s) {
    const int64_t strip = LANES / plan.M, strips = divide_up(plan.tile_columns, strip), piece = number % plan.pieces;
    first_row = number / plan.pieces * plan.rows;
    last_row = smaller(first_row + plan.rows, s.batch * plan.tile_rows);
    first = strips * piece / plan.pieces * strip;
    count = smaller(strips * (piece + 1) / plan.pieces * strip, plan.tile_columns) - first;
  }
  int64_t tiles() const { return (last_row - first_row) * count; }
};

// V of one block of channels, for all tiles of the block.
template <int K>
void input_block(const Block& block, const ConvCall& call, int64_t group, int64_t channel_block, float* band_room,
                 float* v) {
  constexpr int M = TILE - K + 1;
  const ConvShape& s = block.s;
  const Plan& plan = block.plan;
  const int64_t plane = s.input[1] * s.input[2], step = plan.v_step();
  float* to = v + channel_block * block.tiles() * LANES;
  for (int64_t row = block.first_row; row < block.last_row;) {
    // rows of tiles of the same image make one band
    const int64_t image = row / plan.tile_rows, down = row % plan.tile_rows;
    const int64_t rows = smaller(block.last_row - row, plan.tile_rows - down);
    const Band band{down * M - s.pads[1], rows * M + K - 1, block.first * M - s.pads[2], block.count * M + K - 1};
    if (s.x_blocked) {
      const int64_t blocks = divide_up(s.groups * s.in_channels, LANES);
      const int64_t at = image * blocks + group * plan.in_blocks + channel_block;
      copy_band((const float*)call.x + at * plane * LANES, s.input[1], s.input[2], band, band_room);
    } else {
      const int64_t channel = channel_block * LANES, at = (image * s.groups + group) * s.in_channels + channel;
      turn_band((const float*)call.x + at * plane, s.input[1], s.input[2], smaller(LANES, s.in_channels - channel),
                band, band_room);
    }
    for (int64_t r = 0; r < rows; r++)
      for (int64_t t = 0; t < block.count; t++, to += LANES) {
        const float* from = band_room + (r * M * band.columns + t * M) * LANES;
        vfloat half[TILE][TILE], d[TILE], out[TILE];
        QF_UNROLL for (int j = 0; j < TILE; j++) {
          QF_UNROLL for (int i = 0; i < TILE; i++) d[i] = load(from + (i * band.columns + j) * LANES);
          transform_input(d, out);
          QF_UNROLL for (int i = 0; i < TILE; i++) half[i][j] = out[i];
        }
        QF_UNROLL for (int i = 0; i < TILE; i++) {
          transform_input(half[i], out);
          QF_UNROLL for (int j = 0; j < TILE; j++) store(to + (i * TILE + j) * step, out[j]);
        }
      }
    row += rows;
  }
}

// Whether any lane is not a number.
QF_INLINE bool any_nan(vfloat v) {
  const vint wrong = v != v;
  int32_t found = 0;
  for (int i = 0; i < LANES; i++) found |= wrong[i];
  return found != 0;
}

// Outputs of one vector of channels, from M; false where one of them is not finite.
template <int K>
bool output_block(const Block& block, const ConvCall& call, const Epilogue& epilogue, int64_t group, int64_t out_block,
                  const float* m, int columns) {
  constexpr int M = TILE - K + 1, STRIP = LANES / M;
  const ConvShape& s = block.s;
  const Plan& plan = block.plan;
  const int64_t height = s.output[1], width = s.output[2], plane = height * width, step = plan.m_step();
  const int64_t first_channel = out_block * LANES, channels = smaller(LANES, s.out_channels - first_channel);
  const int64_t total_blocks = divide_up(s.groups * s.out_channels, LANES);
  vfloat bias = {}, check = {};
  if (call.bias) bias = load_first((const float*)call.bias + group * s.out_channels + first_channel, int(channels));
  for (int64_t row = block.first_row; row < block.last_row; row++) {
    const int64_t image = row / plan.tile_rows, top = row % plan.tile_rows * M;
    const int64_t deep = smaller(M, height - top);
    for (int64_t t = 0; t < block.count; t += STRIP) {
      const int64_t left = (block.first + t) * M;
      const int count = int(smaller(STRIP, block.count - t));
      vfloat out[M][LANES];
      for (int tile = 0; tile < count; tile++, m += columns * LANES) {
        vfloat half[M][TILE], d[TILE], part[M];
        QF_UNROLL for (int j = 0; j < TILE; j++) {
          QF_UNROLL for (int i = 0; i < TILE; i++) d[i] = load(m + (i * TILE + j) * step);
          transform_output<M>(d, part);
          QF_UNROLL for (int i = 0; i < M; i++) half[i][j] = part[i];
        }
        QF_UNROLL for (int i = 0; i < M; i++) {
          transform_output<M>(half[i], part);
          QF_UNROLL for (int j = 0; j < M; j++) {
            check += part[j] * 0.0f;
            out[i][tile * M + j] = part[j] + bias;
          }
        }
      }
      const int wide = int(smaller(count * M, width - left));
      if (s.y_blocked) {
        const int64_t at = ((image * total_blocks + group * plan.out_blocks + out_block) * plane + top * width + left) * LANES;
        for (int64_t i = 0; i < deep; i++)
          for (int j = 0; j < wide; j++) {
            const int64_t place = at + (i * width + j) * LANES;
            vfloat value = out[i][j];
            if (call.residual) value += load((const float*)call.residual + place);
            store((float*)call.y + place, epilogue.apply(value));
          }
      } else {
        const int64_t at = ((image * s.groups + group) * s.out_channels + first_channel) * plane + top * width + left;
        const lanemask inside = lanes_between(0, wide);
        for (int64_t i = 0; i < deep; i++) {
          transpose(out[i]);
          for (int64_t c = 0; c < channels; c++) {
            const int64_t place = at + c * plane + i * width;
            vfloat value = out[i][c];
            if (call.residual) value += load_masked((const float*)call.residual + place, inside);
            value = epilogue.apply(value);
            if (wide == LANES)
              store((float*)call.y + place, value);
            else
              store_masked((float*)call.y + place, value, inside);
          }
        }
      }
    }
  }
  return !any_nan(check);
}

// The same outputs by direct taps: for values that are not finite.
void direct_block(const Block& block, const ConvCall& call, int64_t group, int64_t out_block) {
  const ConvShape& s = block.s;
  const Plan& plan = block.plan;
  for (int64_t row = block.first_row; row < block.last_row; row++) {
    const int64_t image = row / plan.tile_rows, top = row % plan.tile_rows * plan.M;
    for (int64_t h = top; h < smaller(s.output[1], top + plan.M); h++)
      for (int64_t w = block.first * plan.M; w < smaller(s.output[2], (block.first + block.count) * plan.M); w++)
        for (int64_t o = out_block * LANES; o < smaller(s.out_channels, (out_block + 1) * LANES); o++)
          write_by_taps(s, call, image, group, o, 0, h, w);
  }
}

// A block's work, shared by `members` threads that wait for each other between its two halves.
template <int K>
void run_block(const Block& block, const ConvCall& call, const Epilogue& epilogue, int64_t group, int member, int members,
               float* v, float* own) {
  const Plan& plan = block.plan;
  float *m = own, *band = own + POINTS * plan.m_step();
  for (int64_t c = member; c < plan.in_blocks; c += members) input_block<K>(block, call, group, c, band, v);
  if (members > 1) {
#pragma omp barrier
  }
  const int64_t tiles = block.tiles(), weights_block = POINTS * plan.in_blocks * LANES * LANES;
  const float* weights = (const float*)call.weights + group * plan.out_blocks * weights_block;
  for (int64_t g = plan.out_groups() * member / members; g < plan.out_groups() * (member + 1) / members; g++) {
    const int64_t first = g * plan.columns;
    const int columns = int(smaller(plan.columns, plan.out_blocks - first));
    const float* u = weights + first * weights_block;
    const int64_t row_tiles = divide_up(tiles, most_rows(columns));
    const int64_t point_floats = plan.in_blocks * LANES * columns * LANES;
    for (int point = 0; point < POINTS; point++, u += point_floats)
      for (int64_t i = 0; i < row_tiles; i++) {
        const int64_t begin = tiles * i / row_tiles, end = tiles * (i + 1) / row_tiles;
        TileTable<Product>::of[end - begin - 1][columns - 1](
            v + point * plan.v_step() + begin * LANES, tiles * LANES, u, plan.in_blocks,
            m + point * plan.m_step() + begin * columns * LANES,
            share_of(u + point_floats, point_floats / 16, i, row_tiles, plan.in_blocks));
      }
    for (int j = 0; j < columns; j++)
      if (!output_block<K>(block, call, epilogue, group, first + j, m + j * LANES, columns))
        direct_block(block, call, group, first + j);
  }
  if (members > 1) {
#pragma omp barrier
  }
}

template <int K>
void run_all(const ConvShape& s, const ConvCall& call) {
  const Plan plan(s);
  const Epilogue epilogue(s);
  const int64_t blocks = plan.blocks * s.groups;
  const int threads = call.threads;
  // Threads take blocks of their own where there are enough; few blocks are shared by all.
  const bool together = threads > 1 && blocks < 4 * threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int member = threads > 1 ? omp_get_thread_num() : 0, members = threads > 1 ? omp_get_num_threads() : 1;
    float* room = (float*)call.workspace;
    float* mine = (float*)(call.workspace + member * sizeof(float) * plan.workspace_floats());
    float* own = mine + POINTS * plan.v_step();
    if (together)
      for (int64_t b = 0; b < blocks; b++)
        run_block<K>(Block(plan, s, b / s.groups), call, epilogue, b % s.groups, member, members, room, own);
    else
      for (int64_t b = blocks * member / members; b < blocks * (member + 1) / members; b++)
        run_block<K>(Block(plan, s, b / s.groups), call, epilogue, b % s.groups, 0, 1, mine, own);
  }
}

}  // namespace

extern "C" void QF_EXPORT(conv_winograd_f32_needs)(const ConvShape* s, ConvNeeds* needs) {
  const Plan plan(*s);
  *needs = {sizeof(float) * plan.packed_floats(s->groups),
            size_t(divide_up(sizeof(float) * plan.workspace_floats(), 64) * 64)};
}

extern "C" void QF_EXPORT(conv_winograd_f32_pack)(const ConvShape* s, const float* weights, float* packed) {
  const Plan plan(*s);
  const int K = plan.K;
  float* to = packed;
  for (int64_t group = 0; group < s->groups; group++)
    for (int64_t g = 0; g < plan.out_groups(); g++) {
      const int64_t first = g * plan.columns * LANES;
      const int64_t lanes = smaller(plan.columns, plan.out_blocks - g * plan.columns) * LANES;
      for (int64_t c = 0; c < plan.in_blocks * LANES; c++)
        for (int64_t lane = 0; lane < lanes; lane++) {
          const int64_t o = first + lane;
          double u[TILE][TILE] = {};
          if (o < s->out_channels && c < s->in_channels) {
            double taps[5 * 5], half[TILE][5];
            const float* from = weights + ((group * s->out_channels + o) * s->in_channels + c) * K * K;
            for (int k = 0; k < K * K; k++) taps[k] = from[k];
            for (int b = 0; b < K; b++) {
              double column[TILE];
              transform_weights(taps + b, K, K, column);
              for (int i = 0; i < TILE; i++) half[i][b] = column[i];
            }
            for (int i = 0; i < TILE; i++) transform_weights(half[i], 1, K, u[i]);
          }
          for (int point = 0; point < POINTS; point++)
            to[(point * plan.in_blocks * LANES + c) * lanes + lane] = float(u[point / TILE][point % TILE]);
        }
      to += POINTS * plan.in_blocks * LANES * lanes;
    }
}

extern "C" void QF_EXPORT(conv_winograd_f32)(const ConvShape* s, const ConvCall* call) {
  if (s->batch == 0) return;  // nothing to plan for
  if (s->kernel[2] == 5)
    run_all<5>(*s, *call);
  else
    run_all<3>(*s, *call);
}
