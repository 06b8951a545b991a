/* See reference.h. Nothing here computes a time: there are flags, counters that count down, and a clock. */
#include "reference.h"

#include <algorithm>
#include <deque>
#include <vector>

namespace asic {
namespace {

enum Class { WEIGHT_TILES = WEIGHTS, ACTIVATION_TILES = ACTIVATIONS, OUTPUTS, CLASSES };

/* Keeps a state that differs from the last one. */
void see(std::vector<State>* states, const State& now) {
  if (!states) return;
  if (!states->empty()) {
    const State& last = states->back();
    if (last.loading == now.loading && last.fold == now.fold && last.vector == now.vector && last.port == now.port) {
      return;
    }
  }
  states->push_back(now);
}

/* The port to DRAM, polled, and what is behind it: channels with their queues, banks that open rows, refreshes. */
class ClockedPort {
 public:
  explicit ClockedPort(const Design& design)
      : design_(design), dram_(design.dram), channels_(static_cast<size_t>(design.dram.channels)) {
    for (Channel& channel : channels_) channel.banks.resize(static_cast<size_t>(dram_.banks));
  }

  void request(Class kind, int64_t now, int64_t bytes) {
    const auto id = static_cast<int64_t>(arrived_[kind].size());
    arrived_[kind].push_back(bytes == 0);
    bytes_[kind] += bytes;
    if (bytes) waiting_.push_back({now, kind, id, bytes});
  }

  bool arrived(Class kind, int64_t id) const { return arrived_[kind][static_cast<size_t>(id)]; }
  int64_t requested(Class kind) const { return static_cast<int64_t>(arrived_[kind].size()); }
  int64_t bytes(Class kind) const { return bytes_[kind]; }
  /* Of which classes something moves: a bit for each. */
  int moves() const {
    int kinds = 0;
    for (const Channel& channel : channels_) {
      if (!channel.queue.empty() && channel.begun) kinds |= 1 << channel.queue.front().kind;
    }
    return kinds;
  }
  bool idle() const { return waiting_.empty() && moving_.empty(); }

