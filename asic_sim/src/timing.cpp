/* See timing.h. Each recurrence is one function here, and is stepped cycle by cycle in reference.cpp. */
#include "timing.h"

#include <queue>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace asic {
namespace {

/* What goes over the port: weights and activations as in Operand, and results. */
enum Class { WEIGHT_TILES = WEIGHTS, ACTIVATION_TILES = ACTIVATIONS, OUTPUTS, CLASSES };

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
    last_ = std::max(last_, time);
    if (!bytes) return;
    /* the queue is short and what comes is almost always the last in order */
    const Request request{time, kind, id, bytes};
    queue_.push_back(request);
    for (size_t i = queue_.size() - 1; i > head_ && request < queue_[i - 1]; i--) std::swap(queue_[i], queue_[i - 1]);
  }

  int64_t arrival(Class kind, int64_t id) {
    while (arrivals_[kind][id] == UNKNOWN) serve();
    return arrivals_[kind][id];
  }

  /* When everything has arrived. */
  int64_t finish() {
    while (head_ < queue_.size()) serve();
    return last_;
  }

  int64_t requested(Class kind) const { return requested_[kind]; }
  int64_t bytes(Class kind) const { return bytes_[kind]; }

 private:
  static constexpr int64_t UNKNOWN = -1;
  struct Request {
    int64_t time;
    Class kind;
    int64_t id, bytes;
    bool operator<(const Request& other) const { /* served in this order */
      return std::tie(time, kind, id) < std::tie(other.time, other.kind, other.id);
    }
  };

  class Ring {
   public:
    explicit Ring(int64_t size) { /* a power of two at least as large */
      size_t room = 1;
      while (room < static_cast<size_t>(size)) room *= 2;
      values_.resize(room);
    }
    int64_t& operator[](int64_t id) { return values_[static_cast<size_t>(id) & (values_.size() - 1)]; }

   private:
    std::vector<int64_t> values_;
  };

  void serve() {
    const Request request = queue_[head_++];
    if (head_ == queue_.size()) {
      queue_.clear();
      head_ = 0;
    } else if (head_ == 64) {
      queue_.erase(queue_.begin(), queue_.begin() + 64);
      head_ = 0;
    }
    if (request.bytes != measured_bytes_) { /* mostly tiles of one size: a division less */
      measured_bytes_ = request.bytes;
      measured_cycles_ = ceil_div(request.bytes, design_.dram_bytes_per_cycle);
    }
    free_ = std::max(free_, request.time) + measured_cycles_;
    arrivals_[request.kind][request.id] = free_ + design_.dram_latency_cycles;
    last_ = std::max(last_, free_ + design_.dram_latency_cycles);
  }

  const Design& design_;
  Ring arrivals_[CLASSES];
  int64_t requested_[CLASSES] = {};
  int64_t bytes_[CLASSES] = {};
  std::vector<Request> queue_; /* from head_ on, in the order of service */
  size_t head_ = 0;
  int64_t measured_bytes_ = 0, measured_cycles_ = 0;
  int64_t free_ = 0;
  int64_t last_ = 0;
};

}  // namespace

namespace {

enum : int { BUFFERS = 2 }; /* of a streaming operand and of the results */

/* Asks for tiles ahead of the folds that need them. */
class Ahead {
 public:
  Ahead(const Program& program, Port& port, Operand operand) : fold_(program, operand), port_(port), operand_(operand) {}

  void request(int64_t time) {
    if (fold_.done()) return;
    port_.request(static_cast<Class>(operand_), time, fold_->bytes[operand_]);
    waits_.push(fold_->waits);
    fold_.next();
  }
  bool any_left() const { return !waits_.empty(); }
  bool first_waits() const { return waits_.front(); }

  /* When the first tile that has been requested and not taken arrives. */
  int64_t take() {
    waits_.pop();
    return port_.arrival(static_cast<Class>(operand_), taken_++);
  }

