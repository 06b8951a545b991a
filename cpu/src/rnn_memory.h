// Memory for the packed weights and sums of recurrent layers, aligned to a cache line. Large pieces are kept when they are given
// back, as outputs are: a training step packs its weights anew, and clearing pages for them would take as long. They ask for
// large pages, since each step walks through all weights and would miss the translation buffer all along.
#pragma once

#include "output_memory.h"

static inline void* rnn_take(size_t bytes) {
  if (bytes >= LARGE_OUTPUT) return output_memory::take(nullptr, bytes);
  void* memory = nullptr;
  return posix_memalign(&memory, 64, bytes ? bytes : 64) ? nullptr : memory;
}

static inline void rnn_give(void* memory, size_t bytes) {
  if (bytes >= LARGE_OUTPUT) output_memory::give(nullptr, memory, bytes);
  else free(memory);
}