  /* What has been moved, and what has arrived, when a cycle begins. */
  void complete() {
    for (size_t i = 0; i < moving_.size();) {
      if (moving_[i].channels == 0 && moving_[i].latency == 0) {
        arrived_[moving_[i].kind][static_cast<size_t>(moving_[i].id)] = true;
        moving_.erase(moving_.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        i++;
      }
    }
  }

  /* Hands the requests of this cycle to the channels, the oldest first, when all of them are known. Banks whose next
   * access needs another row begin to open it. */
  void start() {
    if (!waiting_.empty()) {
      std::sort(waiting_.begin(), waiting_.end(), [](const Request& a, const Request& b) {
        if (a.time != b.time) return a.time < b.time;
        return a.kind != b.kind ? a.kind < b.kind : a.id < b.id;
      });
      for (const Request& request : waiting_) hand_out(request);
      waiting_.clear();
    }
    for (Channel& channel : channels_) {
      if (channel.queue.empty()) continue;
      if (dram_.has_rows()) open_rows(channel);
      if (!refreshing() && open(channel)) channel.begun = true;
    }
  }

  void tick(Counters& counters) {
    for (Moving& transfer : moving_) {
      if (transfer.channels == 0) transfer.latency--;
    }
    for (Channel& channel : channels_) {
      if (refreshing()) {
        counters.refresh_waits += !channel.queue.empty();
      } else {
        move(channel, counters);
        for (Bank& bank : channel.banks) bank.opening -= bank.opening > 0;
      }
    }
    if (dram_.refreshed() && ++phase_ == dram_.refresh_interval_cycles) phase_ = 0;
  }

 private:
  struct Request {
    int64_t time;
    Class kind;
    int64_t id, bytes;
  };
  struct Moving {
    Class kind;
    int64_t id;
    int64_t channels; /* that have not moved their part */
    int64_t latency;  /* left from then on */
  };
  /* Bursts of a transfer in one row. */
  struct Access {
    Class kind;
    int64_t id, page, bursts;
    int64_t left; /* of the work of moving them: of a channel's share of the port, so many bytes a cycle */
    bool missed, last;
  };
  struct Bank {
    int64_t page = -1;
    Class kind = CLASSES;
    int64_t opening = 0; /* cycles until its row is open */
    bool spoken_for = false; /* by an access before */
  };
  struct Channel {
    std::deque<Access> queue;
    std::vector<Bank> banks;
    bool begun = false; /* it has moved something of the first transfer, or does so in this cycle */
  };

  bool refreshing() const {
    return dram_.refreshed() && phase_ >= dram_.refresh_interval_cycles - dram_.refresh_cycles;
  }

  /* Burst by burst to the channels in turn; a class goes on where its transfer before ended. */
  void hand_out(const Request& request) {
    Moving transfer{request.kind, request.id, 0, design_.dram_latency_cycles};
    for (int64_t left = request.bytes; left > 0; left -= dram_.burst_bytes) {
      const int64_t burst = next_[request.kind]++;
      const int64_t page = burst / dram_.channels / dram_.bursts_in_row();
      std::deque<Access>& queue = channels_[static_cast<size_t>(burst % dram_.channels)].queue;
      const bool begins = queue.empty() || queue.back().kind != request.kind || queue.back().id != request.id;
      if (begins) transfer.channels++;
      if (begins || (dram_.has_rows() && queue.back().page != page)) {
        if (!begins) queue.back().last = false;
        queue.push_back({request.kind, request.id, page, 0, 0, false, true});
      }
      queue.back().bursts++;
      queue.back().left += dram_.burst_bytes * dram_.channels;
    }
    moving_.push_back(transfer);
  }

  Bank& bank_of(Channel& channel, const Access& access) const {
    return channel.banks[static_cast<size_t>((access.page + access.kind * dram_.banks / CLASSES) % dram_.banks)];
  }

  void open_rows(Channel& channel) {
    size_t spoken_for = 0;
    for (Bank& bank : channel.banks) bank.spoken_for = false;
    for (Access& access : channel.queue) {
      if (spoken_for == channel.banks.size()) return;
      Bank& bank = bank_of(channel, access);
      if (bank.spoken_for) continue;
      bank.spoken_for = true;
      spoken_for++;
      if (bank.page == access.page && bank.kind == access.kind) continue;
      bank.page = access.page;
      bank.kind = access.kind;
      bank.opening = dram_.row_miss_cycles;
      access.missed = true;
    }
  }

  /* The row that the first access needs is. */
  bool open(Channel& channel) const {
    if (!dram_.has_rows()) return true;
    const Bank& bank = bank_of(channel, channel.queue.front());
    return bank.page == channel.queue.front().page && bank.kind == channel.queue.front().kind && bank.opening == 0;
  }

  void move(Channel& channel, Counters& counters) {
    if (channel.queue.empty()) return;
    int64_t budget = design_.dram_bytes_per_cycle;
    if (!open(channel)) counters.row_waits++;
    while (budget > 0 && !channel.queue.empty() && open(channel)) {
      Access& access = channel.queue.front();
      const int64_t moved = std::min(budget, access.left);
      budget -= moved;
      access.left -= moved;
      if (access.left > 0) return;
      if (dram_.has_rows()) {
        counters.row_misses += access.missed;
        counters.row_hits += access.bursts - access.missed;
      }
      const bool last = access.last;
      if (last) {
        for (Moving& transfer : moving_) {
          if (transfer.kind == access.kind && transfer.id == access.id) transfer.channels--;
        }
      }
      channel.queue.pop_front();
      if (!last) continue;
      channel.begun = false;
      return; /* the next transfer begins with a cycle */
    }
  }

  const Design& design_;
  const Dram& dram_;
  std::vector<Request> waiting_;
  std::vector<Moving> moving_;
  std::vector<Channel> channels_;
  std::vector<bool> arrived_[CLASSES];
  int64_t bytes_[CLASSES] = {}, next_[CLASSES] = {};
  int64_t phase_ = 0; /* cycles since a refresh ended */
};

/* Tiles of one operand: asked for ahead, arriving, taken in the order of the folds. */
class Tiles {
 public:
  Tiles(ClockedPort& port, Class kind, const std::vector<Fold>& folds) : port_(port), kind_(kind) {
    for (const Fold& fold : folds) {
      if (fold.fresh[kind]) tiles_.push_back(&fold);
      of_fold_.push_back(static_cast<int64_t>(tiles_.size()) - 1);
    }
  }
  /* Those below `count`, if they have not been asked for. */
  void request(int64_t now, int64_t count) {
    while (port_.requested(kind_) < std::min<int64_t>(count, static_cast<int64_t>(tiles_.size()))) {
      port_.request(kind_, now, (*this)[port_.requested(kind_)].bytes[kind_]);
    }
  }
  bool arrived(int64_t tile) const { return tile < port_.requested(kind_) && port_.arrived(kind_, tile); }
  int64_t of_fold(size_t fold) const { return of_fold_[fold]; }
  const Fold& operator[](int64_t tile) const { return *tiles_[static_cast<size_t>(tile)]; } /* the first with it */

