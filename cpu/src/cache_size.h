// How large the second-level cache is, by which blocking is chosen.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace {

// Bytes of a core's second-level cache; 512 KiB where the system does not tell.
inline int64_t second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t told = sysconf(_SC_LEVEL2_CACHE_SIZE);  // once: in a virtual machine asking takes microseconds
  if (told > 0) return told;
#endif
  return 512 << 10;
}

}  // namespace
