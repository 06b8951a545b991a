/* The timing of timing.h found another way: everything is looked at in every cycle, and the array is stepped
 * processing element by processing element with the numbers of an int8 matrix product in it. Slow; for tests. */
#ifndef QUATREFOIL_ASIC_REFERENCE_H
#define QUATREFOIL_ASIC_REFERENCE_H

#include <vector>

#include "timing.h"

namespace asic {

/* a (M, K), w (K, N) and out (M, N): the numbers of a program whose only section is one plain product, repeated or
 * not; out is accumulated into. Null pointers: timing alone, of any program. */
struct Product {
  const int16_t* a = nullptr;
  const int16_t* w = nullptr;
  int32_t* out = nullptr;
};

/* What the parts of the chip do from a cycle on, until the next state's. */
struct State {
  int64_t cycle;
  bool loading; /* a resting tile is laid in */
  int64_t fold; /* the one whose operands enter the array, counted from 0; else -1 */
  bool vector;  /* the vector unit works */
  int port;     /* what moves over it: 1 weights, 2 activations, 4 outputs, and their sums */
};

/* states: null, or where the states go, one for each change and a last one for the end. */
Counters step_program(const Program& program, const Product& product, std::vector<State>* states = nullptr);
Counters step_vector(const Design& design, const VectorStage& stage, std::vector<State>* states = nullptr);

}  // namespace asic

#endif