 private:
  ClockedPort& port_;
  Class kind_;
  std::vector<const Fold*> tiles_;
  std::vector<int64_t> of_fold_;
};

/* The vector unit, polled. */
class ClockedVector {
 public:
  ClockedVector(ClockedPort& port, Counters& counters) : port_(port), counters_(counters) {}

  void take(const Fold* tile) { waiting_.push_back(tile); }
  int64_t passed() const { return passed_; } /* tiles that have left it */
  bool working() const { return working_; }

  void complete(int64_t now) {
    if (!working_ || left_ > 0) return;
    working_ = false;
    port_.request(OUTPUTS, now, waiting_.front()->output_bytes);
    waiting_.pop_front();
    passed_++;
  }
  void start() {
    if (working_ || waiting_.empty() || (passed_ >= 2 && !port_.arrived(OUTPUTS, passed_ - 2))) return;
    working_ = true;
    left_ = waiting_.front()->vector_cycles;
  }
  void tick() {
    if (!working_) return;
    left_--;
    counters_.vector_busy++;
  }

 private:
  ClockedPort& port_;
  Counters& counters_;
  std::deque<const Fold*> waiting_;
  bool working_ = false;
  int64_t left_ = 0, passed_ = 0;
};

/* How long the memories on the chip take over what a fold, or a tile that is laid in, reads of some operands and what is
 * written for it, found by counting the bytes down: `least` cycles or more. */
struct Lasting {
  int64_t cycles = 0, conflicts = 0; /* those in which nothing is read any more */

  Lasting(const Design& design, const Fold& fold, const std::vector<Class>& operands, int64_t least) {
    struct Draw {
      const Sram& memory;
      int64_t room, reads, writes;
    };
    std::vector<Draw> draws;
    for (const Class operand : operands) {
      const Sram& memory = operand == WEIGHT_TILES ? design.weight_sram : design.activation_sram;
      const int64_t room = memory.buffer_bytes_per_cycle();
      if (room) draws.push_back({memory, room, fold.reads[operand], fold.fills[operand]});
    }
    for (;; cycles++) {
      bool reads = cycles < least, writes = false;
      for (Draw& draw : draws) {
        reads = reads || draw.reads > 0;
        writes = writes || draw.writes > 0;
        const int64_t read = std::min(draw.room, draw.reads);
        draw.reads -= read;
        draw.writes -= std::min(draw.memory.shared() ? draw.room - read : draw.room, draw.writes);
      }
      if (!reads && !writes) return;
      conflicts += !reads;
    }
  }
};

/* Puts the cycles in which a fold could have started down to what it lacked in the last of them. */
class Gap {
 public:
  explicit Gap(Counters& counters) : counters_(counters) {}

  bool closes(bool weights, bool activations, bool step, bool room) {
    if (weights && activations && step && room) {
      (first_ ? counters_.fill : counters_.*lacking_) += cycles_;
      cycles_ = 0;
      first_ = false;
      return true;
    }
    cycles_++;
    lacking_ = !weights       ? &Counters::stall_weights
               : !activations ? &Counters::stall_activations
               : !step        ? &Counters::stall_steps
                              : &Counters::stall_outputs;
    return false;
  }

 private:
  Counters& counters_;
  bool first_ = true;
  int64_t cycles_ = 0;
  int64_t Counters::* lacking_ = &Counters::fill;
};

/* A fold on its way through the array, or a tile on its way into it; `entered` counts the cycles since its first
 * operands were at the corner, of `cycles` in which operands or the memories behind them keep it busy. */
struct Stream {
  const Fold* fold;
  int64_t entered;
  int64_t cycles;
};

/* The operands of a plain product, by their places in it, and what leaves the array. */
struct Figures {
  Figures(const Program& program, const Product& product)
      : product_(product),
        tiling_(program.sections().front().tilings.front()),
        depth_(program.sections().front().stages.front().depth()),
        columns_(program.sections().front().stages.front().columns),
        parts_(program.sections().front().stages.front().operand_cycles) {}

