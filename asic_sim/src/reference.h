/* The timing of timing.h found another way: everything is looked at in every cycle, and the array is stepped
 * processing element by processing element with the numbers of an int8 matrix product in it. Slow; for tests. */
#ifndef QUATREFOIL_ASIC_REFERENCE_H
#define QUATREFOIL_ASIC_REFERENCE_H

#include "timing.h"

namespace asic {

/* a (M, K), w (K, N) and out (M, N): the numbers of a program whose only section is one plain product, repeated or
 * not; out is accumulated into. Null pointers: timing alone, of any program. */
struct Product {
  const int16_t* a = nullptr;
  const int16_t* w = nullptr;
  int32_t* out = nullptr;
};

Counters step_program(const Program& program, const Product& product);
Counters step_vector(const Design& design, const VectorStage& stage);

}  // namespace asic

#endif
