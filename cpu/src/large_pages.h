// Asks the system to back memory with large pages, where it can be asked.
#pragma once

#include <cstddef>

#if defined(__linux__)
#include <sys/mman.h>
#endif

static inline void prefer_large_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t size) {
#if defined(MADV_HUGEPAGE)
  madvise(data, size, MADV_HUGEPAGE);  // advice: nothing is lost if it is not taken
#endif
}