  int64_t parts() const { return parts_; }

  /* A part of an operand that enters in several, the lowest first: they add up to it. */
  int64_t part(int64_t value, int64_t number) const {
    const int64_t bits = (16 + parts_ - 1) / parts_, shift = number * bits;
    const uint64_t above = static_cast<uint64_t>(value >> shift);
    const bool last = number == parts_ - 1;
    return static_cast<int64_t>((last ? above : above & ((uint64_t{1} << bits) - 1)) << shift);
  }

  int64_t activation(const Fold& fold, int64_t place, int64_t k) const {
    return product_.a[row(fold, place) * depth_ + fold.slice * tiling_.slice + k];
  }
  int64_t weight(const Fold& fold, int64_t k, int64_t column) const {
    return product_.w[(fold.slice * tiling_.slice + k) * columns_ + fold.strip * tiling_.strip + column];
  }
  int64_t added(int64_t sum, int64_t product) const { return product_.sums.added(sum, product); }

  /* What a sum starts from, and what becomes of it. */
  int64_t start(const Fold& fold, int64_t place, int64_t column) const {
    return product_.chained ? out(fold, place, column) : 0;
  }
  void keep(const Fold& fold, int64_t place, int64_t column, int64_t sum) const {
    int64_t& kept = out(fold, place, column);
    kept = product_.chained ? sum : product_.sums.accumulator.cast(kept + sum, product_.sums.accumulator.fraction);
  }

 private:
  int64_t& out(const Fold& fold, int64_t place, int64_t column) const {
    return product_.out[row(fold, place) * columns_ + fold.strip * tiling_.strip + column];
  }
  int64_t row(const Fold& fold, int64_t place) const {
    return fold.block * tiling_.block[0] + fold.patch * tiling_.patch + place;
  }

  const Product product_;
  const Tiling tiling_;
  const int64_t depth_, columns_, parts_;
};

/* The array in which an operand rests: a grid of processing elements, each with the operand and the sum that it passes
 * on, the resting operand in use and, with shadow registers, the one that is shifting in behind it. */
class RestingGrid {
 public:
  RestingGrid(const Program& program, const Product& product)
      : figures_(program, product),
        rows_(program.design().array_rows),
        columns_(program.design().array_columns),
        inputs_rest_(program.design().dataflow == Dataflow::input),
        scheme_(program.design().weight_load),
        shadowed_(program.design().shadowed()),
        cells_(static_cast<size_t>(rows_ * columns_)) {}

  /* One clock. `loads`: tiles on their way in. */
  void clock(const std::deque<Stream>& streams, const std::deque<Stream>& loads) {
    std::vector<Cell> next = cells_;
    for (int64_t r = 0; r < rows_; r++) {
      for (int64_t c = 0; c < columns_; c++) {
        const Cell& old = cells_[at(r, c)];
        Cell& cell = next[at(r, c)];
        if (c == 0) {
          enter(streams, r, cell);
        } else {
          cell.passing = cells_[at(r, c - 1)].passing;
          cell.changes = cells_[at(r, c - 1)].changes;
        }
        if (shadowed_ && cell.changes) cell.resting = old.shadow;
        cell.sum = figures_.added(r ? cells_[at(r - 1, c)].sum : start(streams, c), cell.passing * cell.resting);
        for (const Stream& load : loads) lay(load, r, c, cell);
      }
    }
    cells_.swap(next);
    for (const Stream& stream : streams) collect(stream);
  }

 private:
  struct Cell {
    int64_t passing = 0, resting = 0, shadow = 0, sum = 0;
    bool changes = false; /* the first operands of a fold bring the new tile into use */
  };

  size_t at(int64_t r, int64_t c) const { return static_cast<size_t>(r * columns_ + c); }

