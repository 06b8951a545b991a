/* What the array is to do, as a sequence of folds.
 *
 * A stage is a matrix product: for each group, M = output places (four axes: batch and three of space), K = taps *
 * channels, N = columns. It is cut into blocks of output places (boxes, so that what a block reads is a box too),
 * strips of columns and slices of K. A fold is what streams through the array at once. With R rows, C columns:
 *
 *     weight stationary   for group, block, strip of C, slice of R:             weights rest, the block's places stream
 *     input stationary    for group, strip, block of at most C, slice of R:     activations rest, the strip's columns
 *                                                                               stream
 *     output stationary   for group, block, strip of C, patch of R places, slice:   sums rest, K streams
 *
 * A mapping may put strips before blocks in the others too. Then activations come again for each strip, and a strip's
 * weights once for all blocks where the weight memory holds them.
 *
 * The slices of a tile of results add up in one accumulator bank (output stationary: in the array); after the last
 * one the tile passes the vector unit and leaves for DRAM.
 *
 * Activations come from DRAM either once for a block, as the box of positions that its windows touch, from which
 * every fold of the block is addressed (resident), or fold by fold, already gathered (streamed), where such a box
 * does not fit into half of the activation memory. Weights come tile by tile into a FIFO; a resting tile that is the
 * one already in the array is not loaded again, and weights that are kept on the chip cost no DRAM traffic after
 * their first use. Weights that stream (input stationary) come once for a strip where half of the weight memory holds
 * the strip, else slice by slice through halves of the FIFO.
 *
 * A section repeats its stages (the steps of a recurrent layer). A dependent stage cannot begin before the stage
 * before it has left the vector unit.
 */
#ifndef QUATREFOIL_ASIC_PROGRAM_H
#define QUATREFOIL_ASIC_PROGRAM_H

#include <array>
#include <memory>
#include <tuple>
#include <vector>

#include "design.h"
#include "geometry.h"
#include "stored.h"

namespace asic {

struct Stage {
  int64_t groups = 1;
  int64_t channels = 1; /* of a group */
  int64_t columns = 1;  /* of a group */
  std::array<Axis, 4> axes;
  int64_t activation_bytes = 4; /* of an element as it comes from DRAM; 0: made on the chip */
  int64_t weight_bytes = 4;     /* of an element */
  int64_t output_bytes = 4;     /* of an element: written to DRAM, with what its epilogue reads there; 0: it stays */
  int64_t lane_cycles = 1;      /* of the vector unit for an output element */
  bool weights_kept = false;
  bool dependent = false;
  /* What ends the stage: more work of the vector unit, more bytes before it starts and after it ends. */
  int64_t closing_elements = 0;
  int64_t closing_lane_cycles = 0;
  int64_t closing_bytes = 0;
  int64_t opening_bytes = 0;
  int64_t operand_cycles = 1;    /* an operand that streams enters in so many parts, one a cycle */
  bool activations_here = false; /* in the activation memory, left there by what ran before: nothing comes from DRAM */
  int64_t kept_bytes = 0;         /* of an output element: written to the activation memory, where it stays */
  int64_t closing_kept_bytes = 0; /* the same at the end of the stage */
  std::shared_ptr<const Stored> stored; /* the weights, where they lie in another way */

  /* Bytes of an activation that come from DRAM. */
  int64_t fetched_bytes() const { return activations_here ? 0 : activation_bytes; }
  int64_t depth() const { return times(times(axes[1].taps, axes[2].taps), times(axes[3].taps, channels)); }
  int64_t places() const {
    return times(times(axes[0].outputs, axes[1].outputs), times(axes[2].outputs, axes[3].outputs));
  }
  bool indexed() const { return stored && stored->indexed(); }
  /* Bytes of so many weights as they are stored. */
  int64_t stored_bytes(int64_t weights) const {
    return stored ? stored->bytes(weights) : times(weights, weight_bytes);
  }
};

/* How to cut, where there is a choice. */
struct Mapping {
  bool resident = true;         /* activations come as boxes wherever a box fits, else fold by fold */
  int64_t most_places = 1 << 30; /* of a block */
  bool strips_first = false;     /* all blocks for a strip, not all strips for a block */
};

/* How a stage is cut. */
struct Tiling {
  bool resident = true;
  bool strips_first = false;
  bool strip_resident = false;               /* strips first: the weight memory holds a strip's weights; input
                                                stationary: half of it does, and they come at once */
  std::array<int64_t, 4> block{1, 1, 1, 1};  /* output places of a block along each axis */
  std::array<int64_t, 4> blocks{1, 1, 1, 1}; /* how many along each axis */
  int64_t block_count = 0;
  int64_t row = 1;               /* blocks of a row: along the innermost axis that is cut, if they differ; else 1 */
  int64_t strip = 1, strips = 1; /* columns of a strip; how many */
  int64_t slice = 1, slices = 1; /* depth of a slice; how many, at most where strips differ */
  int64_t patch = 0;             /* places of a patch; 0: a block is one patch */
  int64_t folds = 0;             /* of a group; of a mean one where groups differ, and so the next two */
  int64_t passes = 0, rows = 0;  /* slices, and rows of the depth, of all strips together */

