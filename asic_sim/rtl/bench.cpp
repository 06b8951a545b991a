/* The test bench around a generated accelerator: memory and nothing else. It lowers a program as the simulator does,
 * hands folds to the queue, says what has arrived over the simulator's own DRAM port (reference.cpp, included for it),
 * and counts cycles. When to load, start and drain is the Verilog's business.
 *
 * asic_sim/rtl/verilator.py compiles it with the model that Verilator makes, as a library with the two functions at the end. */
#include <verilated.h>

#include <cstring>
#include <memory>
#include <stdexcept>

#include "Vaccelerator.h"
#include "reference.cpp"

namespace {

using namespace asic;

/* Bits of a port, which Verilator makes an integer or, where it is wide, words of 32 bits. */
template <typename Port>
void put(Port& port, int64_t bit, int width, int32_t value) {
  const uint64_t field = ((uint64_t{1} << width) - 1) << bit;
  port = static_cast<Port>((port & ~field) | ((static_cast<uint64_t>(static_cast<int64_t>(value)) << bit) & field));
}
template <std::size_t Words>
void put(VlWide<Words>& port, int64_t bit, int width, int32_t value) {
  for (int i = 0; i < width; i++) { /* a field may straddle words */
    const int64_t at = bit + i;
    const uint32_t one = uint32_t{1} << (at % 32);
    port[at / 32] = (port[at / 32] & ~one) | ((value >> i) & 1 ? one : 0);
  }
}
template <typename Port>
int32_t word(const Port& port, int64_t index) {
  return static_cast<int32_t>(port >> (32 * index));
}
template <std::size_t Words>
int32_t word(const VlWide<Words>& port, int64_t index) {
  return static_cast<int32_t>(port[index]);
}
template <typename Port>
bool bit(const Port& port, int64_t index) {
  return (port >> index) & 1;
}
template <std::size_t Words>
bool bit(const VlWide<Words>& port, int64_t index) {
  return (port[index / 32] >> (index % 32)) & 1;
}

class Accelerator : public Vaccelerator {
 public:
  Accelerator() : Vaccelerator(new VerilatedContext) {
    rst = 1;
    for (int i = 0; i < 4; i++) tick();
    rst = 0;
  }
  void tick() {
    clk = 0;
    eval();
    clk = 1;
    eval();
  }
  /* Outputs that follow from the inputs of this cycle. */
  void settle() {
    clk = 0;
    eval();
  }
};

/* The widths that the Verilog was made with. */
struct Widths {
  int64_t activation, weight, value;
};

/* What the lanes do with a layer's sums. `bias` and `multiplier` (float32, as bits): one for each of its columns. */
struct Ending {
  const int32_t* bias;
  const uint32_t* multiplier;
  bool clips;
  int64_t clip_low, clip_high;
  bool requantizes;
  int64_t zero_point, lowest, highest;
};

/* The numbers of one stage without groups: a (places, depth), gathered where windows slide, w (depth, columns), and out
 * (places, columns). Null pointers: timing alone. */
struct Numbers {
  const int16_t* a;
  const int16_t* w;
  int32_t* out;
};

/* They by folds. A block's places are a box of the stage's four axes, the last axis innermost. */
class Operands {
 public:
  Operands(const Program& program, const Numbers& numbers)
      : numbers_(numbers),
        stage_(program.sections().front().stages.front()),
        tiling_(program.sections().front().tilings.front()),
        depth_(stage_.depth()) {}

  int64_t columns() const { return stage_.columns; }
  int64_t first_column(const Fold& fold) const { return fold.strip * tiling_.strip; }
  int32_t activation(const Fold& fold, int64_t place, int64_t k) const {
    return numbers_.a[row(fold, place) * depth_ + fold.slice * tiling_.slice + k];
  }
  int32_t weight(const Fold& fold, int64_t k, int64_t column) const {
    return numbers_.w[(fold.slice * tiling_.slice + k) * stage_.columns + first_column(fold) + column];
  }
  void put(const Fold& fold, int64_t place, int64_t column, int32_t value) const {
    numbers_.out[row(fold, place) * stage_.columns + first_column(fold) + column] = value;
  }