  /* What enters column c on top: each column a cycle later than the one before it. */
  int64_t start(const std::deque<Stream>& streams, int64_t c) const {
    for (const Stream& stream : streams) {
      const int64_t i = stream.entered - c;
      if (i < 0 || i >= stream.fold->cycles || c >= stream.fold->width) continue;
      const int64_t number = i / figures_.parts();
      return inputs_rest_ ? figures_.start(*stream.fold, c, number) : figures_.start(*stream.fold, number, c);
    }
    return 0;
  }

  /* What enters row r from the left: each row a cycle later than the one above it. */
  void enter(const std::deque<Stream>& streams, int64_t r, Cell& cell) const {
    cell.passing = 0;
    cell.changes = false;
    for (const Stream& stream : streams) {
      const int64_t i = stream.entered - r;
      if (i < 0 || i >= stream.fold->cycles) continue;
      cell.changes = i == 0 && stream.fold->fresh[inputs_rest_ ? ACTIVATIONS : WEIGHTS];
      if (r >= stream.fold->height) continue;
      const int64_t number = i / figures_.parts();
      const int64_t whole =
          inputs_rest_ ? figures_.weight(*stream.fold, r, number) : figures_.activation(*stream.fold, number, r);
      cell.passing = figures_.part(whole, i % figures_.parts());
    }
  }

  /* The clock of a tile's way in at (r, c): it shifts down from the top, its last row first, or comes on a wire. */
  void lay(const Stream& load, int64_t r, int64_t c, Cell& cell) {
    if (scheme_ == WeightLoad::broadcast) {
      if (load.entered == 0) cell.resting = resting(*load.fold, r, c);
      return;
    }
    const int64_t i = load.entered - (scheme_ == WeightLoad::skewed ? c : 0);
    if (i < 0 || i >= rows_) return;
    int64_t Cell::* into = shadowed_ ? &Cell::shadow : &Cell::resting;
    cell.*into = r ? cells_[at(r - 1, c)].*into : resting(*load.fold, rows_ - 1 - i, c);
  }

  int64_t resting(const Fold& fold, int64_t r, int64_t c) const {
    if (r >= fold.height || c >= fold.width) return 0;
    return inputs_rest_ ? figures_.activation(fold, c, r) : figures_.weight(fold, r, c);
  }

  /* What has left the bottom of the columns goes to the accumulators. */
  void collect(const Stream& stream) {
    for (int64_t c = 0; c < stream.fold->width; c++) {
      const int64_t i = stream.entered - (rows_ - 1) - c;
      if (i < 0 || i >= stream.fold->cycles) continue;
      const int64_t sum = cells_[at(rows_ - 1, c)].sum;
      const int64_t number = i / figures_.parts(); /* the sums of its parts are added up */
      if (inputs_rest_) {
        figures_.keep(*stream.fold, c, number, sum);
      } else {
        figures_.keep(*stream.fold, number, c, sum);
      }
    }
  }

  const Figures figures_;
  const int64_t rows_, columns_;
  const bool inputs_rest_;
  const WeightLoad scheme_;
  const bool shadowed_;
  std::vector<Cell> cells_;
};

/* The array in which sums rest: activations pass to the right, weights downwards, and finished sums leave down a chain
 * of registers of their own. */
class SummingGrid {
 public:
  SummingGrid(const Program& program, const Product& product)
      : figures_(program, product),
        rows_(program.design().array_rows),
        columns_(program.design().array_columns),
        cells_(static_cast<size_t>(rows_ * columns_)) {}

