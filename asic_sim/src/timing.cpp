/* See timing.h. Each recurrence is one function here, and is stepped cycle by cycle in reference.cpp. */
#include "timing.h"

#include <queue>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace asic {
namespace {

enum Class { WEIGHTS, ACTIVATIONS, OUTPUTS, CLASSES };

/* The one port to DRAM. Transactions of a class are numbered from 0 in the order of their requests.
 *
 * Requests become known while folds are worked through. `arrival` serves all that come no later than the one asked
 * for; this is right because whatever is requested afterwards is requested later: each request follows an event that
 * waits for that arrival. */
class Port {
 public:
  Port(const Design& design, int64_t most_in_flight)
      : design_(design), arrivals_{Ring(most_in_flight), Ring(most_in_flight), Ring(most_in_flight)} {}

  void request(Class kind, int64_t time, int64_t bytes) {
    const int64_t id = requested_[kind]++;
    arrivals_[kind][id] = bytes ? UNKNOWN : time;
    bytes_[kind] += bytes;
    if (bytes) queue_.push({time, kind, id, bytes});
    last_ = std::max(last_, time);
  }

  int64_t arrival(Class kind, int64_t id) {
    while (arrivals_[kind][id] == UNKNOWN) serve();
    return arrivals_[kind][id];
  }

  /* When everything has arrived. */
  int64_t finish() {
    while (!queue_.empty()) serve();
    return last_;
  }

  int64_t requested(Class kind) const { return requested_[kind]; }
  int64_t bytes(Class kind) const { return bytes_[kind]; }

 private:
  static constexpr int64_t UNKNOWN = -1;
  using Request = std::tuple<int64_t, Class, int64_t, int64_t>; /* time, class, id, bytes: served in this order */

  class Ring {
   public:
    explicit Ring(int64_t size) : values_(static_cast<size_t>(size)) {}
    int64_t& operator[](int64_t id) { return values_[static_cast<size_t>(id) % values_.size()]; }

   private:
    std::vector<int64_t> values_;
  };

  void serve() {
    const auto [time, kind, id, bytes] = queue_.top();
    queue_.pop();
    free_ = std::max(free_, time) + ceil_div(bytes, design_.dram_bytes_per_cycle);
    arrivals_[kind][id] = free_ + design_.dram_latency_cycles;
    last_ = std::max(last_, arrivals_[kind][id]);
  }

  const Design& design_;
  Ring arrivals_[CLASSES];
  int64_t requested_[CLASSES] = {};
  int64_t bytes_[CLASSES] = {};
  std::priority_queue<Request, std::vector<Request>, std::greater<Request>> queue_;
  int64_t free_ = 0;
  int64_t last_ = 0;
};

}  // namespace

