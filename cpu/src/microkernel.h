// The register tile that every matrix-like kernel shares: R scalars times J vectors, summed over depth in R * J
// registers (the outer-product kernel of Goto and van de Geijn, "Anatomy of high-performance matrix multiplication",
// 2008). Either side may be the weights: with pixels in the vectors a row is an output channel, with channels in the
// vectors a row is a pixel.
#pragma once

#include "simd.h"

namespace {

// The most rows of a tile with J vectors a row, such that the tile, one vector of each column and a broadcast scalar
// stay in registers.
constexpr int most_rows(int columns) { return REGISTERS == 32 ? (columns == 1 ? 14 : 28 / columns - (columns == 4)) : 12 / columns; }
constexpr int MOST_COLUMNS = REGISTERS == 32 ? 4 : 3;
constexpr int MOST_ROWS = REGISTERS == 32 ? 14 : 12;

// c[r][j] += sum over k of scalars[k * scalar_step + r] * vectors[k * vector_step + j * LANES ...]
template <int R, int J>
QF_INLINE void multiply_add(vfloat (&c)[R][J], const float* scalars, int64_t scalar_step, const float* vectors,
                            int64_t vector_step, int64_t depth) {
  for (int64_t k = 0; k < depth; k++, scalars += scalar_step, vectors += vector_step) {
    vfloat v[J];
    QF_UNROLL for (int j = 0; j < J; j++) v[j] = load(vectors + j * LANES);
    QF_UNROLL for (int r = 0; r < R; r++)
      QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += scalars[r] * v[j];
  }
}

// Memory that is fetched into the second-level cache while a tile is computed: so many cache lines for each block of
// its depth. Weights that stream from memory arrive in time this way; the hardware's prefetchers stop at each tile.
struct Ahead {
  const float* from;
  int64_t lines;
};

// A share of `lines` cache lines from `from` on for pass `pass` of `passes`, over `blocks` of depth.
QF_INLINE Ahead share_of(const float* from, int64_t lines, int64_t pass, int64_t passes, int64_t blocks) {
  const int64_t each = divide_up(lines, passes * blocks), done = each * blocks * pass;
  return {from + done * (64 / sizeof(float)), done < lines ? each : 0};
}

// The same where scalars come in blocks of LANES: scalar k of row r is at
// scalars[k / LANES * block_step + r * row_step + k % LANES], and vectors follow each other.
template <int R, int J>
QF_INLINE void multiply_add_blocks(vfloat (&c)[R][J], const float* scalars, int64_t row_step, int64_t block_step,
                                   const float* vectors, int64_t blocks, Ahead ahead) {
  for (int64_t block = 0; block < blocks; block++, scalars += block_step) {
    for (int64_t i = 0; i < ahead.lines; i++, ahead.from += 64 / sizeof(float)) __builtin_prefetch(ahead.from, 0, 2);
    QF_UNROLL for (int k = 0; k < LANES; k++, vectors += J * LANES) {
      vfloat v[J];
      QF_UNROLL for (int j = 0; j < J; j++) v[j] = load(vectors + j * LANES);
      QF_UNROLL for (int r = 0; r < R; r++)
        QF_UNROLL for (int j = 0; j < J; j++) c[r][j] += scalars[r * row_step + k] * v[j];
    }
  }
}

// The width of tile, in vectors, that computes so many vectors of output channels for so many rows fastest. A tile
// takes as many cycles as it has multiply-adds or loads, whatever is more, and a little for the other.
inline int best_columns(int64_t vectors, int64_t rows) {
  int best = 1;
  float least = 0;
  for (int j = 1; j <= MOST_COLUMNS; j++) {
    float cost = 0;
    for (int64_t first = 0; first < vectors; first += j) {
      const int count = int(smaller(j, vectors - first));
      const int64_t tiles = divide_up(rows, most_rows(count)), height = divide_up(rows, tiles);
      const float multiply = height * count / 2.0f, loads = (height + count) / 2.0f;
      cost += tiles * (multiply > loads ? multiply + loads / 8 : loads + multiply / 8);
    }
    if (j == 1 || cost < least) best = j, least = cost;
  }
  return best;
}

// TileTable<Kind>::of[rows - 1][columns - 1] is Kind::tile<rows, columns>, or null where that does not fit the registers.
template <class Kind, int R, int J>
constexpr typename Kind::TileFunction tile_or_null() {
  if constexpr (J <= MOST_COLUMNS && R <= most_rows(J))
    return Kind::template tile<R, J>;
  else
    return nullptr;
}

#define QF_TILE_ROW(R) \
  {tile_or_null<Kind, R, 1>(), tile_or_null<Kind, R, 2>(), tile_or_null<Kind, R, 3>(), tile_or_null<Kind, R, 4>()}

template <class Kind>
struct TileTable {
  static constexpr typename Kind::TileFunction of[14][4] = {
      QF_TILE_ROW(1), QF_TILE_ROW(2), QF_TILE_ROW(3),  QF_TILE_ROW(4),  QF_TILE_ROW(5),  QF_TILE_ROW(6),  QF_TILE_ROW(7),
      QF_TILE_ROW(8), QF_TILE_ROW(9), QF_TILE_ROW(10), QF_TILE_ROW(11), QF_TILE_ROW(12), QF_TILE_ROW(13), QF_TILE_ROW(14)};
};

}  // namespace