  /* One clock. `shifting`: the tile in the chain, and how many of its rows have left. */
  void clock(const std::deque<Stream>& streams, const Stream* shifting) {
    std::vector<Cell> next = cells_;
    if (shifting) {
      const int64_t row = rows_ - 1 - shifting->entered;
      for (int64_t c = 0; c < columns_; c++) {
        if (row < shifting->fold->height && c < shifting->fold->width) {
          figures_.keep(*shifting->fold, row, c, cells_[at(rows_ - 1, c)].finished);
        }
        for (int64_t r = rows_ - 1; r > 0; r--) next[at(r, c)].finished = cells_[at(r - 1, c)].finished;
      }
    }
    for (int64_t r = 0; r < rows_; r++) {
      for (int64_t c = 0; c < columns_; c++) {
        Cell& cell = next[at(r, c)];
        cell.activation = c ? cells_[at(r, c - 1)].activation : 0;
        cell.weight = r ? cells_[at(r - 1, c)].weight : 0;
        for (const Stream& stream : streams) {
          const int64_t k = stream.entered - r - c;
          if (k < 0 || k >= stream.fold->cycles) continue;
          const int64_t number = k / figures_.parts();
          if (c == 0) {
            const bool used = r < stream.fold->height;
            const int64_t whole = used ? figures_.activation(*stream.fold, r, number) : 0;
            cell.activation = figures_.part(whole, k % figures_.parts());
          }
          if (r == 0) cell.weight = c < stream.fold->width ? figures_.weight(*stream.fold, number, c) : 0;
          if (r >= stream.fold->height || c >= stream.fold->width) continue;
          const bool first = k == 0 && stream.fold->first_slice;
          const int64_t sum = first ? figures_.start(*stream.fold, r, c) : cells_[at(r, c)].sum;
          cell.sum = figures_.added(sum, cell.activation * cell.weight);
          if (k == stream.fold->cycles - 1 && stream.fold->last_slice) cell.finished = cell.sum;
        }
      }
    }
    cells_.swap(next);
  }

 private:
  struct Cell {
    int64_t activation = 0, weight = 0, sum = 0, finished = 0;
  };
  size_t at(int64_t r, int64_t c) const { return static_cast<size_t>(r * columns_ + c); }

