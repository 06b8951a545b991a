/* See program.h. */
#include "program.h"

#include <stdexcept>
#include <utility>

namespace asic {

int64_t places_of(const std::array<int64_t, 4>& block) {
  return times(times(block[0], block[1]), times(block[2], block[3]));
}

namespace {

/* Bytes of an activation on the chip; 4 of one that was made there. */
int64_t activation_width(const Stage& stage) { return stage.activation_bytes ? stage.activation_bytes : 4; }

/* Bytes in the activation memory of a block. */
int64_t box_bytes(const Stage& stage, const std::array<int64_t, 4>& block) {
  int64_t bytes = times(stage.channels, activation_width(stage));
  for (int axis = 0; axis < 4; axis++) bytes = times(bytes, stage.axes[axis].touched_at_most(block[axis]));
  return bytes;
}

/* The largest box of at most most_places that fits; innermost axis first, a further one is cut only where the inner
 * ones are whole. */
void cut_blocks(const Stage& stage, int64_t most_places, int64_t most_bytes, Tiling& tiling) {
  const auto fits = [&](const std::array<int64_t, 4>& block) {
    return places_of(block) <= most_places && (!tiling.resident || box_bytes(stage, block) <= most_bytes);
  };
  for (int axis = 3; axis >= 0; axis--) {
    int64_t low = 1, high = std::min(stage.axes[axis].outputs, most_places);
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
}

/* How many outputs a block has along an axis, and how many positions they read. */
std::array<int64_t, 2> extent(const Stage& stage, const Tiling& tiling, int axis, int64_t block) {
  const int64_t first = block * tiling.block[axis];
  const int64_t count = std::min(tiling.block[axis], stage.axes[axis].outputs - first);
  return {count, stage.axes[axis].touched(first, count)};
}

/* Blocks of a row: those along the innermost axis that is cut, if they are not all alike. */
int64_t row_of(const Stage& stage, const Tiling& tiling) {
  int axis = 3;
  while (axis > 0 && tiling.blocks[axis] == 1) axis--;
  if (tiling.blocks[axis] > Program::MOST_FOLDS) return 1; /* nobody walks so many */
  const std::array<int64_t, 2> first = extent(stage, tiling, axis, 0);
  for (int64_t block = 1; block < tiling.blocks[axis]; block++) {
    if (extent(stage, tiling, axis, block) != first) return tiling.blocks[axis];
  }
  return 1;
}

/* All blocks' patches together: a block is whole or what is left along each axis, so there are 16 kinds of them. */
int64_t count_patches(const Stage& stage, const Tiling& tiling) {
  if (!tiling.patch) return tiling.block_count;
  int64_t total = 0;
  for (int kind = 0; kind < 16; kind++) {
    int64_t places = 1, count = 1;
    for (int axis = 0; axis < 4; axis++) {
      const int64_t outputs = stage.axes[axis].outputs, block = tiling.block[axis];
      const bool rest = kind >> axis & 1;
      places = times(places, rest ? outputs % block : block);
      count = times(count, rest ? outputs % block != 0 : outputs / block);
    }
    total = plus(total, times(count, tiling.patches(places)));
  }
  return total;
}

/* Of all strips of a group, or of a mean one, rounded down: slices and rows of the depth. */
std::array<int64_t, 2> reductions_of(const Stage& stage, const Tiling& tiling) {
  if (!stage.indexed()) return {times(tiling.strips, tiling.slices), times(tiling.strips, stage.depth())};
  int64_t slices = 0, rows = 0;
  for (int64_t strip = 0; strip < stage.stored->strips(); strip++) {
    slices += ceil_div(stage.stored->rows(strip), tiling.slice);
    rows += stage.stored->rows(strip);
  }
  return {slices / stage.groups, rows / stage.groups};
}

/* Bytes of a strip's weights at most. */
int64_t most_strip_bytes(const Stage& stage, const Tiling& tiling) {
  if (!stage.indexed()) return stage.stored_bytes(times(stage.depth(), std::min(tiling.strip, stage.columns)));
  int64_t most = 0;
  for (int64_t strip = 0; strip < stage.stored->strips(); strip++) {
    most = std::max(most, stage.stored->strip_bytes(strip));
  }
  return most;
}

/* Products that the array makes for an output place, of all groups. */
int64_t products_of(const Stage& stage, const Tiling& tiling) {
  if (!stage.indexed()) return times(stage.groups, times(stage.columns, stage.depth()));
  int64_t products = 0;
  for (int64_t strip = 0; strip < stage.stored->strips(); strip++) {
    const int64_t columns = std::min(tiling.strip, stage.columns - strip % tiling.strips * tiling.strip);
    products = plus(products, times(stage.stored->rows(strip), columns));
  }
  return products;
}

/* Counts `index` up to `count`; true where it begins again. */
bool wraps(int64_t& index, int64_t count) {
  if (++index < count) return false;
  index = 0;
  return true;
}

}  // namespace

Tiling tile_stage(const Design& design, const Stage& stage, const Mapping& mapping) {
  Tiling tiling;
  const int64_t half = design.activation_sram_bytes / 2, bank = design.accumulator_entries / 2;
  const int64_t depth = stage.depth(), width = activation_width(stage);
  const int64_t fifo_depth = std::max<int64_t>(1, times(design.weight_fifo_tiles, design.array_rows) / 2);
  const int64_t array_strips = times(stage.groups, ceil_div(stage.columns, design.array_columns));
  if (stage.stored && !stage.stored->fits(array_strips, depth)) {
    throw std::invalid_argument("the lists of stored weights do not belong to the stage");
  }
  if (stage.indexed() && design.dataflow == Dataflow::input) {
    throw std::invalid_argument("weights with an index do not stream through the array");
  }
  tiling.resident = stage.activations_here || (mapping.resident && box_bytes(stage, {1, 1, 1, 1}) <= half);
  tiling.strip = design.array_columns;
  tiling.slice = design.array_rows;
  int64_t most_places = mapping.most_places;
  switch (design.dataflow) {
    case Dataflow::weight: {
      most_places = std::min(most_places, bank);
      const int64_t row = std::clamp<int64_t>(depth, 1, tiling.slice) * width;
      if (!tiling.resident) most_places = std::min(most_places, half / row);
      break;
    }
    case Dataflow::input: {
      most_places = std::min(most_places, design.array_columns);
      tiling.strip = std::min(bank, std::max<int64_t>(stage.columns, 1));
      const int64_t column = std::max<int64_t>(stage.stored_bytes(std::max<int64_t>(depth, 1)), 1);
      tiling.strip_resident = column <= design.weight_sram_bytes / 2;
      const int64_t room = tiling.strip_resident
                               ? design.weight_sram_bytes / 2 / column
                               : std::max<int64_t>(1, design.weight_fifo_tiles * design.array_columns / 2);
      tiling.strip = std::min(tiling.strip, room);
      break;
    }
    case Dataflow::output: {
      tiling.slice = fifo_depth;
      tiling.patch = design.array_rows;
      const int64_t row = std::clamp<int64_t>(depth, 1, tiling.slice) * width;
      if (!tiling.resident) {
        /* halves of the memory hold the slice of a patch */
        tiling.slice = std::max<int64_t>(1, std::min(tiling.slice, half / (width * design.array_rows)));
        most_places = std::min(most_places, std::max<int64_t>(design.array_rows, half / row));
      }
      break;
    }
  }
  cut_blocks(stage, std::max<int64_t>(1, most_places), stage.activations_here ? INT64_MAX : half, tiling);
  tiling.row = row_of(stage, tiling);
  tiling.strips = ceil_div(stage.columns, tiling.strip);
  if (design.dataflow == Dataflow::input) {
    tiling.strips_first = true;
  } else if (tiling.strips > 1 && tiling.block_count > 1) { /* else it is the same */
    tiling.strips_first = mapping.strips_first;
    tiling.strip_resident = tiling.strips_first && most_strip_bytes(stage, tiling) <= design.weight_sram_bytes;
  }
  int64_t rows = stage.indexed() ? 0 : depth; /* of a strip at most */
  for (int64_t strip = 0; stage.indexed() && strip < array_strips; strip++) {
    rows = std::max(rows, stage.stored->rows(strip));
  }
  tiling.slices = ceil_div(rows, tiling.slice);
  const auto [passes, all_rows] = reductions_of(stage, tiling);
  tiling.passes = passes;
  tiling.rows = all_rows;
  tiling.folds = times(count_patches(stage, tiling), passes);
  return tiling;
}

void Program::add(const std::vector<Stage>& stages, int64_t repeats, const Mapping& mapping) {
  Section section{stages, {}, repeats};
  for (const Stage& stage : stages) {
    section.tilings.push_back(tile_stage(design_, stage, mapping));
    const int64_t groups = times(stage.groups, repeats);
    folds_ = plus(folds_, times(groups, section.tilings.back().folds));
    macs_ = plus(macs_, times(repeats, times(stage.places(), products_of(stage, section.tilings.back()))));
  }
  sections_.push_back(std::move(section));
}

void Program::append(const Program& other, int64_t part) {
  for (Section section : other.sections_) {
    section.part = part;
    sections_.push_back(std::move(section));
  }
  folds_ = plus(folds_, other.folds_);
  macs_ = plus(macs_, other.macs_);
}

Cursor::Cursor(const Program& program, Operand operand) : program_(program), operand_(operand) {
  skip_empty();
  if (!done()) {
    box_ = measure(block_);
    enter_strip();
    describe(false, false);
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
    } else if (section.tilings[stage_].folds == 0 || section.stages[stage_].groups == 0) {
      bool any = false;
      for (size_t i = 0; i < section.stages.size(); i++) {
        any = any || (section.tilings[i].folds > 0 && section.stages[i].groups > 0);
      }
      if (any) {
        stage_++;
      } else { /* repeated or not, there is nothing in it */
        section_++;
        stage_ = 0;
      }
    } else {
      now_ = &section.stages[stage_];
      tiling_ = &section.tilings[stage_];
      return;
    }
  }
}

Cursor::Box Cursor::measure(int64_t block) const {
  const Stage& s = stage();
  const Tiling& t = tiling();
  Box found{1, s.channels * s.fetched_bytes(), -1};
  for (int axis = 3; axis >= 0; axis--) {
    const std::array<int64_t, 2> along = extent(s, t, axis, block % t.blocks[axis]);
    block /= t.blocks[axis];
    found.places *= along[0];
    found.bytes = times(found.bytes, along[1]);
  }
  return found;
}

/* Block by block, where rows are more than a block. */
bool Cursor::rows_alike(int64_t row, int64_t other) const {
  const Tiling& t = tiling();
  int64_t block = row * t.row, other_block = other * t.row;
  for (int axis = 3; axis >= 0; axis--) {
    if (extent(stage(), t, axis, block % t.blocks[axis]) != extent(stage(), t, axis, other_block % t.blocks[axis])) {
      return false;
    }
    block /= t.blocks[axis];
    other_block /= t.blocks[axis];
  }
  return true;
}

void Cursor::enter_strip() {
  const Stage& s = stage();
  const Tiling& t = tiling();
  if (!s.indexed()) {
    reduction_ = {s.depth(), t.slices, s.depth(), nullptr, -1};
    alike_slices_ = t.slices;
    return;
  }
  const int64_t number = group_ * t.strips + strip_, rows = s.stored->rows(number);
  reduction_ = {rows, ceil_div(rows, t.slice), s.stored->taken[static_cast<size_t>(number)], s.stored->strip(number),
                number};
  alike_slices_ = 0;
}

/* Stored weights of the slice. */
int64_t Cursor::weights(int64_t depth, int64_t columns) const {
  if (!reduction_.before) return depth * columns;
  const int64_t first = slice_ * tiling().slice;
  return reduction_.before[first + depth] - reduction_.before[first];
}

/* Slices of all strips of the group. */
int64_t Cursor::group_passes() const {
  const Tiling& t = tiling();
  if (!reduction_.before) return t.strips * t.slices;
  int64_t slices = 0;
  for (int64_t strip = 0; strip < t.strips; strip++) {
    slices += ceil_div(stage().stored->rows(group_ * t.strips + strip), t.slice);
  }
  return slices;
}

Cursor::Position Cursor::position() const {
  const int64_t row = done() ? 0 : block_ / tiling().row, block = done() ? 0 : block_ % tiling().row;
  const bool strips_first = !done() && tiling().strips_first;
  return {static_cast<int64_t>(section_), repeat_, static_cast<int64_t>(stage_), group_, strips_first ? strip_ : row,
          strips_first ? row : block, strips_first ? block : strip_, patch_, slice_};
}

/* Which of the loops within a group it is. */
Cursor::Loop Cursor::kind_of(Loop loop) const {
  if (!tiling().strips_first || loop < OUTER || loop > INNER) return loop;
  return loop == OUTER ? INNER : loop == MIDDLE ? OUTER : MIDDLE;
}

int64_t Cursor::alike_until(Loop loop) {
  const Tiling& t = tiling();
  switch (kind_of(loop)) {
    case REPEAT:
      return program_.sections()[section_].repeats - 1;
    case GROUP:
      return reduction_.before ? group_ + 1 : stage().groups - 1;
    case PATCH:
      return t.patches(box_.places) - 1;
    case INNER:
      return reduction_.before ? strip_ + 1 : t.strips - 1;
    case OUTER: {
      const int64_t row = block_ / t.row, rows = t.block_count / t.row;
      if (row < rows_from_ || row >= rows_end_) {
        rows_from_ = row;
        rows_end_ = row + 1;
        while (rows_end_ < rows && rows_alike(rows_end_, row)) rows_end_++;
      }
      return std::min(rows_end_, rows - 1);
    }
    default: {
      if (block_ < alike_from_ || block_ >= alike_end_) {
        alike_from_ = block_;
        alike_end_ = block_ + 1;
        while (alike_end_ < t.block_count && measure(alike_end_) == box_) alike_end_++;
      }
      const int64_t row_begin = block_ / t.row * t.row;
      return std::min(alike_end_ - row_begin, t.row - 1);
    }
  }
}

void Cursor::skip(Loop loop, int64_t iterations) {
  switch (kind_of(loop)) {
    case REPEAT:
      repeat_ += iterations;
      break;
    case GROUP:
      group_ += iterations;
      break;
    case PATCH:
      patch_ += iterations;
      break;
    case INNER:
      strip_ += iterations;
      break;
    case OUTER:
      block_ += iterations * tiling().row;
      break;
    default:
      block_ += iterations;
  }
}

void Cursor::describe(bool same_weights, bool same_activations) {
  const Stage& s = stage();
  const Tiling& t = tiling();
  const Design& design = program_.design();
  const bool opens_stage = group_ == 0 && block_ == 0 && strip_ == 0 && patch_ == 0 && slice_ == 0;
  const int64_t depth = std::min(t.slice, reduction_.rows - slice_ * t.slice);
  const int64_t entering = reduction_.before ? ceil_div(times(depth, reduction_.taken), reduction_.rows) : depth;
  const int64_t columns = std::min(t.strip, s.columns - strip_ * t.strip);
  const int64_t places = t.patch ? std::min(t.patch, box_.places - patch_ * t.patch) : box_.places;
  const int64_t weights = this->weights(depth, columns), activations = places * entering;
  const int64_t strip_bytes =
      reduction_.before ? s.stored->strip_bytes(reduction_.number) : s.stored_bytes(times(s.depth(), columns));
  const int64_t decoding = s.stored && s.stored->decoded ? ceil_div(weights, s.stored->decoded) : 0;
  const bool again = s.weights_kept && repeat_ > 0; /* every weight has been used before */
  /* every weight of the group, or of the strip, has been used before */
  const bool on_chip = again || ((s.weights_kept || t.strip_resident) && block_ > 0) ||
                       (patch_ > 0 && strip_bytes <= design.weight_sram_bytes);
  fold_.block = block_;
  fold_.patch = patch_;
  fold_.strip = strip_;
  fold_.slice = slice_;
  fold_.fresh = {!same_weights, !same_activations};
  fold_.bytes = {s.stored_bytes(weights), activations * s.fetched_bytes()};
  fold_.reads = {s.stored_bytes(weights), activations * activation_width(s)};
  fold_.lookups = s.stored && s.stored->table_bytes ? weights : 0;
  fold_.laying = design.load_cycles();
  switch (design.dataflow) {
    case Dataflow::weight:
      fold_.cycles = times(places, s.operand_cycles);
      fold_.height = depth;
      fold_.width = columns;
      fold_.laying = std::max(fold_.laying, decoding);
      if (design.whole_weight_tiles && !reduction_.before) {
        fold_.bytes[WEIGHTS] = s.stored_bytes(design.array_rows * design.array_columns);
      }
      if (same_weights) fold_.reads[WEIGHTS] = fold_.lookups = 0;
      if (t.resident) {
        fold_.fresh[ACTIVATIONS] = (t.strips_first || strip_ == 0) && slice_ == 0;
        fold_.bytes[ACTIVATIONS] = box_.bytes;
      } else {
        fold_.fresh[ACTIVATIONS] = true;
      }
      break;
    case Dataflow::input:
      fold_.cycles = times(columns, s.operand_cycles);
      fold_.height = depth;
      fold_.width = places;
      if (t.strip_resident) {
        fold_.fresh[WEIGHTS] = block_ == 0 && slice_ == 0;
        fold_.bytes[WEIGHTS] = strip_bytes;
      } else {
        fold_.fresh[WEIGHTS] = true;
      }
      if (same_activations) fold_.reads[ACTIVATIONS] = 0;
      if (t.resident) fold_.bytes[ACTIVATIONS] = slice_ == 0 ? box_.bytes : 0;
      break;
    case Dataflow::output:
      fold_.cycles = times(depth, s.operand_cycles);
      fold_.height = places;
      fold_.width = columns;
      fold_.fresh[WEIGHTS] = true;
      if (t.resident) {
        fold_.fresh[ACTIVATIONS] = (t.strips_first || strip_ == 0) && patch_ == 0 && slice_ == 0;
        fold_.bytes[ACTIVATIONS] = box_.bytes;
      } else {
        fold_.fresh[ACTIVATIONS] = true;
      }
      break;
  }
  fold_.lasting = design.dataflow == Dataflow::weight ? fold_.cycles : std::max(fold_.cycles, decoding);
  if (on_chip) fold_.bytes[WEIGHTS] = 0;
  if (design.weight_sram.limits() || design.activation_sram.limits()) describe_fills();
  if (opens_stage) fold_.bytes[ACTIVATIONS] += s.opening_bytes;
  if (opens_stage && repeat_ == 0 && s.stored) fold_.bytes[WEIGHTS] += s.stored->table_bytes;
  fold_.waits = s.dependent && opens_stage;
  if (operand_ == OPERANDS) describe_results(places, columns);
}

/* A tile's bytes, shared out over the folds that use it. */
void Cursor::describe_fills() {
  const Tiling& t = tiling();
  const bool input = program_.design().dataflow == Dataflow::input;
  fold_.fills = fold_.bytes;
  if (input && t.strip_resident) fold_.fills[WEIGHTS] = ceil_div(fold_.bytes[WEIGHTS], t.block_count * t.slices);
  if (!t.resident) return;
  if (box_.fill < 0) {
    box_.fill = ceil_div(box_.bytes, input ? t.slices : group_passes() * t.patches(box_.places));
  }
  fold_.fills[ACTIVATIONS] = box_.fill;
}

void Cursor::describe_results(int64_t places, int64_t columns) {
  const Stage& s = stage();
  const Tiling& t = tiling();
  const Design& design = program_.design();
  const int64_t elements = places * columns;
  fold_.first_slice = slice_ == 0;
  fold_.last_slice = slice_ == reduction_.slices - 1;
  const bool opens_stage = group_ == 0 && block_ == 0 && strip_ == 0 && patch_ == 0 && slice_ == 0;
  fold_.gated_macs = 0;
  if (opens_stage && s.stored && s.stored->multiplied >= 0) {
    fold_.gated_macs = times(s.places(), products_of(s, t) - s.stored->multiplied);
  }
  /* in the array: written when finished; else written for each slice and read to be added to; read by the lanes */
  const int64_t writes = design.dataflow == Dataflow::output ? fold_.last_slice : 1 + !fold_.first_slice;
  fold_.accumulator_accesses = times(elements, writes + fold_.last_slice);
  fold_.vector_cycles = fold_.lane_operations = fold_.output_bytes = fold_.kept_bytes = 0;
  if (!fold_.last_slice) return;
  fold_.vector_cycles = ceil_div(elements, design.vector_lanes) * s.lane_cycles;
  fold_.lane_operations = times(elements, s.lane_cycles);
  fold_.output_bytes = elements * s.output_bytes;
  fold_.kept_bytes = elements * s.kept_bytes;
  const bool ends_stage = patch_ == t.patches(box_.places) - 1 && strip_ == t.strips - 1 &&
                          block_ == t.block_count - 1 && group_ == s.groups - 1;
  if (ends_stage) {
    fold_.vector_cycles += ceil_div(s.closing_elements, design.vector_lanes) * s.closing_lane_cycles;
    fold_.lane_operations = plus(fold_.lane_operations, times(s.closing_elements, s.closing_lane_cycles));
    fold_.output_bytes += s.closing_bytes;
    fold_.kept_bytes += s.closing_kept_bytes;
  }
}

/* One fold on; true where it belongs to another block, stage or section. */
bool Cursor::step() {
  const Tiling& t = tiling();
  if (!wraps(slice_, reduction_.slices)) return false;
  if (!wraps(patch_, t.patches(box_.places))) return false;
  if (t.strips_first) {
    if (!wraps(block_, t.block_count) || !wraps(strip_, t.strips)) return true;
  } else {
    if (!wraps(strip_, t.strips)) return false;
    if (!wraps(block_, t.block_count)) return true;
  }
  if (wraps(group_, stage().groups)) {
    stage_++;
    alike_end_ = rows_end_ = 0;
    skip_empty();
  }
  return true;
}

/* To the last fold of those that share the tile, where they are known to share it. */
void Cursor::skip_within_block() {
  const Tiling& t = tiling();
  if (program_.design().dataflow == Dataflow::input) {
    if (operand_ == WEIGHTS && t.strip_resident) {
      slice_ = t.slices - 1;
      block_ = t.block_count - 1;
    }
  } else if (operand_ == ACTIVATIONS && t.resident) {
    if (!t.strips_first) strip_ = t.strips - 1;
    enter_strip();
    slice_ = reduction_.slices - 1;
    patch_ = t.patches(box_.places) - 1;
  }
}

void Cursor::advance() {
  const size_t section = section_, stage_before = stage_;
  const int64_t repeat = repeat_, group = group_, block = block_, strip = strip_, slice = slice_;
  const bool moved = step();
  if (done()) return;
  if (moved) box_ = measure(block_);
  if (slice_ == 0) enter_strip();
  const bool same = section == section_ && stage_before == stage_ && group == group_ && slice == slice_;
  /* a repeat's weights are those of the one before, its activations are not */
  describe(same && strip == strip_, same && block == block_ && repeat == repeat_);
}

}  // namespace asic
