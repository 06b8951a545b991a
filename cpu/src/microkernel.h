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
