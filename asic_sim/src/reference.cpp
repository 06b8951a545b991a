/* See reference.h. Nothing here computes a time: there are flags, counters that count down, and a clock. */
#include "reference.h"

#include <algorithm>
#include <deque>
#include <vector>

namespace asic {
namespace {

enum Class { WEIGHTS, ACTIVATIONS, OUTPUTS, CLASSES };

/* The port to DRAM, polled. */
class ClockedPort {
 public:
  explicit ClockedPort(const Design& design) : design_(design) {}

  void request(Class kind, int64_t now, int64_t bytes) {
    const auto id = static_cast<int64_t>(arrived_[kind].size());
    arrived_[kind].push_back(bytes == 0);
    bytes_[kind] += bytes;
    if (bytes) waiting_.push_back({now, kind, id, bytes});
  }

  bool arrived(Class kind, int64_t id) const { return arrived_[kind][static_cast<size_t>(id)]; }
  int64_t requested(Class kind) const { return static_cast<int64_t>(arrived_[kind].size()); }
  int64_t bytes(Class kind) const { return bytes_[kind]; }
  bool idle() const { return !moving_ && waiting_.empty() && in_flight_.empty(); }

  /* What has been moved, and what has arrived, when a cycle begins. */
  void complete() {
    if (moving_ && left_ == 0) {
      moving_ = false;
      in_flight_.push_back({current_, design_.dram_latency_cycles});
    }
    for (size_t i = 0; i < in_flight_.size();) {
      if (in_flight_[i].left == 0) {
        arrived_[in_flight_[i].transfer.kind][static_cast<size_t>(in_flight_[i].transfer.id)] = true;
        in_flight_.erase(in_flight_.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        i++;
      }
    }
  }

  /* Takes up the oldest request when all requests of this cycle are known. */
  void start() {
    if (moving_ || waiting_.empty()) return;
    const auto oldest = std::min_element(waiting_.begin(), waiting_.end(), [](const Transfer& a, const Transfer& b) {
      if (a.time != b.time) return a.time < b.time;
      return a.kind != b.kind ? a.kind < b.kind : a.id < b.id;
    });
    current_ = *oldest;
    waiting_.erase(oldest);
    left_ = (current_.bytes + design_.dram_bytes_per_cycle - 1) / design_.dram_bytes_per_cycle;
    moving_ = true;
  }

  void tick() {
    for (auto& transfer : in_flight_) transfer.left--;
    if (moving_) left_--;
  }

 private:
  struct Transfer {
    int64_t time;
    Class kind;
    int64_t id, bytes;
  };
  struct Flight {
    Transfer transfer;
    int64_t left;
  };
  const Design& design_;
  std::vector<Transfer> waiting_;
  std::vector<Flight> in_flight_;
  Transfer current_{};
  bool moving_ = false;
  int64_t left_ = 0;
  std::vector<bool> arrived_[CLASSES];
  int64_t bytes_[CLASSES] = {};
};

/* The array: a grid of processing elements, each with the activation and the sum that it passes on, the weight in use
 * and the one that is shifting in behind it. */
class Grid {
 public:
  struct Stream { /* a fold on its way through */
    const Fold* fold;
    int64_t entered; /* cycles since its first activation entered at the top left */
  };

  Grid(const Program& program, const Product& product)
      : product_(product),
        rows_(program.design().array_rows),
        columns_(program.design().array_columns),
        cells_(static_cast<size_t>(rows_ * columns_)) {
    const Stage& stage = program.sections().front().stages.front();
    depth_ = stage.depth();
    width_ = stage.columns;
    block_ = program.sections().front().tilings.front().block[0];
  }

  /* One clock. `loading`: the fold whose weights shift in, of which row `loaded` (from the bottom) enters now. */
  void clock(const std::deque<Stream>& streams, const Fold* loading, int64_t loaded) {
    std::vector<Cell> next = cells_;
    for (int64_t r = 0; r < rows_; r++) {
      for (int64_t c = 0; c < columns_; c++) {
        const Cell& old = cells_[at(r, c)];
        Cell& cell = next[at(r, c)];
        if (c == 0) {
          enter(streams, r, cell);
        } else {
          cell.activation = cells_[at(r, c - 1)].activation;
          cell.changes = cells_[at(r, c - 1)].changes;
        }
        cell.weight = cell.changes ? old.shadow : old.weight;
        cell.sum = (r ? cells_[at(r - 1, c)].sum : 0) + cell.activation * cell.weight;
        if (loading) cell.shadow = r ? cells_[at(r - 1, c)].shadow : weight(*loading, rows_ - 1 - loaded, c);
      }
    }
    cells_.swap(next);
    for (const Stream& stream : streams) collect(stream);
  }