 private:
  int64_t row(const Fold& fold, int64_t place) const {
    int64_t block = fold.block, left = fold.patch * tiling_.patch + place, found = 0, pace = 1;
    for (int axis = 3; axis >= 0; axis--) {
      const int64_t outputs = stage_.axes[axis].outputs, first = block % tiling_.blocks[axis] * tiling_.block[axis];
      const int64_t count = std::min(tiling_.block[axis], outputs - first);
      found += (first + left % count) * pace;
      block /= tiling_.blocks[axis];
      left /= count;
      pace *= outputs;
    }
    return found;
  }

  const Numbers numbers_;
  const Stage stage_;
  const Tiling tiling_;
  const int64_t depth_;
};

/* A program's folds on the Verilog. */
class Run {
 public:
  Run(const Program& program, const Numbers& numbers, const Ending& ending, const Widths& widths)
      : design_(program.design()),
        folds_(program),
        summing_(design_.dataflow == Dataflow::output),
        rests_(design_.dataflow == Dataflow::input ? ACTIVATION_TILES : WEIGHT_TILES),
        passes_(rests_ == WEIGHT_TILES ? ACTIVATION_TILES : WEIGHT_TILES),
        memory_(design_, all_),
        port_(memory_, 0, all_.front()),
        resting_(port_, rests_, folds_),
        passing_(port_, passes_, folds_),
        rest_bits_(static_cast<int>(rests_ == WEIGHT_TILES ? widths.weight : widths.activation)),
        pass_bits_(static_cast<int>(rests_ == WEIGHT_TILES ? widths.activation : widths.weight)),
        counters_(all_.front().front()) {
    counters_.macs = program.macs();
    if (!numbers.a) return;
    figures_ = std::make_unique<Operands>(program, numbers);
    rtl_.clips = ending.clips;
    rtl_.clip_low = static_cast<uint32_t>(ending.clip_low);
    rtl_.clip_high = static_cast<uint32_t>(ending.clip_high);
    rtl_.requantizes = ending.requantizes;
    rtl_.zero_point = ending.zero_point & 511;
    rtl_.lowest = ending.lowest & 511;
    rtl_.highest = ending.highest & 511;
    rtl_.channel_write = 1;
    for (int64_t i = 0; i < figures_->columns(); i++) {
      rtl_.channel_index = static_cast<uint32_t>(i);
      rtl_.channel_bias = static_cast<uint32_t>(ending.bias[i]);
      rtl_.channel_multiplier = ending.multiplier[i];
      rtl_.tick();
    }
    rtl_.channel_write = 0;
  }

  Counters run(int64_t most_cycles) {
    for (int i = 0; i < 4; i++) { /* the queue is full when the clock starts */
      offer_fold();
      rtl_.settle();
      queued_ += rtl_.fold_valid && rtl_.fold_ready;
      rtl_.tick();
    }
    for (now_ = 0; now_ < most_cycles; now_++) {
      memory_.complete();
      request();
      port_.complete();
      if (fold_ == folds_.size() && passed_ == tiles_ended_ && port_.all_arrived(OUTPUTS)) {
        counters_.cycles = now_;
        return counters_;
      }
      memory_.start();
      offer_fold();
      offer_operands();
      rtl_.out_ready = passed_ < 2 || port_.arrived(OUTPUTS, passed_ - 2);
      rtl_.settle();
      observe();
      rtl_.tick();
      memory_.tick();
    }
    throw std::runtime_error("the Verilog has not ended after " + std::to_string(most_cycles) + " cycles");
  }

 private:
  int64_t rows_of(const Fold& fold) const { return summing_ ? fold.height : fold.cycles; }

  void request() {
    if (tile_left_) {
      tile_left_ = false;
      passed_++;
      port_.request(OUTPUTS, now_, tiles_.front()->output_bytes, 0);
      tiles_.pop_front();
    }
    resting_.request(now_, summing_ ? freed_[0] + 2 : laid_ + design_.weight_fifo_tiles, 0);
    passing_.request(now_, freed_[1] + 2, 0);
  }

  void offer_fold() {
    rtl_.fold_valid = queued_ < folds_.size();
    if (!rtl_.fold_valid) return;
    const Fold& fold = folds_[queued_];
    const int64_t groups = ceil_div(rows_of(fold) * fold.width, design_.vector_lanes);
    rtl_.fold_length = static_cast<uint16_t>(fold.cycles);
    rtl_.fold_rows = static_cast<uint16_t>(rows_of(fold));
    rtl_.fold_columns = static_cast<uint16_t>(fold.width);
    rtl_.fold_cycles = static_cast<uint8_t>(fold.last_slice ? fold.vector_cycles / groups : 1);
    rtl_.fold_channel = static_cast<uint32_t>(figures_ ? figures_->first_column(fold) : 0);
    rtl_.fold_fresh = fold.fresh[rests_];
    rtl_.fold_first = fold.first_slice;
    rtl_.fold_last = fold.last_slice;
    rtl_.fold_waits = fold.waits;
  }

