// The tile registers of AMX (Intel, "Architecture instruction set extensions programming reference", 2020): eight
// matrices of 16 rows of 64 bytes, and instructions that add the product of two of them to a third, 16 x 16 words:
//
//   c[m][n] += sum over k of a[m][k] * b[k][n]
//
// where a word of a and of b holds four bytes or two bfloat16 values along k. A product takes 16 cycles; bytes are summed
// exactly in int32 (wrapping), bfloat16 values in float32, denormal ones as zero.
//
// Where the compiler may not use them (setup.py: QUATREFOIL_EMULATE_V4) they are plain arrays, for tests.
#pragma once

#include "simd.h"

namespace {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64, TILE_WORDS = 16;

#if defined(__AMX_TILE__)

// Tiles may be used in the block that holds this. (The kernel has let the process use them: instruction_sets.h.)
struct TileRegisters {
  TileRegisters() {
    struct {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } configuration;
    for (int i = 0; i < 8; i++) configuration.row_bytes[i] = TILE_BYTES, configuration.rows[i] = TILE_ROWS;
    asm volatile("ldtilecfg %0" : : "m"(configuration));
  }
  ~TileRegisters() { asm volatile("tilerelease"); }  // threads without tiles are cheaper to switch
};

// step: bytes from a row to the next.
template <int T>
QF_INLINE void tile_load(const void* from, int64_t step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step), "i"(T) : "memory");
}
template <int T>
QF_INLINE void tile_store(void* to, int64_t step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step), "i"(T) : "memory");
}
// Bytes of A times bytes of B, of which one at least are signed.
template <int C, int A, int B, bool A_SIGNED, bool B_SIGNED = true>
QF_INLINE void tile_add_bytes() {
  static_assert(A_SIGNED || B_SIGNED, "not needed so far");
  if (A_SIGNED && B_SIGNED)
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  else if (A_SIGNED)
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  else
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
QF_INLINE void tile_add_halves() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else

struct TileRegisters {};

inline uint8_t* emulated_tile(int number) {
  static thread_local uint8_t tiles[8][TILE_ROWS * TILE_BYTES];
  return tiles[number];
}

template <int T>
inline void tile_load(const void* from, int64_t step) {
  for (int r = 0; r < TILE_ROWS; r++) memcpy(emulated_tile(T) + r * TILE_BYTES, (const char*)from + r * step, TILE_BYTES);
}
template <int T>
inline void tile_store(void* to, int64_t step) {
  for (int r = 0; r < TILE_ROWS; r++) memcpy((char*)to + r * step, emulated_tile(T) + r * TILE_BYTES, TILE_BYTES);
}

template <class Sum, class Product>
inline void emulated_product(int c, int a, int b, const Product& product) {
  for (int m = 0; m < TILE_ROWS; m++)
    for (int n = 0; n < TILE_WORDS; n++) {
      Sum* sum = (Sum*)emulated_tile(c) + m * TILE_WORDS + n;
      for (int k = 0; k < TILE_WORDS; k++)
        *sum = product(*sum, emulated_tile(a) + m * TILE_BYTES + 4 * k, emulated_tile(b) + k * TILE_BYTES + 4 * n);
    }
}
template <int C, int A, int B, bool A_SIGNED, bool B_SIGNED = true>
inline void tile_add_bytes() {
  emulated_product<uint32_t>(C, A, B, [](uint32_t sum, const uint8_t* a, const uint8_t* b) {
    const auto value = [](uint8_t byte, bool is_signed) { return is_signed ? int(int8_t(byte)) : int(byte); };
    for (int i = 0; i < 4; i++) sum += uint32_t(value(a[i], A_SIGNED) * value(b[i], B_SIGNED));
    return sum;
  });
}
template <int C, int A, int B>
inline void tile_add_halves() {
  emulated_product<float>(C, A, B, [](float sum, const uint8_t* a, const uint8_t* b) {
    for (int i = 0; i < 2; i++) {
      float factors[2];
      const uint32_t bits[2] = {uint32_t(a[2 * i] << 16 | a[2 * i + 1] << 24), uint32_t(b[2 * i] << 16 | b[2 * i + 1] << 24)};
      memcpy(factors, bits, sizeof bits);
      sum += factors[0] * factors[1];
    }
    return sum;
  });
}

#endif

}  // namespace