  /* Of the same stage: the rest follows. */
  bool operator==(const Tiling& other) const {
    return std::tie(resident, strips_first, block, strip, slice, patch) ==
           std::tie(other.resident, other.strips_first, other.block, other.strip, other.slice, other.patch);
  }
  int64_t patches(int64_t places) const { return patch ? ceil_div(places, patch) : 1; }
};

int64_t places_of(const std::array<int64_t, 4>& block);

Tiling tile_stage(const Design& design, const Stage& stage, const Mapping& mapping);

enum Operand { WEIGHTS, ACTIVATIONS, OPERANDS };

struct Fold {
  int64_t block = 0, patch = 0, strip = 0, slice = 0; /* where it is in its group */
  int64_t cycles = 0; /* that it streams: operand_cycles for each place (weight), column (input) or step of K (output
                         stationary) */
  int64_t laying = 0;  /* cycles that its resting tile takes to be laid in, and decoded if it holds weights */
  int64_t lasting = 0; /* those of `cycles`, or more where weights that stream have to be decoded */
  int64_t height = 0; /* rows of the array in use */
  int64_t width = 0;  /* columns of the array in use */
  std::array<bool, OPERANDS> fresh{};    /* it needs a tile that the fold before did not */
  std::array<int64_t, OPERANDS> bytes{}; /* of a fresh tile from DRAM; 0: it is on the chip */
  std::array<int64_t, OPERANDS> reads{}; /* bytes from the memories on the chip into the array */
  std::array<int64_t, OPERANDS> fills{}; /* bytes written there for it: its part of a tile that several folds use */
  bool waits = false;                    /* for the vector unit to end the tile before */
  bool first_slice = false, last_slice = false;
  int64_t lookups = 0;                   /* weights of it that are looked up in a codebook on their way */
  int64_t gated_macs = 0;                /* of its stage, with the stage's first fold: products with a zero */
  int64_t accumulator_accesses = 0; /* sums that the memory below the columns reads or writes for it */
  int64_t vector_cycles = 0; /* with last_slice */
  int64_t lane_operations = 0; /* with last_slice: cycles of a lane, all elements together */
  int64_t output_bytes = 0;  /* with last_slice; 0: stays on the chip */
  int64_t kept_bytes = 0;    /* with last_slice: written to the activation memory */
};

struct Section {
  std::vector<Stage> stages;
  std::vector<Tiling> tilings;
  int64_t repeats = 1;
  int64_t part = 0; /* of a run: timing.h's Chain */
};

class Program {
 public:
  static constexpr int64_t MOST_FOLDS = int64_t{1} << 24;

  explicit Program(const Design& design) : design_(design) {}

  void add(const std::vector<Stage>& stages, int64_t repeats, const Mapping& mapping);
  /* What another one does, behind this, as a part of its own. */
  void append(const Program& other, int64_t part);

  const Design& design() const { return design_; }
  const std::vector<Section>& sections() const { return sections_; }
  /* These stop at the greatest 64-bit value. A program of more than MOST_FOLDS folds is not to be walked. */
  int64_t folds() const { return folds_; }
  int64_t macs() const { return macs_; }

 private:
  Design design_;
  std::vector<Section> sections_;
  int64_t folds_ = 0;
  int64_t macs_ = 0;
};

/* Walks the folds of a program in order. */
class Cursor {
 public:
  explicit Cursor(const Program& program) : Cursor(program, OPERANDS) {}