  /* What has arrived: a tile to be laid in, a row to stream. Sums that rest: weights and activations of a step. */
  void offer_operands() {
    rtl_.stream_valid = fold_ < folds_.size() && passing_.arrived(passing_.of_fold(fold_));
    if (summing_) {
      rtl_.tile_valid = fold_ < folds_.size() && resting_.arrived(resting_.of_fold(fold_));
    } else {
      rtl_.tile_valid = resting_.arrived(laid_);
      const bool is_next = rtl_.tile_valid && fold_ < folds_.size() && row_ == 0 && &folds_[fold_] == &resting_[laid_];
      /* results of the stage before have to be there before they can rest in the array */
      if (rtl_.tile_valid && rests_ == ACTIVATION_TILES && resting_[laid_].waits) {
        rtl_.tile_valid = is_next && passed_ == tiles_ended_;
      }
      if (rtl_.tile_valid && figures_) offer_tile(resting_[laid_]);
    }
    if (rtl_.stream_valid && figures_) offer_row(folds_[fold_]);
  }

  void offer_tile(const Fold& fold) {
    const bool all = design_.weight_load == WeightLoad::broadcast;
    const int64_t first = all ? 0 : design_.array_rows - 1 - beat_, count = all ? design_.array_rows : 1;
    for (int64_t r = first; r < first + count; r++) {
      for (int64_t c = 0; c < design_.array_columns; c++) {
        int32_t value = 0;
        if (r < fold.height && c < fold.width) {
          value = rests_ == WEIGHT_TILES ? figures_->weight(fold, r, c) : figures_->activation(fold, c, r);
        }
        put(rtl_.tile_data, ((r - first) * design_.array_columns + c) * rest_bits_, rest_bits_, value);
      }
    }
  }

  void offer_row(const Fold& fold) {
    for (int64_t r = 0; r < design_.array_rows; r++) {
      int32_t value = 0;
      if (r < fold.height) {
        value = summing_                    ? figures_->activation(fold, r, row_)
                : rests_ == WEIGHT_TILES ? figures_->activation(fold, row_, r)
                                            : figures_->weight(fold, r, row_);
      }
      put(rtl_.stream_data, r * pass_bits_, pass_bits_, value);
    }
    for (int64_t c = 0; summing_ && c < design_.array_columns; c++) {
      put(rtl_.tile_data, c * rest_bits_, rest_bits_, c < fold.width ? figures_->weight(fold, row_, c) : 0);
    }
  }

  void observe() {
    queued_ += rtl_.fold_valid && rtl_.fold_ready;
    if (rtl_.starts || rtl_.lacks) {
      const bool tile = !(rtl_.lacks & 1), stream = !(rtl_.lacks & 2);
      gap_.closes(counters_, rests_ == WEIGHT_TILES ? tile : stream, rests_ == WEIGHT_TILES ? stream : tile,
                  !(rtl_.lacks & 4), !(rtl_.lacks & 8));
    }
    if (fold_ == folds_.size()) counters_.drain++;
    if (!summing_ && rtl_.tile_valid && rtl_.tile_take && ++beat_ == design_.load_cycles()) {
      beat_ = 0;
      laid_++;
    }
    if (rtl_.out_valid) collect();
    counters_.vector_busy += rtl_.vector_active;
    if (!rtl_.stream_valid || !rtl_.stream_take) return;
    counters_.busy++;
    const Fold& fold = folds_[fold_];
    if (row_ == 0) {
      tally(fold, counters_);
      if (fold.last_slice) {
        tiles_.push_back(&fold);
        tiles_ended_++;
      }
    }
    if (++row_ < fold.cycles) return;
    row_ = 0;
    fold_++;
    const bool last = fold_ == folds_.size();
    freed_[0] += last || folds_[fold_].fresh[rests_];
    freed_[1] += last || folds_[fold_].fresh[passes_];
  }

