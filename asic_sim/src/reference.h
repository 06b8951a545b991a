/* The timing of timing.h found another way: everything is looked at in every cycle, and the array is stepped
 * processing element by processing element with the numbers of a matrix product in it. Slow; for tests. */
#ifndef QUATREFOIL_ASIC_REFERENCE_H
#define QUATREFOIL_ASIC_REFERENCE_H

#include <vector>

#include "fixed.h"
#include "timing.h"

namespace asic {

/* a (M, K), w (K, N) and out (M, N): the numbers of a program whose only section is one plain product, repeated or
 * not; out is accumulated into. Null pointers: timing alone, of any program. `chained`: what is in out enters a column
 * on top, as fixed.h has it, else zero does and the sum is added to out. */
struct Product {
  const int32_t* a = nullptr;
  const int32_t* w = nullptr;
  int64_t* out = nullptr;
  FixedSums sums{{}, 0};
  bool chained = false;
  const int64_t* kept = nullptr; /* of weights with an index: the rows of the depth that each strip keeps, strip after strip */
};

/* What the parts of the chip do from a cycle on, until the next state's. */
struct State {
  int64_t cycle;
  bool loading; /* a resting tile is laid in */
  int64_t fold; /* the one whose operands enter the array, counted from 0 over all parts; else -1 */
  bool vector;  /* the vector unit works */
  int port;     /* what moves over it: 1 weights, 2 activations, 4 outputs, and their sums */
};

/* states: null, or where the states go, one for each change and a last one for the end. */
Counters step_program(const Program& program, const Product& product, std::vector<State>* states = nullptr);
Counters step_vector(const Design& design, const VectorStage& stage, std::vector<State>* states = nullptr);
/* Of each part. */
std::vector<Counters> step_chain(const Chain& chain, std::vector<State>* states = nullptr);
/* Of each core, of each part. */
std::vector<std::vector<Counters>> step_cores(const std::vector<Chain>& chains);

}  // namespace asic

#endif
