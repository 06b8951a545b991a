/* Recurrent layers in fixed point: the products and the loops of recurrent.h, with a cast after each step of the
 * arithmetic. Arrays as there; weights, states and x are integers of their formats, biases of the accumulator's. */
#ifndef QUATREFOIL_ASIC_FIXED_RECURRENT_H
#define QUATREFOIL_ASIC_FIXED_RECURRENT_H

#include "fixed.h"
#include "recurrent.h"

namespace asic {

struct FixedRecurrent : Layer {
  FixedSums input_sums, state_sums; /* W x and R h, in the same accumulator */
  Fixed state;                      /* of h and c */
  std::vector<std::array<FixedFunction, 3>> functions; /* f, g, h of each direction */
};

/* bias and lengths may be null. `h` and `c` hold the initial states and become the final ones (c is null but for lstm);
 * y comes zeroed. */
void run_fixed_recurrent(const FixedRecurrent& layer, const int32_t* x, const int32_t* w, const int32_t* r,
                         const int64_t* bias, const int32_t* lengths, int32_t* h, int32_t* c, int32_t* y);

}  // namespace asic

#endif