 private:
  struct Cell {
    int32_t activation = 0, weight = 0, shadow = 0, sum = 0;
    bool changes = false; /* the first activation of a fold brings the new weight into use */
  };

  size_t at(int64_t r, int64_t c) const { return static_cast<size_t>(r * columns_ + c); }

  /* What enters row r from the left: each row a cycle later than the one above it. */
  void enter(const std::deque<Stream>& streams, int64_t r, Cell& cell) const {
    cell.activation = 0;
    cell.changes = false;
    for (const Stream& stream : streams) {
      const int64_t m = stream.entered - r;
      if (m < 0 || m >= stream.fold->rows) continue;
      cell.changes = m == 0 && stream.fold->new_weights;
      if (r < stream.fold->slice_height) {
        cell.activation = product_.a[(stream.fold->block * block_ + m) * depth_ + stream.fold->slice * rows_ + r];
      }
    }
  }

  int32_t weight(const Fold& fold, int64_t r, int64_t c) const {
    if (r >= fold.slice_height || c >= fold.strip_width) return 0;
    return product_.w[(fold.slice * rows_ + r) * width_ + fold.strip * columns_ + c];
  }

  /* What has left the bottom of the columns goes to the accumulators. */
  void collect(const Stream& stream) {
    for (int64_t c = 0; c < stream.fold->strip_width; c++) {
      const int64_t m = stream.entered - (rows_ - 1) - c;
      if (m < 0 || m >= stream.fold->rows) continue;
      product_.out[(stream.fold->block * block_ + m) * width_ + stream.fold->strip * columns_ + c] +=
          cells_[at(rows_ - 1, c)].sum;
    }
  }

