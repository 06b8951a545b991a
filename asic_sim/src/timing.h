/* How many cycles a program takes: the fast mode, one event for each transaction of a tile.
 *
 * Times are cycles from the start; R rows, C columns. Fold f streams for m_f cycles (operand_cycles for each of the
 * operands that enter one after the other, whose parts follow each other through the array) and uses weight tile w and
 * activation tile a; output tile o is the one it adds to (tiles are counted in the order in which folds need them).
 *
 * Weight and input stationary, where tile s of the operand that rests (weights, activations) is laid in by a scheme
 * of `load` cycles and `release` cycles (design.h):
 *
 *     lay_s     = max(arrival of s, free_s, vector_(o-1) where s holds the results of the stage before)
 *     free_s    = start of the first fold with s - 1 + release    with shadow registers, else
 *                 end of the last fold with s - 1 + release
 *     ready_s   = lay_s + load
 *     start_f   = max(ready_s, arrival of the streaming tile, end_(f-1), vector_(o-2) for a tile's first slice,
 *                     vector_(o-1) where the stage depends on the one before)
 *     end_f     = start_f + m_f
 *     out_o     = end_f + R + C - 1
 *
 * Output stationary, with a chain of registers through which finished sums shift down:
 *
 *     start_f   = max(arrival of w, arrival of a, end_(f-1), vector_(o-1) where the stage depends on the one before,
 *                     max(out_(o-1), vector_(o-2)) - m_f for a tile's last slice: the chain and the bank have to be
 *                     free when its first sum is finished)
 *     out_o     = end_f + R + C - 1 + R
 *
 * and in all of them
 *
 *     vector_o  = max(out_o, vector_(o-1), arrival of output tile o - 2) + cycles of the vector unit
 *
 * Requests to DRAM: resting tile s when tile s - weight_fifo_tiles has been laid in, a streaming tile when the last
 * fold of the one two before has ended (two buffers), output tile o at vector_o. One port serves them one at a time in
 * the order of their times (weights, activations, outputs where equal), each for ceil(bytes / dram_bytes_per_cycle)
 * cycles; data is there dram_latency_cycles later, during which the port goes on. What has no bytes is there at once.
 *
 * A program for the vector unit alone (pooling) has blocks instead of folds:
 *
 *     start_b = max(arrival of input b, end_(b-1), arrival of output b - 2),  end_b = start_b + cycles
 *
 * with input b requested at end_(b-2) and output b at end_b.
 *
 * Parts of work (layers) may follow each other as a chain, on a chip that fetches weights ahead. The queue of weight tiles
 * knows nothing of parts: the first tiles of a part are requested, and where weights rest laid in, by the rules above, as if
 * they were the last part's next ones. The other requests of a part, and with them its first fold, wait for its beginning:
 *
 *     begin_p   = max(vector of the last tile, arrival of all outputs) of part p - 1
 *
 * A part's cycles are begin_(p+1) - begin_p; what DRAM and the memories do for a part counts to it, whenever they do it.
 *
 * Several cores, each with its own array, memories and vector unit, may share the DRAM. A part begins when all of them
 * have ended the one before, and a core's cycles of it last to its own end. Requests of all cores are served in the order of
 * their times; of the same time weights, activations, outputs; of the same class the cores in turn, beginning with the
 * one behind the core that was served last.
 */
#ifndef QUATREFOIL_ASIC_TIMING_H
#define QUATREFOIL_ASIC_TIMING_H

#include <optional>

#include "program.h"