  const Figures figures_;
  const int64_t rows_, columns_;
  std::vector<Cell> cells_;
};

std::vector<Fold> folds_of(const Program& program) {
  std::vector<Fold> folds;
  for (Cursor fold(program); !fold.done(); fold.next()) folds.push_back(*fold);
  return folds;
}

void step_resting(const Program& program, const Product& product, std::vector<State>* states, Counters& counters) {
  const Design& design = program.design();
  const Class rests = design.dataflow == Dataflow::input ? ACTIVATION_TILES : WEIGHT_TILES;
  const Class passes = rests == WEIGHT_TILES ? ACTIVATION_TILES : WEIGHT_TILES;
  const std::vector<Fold> folds = folds_of(program);
  ClockedPort port(design);
  Tiles resting(port, rests, folds), passing(port, passes, folds);
  ClockedVector vector(port, counters);
  std::vector<RestingGrid> grid;
  if (product.a) grid.emplace_back(program, product);

  std::deque<Stream> streams, loads;
  int64_t laid = 0, taken = 0, lock = 0; /* resting tiles laid in and taken into use; cycles until registers are free */
  bool loading = false, streaming = false;
  int64_t load_count = 0, freed = 0, tile = 0; /* streaming tiles done with; the output tile of the next fold */
  size_t next_fold = 0;
  Gap gap(counters);

  for (int64_t now = 0;; now++) {
    /* what is complete as the cycle begins */
    if (loading && load_count == loads.back().cycles) {
      loading = false;
      laid++;
    }
    if (!loads.empty() && loads.front().entered == loads.front().cycles + design.array_columns - 1) loads.pop_front();
    if (streaming && streams.back().entered == streams.back().cycles) {
      streaming = false;
      if (next_fold == folds.size() || folds[next_fold].fresh[passes]) freed++;
      if (!design.shadowed() && next_fold < folds.size() && folds[next_fold].fresh[rests]) {
        lock = design.release_cycles(); /* no fold uses the tile any more */
        taken = laid;
      }
    }
    if (!streams.empty() && streams.front().entered == streams.front().cycles + design.array_depth()) {
      if (streams.front().fold->last_slice) vector.take(streams.front().fold);
      streams.pop_front();
    }
    vector.complete(now);
    resting.request(now, laid + design.weight_fifo_tiles);
    passing.request(now, freed + 2);
    port.complete();
    if (next_fold == folds.size() && vector.passed() == tile && port.idle()) {
      counters.cycles = now;
      counters.weight_bytes = port.bytes(WEIGHT_TILES);
      counters.activation_bytes = port.bytes(ACTIVATION_TILES);
      counters.output_bytes = port.bytes(OUTPUTS);
      if (states) states->push_back({now, false, -1, false, 0});
      return;
    }
    port.start();

    /* what can start */
    vector.start();
    if (!streaming && next_fold < folds.size()) {
      const Fold& fold = folds[next_fold];
      const bool rested = !fold.fresh[rests] || laid > resting.of_fold(next_fold);
      const bool passed = passing.arrived(passing.of_fold(next_fold));
      const bool step = !fold.waits || vector.passed() == tile;
      const bool bank = !fold.first_slice || tile < 2 || vector.passed() >= tile - 1;
      if (gap.closes(rests == WEIGHT_TILES ? rested : passed, rests == WEIGHT_TILES ? passed : rested, step, bank)) {
        streaming = true;
        const Lasting lasting(design, fold, {passes}, fold.cycles);
        streams.push_back({&fold, 0, lasting.cycles});
        counters.memory_conflicts += lasting.conflicts;
        tally(fold, counters);
        next_fold++;
        tile += fold.last_slice;
        if (fold.fresh[rests] && design.shadowed()) {
          taken++;
          lock = design.release_cycles();
        }
      }
    }
    if (!loading && laid == taken && lock == 0 && resting.arrived(laid)) {
      const Fold& fold = resting[laid];
      /* results of the stage before have to be there before they can rest in the array */
      const bool made = rests != ACTIVATION_TILES || !fold.waits ||
                        (next_fold < folds.size() && &folds[next_fold] == &fold && vector.passed() == tile);
      if (made) {
        loading = true;
        load_count = 0;
        const Lasting lasting(design, fold, {rests}, design.load_cycles());
        loads.push_back({&fold, 0, lasting.cycles});
        counters.memory_conflicts += lasting.conflicts;
      }
    }

    /* the cycle itself */
    see(states, {now, loading, streaming ? static_cast<int64_t>(next_fold) - 1 : -1, vector.working(), port.moves()});
    if (!grid.empty()) grid.front().clock(streams, loads);
    if (streaming) (streams.back().entered < streams.back().fold->cycles ? counters.busy : counters.stall_memory)++;
    for (Stream& stream : streams) stream.entered++;
    for (Stream& load : loads) load.entered++;
    if (!streaming && next_fold == folds.size()) counters.drain++;
    if (loading) load_count++;
    if (lock > 0) lock--;
    vector.tick();
    port.tick(counters);
  }
}

void step_summing(const Program& program, const Product& product, std::vector<State>* states, Counters& counters) {
  const Design& design = program.design();
  const std::vector<Fold> folds = folds_of(program);
  ClockedPort port(design);
  Tiles weights(port, WEIGHT_TILES, folds), activations(port, ACTIVATION_TILES, folds);
  ClockedVector vector(port, counters);
  std::vector<SummingGrid> grid;
  if (product.a) grid.emplace_back(program, product);

  std::vector<Lasting> lastings;
  for (const Fold& fold : folds) lastings.emplace_back(design, fold, std::vector<Class>{WEIGHT_TILES, ACTIVATION_TILES}, fold.cycles);
  std::deque<Stream> streams;
  Stream shifting{nullptr, 0, 0};
  bool streaming = false;
  int64_t weights_freed = 0, activations_freed = 0, tile = 0;
  int64_t chain_left = 0; /* cycles until the finished sums of the last tile have left the array */
  size_t next_fold = 0;
  Gap gap(counters);

  for (int64_t now = 0;; now++) {
    if (streaming && streams.back().entered == streams.back().cycles) {
      streaming = false;
      const bool last = next_fold == folds.size();
      if (streams.back().fold->last_slice) chain_left = design.array_depth() + design.array_rows;
      weights_freed += last || folds[next_fold].fresh[WEIGHTS];
      activations_freed += last || folds[next_fold].fresh[ACTIVATIONS];
    }
    if (shifting.fold && shifting.entered == shifting.cycles) {
      vector.take(shifting.fold);
      shifting.fold = nullptr;
    }
    if (!streams.empty() && streams.front().entered == streams.front().cycles + design.array_depth()) {
      if (streams.front().fold->last_slice) shifting = {streams.front().fold, 0, design.array_rows};
      streams.pop_front();
    }
    vector.complete(now);
    weights.request(now, weights_freed + 2);
    activations.request(now, activations_freed + 2);
    port.complete();
    if (next_fold == folds.size() && vector.passed() == tile && port.idle()) {
      counters.cycles = now;
      counters.weight_bytes = port.bytes(WEIGHT_TILES);
      counters.activation_bytes = port.bytes(ACTIVATION_TILES);
      counters.output_bytes = port.bytes(OUTPUTS);
      if (states) states->push_back({now, false, -1, false, 0});
      return;
    }
    port.start();
    vector.start();

    if (!streaming && next_fold < folds.size()) {
      const Fold& fold = folds[next_fold];
      const bool step = !fold.waits || vector.passed() == tile;
      const Lasting& lasting = lastings[next_fold];
      const bool room =
          !fold.last_slice || (chain_left <= lasting.cycles && (tile < 2 || vector.passed() >= tile - 1));
      if (gap.closes(weights.arrived(weights.of_fold(next_fold)), activations.arrived(activations.of_fold(next_fold)),
                     step, room)) {
        streaming = true;
        /* the memories take their time before the first operands, so that they follow each other without a gap */
        streams.push_back({&fold, fold.cycles - lasting.cycles, fold.cycles});
        counters.memory_conflicts += lasting.conflicts;
        tally(fold, counters);
        next_fold++;
        tile += fold.last_slice;
      }
    }
    see(states, {now, false, streaming ? static_cast<int64_t>(next_fold) - 1 : -1, vector.working(), port.moves()});
    if (!grid.empty()) grid.front().clock(streams, shifting.fold ? &shifting : nullptr);
    if (streaming) (streams.back().entered >= 0 ? counters.busy : counters.stall_memory)++;
    for (Stream& stream : streams) stream.entered++;
    if (shifting.fold) shifting.entered++;
    if (chain_left > 0) chain_left--;
    if (!streaming && next_fold == folds.size()) counters.drain++;
    vector.tick();
    port.tick(counters);
  }
}

}  // namespace

Counters step_program(const Program& program, const Product& product, std::vector<State>* states) {
  Counters counters;
  counters.macs = program.macs();
  if (program.design().dataflow == Dataflow::output) {
    step_summing(program, product, states, counters);
  } else {
    step_resting(program, product, states, counters);
  }
  return counters;
}

Counters step_vector(const Design& design, const VectorStage& stage, std::vector<State>* states) {
  const VectorBlocks blocks(design, stage);
  Counters counters;
  counters.folds = blocks.count();
  ClockedPort port(design);
  int64_t started = 0, ended = 0, left = 0, slow = 0, gap = 0; /* slow: cycles among those left, lost to the memory */
  bool working = false, lacked_input = false;
  for (int64_t now = 0;; now++) {
    if (working && left == 0) {
      working = false;
      port.request(OUTPUTS, now, blocks[ended++].output_bytes);
    }
    while (port.requested(ACTIVATION_TILES) < std::min(ended + 2, blocks.count())) {
      port.request(ACTIVATION_TILES, now, blocks[port.requested(ACTIVATION_TILES)].input_bytes);
    }
    port.complete();
    if (ended == blocks.count() && port.idle()) {
      counters.cycles = now;
      if (states) states->push_back({now, false, -1, false, 0});
      break;
    }
    port.start();
    if (!working && started < blocks.count()) {
      const bool input = port.arrived(ACTIVATION_TILES, started);
      const bool slot = started < 2 || port.arrived(OUTPUTS, started - 2);
      if (input && slot) {
        (started == 0 ? counters.fill : lacked_input ? counters.stall_activations : counters.stall_outputs) += gap;
        gap = 0;
        working = true;
        const VectorBlock block = blocks[started++];
        Fold read;
        read.reads[ACTIVATION_TILES] = block.reads;
        read.fills[ACTIVATION_TILES] = block.input_bytes;
        const Lasting lasting(design, read, {ACTIVATION_TILES}, block.cycles);
        left = lasting.cycles;
        slow = left - block.cycles;
        counters.memory_conflicts += lasting.conflicts;
        counters.lane_operations += block.lane_operations;
        counters.activation_reads += block.reads;
        counters.activation_writes += block.writes;
      } else {
        gap++;
      }
      lacked_input = !input;
    }
    see(states, {now, false, -1, working, port.moves()});
    if (working) {
      (left > slow ? counters.busy : counters.stall_memory)++;
      left--;
    } else if (started == blocks.count()) {
      counters.drain++;
    }
    port.tick(counters);
  }
  counters.vector_busy = counters.busy;
  counters.activation_bytes = port.bytes(ACTIVATION_TILES);
  counters.output_bytes = port.bytes(OUTPUTS);
  return counters;
}

}  // namespace asic