  const Product product_;
  const int64_t rows_, columns_;
  std::vector<Cell> cells_;
  int64_t depth_ = 0, width_ = 0, block_ = 0;
};

}  // namespace

Counters step_program(const Program& program, const Product& product) {
  const Design& design = program.design();
  std::vector<Fold> folds;
  for (Cursor fold(program); !fold.done(); fold.next()) folds.push_back(*fold);
  Counters counters;
  counters.folds = static_cast<int64_t>(folds.size());
  counters.macs = program.macs();
  if (folds.empty()) return counters;

  std::vector<const Fold*> weight_tiles, activation_tiles;
  std::vector<int64_t> activation_of; /* the activation tile of each fold */
  int64_t output_tiles = 0;
  for (const Fold& fold : folds) {
    if (fold.new_weights) weight_tiles.push_back(&fold);
    if (fold.new_activations) activation_tiles.push_back(&fold);
    activation_of.push_back(static_cast<int64_t>(activation_tiles.size()) - 1);
    output_tiles += fold.last_slice;
  }

  ClockedPort port(design);
  std::deque<Grid::Stream> streams;
  std::vector<Grid> grid;
  if (product.a) grid.emplace_back(program, product);

  int64_t laid = 0, taken = 0, load_count = 0, shadow_lock = 0; /* weight tiles laid in and taken into use */
  bool loading = false;
  size_t next_fold = 0;
  bool streaming = false;
  int64_t activations_freed = 0, tile = 0; /* the output tile of the next fold */
  std::deque<const Fold*> drained;         /* tiles that wait for the vector unit */
  bool working = false;
  int64_t work_left = 0, passed = 0; /* tiles through the vector unit */
  int64_t gap = 0;
  bool lacked_weights = false, lacked_activations = false, lacked_step = false;

  for (int64_t now = 0;; now++) {
    /* what is complete as the cycle begins */
    if (loading && load_count == design.array_rows) {
      loading = false;
      laid++;
    }
    if (streaming && streams.back().entered == streams.back().fold->rows) {
      streaming = false;
      if (next_fold == folds.size() || folds[next_fold].new_activations) activations_freed++;
    }
    if (!streams.empty() && streams.front().entered == streams.front().fold->rows + design.array_depth()) {
      if (streams.front().fold->last_slice) drained.push_back(streams.front().fold);
      streams.pop_front();
    }
    if (working && work_left == 0) {
      working = false;
      port.request(OUTPUTS, now, drained.front()->output_bytes);
      drained.pop_front();
      passed++;
    }
    while (port.requested(WEIGHTS) < std::min<int64_t>(laid + design.weight_fifo_tiles, weight_tiles.size())) {
      const Fold& first = *weight_tiles[static_cast<size_t>(port.requested(WEIGHTS))];
      port.request(WEIGHTS, now, first.weight_bytes);
    }
    while (port.requested(ACTIVATIONS) < std::min<int64_t>(activations_freed + 2, activation_tiles.size())) {
      const Fold& first = *activation_tiles[static_cast<size_t>(port.requested(ACTIVATIONS))];
      port.request(ACTIVATIONS, now, first.activation_bytes);
    }
    port.complete();
    if (passed == output_tiles && port.idle()) {
      counters.cycles = now;
      break;
    }
    port.start();

    /* what can start */
    if (!working && !drained.empty() && (passed < 2 || port.arrived(OUTPUTS, passed - 2))) {
      working = true;
      work_left = drained.front()->vector_cycles;
    }
    if (!streaming && next_fold < folds.size()) {
      const Fold& fold = folds[next_fold];
      const bool weights = !fold.new_weights || laid > taken;
      const int64_t activations_id = activation_of[next_fold];
      const bool activations =
          activations_id < port.requested(ACTIVATIONS) && port.arrived(ACTIVATIONS, activations_id);
      const bool step = !fold.waits || passed == tile;
      const bool bank = !fold.first_slice || tile < 2 || passed >= tile - 1;
      if (weights && activations && step && bank) {
        (next_fold == 0       ? counters.fill
         : lacked_weights     ? counters.stall_weights
         : lacked_activations ? counters.stall_activations
         : lacked_step        ? counters.stall_steps
                              : counters.stall_outputs) += gap;
        gap = 0;
        streaming = true;
        streams.push_back({&fold, 0});
        next_fold++;
        tile += fold.last_slice;
        if (fold.new_weights) {
          taken++;
          shadow_lock = design.array_depth();
        }
      } else {
        gap++;
      }
      lacked_weights = !weights;
      lacked_activations = !activations;
      lacked_step = !step;
    }
    const bool tile_waits = laid < port.requested(WEIGHTS) && port.arrived(WEIGHTS, laid);
    if (!loading && laid == taken && shadow_lock == 0 && tile_waits) {
      loading = true;
      load_count = 0;
    }

    /* the cycle itself */
    if (!grid.empty()) {
      grid.front().clock(streams, loading ? weight_tiles[static_cast<size_t>(laid)] : nullptr, load_count);
    }
    for (Grid::Stream& stream : streams) stream.entered++;
    if (streaming) counters.busy++;
    if (!streaming && next_fold == folds.size()) counters.drain++;
    if (loading) load_count++;
    if (shadow_lock > 0) shadow_lock--;
    if (working) {
      work_left--;
      counters.vector_busy++;
    }
    port.tick();
  }
  counters.weight_bytes = port.bytes(WEIGHTS);
  counters.activation_bytes = port.bytes(ACTIVATIONS);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

Counters step_vector(const Design& design, const VectorStage& stage) {
  const VectorBlocks blocks(design, stage);
  Counters counters;
  counters.folds = blocks.count();
  ClockedPort port(design);
  int64_t started = 0, ended = 0, left = 0, gap = 0;
  bool working = false, lacked_input = false;
  for (int64_t now = 0;; now++) {
    if (working && left == 0) {
      working = false;
      port.request(OUTPUTS, now, blocks[ended++].output_bytes);
    }
    while (port.requested(ACTIVATIONS) < std::min(ended + 2, blocks.count())) {
      port.request(ACTIVATIONS, now, blocks[port.requested(ACTIVATIONS)].input_bytes);
    }
    port.complete();
    if (ended == blocks.count() && port.idle()) {
      counters.cycles = now;
      break;
    }
    port.start();
    if (!working && started < blocks.count()) {
      const bool input = port.arrived(ACTIVATIONS, started);
      const bool slot = started < 2 || port.arrived(OUTPUTS, started - 2);
      if (input && slot) {
        (started == 0 ? counters.fill : lacked_input ? counters.stall_activations : counters.stall_outputs) += gap;
        gap = 0;
        working = true;
        left = blocks[started++].cycles;
      } else {
        gap++;
      }
      lacked_input = !input;
    }
    if (working) {
      left--;
      counters.busy++;
    } else if (started == blocks.count()) {
      counters.drain++;
    }
    port.tick();
  }
  counters.vector_busy = counters.busy;
  counters.activation_bytes = port.bytes(ACTIVATIONS);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

}  // namespace asic