 private:
  TileCursor fold_;
  Port& port_;
  Operand operand_;
  int64_t taken_ = 0;
  std::queue<bool> waits_; /* of tiles requested and not taken: whether they hold results of the stage before */
};

/* The vector unit, behind the array in every dataflow. */
class Vector {
 public:
  Vector(Port& port, Counters& counters) : port_(port), counters_(counters) {}

  void pass(int64_t out, const Fold& fold) {
    const int64_t slot_free = tiles_ >= BUFFERS ? port_.arrival(OUTPUTS, tiles_ - BUFFERS) : 0;
    before_ = end_;
    end_ = std::max({out, end_, slot_free}) + fold.vector_cycles;
    counters_.vector_busy += fold.vector_cycles;
    port_.request(OUTPUTS, end_, fold.output_bytes);
    tiles_++;
  }
  int64_t end() const { return end_; }       /* of the tile before the one that folds add to */
  int64_t before() const { return before_; } /* of the tile before that */

 private:
  Port& port_;
  Counters& counters_;
  int64_t tiles_ = 0, end_ = 0, before_ = 0;
};

/* What the start of a fold waited for. The first that holds, in this order, takes the gap. */
struct Cause {
  int64_t time;
  int64_t Counters::* stall;
};

int64_t start_of(int64_t end, const Cause (&causes)[4], bool first, Counters& counters) {
  int64_t start = end;
  for (const Cause& cause : causes) start = std::max(start, cause.time);
  if (first) {
    counters.fill += start - end;
  } else if (start > end) {
    for (const Cause& cause : causes) {
      if (cause.time != start) continue;
      counters.*cause.stall += start - end;
      break;
    }
  }
  return start;
}

int64_t time_stationary(const Program& program, Port& port, Vector& vector, Counters& counters) {
  const Design& design = program.design();
  const Operand rests = design.dataflow == Dataflow::input ? ACTIVATIONS : WEIGHTS;
  const Operand streams = rests == WEIGHTS ? ACTIVATIONS : WEIGHTS;
  Ahead resting(program, port, rests), streaming(program, port, streams);
  for (int64_t tile = 0; tile < design.weight_fifo_tiles; tile++) resting.request(0);
  for (int tile = 0; tile < BUFFERS; tile++) streaming.request(0);

  int64_t ready[OPERANDS] = {}, end = 0;
  const auto lay = [&](int64_t free) {
    ready[rests] = std::max(resting.take(), free) + design.load_cycles();
    resting.request(ready[rests]);
  };
  /* A tile is laid in as soon as it can be, however many folds use the one before; a tile of results of the stage
   * before has to wait for them, and is then known only when its fold is next. */
  int64_t free = 0;
  bool laid = false;
  const auto lay_early = [&](int64_t time) {
    free = time;
    laid = resting.any_left() && !(rests == ACTIVATIONS && resting.first_waits());
    if (laid) lay(free);
  };
  lay_early(0);
  bool first = true;
  for (Cursor fold(program); !fold.done(); first = false) {
    const int64_t step_done = fold->waits ? vector.end() : 0;
    if (fold->fresh[rests] && !laid) lay(std::max(free, step_done));
    if (fold->fresh[streams]) ready[streams] = streaming.take();
    /* ready[rests] is of the next tile already where this one is in the array */
    const int64_t rested = fold->fresh[rests] ? ready[rests] : 0, streamed = ready[streams];
    const Cause causes[] = {{rests == WEIGHTS ? rested : streamed, &Counters::stall_weights},
                            {rests == WEIGHTS ? streamed : rested, &Counters::stall_activations},
                            {step_done, &Counters::stall_steps},
                            {fold->first_slice ? vector.before() : 0, &Counters::stall_outputs}};
    const int64_t start = start_of(end, causes, first, counters);
    end = start + fold->cycles;
    counters.busy += fold->cycles;
    tally(*fold, counters);
    if (fold->fresh[rests] && design.shadowed()) lay_early(start + design.release_cycles());

    const Fold current = *fold;
    fold.next();
    if (fold.done() || fold->fresh[streams]) streaming.request(end);
    if (!fold.done() && fold->fresh[rests] && !design.shadowed()) lay_early(end + design.release_cycles());
    if (current.last_slice) vector.pass(end + design.array_depth(), current);
  }
  return end;
}

int64_t time_output(const Program& program, Port& port, Vector& vector, Counters& counters) {
  const Design& design = program.design();
  Ahead weights(program, port, WEIGHTS), activations(program, port, ACTIVATIONS);
  for (int tile = 0; tile < BUFFERS; tile++) {
    weights.request(0);
    activations.request(0);
  }
  int64_t weights_ready = 0, activations_ready = 0, end = 0, out = 0;
  bool first = true;
  for (Cursor fold(program); !fold.done(); first = false) {
    if (fold->fresh[WEIGHTS]) weights_ready = weights.take();
    if (fold->fresh[ACTIVATIONS]) activations_ready = activations.take();
    const int64_t room = fold->last_slice ? std::max(out - fold->cycles, vector.before()) : 0;
    const Cause causes[] = {{weights_ready, &Counters::stall_weights},
                            {activations_ready, &Counters::stall_activations},
                            {fold->waits ? vector.end() : 0, &Counters::stall_steps},
                            {room, &Counters::stall_outputs}};
    end = start_of(end, causes, first, counters) + fold->cycles;
    counters.busy += fold->cycles;
    tally(*fold, counters);
    const Fold current = *fold;
    fold.next();
    if (fold.done() || fold->fresh[WEIGHTS]) weights.request(end);
    if (fold.done() || fold->fresh[ACTIVATIONS]) activations.request(end);
    if (current.last_slice) {
      out = end + design.array_depth() + design.array_rows;
      vector.pass(out, current);
    }
  }
  return end;
}

}  // namespace

