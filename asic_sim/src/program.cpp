/* See program.h. */
#include "program.h"

#include <utility>

namespace asic {
namespace {

/* Bytes in the activation memory of a block; 4 bytes an element that was made on the chip. */
int64_t box_bytes(const Stage& stage, const std::array<int64_t, 4>& block) {
  int64_t bytes = times(stage.channels, stage.activation_bytes ? stage.activation_bytes : 4);
  for (int axis = 0; axis < 4; axis++) bytes = times(bytes, stage.axes[axis].touched_at_most(block[axis]));
  return bytes;
}

int64_t rows_of(const std::array<int64_t, 4>& block) {
  return times(times(block[0], block[1]), times(block[2], block[3]));
}

}  // namespace

Tiling tile_stage(const Design& design, const Stage& stage, bool resident) {
  Tiling tiling;
  tiling.resident = resident;
  tiling.strips = ceil_div(stage.columns, design.array_columns);
  tiling.slices = ceil_div(stage.depth(), design.array_rows);
  const int64_t half = design.activation_sram_bytes / 2;
  int64_t most_rows = design.accumulator_entries / 2;
  if (!resident) {
    const int64_t height = std::clamp<int64_t>(stage.depth(), 1, design.array_rows);
    const int64_t row = height * (stage.activation_bytes ? stage.activation_bytes : 4);
    most_rows = std::max<int64_t>(1, std::min(most_rows, half / row));
  }
  const auto fits = [&](const std::array<int64_t, 4>& block) {
    return rows_of(block) <= most_rows && (!resident || box_bytes(stage, block) <= half);
  };
  /* innermost axis first; a further one is cut only where the inner ones are whole */
  for (int axis = 3; axis >= 0; axis--) {
    int64_t low = 1, high = std::min(stage.axes[axis].outputs, most_rows);
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      tiling.block[axis] = middle;
      if (fits(tiling.block)) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    tiling.block[axis] = low;
    if (low < stage.axes[axis].outputs) break;
  }
  tiling.block_count = 1;
  for (int axis = 0; axis < 4; axis++) {
    tiling.blocks[axis] = ceil_div(stage.axes[axis].outputs, tiling.block[axis]);
    tiling.block_count = times(tiling.block_count, tiling.blocks[axis]);
  }
  return tiling;
}

void Program::add(const std::vector<Stage>& stages, int64_t repeats, bool resident) {
  Section section{stages, {}, repeats};
  for (const Stage& stage : stages) {
    const bool fits = box_bytes(stage, {1, 1, 1, 1}) <= design_.activation_sram_bytes / 2;
    section.tilings.push_back(tile_stage(design_, stage, resident && fits));
    const int64_t groups = times(stage.groups, repeats);
    folds_ = plus(folds_, times(groups, section.tilings.back().folds()));
    macs_ = plus(macs_, times(groups, times(stage.places(), times(stage.columns, stage.depth()))));
  }
  sections_.push_back(std::move(section));
}

Cursor::Cursor(const Program& program) : program_(program) {
  skip_empty();
  if (!done()) {
    enter_block();
    describe(false);
  }
}

/* Past sections and stages that have nothing to do. */
void Cursor::skip_empty() {
  while (!done()) {
    const Section& section = program_.sections()[section_];
    if (section.repeats == 0 || section.stages.empty()) {
      section_++;
    } else if (stage_ == section.stages.size()) {
      stage_ = 0;
      if (++repeat_ == section.repeats) {
        repeat_ = 0;
        section_++;
      }
    } else if (tiling().folds() == 0) {
      bool any = false;
      for (const Tiling& each : section.tilings) any = any || each.folds() > 0;
      if (any) {
        stage_++;
      } else { /* repeated or not, there is nothing in it */
        section_++;
        stage_ = 0;
      }
    } else {
      return;
    }
  }
}

void Cursor::enter_block() {
  const Stage& s = stage();
  int64_t rest = block_;
  block_rows_ = 1;
  block_bytes_ = s.channels * s.activation_bytes;
  for (int axis = 3; axis >= 0; axis--) {
    const int64_t first = rest % tiling().blocks[axis] * tiling().block[axis];
    const int64_t count = std::min(tiling().block[axis], s.axes[axis].outputs - first);
    rest /= tiling().blocks[axis];
    block_rows_ *= count;
    block_bytes_ = times(block_bytes_, s.axes[axis].touched(first, count));
  }
}

void Cursor::describe(bool same_weights) {
  const Stage& s = stage();
  const Tiling& t = tiling();
  const Design& design = program_.design();
  const bool opens_block = strip_ == 0 && slice_ == 0;
  const bool opens_stage = opens_block && group_ == 0 && block_ == 0;
  const bool last_slice = slice_ == t.slices - 1;
  const bool ends_stage = last_slice && strip_ == t.strips - 1 && block_ == t.block_count - 1 && group_ == s.groups - 1;
  fold_.block = block_;
  fold_.strip = strip_;
  fold_.slice = slice_;
  fold_.rows = block_rows_;
  fold_.slice_height = std::min(design.array_rows, s.depth() - slice_ * design.array_rows);
  fold_.strip_width = std::min(design.array_columns, s.columns - strip_ * design.array_columns);
  fold_.new_weights = !same_weights;
  fold_.weight_bytes =
      s.weights_kept && (repeat_ > 0 || block_ > 0) ? 0 : fold_.slice_height * fold_.strip_width * s.weight_bytes;
  fold_.new_activations = t.resident ? opens_block : true;
  fold_.activation_bytes = t.resident ? block_bytes_ : block_rows_ * fold_.slice_height * s.activation_bytes;
  if (opens_stage) fold_.activation_bytes += s.opening_bytes;
  fold_.waits = s.dependent && opens_stage;
  fold_.first_slice = slice_ == 0;
  fold_.last_slice = last_slice;
  fold_.vector_cycles = 0;
  fold_.output_bytes = 0;
  if (last_slice) {
    const int64_t elements = block_rows_ * fold_.strip_width;
    fold_.vector_cycles = ceil_div(elements, design.vector_lanes) * s.lane_cycles;
    fold_.output_bytes = elements * s.output_bytes;
  }
  if (ends_stage) {
    fold_.vector_cycles += ceil_div(s.closing_elements, design.vector_lanes) * s.closing_lane_cycles;
    fold_.output_bytes += s.closing_bytes;
  }
}

void Cursor::next() {
  const size_t section = section_, stage_before = stage_;
  const int64_t group = group_, strip = strip_, slice = slice_;
  bool moved = false; /* to another block, stage or section */
  if (++slice_ == tiling().slices) {
    slice_ = 0;
    if (++strip_ == tiling().strips) {
      strip_ = 0;
      moved = true;
      if (++block_ == tiling().block_count) {
        block_ = 0;
        if (++group_ == stage().groups) {
          group_ = 0;
          stage_++;
          skip_empty();
        }
      }
    }
  }
  if (done()) return;
  if (moved) enter_block();
  describe(section == section_ && stage_before == stage_ && group == group_ && strip == strip_ && slice == slice_);
}

}  // namespace asic
