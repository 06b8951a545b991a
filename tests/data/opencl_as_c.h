/* OpenCL C's words in C, for kernels that run one after the other: queues between them hold everything. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#define __kernel
#define __global
#define __local
#define __constant const
#define int8_t opencl_int8_t
#define uint8_t opencl_uint8_t
#define int16_t opencl_int16_t
#define uint16_t opencl_uint16_t
#define int32_t opencl_int32_t
#define uint32_t opencl_uint32_t
#define int64_t opencl_int64_t
#define uint64_t opencl_uint64_t
#define channel
#define pipe
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef float float8 __attribute__((vector_size(32)));
typedef short short8 __attribute__((vector_size(16)));
typedef char char8 __attribute__((vector_size(8)));
#define vload8(i, p) (memcpy(&word, (p) + 8 * (i), sizeof word), word)
#define vstore8(word, i, p) memcpy((p) + 8 * (i), &word, sizeof word)

static struct { const void* name; size_t put, got; char bytes[1 << 18]; } queues[8];
static void move(const void* name, void* word, size_t size, int put) {
  int q = 0;
  while (queues[q].name && queues[q].name != name) q++;
  queues[q].name = name;
  if (put ? queues[q].put + size > sizeof queues[q].bytes : queues[q].got + size > queues[q].put) abort();
  if (put) memcpy(queues[q].bytes + queues[q].put, word, size), queues[q].put += size;
  else memcpy(word, queues[q].bytes + queues[q].got, size), queues[q].got += size;
}
#define read_channel_intel(name) (move(&name, &word, sizeof word, 0), word)
#define write_channel_intel(name, word) move(&name, &word, sizeof word, 1)
#define read_pipe_block(name, word) move(&name, word, sizeof *word, 0)
#define write_pipe_block(name, word) move(&name, word, sizeof *word, 1)
#define __attribute__(words) /* those of OpenCL stand where C has none */

int left(void) {
  int count = 0;
  for (int q = 0; q < 8; q++) count += queues[q].put != queues[q].got;
  return count;
}
