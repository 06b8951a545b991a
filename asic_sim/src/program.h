/* What the array is to do, as a sequence of folds.
 *
 * A stage is a matrix product: for each group, M = output places (four axes: batch and three of space), K = taps *
 * channels, N = columns. It is cut into blocks of output places (boxes, so that what a block reads is a box too),
 * strips of array_columns columns and slices of array_rows of K. A fold is one slice of one strip for one block:
 *
 *     for group { for block { for strip { for slice { lay the weights in, stream the block's rows } } } }
 *
 * The slices of a strip add up in one accumulator bank; after the last one the strip's tile passes the vector unit
 * and leaves for DRAM.
 *
 * Activations come from DRAM either once for a block, as the box of positions that its windows touch, from which
 * every fold of the block is addressed (resident), or slice by slice, already gathered (streamed), where such a box
 * does not fit into half of the activation memory. Weights come tile by tile into a FIFO; a tile that is the one
 * already in the array is not loaded again, and weights that are kept on the chip cost no DRAM traffic after their
 * first use.
 *
 * A section repeats its stages (the steps of a recurrent layer). A dependent stage cannot begin before the stage
 * before it has left the vector unit.
 */
#ifndef QUATREFOIL_ASIC_PROGRAM_H
#define QUATREFOIL_ASIC_PROGRAM_H

#include <array>
#include <vector>

#include "design.h"
#include "geometry.h"

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

  int64_t depth() const { return times(times(axes[1].taps, axes[2].taps), times(axes[3].taps, channels)); }
  int64_t places() const {
    return times(times(axes[0].outputs, axes[1].outputs), times(axes[2].outputs, axes[3].outputs));
  }
};

/* How a stage is cut. */
struct Tiling {
  bool resident = true;
  std::array<int64_t, 4> block{1, 1, 1, 1};  /* output places of a block along each axis */
  std::array<int64_t, 4> blocks{1, 1, 1, 1}; /* how many along each axis */
  int64_t block_count = 0, strips = 1, slices = 1;

  int64_t folds() const { return times(times(block_count, strips), slices); } /* of a group */
};

/* The largest blocks that the accumulators and the activation memory hold, for either way to bring activations. */
Tiling tile_stage(const Design& design, const Stage& stage, bool resident);

struct Fold {
  int64_t block = 0, strip = 0, slice = 0; /* where it is in its group */
  int64_t rows = 0;           /* activations that stream through: one for each output place of the block */
  int64_t slice_height = 0;   /* rows of the array in use */
  int64_t strip_width = 0;    /* columns of the array in use */
  bool new_weights = false;   /* a tile that is not in the array already */
  int64_t weight_bytes = 0;   /* 0: the tile is on the chip */
  bool new_activations = false;
  int64_t activation_bytes = 0; /* 0: they are on the chip */
  bool waits = false;           /* for the vector unit to end the tile before */
  bool first_slice = false, last_slice = false;
  int64_t vector_cycles = 0; /* with last_slice */
  int64_t output_bytes = 0;  /* with last_slice; 0: stays on the chip */
};

struct Section {
  std::vector<Stage> stages;
  std::vector<Tiling> tilings;
  int64_t repeats = 1;
};

class Program {
 public:
  static constexpr int64_t MOST_FOLDS = int64_t{1} << 24;

  explicit Program(const Design& design) : design_(design) {}

  /* `resident`: activations come as boxes wherever a box fits, else as slices. */
  void add(const std::vector<Stage>& stages, int64_t repeats, bool resident);

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
  explicit Cursor(const Program& program);

  bool done() const { return section_ == program_.sections().size(); }
  const Fold& operator*() const { return fold_; }
  const Fold* operator->() const { return &fold_; }
  void next();
  /* On to the next fold, this one included, that brings new weights or activations; done() when there is none. */
  void seek(bool Fold::* flag) {
    while (!done() && !(fold_.*flag)) next();
  }

 private:
  const Stage& stage() const { return program_.sections()[section_].stages[stage_]; }
  const Tiling& tiling() const { return program_.sections()[section_].tilings[stage_]; }
  void skip_empty();
  void enter_block();
  void describe(bool same_weights);

  const Program& program_;
  size_t section_ = 0;
  int64_t repeat_ = 0;
  size_t stage_ = 0;
  int64_t group_ = 0, block_ = 0, strip_ = 0, slice_ = 0;
  int64_t block_rows_ = 0, block_bytes_ = 0;
  Fold fold_;
};

}  // namespace asic

#endif
