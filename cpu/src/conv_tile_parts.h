// How threads share a convolution on tile registers: planes or bands of their rows, then blocks of output channels.
#pragma once

#include <omp.h>

#include "conv_arguments.h"
#include "tile_registers.h"

namespace {

// A part of the work: planes from `plane` on, rows of each, one group, some blocks of channels.
struct Part {
  int64_t group, plane, planes, row, rows, block, blocks;
};

// Calls work(part, thread) for all parts, `together` planes or `rows` rows of one at most in each.
template <class Work>
void share_parts(const ConvShape& s, int threads, int64_t together, int64_t rows, int64_t blocks, const Work& work) {
  const int64_t planes = s.batch * s.output[0];
  auto parts = [&] { return s.groups * divide_up(planes, together) * divide_up(s.output[1], rows); };
  if (parts() < threads) together = smaller(together, divide_up(planes, divide_up(threads, s.groups)));
  const int64_t splits_wanted = divide_up(threads, parts());
  // Laying x out anew for each share of the channels costs less than it saves where there are many.
  const bool by_channels = blocks >= 4 * splits_wanted;
  if (parts() < threads && !by_channels) rows = divide_up(rows, splits_wanted);
  const int64_t splits = smaller(blocks, divide_up(threads, parts())), all = parts() * splits;
  const int64_t bands = divide_up(s.output[1], rows);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    [[maybe_unused]] const TileRegisters registers;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < all; i++) {
      const int64_t split = i % splits, band = i / splits % bands, group = i / splits / bands % s.groups;
      const int64_t plane = i / splits / bands / s.groups * together, row = band * rows;
      work(Part{group, plane, smaller(together, planes - plane), row, smaller(rows, s.output[1] - row),
                blocks * split / splits, blocks * (split + 1) / splits},
           omp_get_thread_num());
    }
  }
}

}  // namespace
