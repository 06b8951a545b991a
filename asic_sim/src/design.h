/* The figures of a design that timing and numbers depend on. asic_sim/hardware.py reads and checks them. */
#ifndef QUATREFOIL_ASIC_DESIGN_H
#define QUATREFOIL_ASIC_DESIGN_H

#include <cstdint>

namespace asic {

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

  /* An element that enters the array at its top left corner has left the bottom of the last column after this many
   * cycles. */
  int64_t array_depth() const { return array_rows + array_columns - 1; }
};

}  // namespace asic

#endif