void tally(const Fold& fold, Counters& counters) {
  counters.folds++;
  counters.weight_reads += fold.reads[WEIGHTS];
  counters.activation_reads += fold.reads[ACTIVATIONS];
  counters.accumulator_accesses += fold.accumulator_accesses;
  counters.lane_operations += fold.lane_operations;
}

Counters time_program(const Program& program) {
  const Design& design = program.design();
  if (program.folds() > Program::MOST_FOLDS) {
    throw std::length_error("it takes more than " + std::to_string(Program::MOST_FOLDS) + " passes through the array");
  }
  Counters counters;
  counters.macs = program.macs();
  Port port(design, std::max<int64_t>(design.weight_fifo_tiles, BUFFERS) + 2);
  Vector vector(port, counters);
  const int64_t end = design.dataflow == Dataflow::output ? time_output(program, port, vector, counters)
                                                          : time_stationary(program, port, vector, counters);
  counters.cycles = std::max(port.finish(), vector.end());
  counters.drain = counters.cycles - end;
  counters.weight_bytes = port.bytes(WEIGHT_TILES);
  counters.activation_bytes = port.bytes(ACTIVATION_TILES);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

Program lower(const Design& design, const Sections& sections, const Mapping& mapping) {
  Program program(design);
  for (size_t i = 0; i < sections.stages.size(); i++) program.add(sections.stages[i], sections.repeats[i], mapping);
  return program;
}

namespace {

/* No mapping takes fewer cycles: what streams through the array, were every fold full. */
int64_t least_cycles(const Design& design, const Sections& sections) {
  int64_t least = 0;
  const auto passes = [](int64_t extent, int64_t size) { return ceil_div(extent, size); };
  for (size_t i = 0; i < sections.stages.size(); i++) {
    for (const Stage& stage : sections.stages[i]) {
      const int64_t rows = design.array_rows, columns = design.array_columns;
      int64_t cycles = 0;
      switch (design.dataflow) {
        case Dataflow::weight:
          cycles = times(stage.places(), times(passes(stage.depth(), rows), passes(stage.columns, columns)));
          break;
        case Dataflow::input:
          cycles = times(stage.columns, times(passes(stage.depth(), rows), passes(stage.places(), columns)));
          break;
        case Dataflow::output:
          cycles = times(stage.depth(), times(passes(stage.places(), rows), passes(stage.columns, columns)));
          break;
      }
      least = plus(least, times(cycles, times(stage.groups, sections.repeats[i])));
    }
  }
  return least;
}

constexpr double NEAR_ENOUGH = 1.0; /* of the bound, to end the search */

}  // namespace

Found time_fastest(const Design& design, const Sections& sections) {
  const double enough = NEAR_ENOUGH * static_cast<double>(least_cycles(design, sections));
  Found best;
  best.counters.cycles = INT64_MAX;
  for (const bool resident : {true, false}) {
    int64_t most_places = 1; /* of a block of any stage */
    for (const auto& stages : sections.stages) {
      for (const Stage& stage : stages) {
        const Tiling tiling = tile_stage(design, stage, {resident, Mapping{}.most_places});
        most_places = std::max(most_places, places_of(tiling.block));
      }
    }
    for (const int64_t part : {1, 2, 4}) {
      const Mapping mapping{resident, std::max<int64_t>(1, most_places / part)};
      const Program program = lower(design, sections, mapping);
      if (program.folds() > Program::MOST_FOLDS) continue;
      const Counters counters = time_program(program);
      if (counters.cycles < best.counters.cycles) best = {mapping, counters};
      if (static_cast<double>(best.counters.cycles) <= enough) return best;
    }
  }
  if (best.counters.cycles == INT64_MAX) best.counters = time_program(lower(design, sections, {})); /* says why not */
  return best;
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
  design.dataflow = Dataflow::weight;
  return design;
}

}  // namespace

