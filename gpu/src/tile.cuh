/* One block's tile of a matrix product from shared memory: THREADS threads hold a TILE_M x TILE_N tile of sums in
 * registers, THREAD_M x THREAD_N each, and step through TILE_K.
 *
 * A thread's rows and columns come in groups of 4 that lie a quarter, half or whole tile apart, so that a warp reads
 * shared memory in conflict-free float4s (the register blocking of CUTLASS and MAGMA: Nath, Tomov, Dongarra 2010).
 * Macros: TILE_M, TILE_N, TILE_K, THREAD_M, THREAD_N; THREAD_M and THREAD_N are multiples of 4.
 */
#pragma once

constexpr int THREADS_M = TILE_M / THREAD_M;
constexpr int THREADS_N = TILE_N / THREAD_N;
constexpr int THREADS = THREADS_M * THREADS_N;
/* Unrolled further, the large tile wants more than the 128 registers with which two blocks fit a multiprocessor. */
constexpr int UNROLL_K = THREAD_M * THREAD_N >= 64 ? 2 : TILE_K;

/* The tile's row or column that a thread's i-th sum belongs to. */
QF_FUNCTION int tile_row(int i) { return i / 4 * (4 * THREADS_M) + threadIdx.x / THREADS_N * 4 + i % 4; }
QF_FUNCTION int tile_column(int j) { return j / 4 * (4 * THREADS_N) + threadIdx.x % THREADS_N * 4 + j % 4; }

QF_FUNCTION void load4(const float* from, float* to) {
  const float4 value = *reinterpret_cast<const float4*>(from);
  to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
}

QF_FUNCTION void load4(const int* from, int* to) {
  const int4 value = *reinterpret_cast<const int4*>(from);
  to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
}

QF_FUNCTION void load4(const unsigned* from, unsigned* to) {
  const uint4 value = *reinterpret_cast<const uint4*>(from);
  to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
}

QF_FUNCTION void store4(const float* from, float* to) {
  *reinterpret_cast<float4*>(to) = {from[0], from[1], from[2], from[3]};
}

QF_FUNCTION void store4(const int* from, int* to) {
  *reinterpret_cast<int4*>(to) = {from[0], from[1], from[2], from[3]};
}

QF_FUNCTION void store4(const unsigned* from, unsigned* to) {
  *reinterpret_cast<uint4*>(to) = {from[0], from[1], from[2], from[3]};
}

/* One step of a sum: floats, four signed bytes in an int each, or integers modulo 2^32. */
QF_FUNCTION float multiply_add(float a, float b, float sum) { return sum + a * b; }
QF_FUNCTION int multiply_add(int a, int b, int sum) { return __dp4a(a, b, sum); }
QF_FUNCTION unsigned multiply_add(unsigned a, unsigned b, unsigned sum) { return sum + a * b; }

template <class Value>
QF_FUNCTION void multiply_tile(const Value (&a)[TILE_K][TILE_M], const Value (&b)[TILE_K][TILE_N],
                               Value (&sums)[THREAD_M][THREAD_N]) {
#pragma unroll UNROLL_K
  for (int k = 0; k < TILE_K; k++) {
    Value row[THREAD_M], column[THREAD_N];
#pragma unroll
    for (int i = 0; i < THREAD_M; i += 4) load4(&a[k][tile_row(i)], &row[i]);
#pragma unroll
    for (int j = 0; j < THREAD_N; j += 4) load4(&b[k][tile_column(j)], &column[j]);
#pragma unroll
    for (int i = 0; i < THREAD_M; i++)
#pragma unroll
      for (int j = 0; j < THREAD_N; j++) sums[i][j] = multiply_add(row[i], column[j], sums[i][j]);
  }
}