  void collect() {
    const Fold& fold = *tiles_.front();
    const int64_t elements = rows_of(fold) * fold.width;
    for (int64_t lane = 0; lane < design_.vector_lanes; lane++) {
      if (bit(rtl_.out_mask, lane) != (element_ < elements)) {
        throw std::runtime_error("a lane is at work outside its tile, or idle inside it");
      }
      if (element_ == elements) continue;
      const int64_t row = element_ / fold.width, column = element_ % fold.width;
      if (figures_) {
        const int32_t value = word(rtl_.out_data, lane);
        design_.dataflow == Dataflow::input ? figures_->put(fold, column, row, value)
                                            : figures_->put(fold, row, column, value);
      }
      element_++;
    }
    if (rtl_.out_last != (element_ == elements)) throw std::runtime_error("a tile ends too early or too late");
    if (!rtl_.out_last) return;
    element_ = 0;
    tile_left_ = true;
  }

  const Design design_;
  const Folds folds_;
  const bool summing_;
  const Class rests_, passes_; /* sums that rest: weights and activations */
  std::vector<std::vector<Counters>> all_{std::vector<Counters>(1)}; /* of the one core, of the one part */
  ClockedMemory memory_;
  ClockedPort port_;
  Tiles resting_, passing_;
  const int rest_bits_, pass_bits_;
  Counters& counters_;
  Gap gap_;
  std::unique_ptr<Operands> figures_;
  Accelerator rtl_;
  int64_t now_ = 0;
  size_t queued_ = 0, fold_ = 0;           /* the next fold to be queued; the one that streams or is next to */
  int64_t row_ = 0, beat_ = 0, laid_ = 0;  /* rows of it that have entered; rows of the tile on its way in; tiles in */
  int64_t freed_[2] = {};                  /* tiles that no fold needs any more */
  std::deque<const Fold*> tiles_;          /* of results, not out yet */
  int64_t tiles_ended_ = 0, passed_ = 0, element_ = 0;
  bool tile_left_ = false;
};

/* Windows on the Verilog: `taps` values for each output, in the order of the blocks. */
Counters run_windows(const Design& design, const VectorStage& stage, bool average, int64_t taps, const int16_t* values,
                     const uint8_t* inside, int32_t* out, const Widths& widths, int64_t most_cycles) {
  const VectorBlocks blocks(design, stage);
  const int value_bits = static_cast<int>(widths.value);
  std::vector<std::vector<Counters>> all{std::vector<Counters>(1)};
  Counters& counters = all.front().front();
  counters.folds = blocks.count();
  ClockedMemory memory(design, all);
  ClockedPort port(memory, 0, all.front());
  Accelerator rtl;
  rtl.taps = static_cast<uint16_t>(taps);
  rtl.average = average;
  int64_t asked = 0, started = 0, ended = 0, output = 0, block_end = 0, tap = 0;
  bool left = false;
  for (int64_t now = 0; now < most_cycles; now++) {
    memory.complete();
    if (left) port.request(OUTPUTS, now, blocks[ended++].output_bytes, 0);
    left = false;
    for (; asked < std::min(ended + 2, blocks.count()); asked++) {
      port.request(ACTIVATION_TILES, now, blocks[asked].input_bytes, 0);
    }
    port.complete();
    if (ended == blocks.count() && port.all_arrived(OUTPUTS)) {
      counters.cycles = now;
      counters.vector_busy = counters.busy;
      return counters;
    }
    memory.start();
    const bool any = started < blocks.count();
    rtl.block_valid = any && port.arrived(ACTIVATION_TILES, started);
    rtl.pool_out_ready = any && (started < 2 || port.arrived(OUTPUTS, started - 2));
    const int64_t outputs = any ? blocks[started].lane_operations / stage.lane_cycles : 0;
    rtl.block_groups = static_cast<uint16_t>(ceil_div(outputs, design.vector_lanes));
    rtl.settle();
    const bool starts = rtl.block_valid && rtl.block_take;
    const int64_t end = starts ? block_end + outputs : block_end;
    for (int64_t lane = 0; lane < design.vector_lanes; lane++) {
      const bool there = output + lane < end && tap < taps;
      const int64_t at = (output + lane) * taps + tap;
      put(rtl.tap_data, lane * value_bits, value_bits, there ? values[at] : 0);
      put(rtl.tap_mask, lane, 1, there && inside[at]);
    }
    rtl.settle();
    const bool works = starts || ended < started;
    counters.busy += works;
    counters.lane_operations += works ? std::min(design.vector_lanes, end - output) : 0;
    if (starts) {
      counters.activation_reads += blocks[started].input_bytes;
      started++;
      block_end = end;
    }
    tap += rtl.tap_take;
    if (rtl.pool_out_valid) {
      for (int64_t lane = 0; lane < design.vector_lanes && output < end; lane++) {
        out[output++] = word(rtl.pool_out_data, lane);
      }
      tap = 0;
      left = rtl.pool_out_last;
    }
    rtl.tick();
    memory.tick();
  }
  throw std::runtime_error("the windows have not ended after " + std::to_string(most_cycles) + " cycles");
}

Axis read_axis(const int64_t* figures) { return {figures[0], figures[1], figures[2], figures[3], figures[4], figures[5]}; }

Design read_design(const int64_t* f) {
  return {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], static_cast<Dataflow>(f[9]),
          static_cast<WeightLoad>(f[10]), f[11] != 0, {}, {}, {f[12], f[13], f[14], f[15], f[16], f[17], f[18]}};
}