Counters time_program(const Program& program) {
  const Design& design = program.design();
  if (program.folds() > Program::MOST_FOLDS) {
    throw std::length_error("it takes more than " + std::to_string(Program::MOST_FOLDS) + " passes through the array");
  }
  Counters counters;
  counters.folds = program.folds();
  counters.macs = program.macs();
  Port port(design, std::max<int64_t>(design.weight_fifo_tiles, 2) + 2);

  Cursor ahead_weights(program), ahead_activations(program);
  const auto request_weights = [&](int64_t time) {
    ahead_weights.seek(&Fold::new_weights);
    if (ahead_weights.done()) return;
    port.request(WEIGHTS, time, ahead_weights->weight_bytes);
    ahead_weights.next();
  };
  const auto request_activations = [&](int64_t time) {
    ahead_activations.seek(&Fold::new_activations);
    if (ahead_activations.done()) return;
    port.request(ACTIVATIONS, time, ahead_activations->activation_bytes);
    ahead_activations.next();
  };
  for (int64_t tile = 0; tile < design.weight_fifo_tiles; tile++) request_weights(0);
  for (int tile = 0; tile < 2; tile++) request_activations(0);

  int64_t weight_tile = 0, activation_tile = 0, output_tile = 0; /* the next of each */
  int64_t weights_ready = 0, activations_ready = 0, end = 0;
  int64_t vector_end = 0, vector_end_before = 0; /* of output tiles o - 1 and o - 2 */
  const auto load_weights = [&](int64_t shadow_free) {
    if (weight_tile == port.requested(WEIGHTS)) return;
    weights_ready = std::max(port.arrival(WEIGHTS, weight_tile++), shadow_free) + design.array_rows;
    request_weights(weights_ready);
  };
  load_weights(0);
  for (Cursor fold(program); !fold.done();) {
    if (fold->new_activations) activations_ready = port.arrival(ACTIVATIONS, activation_tile++);
    const int64_t bank_free = fold->first_slice ? vector_end_before : 0;
    const int64_t step_done = fold->waits ? vector_end : 0;
    const int64_t loaded = fold->new_weights ? weights_ready : 0;
    const int64_t start = std::max({end, loaded, activations_ready, bank_free, step_done});
    int64_t& wait = end == 0                     ? counters.fill
                    : start == loaded            ? counters.stall_weights
                    : start == activations_ready ? counters.stall_activations
                    : start == step_done         ? counters.stall_steps
                                                 : counters.stall_outputs;
    wait += start - end;
    end = start + fold->rows;
    counters.busy += fold->rows;
    /* the next tile shifts in as soon as it can, however many folds use this one */
    if (fold->new_weights) load_weights(start + design.array_depth());

    const Fold current = *fold;
    fold.next();
    if (fold.done() || fold->new_activations) request_activations(end);
    if (current.last_slice) {
      const int64_t slot_free = output_tile >= 2 ? port.arrival(OUTPUTS, output_tile - 2) : 0;
      const int64_t begin = std::max({end + design.array_depth(), vector_end, slot_free});
      vector_end_before = vector_end;
      vector_end = begin + current.vector_cycles;
      counters.vector_busy += current.vector_cycles;
      port.request(OUTPUTS, vector_end, current.output_bytes);
      output_tile++;
    }
  }
  counters.cycles = std::max(port.finish(), vector_end);
  counters.drain = counters.cycles - end;
  counters.weight_bytes = port.bytes(WEIGHTS);
  counters.activation_bytes = port.bytes(ACTIVATIONS);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

Program lower(const Design& design, const Sections& sections, bool resident) {
  Program program(design);
  for (size_t i = 0; i < sections.stages.size(); i++) program.add(sections.stages[i], sections.repeats[i], resident);
  return program;
}

Counters time_fastest(const Design& design, const Sections& sections) {
  const Program resident = lower(design, sections, true), streamed = lower(design, sections, false);
  if (resident.folds() > Program::MOST_FOLDS) return time_program(streamed);
  if (streamed.folds() > Program::MOST_FOLDS) return time_program(resident);
  const Counters with_boxes = time_program(resident), with_slices = time_program(streamed);
  return with_slices.cycles < with_boxes.cycles ? with_slices : with_boxes;
}

namespace {

/* The vector unit's work as a stage without a matrix, to be cut by the same rule. */
Stage as_stage(const VectorStage& vector) {
  Stage stage;
  stage.axes = vector.axes;
  stage.activation_bytes = vector.input_bytes;
  return stage;
}

/* Without the array, the two accumulator banks are the vector unit's output buffers. */
Design with_banks_as_buffers(Design design) {
  design.accumulator_entries = times(design.accumulator_entries, design.array_columns);
  return design;
}

}  // namespace

VectorBlocks::VectorBlocks(const Design& design, const VectorStage& stage)
    : design_(design), stage_(stage), tiling_(tile_stage(with_banks_as_buffers(design), as_stage(stage), true)) {
  if (tiling_.block_count > Program::MOST_FOLDS) {
    throw std::length_error("it takes more than " + std::to_string(Program::MOST_FOLDS) +
                            " blocks that fit into half of the activation memory");
  }
}

VectorBlock VectorBlocks::operator[](int64_t index) const {
  int64_t outputs = 1, inputs = 1;
  for (int axis = 3; axis >= 0; axis--) {
    const int64_t first = index % tiling_.blocks[axis] * tiling_.block[axis];
    const int64_t count = std::min(tiling_.block[axis], stage_.axes[axis].outputs - first);
    index /= tiling_.blocks[axis];
    outputs *= count;
    inputs = times(inputs, stage_.axes[axis].touched(first, count));
  }
  return {inputs * stage_.input_bytes, outputs * stage_.output_bytes,
          ceil_div(outputs, design_.vector_lanes) * stage_.lane_cycles};
}

Counters time_vector(const Design& design, const VectorStage& stage) {
  const VectorBlocks blocks(design, stage);
  Counters counters;
  counters.folds = blocks.count();
  Port port(design, 4);
  const int64_t buffers = std::min<int64_t>(2, blocks.count());
  for (int64_t b = 0; b < buffers; b++) port.request(ACTIVATIONS, 0, blocks[b].input_bytes);
  int64_t end = 0;
  for (int64_t b = 0; b < blocks.count(); b++) {
    const VectorBlock block = blocks[b];
    const int64_t arrived = port.arrival(ACTIVATIONS, b);
    const int64_t slot_free = b >= 2 ? port.arrival(OUTPUTS, b - 2) : 0;
    const int64_t start = std::max({end, arrived, slot_free});
    int64_t& wait = b == 0 ? counters.fill : start == arrived ? counters.stall_activations : counters.stall_outputs;
    wait += start - end;
    end = start + block.cycles;
    counters.busy += block.cycles;
    if (b + 2 < blocks.count()) port.request(ACTIVATIONS, end, blocks[b + 2].input_bytes);
    port.request(OUTPUTS, end, block.output_bytes);
  }
  counters.vector_busy = counters.busy;
  counters.cycles = std::max(port.finish(), end);
  counters.drain = counters.cycles - end;
  counters.activation_bytes = port.bytes(ACTIVATIONS);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

}  // namespace asic
