// Memory for large outputs that is kept when their array is freed, for the next array of the same size. Otherwise the
// system hands out cleared pages again and again, and clearing them takes longer than many a kernel takes to write them.
// For NumPy's allocation handlers (NEP 49); the arrays own their memory like any other.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "arrays.h"
#include "large_pages.h"

namespace output_memory {

constexpr size_t LARGE_PAGE = 2 << 20, MOST_KEPT = 128 << 20;
constexpr int MOST_BLOCKS = 16;

struct Block {
  void* data;
  size_t size;
};

// The blocks that no array has, the oldest first.
struct Kept {
  Block blocks[MOST_BLOCKS];
  int count = 0;
  size_t bytes = 0;
  std::atomic_flag busy = ATOMIC_FLAG_INIT;  // NumPy may be compiled to run without the GIL

  Block remove(int at) {
    const Block block = blocks[at];
    memmove(blocks + at, blocks + at + 1, sizeof(Block) * (--count - at));
    bytes -= block.size;
    return block;
  }
};
inline Kept kept;

struct Lock {
  Lock() {
    while (kept.busy.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~Lock() { kept.busy.clear(std::memory_order_release); }
};

inline void* take(void*, size_t size) {
  if (size < LARGE_OUTPUT) return malloc(size ? size : 1);
  {
    Lock lock;
    for (int i = kept.count - 1; i >= 0; i--)
      if (kept.blocks[i].size == size) return kept.remove(i).data;
  }
  void* data = nullptr;
  if (posix_memalign(&data, size < LARGE_PAGE ? 64 : LARGE_PAGE, size)) return nullptr;
  if (size >= LARGE_PAGE) prefer_large_pages(data, size);
  return data;
}

inline void* take_zeros(void* context, size_t count, size_t each) {
  if (each && count > SIZE_MAX / each) return nullptr;
  void* data = take(context, count * each);
  return data ? memset(data, 0, count * each) : nullptr;
}

inline void* resize(void*, void* data, size_t size) { return realloc(data, size ? size : 1); }

inline void give(void*, void* data, size_t size) {
  if (!data || size < LARGE_OUTPUT || size > MOST_KEPT) return free(data);
  void* dropped[MOST_BLOCKS];
  int drops = 0;
  {
    Lock lock;
    while (kept.count == MOST_BLOCKS || kept.bytes + size > MOST_KEPT) dropped[drops++] = kept.remove(0).data;
    kept.blocks[kept.count++] = {data, size};
    kept.bytes += size;
  }
  while (drops) free(dropped[--drops]);
}

// The handler, as NumPy takes it.
static inline PyObject* handler() {
  static PyDataMem_Handler memory = {"quatrefoil outputs", 1, {nullptr, take, take_zeros, resize, give}};
  return PyCapsule_New(&memory, "mem_handler", nullptr);
}

}  // namespace output_memory