  bool done() const { return section_ == program_.sections().size(); }
  /* Of the run, that the fold belongs to; the greatest number where there is none. */
  int64_t part() const { return done() ? INT64_MAX : program_.sections()[section_].part; }
  const Fold& operator*() const { return fold_; }
  const Fold* operator->() const { return &fold_; }
  void next() {
    if (slice_ > 0 && slice_ + 2 < alike_slices_) { /* between the first and the last slice all are alike */
      fold_.slice = ++slice_;
    } else {
      advance();
    }
  }

  /* Where it is, from the outermost loop to the innermost: row, block of the row, strip; where strips come first strip,
   * row, block of the row. */
  enum Loop { SECTION, REPEAT, STAGE, GROUP, OUTER, MIDDLE, INNER, PATCH, SLICE, LOOPS };
  using Position = std::array<int64_t, LOOPS>;
  Position position() const;

  /* Iterations of a loop that are alike, from the present one to this one (exclusive): the same folds, but for where
   * they are. The last iteration of a loop is never among them, and the first has to be told apart by the caller. */
  int64_t alike_until(Loop loop);

  /* Skips whole iterations, all of which are alike. */
  void skip(Loop loop, int64_t iterations);

  /* How many folds come that differ from the present one in their slice alone; and past some of them. */
  int64_t slices_alike() const { return slice_ > 0 ? std::max<int64_t>(alike_slices_ - 2 - slice_, 0) : 0; }
  void skip_slices(int64_t count) { fold_.slice = slice_ += count; }

 protected:
  /* `operand`: what is wanted of the folds; OPERANDS: everything. */
  Cursor(const Program& program, Operand operand);
  void skip_within_block();

 private:
  const Stage& stage() const { return *now_; }
  const Tiling& tiling() const { return *tiling_; }
  void skip_empty();
  void advance();
  struct Box {
    int64_t places = 0, bytes = 0;
    int64_t fill = -1; /* the part of the bytes that is a fold's; -1: not known yet */
    bool operator==(const Box& other) const { return places == other.places && bytes == other.bytes; }
  };
  Box measure(int64_t block) const;
  /* What a strip takes of the depth. */
  struct Reduction {
    int64_t rows = 0, slices = 0;
    int64_t taken = 0;               /* rows whose activations enter the array, which may be more than it has rows for them */
    const int64_t* before = nullptr; /* as in Stored; null: all weights of all rows */
    int64_t number = -1;             /* of all groups' strips, where they differ */
  };
  void enter_strip();
  int64_t weights(int64_t depth, int64_t columns) const;
  int64_t group_passes() const;
  Loop kind_of(Loop loop) const; /* as if blocks came first: OUTER rows, MIDDLE blocks, INNER strips */
  bool rows_alike(int64_t row, int64_t other) const;
  bool step();
  void describe(bool same_weights, bool same_activations);
  void describe_fills();
  void describe_results(int64_t places, int64_t columns);

  const Program& program_;
  const Operand operand_;
  size_t section_ = 0;
  int64_t repeat_ = 0;
  size_t stage_ = 0;
  const Stage* now_ = nullptr; /* the stage */
  const Tiling* tiling_ = nullptr;
  int64_t group_ = 0, block_ = 0, strip_ = 0, patch_ = 0, slice_ = 0;
  Box box_; /* the block */
  Reduction reduction_;      /* of the strip */
  int64_t alike_slices_ = 0; /* those of a strip whose slices but the last are alike, else 0 */
  /* The blocks of this stage, and the rows of them, that are known to be alike. */
  int64_t alike_from_ = 0, alike_end_ = 0, rows_from_ = 0, rows_end_ = 0;
  Fold fold_;
};

/* Walks the folds that need a fresh tile of one operand: their `bytes` of it and `waits` alone are set. */
class TileCursor : public Cursor {
 public:
  TileCursor(const Program& program, Operand operand) : Cursor(program, operand), operand_(operand) { seek(); }
  void next() {
    skip_within_block();
    Cursor::next();
    seek();
  }

 private:
  void seek() {
    while (!done() && !(**this).fresh[operand_]) Cursor::next();
  }
  const Operand operand_;
};

}  // namespace asic

#endif