namespace asic {

/* cycles = fill + busy + stall_weights + stall_activations + stall_outputs + stall_steps + stall_memory + drain */
struct Counters {
  int64_t cycles = 0;
  int64_t fill = 0;              /* until the first activation enters the array */
  int64_t busy = 0;              /* operands enter the array (or, without it, the vector unit works) */
  int64_t stall_weights = 0;     /* the next fold waits for its weights to arrive or to be in the array */
  int64_t stall_activations = 0; /* … for its activations */
  int64_t stall_outputs = 0;     /* … for an accumulator bank or an output buffer to be free */
  int64_t stall_steps = 0;       /* … for the step before it to leave the vector unit */
  int64_t stall_memory = 0;      /* a fold streams, and a memory on the chip cannot keep up */
  int64_t drain = 0;             /* after the last activation has entered */
  int64_t vector_busy = 0;       /* the vector unit works */
  int64_t weight_bytes = 0, activation_bytes = 0, output_bytes = 0; /* over the DRAM port */
  int64_t lookups = 0;    /* weights that are looked up in a codebook */
  int64_t gated_macs = 0; /* of `macs`, those with a weight that is known to be zero */
  int64_t folds = 0;             /* passes through the array (or blocks through the vector unit) */
  int64_t macs = 0;              /* multiply-accumulates that the problem needs of the array */
  int64_t weight_reads = 0, activation_reads = 0; /* bytes from the memories on the chip into the array or the lanes */
  int64_t accumulator_accesses = 0; /* 32-bit sums read or written below the columns */
  int64_t lane_operations = 0;      /* cycles of a lane of the vector unit, all elements together */
  int64_t activation_writes = 0;    /* bytes of results that stay in the activation memory */
  int64_t memory_conflicts = 0; /* of the cycles of folds and loading, those lost to what DRAM writes into the memory */
  /* Over all channels of DRAM; 0 where it has no rows or no refresh. */
  int64_t row_hits = 0, row_misses = 0; /* bursts whose row is open, and those that it is opened for */
  int64_t row_waits = 0;     /* cycles in which a channel has bursts to move and moves none, as no row is open */
  int64_t refresh_waits = 0; /* cycles in which it does not, as it is refreshed */
};

/* Work of the vector unit alone, a window over planes (axis 0: planes), cut into blocks like a stage. */
struct VectorStage {
  std::array<Axis, 4> axes;
  int64_t input_bytes = 4;  /* of an input position */
  int64_t output_bytes = 4; /* of an output */
  int64_t lane_cycles = 1;  /* for an output */
  int64_t kept_input_bytes = 0;  /* of an input position: in the activation memory already */
  int64_t kept_output_bytes = 0; /* of an output: stay there */
};

/* What a part of the chip does from one cycle to another. */
struct Event {
  enum Part { ARRAY, LOADING, VECTOR, DRAM_WEIGHTS, DRAM_ACTIVATIONS, DRAM_OUTPUTS };
  Part part;
  int64_t begin, end;
  int64_t bytes; /* over the port to DRAM; else 0 */
  int64_t channel = 0; /* of DRAM that they move over */
  int64_t core = 0;
};

struct VectorBlock {
  int64_t input_bytes, output_bytes, cycles, lane_operations;
  int64_t reads, writes; /* bytes of the activation memory */
};

/* The blocks of a stage for the vector unit, in order. */
class VectorBlocks {
 public:
  /* Raises std::length_error where there are more than Program::MOST_FOLDS. */
  VectorBlocks(const Design& design, const VectorStage& stage);
  int64_t count() const { return tiling_.block_count; }
  VectorBlock operator[](int64_t index) const;

 private:
  Design design_;
  VectorStage stage_;
  Tiling tiling_;
};

/* A part of a run: folds, or blocks of the vector unit alone. */
struct Part {
  int64_t macs = 0;
  std::optional<VectorBlocks> blocks; /* else the folds of the sections that bear the part's number */
};

/* Parts that follow each other on one chip, which fetches weights ahead. Designs may differ in the activation memory that
 * is left to a part. */
class Chain {
 public:
  explicit Chain(const Design& design) : program_(design) {}
  /* Of one part. This and the next raise std::length_error where there are more than Program::MOST_FOLDS folds. */
  explicit Chain(const Program& program);
  void add(const Program& program);
  void add(const VectorBlocks& blocks) { parts_.push_back({0, blocks}); }

  const Program& program() const { return program_; }
  const std::vector<Part>& parts() const { return parts_; }

 private:
  Program program_;
  std::vector<Part> parts_;
};

/* What folds that are alike alone say, in any order of events. */
void tally(const Fold& fold, Counters& counters, int64_t times = 1);

/* Raises std::length_error where there are more than Program::MOST_FOLDS folds. */
Counters time_program(const Program& program);

/* The same, walking every iteration, with what happens; at most `most` events, or std::length_error. */
Counters trace_program(const Program& program, size_t most, std::vector<Event>& events);

/* Of several cores, which share the DRAM, each with a chain of as many parts: of each core, of each part. */
std::vector<std::vector<Counters>> time_cores(const std::vector<Chain>& chains);

/* The same with what happens for the parts from one to another (exclusive). Times of events are seen from the beginning of
 * the first of these: what is fetched ahead comes before 0. */
std::vector<std::vector<Counters>> trace_cores(const std::vector<Chain>& chains, int64_t first, int64_t last, size_t most,
                                               std::vector<Event>& events);

/* Sections as Program::add takes them. */
struct Sections {
  std::vector<std::vector<Stage>> stages;
  std::vector<int64_t> repeats;
};
Program lower(const Design& design, const Sections& sections, const Mapping& mapping);

/* What a mapping has to be like; what is left open is searched. */
struct Wish {
  std::optional<bool> resident;
  std::optional<int64_t> most_places;
  std::optional<bool> strips_first;
};

/* The mapping that is the fastest where DRAM has no rows and no refresh, of those that are worth trying: activations
 * resident or streamed, blocks as large as they can be or parts of that, blocks or strips first; and what it takes on the
 * design. Raises as time_program does where none of them can be walked. */
struct Found {
  Mapping mapping;
  Counters counters;
};
Found time_fastest(const Design& design, const Sections& sections, const Wish& wish);

/* All of those mappings that can be walked and that cut differently, in the order in which they are tried. */
std::vector<Found> time_mappings(const Design& design, const Sections& sections, const Wish& wish);

/* Raises std::length_error where there are more than Program::MOST_FOLDS blocks. */
Counters time_vector(const Design& design, const VectorStage& stage);
Counters trace_vector(const Design& design, const VectorStage& stage, size_t most, std::vector<Event>& events);

}  // namespace asic

#endif