VectorBlocks::VectorBlocks(const Design& design, const VectorStage& stage)
    : design_(design), stage_(stage), tiling_(tile_stage(with_banks_as_buffers(design), as_stage(stage), {})) {
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
          ceil_div(outputs, design_.vector_lanes) * stage_.lane_cycles, times(outputs, stage_.lane_cycles)};
}

Counters time_vector(const Design& design, const VectorStage& stage) {
  const VectorBlocks blocks(design, stage);
  Counters counters;
  counters.folds = blocks.count();
  Port port(design, 4);
  const int64_t buffers = std::min<int64_t>(2, blocks.count());
  for (int64_t b = 0; b < buffers; b++) port.request(ACTIVATION_TILES, 0, blocks[b].input_bytes);
  int64_t end = 0;
  for (int64_t b = 0; b < blocks.count(); b++) {
    const VectorBlock block = blocks[b];
    const int64_t arrived = port.arrival(ACTIVATION_TILES, b);
    const int64_t slot_free = b >= 2 ? port.arrival(OUTPUTS, b - 2) : 0;
    const int64_t start = std::max({end, arrived, slot_free});
    int64_t& wait = b == 0 ? counters.fill : start == arrived ? counters.stall_activations : counters.stall_outputs;
    wait += start - end;
    end = start + block.cycles;
    counters.busy += block.cycles;
    counters.lane_operations += block.lane_operations;
    counters.activation_reads += block.input_bytes;
    if (b + 2 < blocks.count()) port.request(ACTIVATION_TILES, end, blocks[b + 2].input_bytes);
    port.request(OUTPUTS, end, block.output_bytes);
  }
  counters.vector_busy = counters.busy;
  counters.cycles = std::max(port.finish(), end);
  counters.drain = counters.cycles - end;
  counters.activation_bytes = port.bytes(ACTIVATION_TILES);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

}  // namespace asic
