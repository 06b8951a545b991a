/* The figures of a design that timing and numbers depend on. asic_sim/hardware.py reads and checks them. */
#ifndef QUATREFOIL_ASIC_DESIGN_H
#define QUATREFOIL_ASIC_DESIGN_H

#include <cstdint>

namespace asic {

/* Which operand rests in the array while the others pass. */
enum class Dataflow { weight, output, input };

/* How a resting tile of operands comes into the array; docs/asic.md draws each. */
enum class WeightLoad { double_buffered, skewed, serial, broadcast };

/* A memory on the chip. Half of its banks, at least one, hold each of two buffers. */
struct Sram {
  int64_t banks = 2;
  int64_t ports = 1;
  int64_t bytes_per_cycle = 0; /* of a port of a bank; 0: it is never a limit */

  bool limits() const { return bytes_per_cycle > 0; }
  int64_t buffer_bytes_per_cycle() const { return bytes_per_cycle * (banks > 1 ? banks / 2 : 1); }
  /* What comes from DRAM and what the array reads go through one port; else each has one. */
  bool shared() const { return banks == 1 && ports == 1; }
};

/* The memory behind the port. With these figures it is nothing but a pipe. */
struct Dram {
  int64_t channels = 1;
  int64_t banks = 1;       /* of a channel */
  int64_t burst_bytes = 1; /* of a channel: the least that it moves */
  int64_t row_bytes = 1;   /* of a bank, at least a burst */
  int64_t row_miss_cycles = 0;         /* to open a row; 0: rows are not looked at */
  int64_t refresh_interval_cycles = 0; /* from a refresh to the next one */
  int64_t refresh_cycles = 0;          /* of each of them; 0: there is none */

  bool has_rows() const { return row_miss_cycles > 0; }
  bool refreshed() const { return refresh_cycles > 0; }
  int64_t bursts_in_row() const { return row_bytes / burst_bytes; }
};

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
  Sram weight_sram, activation_sram;
  Dram dram;

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