Ending read_ending(const int32_t* bias, const uint32_t* multiplier, const int64_t* f) {
  return {bias, multiplier, f[0] != 0, f[1], f[2], f[3] != 0, f[4], f[5], f[6]};
}

enum : int { STAGE_FIGURES = 35, COUNTERS = 16 };

Stage read_stage(const int64_t* f) {
  Stage stage;
  stage.groups = f[0];
  stage.channels = f[1];
  stage.columns = f[2];
  stage.activation_bytes = f[3];
  stage.weight_bytes = f[4];
  stage.output_bytes = f[5];
  stage.lane_cycles = f[6];
  stage.weights_kept = f[7] != 0;
  stage.dependent = f[8] != 0;
  stage.opening_bytes = f[9];
  for (int axis = 0; axis < 4; axis++) stage.axes[axis] = read_axis(f + 11 + 6 * axis);
  return stage;
}

void report(const Counters& c, int64_t* counters) {
  const int64_t values[COUNTERS] = {c.cycles, c.fill, c.busy, c.stall_weights, c.stall_activations, c.stall_outputs,
                                    c.stall_steps, c.drain, c.vector_busy, c.weight_bytes, c.activation_bytes,
                                    c.output_bytes, c.row_hits, c.row_misses, c.row_waits, c.refresh_waits};
  std::copy(values, values + COUNTERS, counters);
}

template <typename Compute>
int guarded(char* message, const Compute& compute) {
  try {
    compute();
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), 199);
    return 1;
  }
}

}  // namespace

/* `stages`: STAGE_FIGURES each, the eleventh (of index 10) being the repeats of the section that it is alone in. Null
 * pointers from a on: timing alone; else there is one stage without groups, and `ending` has the figures of an Ending in
 * its order. 0, or 1 with a message of at most 199 letters. */
extern "C" __attribute__((visibility("default"))) int run_program(
    const int64_t* design, const int64_t* widths, int64_t stage_count, const int64_t* stages, int64_t resident,
    int64_t most_places, const int16_t* a, const int16_t* w, int32_t* out, const int32_t* bias,
    const uint32_t* multiplier, const int64_t* ending, int64_t most_cycles, int64_t* counters, char* message) {
  return guarded(message, [&] {
    Program program(read_design(design));
    for (int64_t i = 0; i < stage_count; i++) {
      const int64_t* figures = stages + STAGE_FIGURES * i;
      program.add({read_stage(figures)}, figures[10], {resident != 0, most_places});
    }
    const Ending closing = a ? read_ending(bias, multiplier, ending) : Ending{};
    report(Run(program, {a, w, out}, closing, {widths[0], widths[1], widths[2]}).run(most_cycles), counters);
  });
}

extern "C" __attribute__((visibility("default"))) int run_pooling(
    const int64_t* design, const int64_t* widths, const int64_t* axes, int64_t input_bytes, int64_t output_bytes,
    int64_t average, int64_t taps, const int16_t* values, const uint8_t* inside, int32_t* out, int64_t most_cycles,
    int64_t* counters, char* message) {
  return guarded(message, [&] {
    VectorStage stage;
    for (int axis = 0; axis < 4; axis++) stage.axes[axis] = read_axis(axes + 6 * axis);
    stage.input_bytes = input_bytes;
    stage.output_bytes = output_bytes;
    stage.lane_cycles = taps + average;
    report(run_windows(read_design(design), stage, average != 0, taps, values, inside, out,
                       {widths[0], widths[1], widths[2]}, most_cycles),
           counters);
  });
}
