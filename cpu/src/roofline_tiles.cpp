// What one core can do at most in products of bytes on tile registers, in four sums of two tiles by two that stay there.
#include "seconds.h"
#include "tile_registers.h"

// Multiplications and additions in a second, over that many rounds of four products of tiles.
extern "C" double QF_EXPORT(roofline_tiles_i8)(int64_t rounds, int32_t* sink) {
  alignas(64) int32_t words[TILE_ROWS * TILE_WORDS];
  for (int i = 0; i < TILE_ROWS * TILE_WORDS; i++) words[i] = i & 0x01010101;
  [[maybe_unused]] TileRegisters tiles;
  tile_load<0>(words, TILE_BYTES), tile_load<1>(words, TILE_BYTES), tile_load<2>(words, TILE_BYTES);
  tile_load<3>(words, TILE_BYTES), tile_load<4>(words, TILE_BYTES), tile_load<5>(words, TILE_BYTES);
  tile_load<6>(words, TILE_BYTES), tile_load<7>(words, TILE_BYTES);
  const double start = seconds();
  for (int64_t round = 0; round < rounds; round++) {
    tile_add_bytes<0, 4, 6, false>();
    tile_add_bytes<1, 4, 7, false>();
    tile_add_bytes<2, 5, 6, false>();
    tile_add_bytes<3, 5, 7, false>();
  }
  tile_store<0>(words, TILE_BYTES);  // waits for the products
  const double taken = seconds() - start;
  *sink = words[0];
  return 2.0 * 4 * TILE_ROWS * TILE_WORDS * TILE_BYTES * double(rounds) / taken;
}
