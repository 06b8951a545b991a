/* How many cycles a program takes: the fast mode, one event for each transaction of a tile.
 *
 * Times are cycles from the start. With R rows, C columns, fold f streaming m_f activations (a row of the block each
 * cycle), weight tile w, activation tile a, output tile o (each counted in the order in which folds need them):
 *
 *     load_w    = max(arrival of weight tile w, start_f' + R + C - 1)       f': the fold that took tile w - 1
 *     ready_w   = load_w + R                                                 a row of the tile enters each cycle
 *     start_f   = max(ready_w, arrival of activation tile a, end_(f-1), vector_(o-2) for a strip's first slice,
 *                     vector_(o-1) where the stage depends on the one before)
 *     end_f     = start_f + m_f
 *     vector_o  = max(end_f + R + C - 1, vector_(o-1), arrival of output tile o - 2) + cycles of the vector unit
 *
 * Weights are double-buffered in the array: the next tile shifts in behind the one in use once the switch to it has
 * swept the array. Requests to DRAM: weight tile w when tile w - weight_fifo_tiles has been laid into the array,
 * activation tile a when the last fold of tile a - 2 has ended (two buffers), output tile o at vector_o. One port
 * serves them one at a time in the order of their times (weights, activations, outputs where equal), each for
 * ceil(bytes / dram_bytes_per_cycle) cycles; data is there dram_latency_cycles later, during which the port goes on.
 * What has no bytes is there at once.
 *
 * A program for the vector unit alone (pooling) has blocks instead of folds:
 *
 *     start_b = max(arrival of input b, end_(b-1), arrival of output b - 2),  end_b = start_b + cycles
 *
 * with input b requested at end_(b-2) and output b at end_b.
 */
#ifndef QUATREFOIL_ASIC_TIMING_H
#define QUATREFOIL_ASIC_TIMING_H

#include "program.h"

namespace asic {

/* cycles = fill + busy + stall_weights + stall_activations + stall_outputs + stall_steps + drain */
struct Counters {
  int64_t cycles = 0;
  int64_t fill = 0;              /* until the first activation enters the array */
  int64_t busy = 0;              /* an activation row enters the array (or, without it, the vector unit works) */
  int64_t stall_weights = 0;     /* the next fold waits for its weights to be in the array */
  int64_t stall_activations = 0; /* … for its activations to come from DRAM */
  int64_t stall_outputs = 0;     /* … for an accumulator bank or an output buffer to be free */
  int64_t stall_steps = 0;       /* … for the step before it to leave the vector unit */
  int64_t drain = 0;             /* after the last activation has entered */
  int64_t vector_busy = 0;       /* the vector unit works */
  int64_t weight_bytes = 0, activation_bytes = 0, output_bytes = 0; /* over the DRAM port */
  int64_t folds = 0;             /* passes through the array (or blocks through the vector unit) */
  int64_t macs = 0;              /* multiply-accumulates that the problem needs of the array */

  int64_t dram_bytes() const { return weight_bytes + activation_bytes + output_bytes; }
};

/* Work of the vector unit alone, a window over planes (axis 0: planes), cut into blocks like a stage. */
struct VectorStage {
  std::array<Axis, 4> axes;
  int64_t input_bytes = 4;  /* of an input position */
  int64_t output_bytes = 4; /* of an output */
  int64_t lane_cycles = 1;  /* for an output */
};

/* Raises std::length_error where there are more than Program::MOST_FOLDS folds. */
Counters time_program(const Program& program);

/* Sections as Program::add takes them. */
struct Sections {
  std::vector<std::vector<Stage>> stages;
  std::vector<int64_t> repeats;
};
Program lower(const Design& design, const Sections& sections, bool resident);

/* The sections with resident or with streamed activations, whichever is faster. */
Counters time_fastest(const Design& design, const Sections& sections);

/* Raises std::length_error where there are more than Program::MOST_FOLDS blocks. */
Counters time_vector(const Design& design, const VectorStage& stage);

struct VectorBlock {
  int64_t input_bytes, output_bytes, cycles;
};

/* The blocks of a stage for the vector unit, in order. */
class VectorBlocks {
 public:
  VectorBlocks(const Design& design, const VectorStage& stage);
  int64_t count() const { return tiling_.block_count; }
  VectorBlock operator[](int64_t index) const;

 private:
  Design design_;
  VectorStage stage_;
  Tiling tiling_;
};

}  // namespace asic

#endif
