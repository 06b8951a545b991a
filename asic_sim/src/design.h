/* The figures of a design that timing and numbers depend on. asic_sim/hardware.py reads and checks them. */
#ifndef QUATREFOIL_ASIC_DESIGN_H
#define QUATREFOIL_ASIC_DESIGN_H

#include <cstdint>

namespace asic {

/* Which operand rests in the array while the others pass. */
enum class Dataflow { weight, output, input };

/* How a resting tile of operands comes into the array; docs/asic.md draws each. */
enum class WeightLoad { double_buffered, skewed, serial, broadcast };

struct Design {
  int64_t array_rows = 1;
  int64_t array_columns = 1;
  int64_t accumulator_entries = 2; /* 32-bit sums below each column, in two banks */
  int64_t weight_fifo_tiles = 1;
  int64_t activation_sram_bytes = 1; /* two buffers of half this size */
  int64_t weight_sram_bytes = 0;
  int64_t dram_bytes_per_cycle = 1;
  int64_t dram_latency_cycles = 0;
  int64_t vector_lanes = 1;
  Dataflow dataflow = Dataflow::weight;
  WeightLoad weight_load = WeightLoad::double_buffered;
  bool whole_weight_tiles = false; /* resting weights come as whole tiles, however few of them are used */

  /* An element that enters the array at its top left corner has left the bottom of the last column after this many
   * cycles. */
  int64_t array_depth() const { return array_rows + array_columns - 1; }

  /* Elements have a second register, in which the next resting tile waits while one is in use. */
  bool shadowed() const { return weight_load == WeightLoad::double_buffered || weight_load == WeightLoad::skewed; }

  /* Cycles that it takes to lay a resting tile in. */
  int64_t load_cycles() const { return weight_load == WeightLoad::broadcast ? 1 : array_rows; }

  /* Cycles until a register can take the next tile: with shadow registers from the start of the first fold that uses
   * the tile (the switch has to sweep the array, or one column of it where columns follow each other), else from the
   * end of the last one (its last activation has to reach the far corner). */
  int64_t release_cycles() const {
    if (weight_load == WeightLoad::double_buffered) return array_depth();
    return weight_load == WeightLoad::skewed ? array_rows : array_depth() - 1;
  }
};

}  // namespace asic

#endif
