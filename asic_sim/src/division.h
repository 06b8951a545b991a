/* How the work of a stage is divided among cores: what each of them does of it. */
#ifndef QUATREFOIL_ASIC_DIVISION_H
#define QUATREFOIL_ASIC_DIVISION_H

#include "timing.h"

namespace asic {

/* channels  columns of results, or whole groups where there are at least as many as cores; of the vector unit's work alone planes
 * rows      of pixels: output places along the outermost axis of space that is longer than one, else along the batch
 * batch     of images, or rows of a matrix; of the vector unit's work alone planes
 *
 * Shares differ by one at most, the first cores' are the larger ones. Steps that depend on each other (recurrent layers), and
 * what belongs to them, are divided by their batch whatever is said. */
enum class Division { channels, rows, batch };

struct Share {
  Division division;
  int64_t core, cores;

  /* Of so many, the first one and how many. */
  int64_t first(int64_t all) const { return all / cores * core + std::min(core, all % cores); }
  int64_t count(int64_t all) const { return all / cores + (core < all % cores); }
};

Sections share_of(const Design& design, const Sections& sections, const Share& share);
VectorStage share_of(const VectorStage& stage, const Share& share);

}  // namespace asic

#endif
