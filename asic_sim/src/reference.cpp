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

/* The DRAM behind the ports, polled: channels with their queues, banks that open rows, refreshes. A transfer is its core's
 * request of that number, of a class. */
class ClockedMemory {
 public:
  struct Request {
    int64_t time;
    Class kind;
    size_t core;
    int64_t id, bytes;
    size_t part;
  };

  /* counters: of each core, of each part of the run, as in a request. */
  ClockedMemory(const Design& design, std::vector<std::vector<Counters>>& counters)
      : design_(design),
        dram_(design.dram),
        counters_(counters),
        cores_(counters.size()),
        channels_(static_cast<size_t>(design.dram.channels)),
        next_(cores_ * CLASSES) {
    for (Channel& channel : channels_) channel.banks.resize(static_cast<size_t>(dram_.banks));
  }

  void request(const Request& request) { waiting_.push_back(request); }
  /* What has arrived as a cycle begins. */
  const std::vector<Request>& arrived() const { return arrived_; }
  /* Of which classes something of a core moves: a bit for each. */
  int moves(size_t core) const {
    int kinds = 0;
    for (const Channel& channel : channels_) {
      if (channel.queue.empty() || !channel.begun || channel.queue.front().request.core != core) continue;
      kinds |= 1 << channel.queue.front().request.kind;
    }
    return kinds;
  }

  /* What has been moved, and what has arrived, when a cycle begins. */
  void complete() {
    arrived_.clear();
    for (size_t i = 0; i < moving_.size();) {
      if (moving_[i].channels == 0 && moving_[i].latency == 0) {
        arrived_.push_back(moving_[i].request);
        moving_.erase(moving_.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        i++;
      }
    }
  }

  /* Hands the requests of this cycle to the channels when all of them are known: class by class, of each class the cores
   * in turn. Banks whose next access needs another row begin to open it. */
  void start() {
    for (const Class kind : {WEIGHT_TILES, ACTIVATION_TILES, OUTPUTS}) {
      while (!waiting_.empty()) {
        auto chosen = waiting_.end();
        for (size_t i = 1; i <= cores_ && chosen == waiting_.end(); i++) {
          const size_t core = (served_ + i) % cores_;
          chosen = std::find_if(waiting_.begin(), waiting_.end(), [&](const Request& request) {
            return request.kind == kind && request.core == core; /* a core's own are in order */
          });
        }
        if (chosen == waiting_.end()) break;
        served_ = chosen->core;
        hand_out(*chosen);
        waiting_.erase(chosen);
      }
    }
    for (Channel& channel : channels_) {
      if (channel.queue.empty()) continue;
      if (dram_.has_rows()) open_rows(channel);
      if (!refreshing() && open(channel)) channel.begun = true;
    }
  }

  void tick() {
    for (Moving& transfer : moving_) {
      if (transfer.channels == 0) transfer.latency--;
    }
    for (Channel& channel : channels_) {
      if (refreshing()) {
        if (!channel.queue.empty()) of(channel.queue.front()).refresh_waits++;
      } else {
        move(channel);
        for (Bank& bank : channel.banks) bank.opening -= bank.opening > 0;
      }
    }
    if (dram_.refreshed() && ++phase_ == dram_.refresh_interval_cycles) phase_ = 0;
  }

 private:
  struct Moving {
    Request request;
    int64_t channels; /* that have not moved their part */
    int64_t latency;  /* left from then on */
  };
  /* Bursts of a transfer in one row. */
  struct Access {
    Request request;
    int64_t page, bursts;
    int64_t left; /* of the work of moving them: of a channel's share of the port, so many bytes a cycle */
    bool missed, last;
  };
  struct Bank {
    int64_t page = -1;
    size_t area = 0; /* that the page is of */
    int64_t opening = 0; /* cycles until its row is open */
    bool spoken_for = false; /* by an access before */
  };
  struct Channel {
    std::deque<Access> queue;
    std::vector<Bank> banks;
    bool begun = false; /* it has moved something of the first transfer, or does so in this cycle */
  };

  Counters& of(const Access& access) { return counters_[access.request.core][access.request.part]; }
  /* A core's requests of a class lie in an area of their own. */
  size_t area(const Request& request) const { return static_cast<size_t>(request.kind) * cores_ + request.core; }
  static bool same(const Request& a, const Request& b) {
    return a.core == b.core && a.kind == b.kind && a.id == b.id;
  }

  bool refreshing() const {
    return dram_.refreshed() && phase_ >= dram_.refresh_interval_cycles - dram_.refresh_cycles;
  }

  /* Burst by burst to the channels in turn; an area goes on where its transfer before ended. */
  void hand_out(const Request& request) {
    Moving transfer{request, 0, design_.dram_latency_cycles};
    for (int64_t left = request.bytes; left > 0; left -= dram_.burst_bytes) {
      const int64_t burst = next_[area(request)]++;
      const int64_t page = burst / dram_.channels / dram_.bursts_in_row();
      std::deque<Access>& queue = channels_[static_cast<size_t>(burst % dram_.channels)].queue;
      const bool begins = queue.empty() || !same(queue.back().request, request);
      if (begins) transfer.channels++;
      if (begins || (dram_.has_rows() && queue.back().page != page)) {
        if (!begins) queue.back().last = false;
        queue.push_back({request, page, 0, 0, false, true});
      }
      queue.back().bursts++;
      queue.back().left += dram_.burst_bytes * dram_.channels;
    }
    moving_.push_back(transfer);
  }

  Bank& bank_of(Channel& channel, const Access& access) const {
    const int64_t first = static_cast<int64_t>(area(access.request)) * dram_.banks / static_cast<int64_t>(next_.size());
    return channel.banks[static_cast<size_t>((access.page + first) % dram_.banks)];
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
      if (bank.page == access.page && bank.area == area(access.request)) continue;
      bank.page = access.page;
      bank.area = area(access.request);
      bank.opening = dram_.row_miss_cycles;
      access.missed = true;
    }
  }

  /* The row that the first access needs is. */
  bool open(Channel& channel) const {
    if (!dram_.has_rows()) return true;
    const Access& access = channel.queue.front();
    const Bank& bank = bank_of(channel, access);
    return bank.page == access.page && bank.area == area(access.request) && bank.opening == 0;
  }

  void move(Channel& channel) {
    if (channel.queue.empty()) return;
    int64_t budget = design_.dram_bytes_per_cycle;
    Counters& counters = of(channel.queue.front());
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
          if (same(transfer.request, access.request)) transfer.channels--;
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
  std::vector<std::vector<Counters>>& counters_;
  const size_t cores_;
  std::vector<Request> waiting_, arrived_;
  std::vector<Moving> moving_;
  std::vector<Channel> channels_;
  std::vector<int64_t> next_; /* burst of an area */
  size_t served_ = cores_ - 1; /* the core whose request was handed out last */
  int64_t phase_ = 0;          /* cycles since a refresh ended */
};

/* A core's port to it. */
class ClockedPort {
 public:
  ClockedPort(ClockedMemory& memory, size_t core, std::vector<Counters>& counters)
      : memory_(memory), core_(core), counters_(counters) {}

  /* By its number, among those of the class, is a request known. */
  int64_t request(Class kind, int64_t now, int64_t bytes, size_t part) {
    const auto id = static_cast<int64_t>(arrived_[kind].size());
    arrived_[kind].push_back(bytes == 0);
    Counters& counters = counters_[part];
    (kind == OUTPUTS        ? counters.output_bytes
     : kind == WEIGHT_TILES ? counters.weight_bytes
                            : counters.activation_bytes) += bytes;
    if (bytes) memory_.request({now, kind, core_, id, bytes, part});
    in_flight_[kind] += bytes > 0;
    return id;
  }

  bool arrived(Class kind, int64_t id) const { return arrived_[kind][static_cast<size_t>(id)]; }
  bool all_arrived(Class kind) const { return in_flight_[kind] == 0; }
  /* All outputs but the last one, at most. */
  bool room_for_outputs() const {
    const auto count = static_cast<int64_t>(arrived_[OUTPUTS].size());
    return count < 2 || arrived(OUTPUTS, count - 2);
  }
  int moves() const { return memory_.moves(core_); }

  /* What has arrived, when a cycle begins. */
  void complete() {
    for (const ClockedMemory::Request& request : memory_.arrived()) {
      if (request.core != core_) continue;
      arrived_[request.kind][static_cast<size_t>(request.id)] = true;
      in_flight_[request.kind]--;
    }
  }

 private:
  ClockedMemory& memory_;
  const size_t core_;
  std::vector<Counters>& counters_;
  std::vector<bool> arrived_[CLASSES];
  int64_t in_flight_[CLASSES] = {};
};

/* The folds of a run, and the part that each belongs to. */
struct Folds {
  explicit Folds(const Program& program) {
    for (Cursor fold(program); !fold.done(); fold.next()) {
      folds.push_back(*fold);
      parts.push_back(static_cast<size_t>(fold.part()));
    }
  }
  size_t size() const { return folds.size(); }
  const Fold& operator[](size_t fold) const { return folds[fold]; }
  bool of_part(size_t fold, size_t part) const { return fold < size() && parts[fold] == part; }

  std::vector<Fold> folds;
  std::vector<size_t> parts;
};

constexpr size_t EVERY_PART = SIZE_MAX; /* in place of the last part whose tiles are asked for */

/* Tiles of one operand: asked for ahead, arriving, taken in the order of the folds. */
class Tiles {
 public:
  Tiles(ClockedPort& port, Class kind, const Folds& folds) : port_(port), kind_(kind) {
    for (size_t fold = 0; fold < folds.size(); fold++) {
      if (folds[fold].fresh[kind]) {
        tiles_.push_back(&folds[fold]);
        parts_.push_back(folds.parts[fold]);
      }
      of_fold_.push_back(static_cast<int64_t>(tiles_.size()) - 1);
    }
  }
  /* Those below `count`, if they have not been asked for, and belong to no part behind `last`. */
  void request(int64_t now, int64_t count, size_t last) {
    while (asked() < std::min<int64_t>(count, static_cast<int64_t>(tiles_.size())) && part(asked()) <= last) {
      requests_.push_back(port_.request(kind_, now, (*this)[asked()].bytes[kind_], part(asked())));
    }
  }
  bool arrived(int64_t tile) const {
    return tile < asked() && port_.arrived(kind_, requests_[static_cast<size_t>(tile)]);
  }
  int64_t of_fold(size_t fold) const { return of_fold_[fold]; }
  const Fold& operator[](int64_t tile) const { return *tiles_[static_cast<size_t>(tile)]; } /* the first with it */
  size_t part(int64_t tile) const { return parts_[static_cast<size_t>(tile)]; }

 private:
  int64_t asked() const { return static_cast<int64_t>(requests_.size()); }

  ClockedPort& port_;
  Class kind_;
  std::vector<const Fold*> tiles_;
  std::vector<size_t> parts_;
  std::vector<int64_t> of_fold_, requests_;
};

/* The vector unit, polled. */
class ClockedVector {
 public:
  ClockedVector(ClockedPort& port, std::vector<Counters>& counters) : port_(port), counters_(counters) {}

  void take(const Fold* tile) { waiting_.push_back(tile); }
  int64_t passed() const { return passed_; } /* tiles that have left it */
  bool working() const { return working_; }

  void complete(int64_t now, size_t part) {
    if (!working_ || left_ > 0) return;
    working_ = false;
    port_.request(OUTPUTS, now, waiting_.front()->output_bytes, part);
    waiting_.pop_front();
    passed_++;
  }
  void start() {
    if (working_ || waiting_.empty() || !port_.room_for_outputs()) return;
    working_ = true;
    left_ = waiting_.front()->vector_cycles;
  }
  void tick(size_t part) {
    if (!working_) return;
    left_--;
    counters_[part].vector_busy++;
  }

 private:
  ClockedPort& port_;
  std::vector<Counters>& counters_;
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
  /* A part of the run begins. */
  void open() { first_ = true; }

  bool closes(Counters& counters, bool weights, bool activations, bool step, bool room) {
    if (weights && activations && step && room) {
      (first_ ? counters.fill : counters.*lacking_) += cycles_;
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
        stored_(program.sections().front().stages.front().stored.get()),
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
    return product_.a[row(fold, place) * depth_ + deep(fold, k)];
  }
  int64_t weight(const Fold& fold, int64_t k, int64_t column) const {
    return product_.w[deep(fold, k) * columns_ + fold.strip * tiling_.strip + column];
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
  /* Where the array's row of a fold is in the depth: rows that are skipped are not among those that are kept. */
  int64_t deep(const Fold& fold, int64_t k) const {
    const int64_t row = fold.slice * tiling_.slice + k;
    if (!product_.kept) return row;
    return product_.kept[stored_->first[static_cast<size_t>(fold.strip)] - fold.strip + row];
  }
  int64_t row(const Fold& fold, int64_t place) const {
    return fold.block * tiling_.block[0] + fold.patch * tiling_.patch + place;
  }

  const Product product_;
  const Tiling tiling_;
  const Stored* stored_;
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

/* What a unit does in a cycle, of the part that the run is at. In the order of a cycle: what is complete as it begins,
 * what is asked for, what can start, the cycle itself. */

/* The array in which an operand rests, with the vector unit behind it. */
class ClockedResting {
 public:
  ClockedResting(const Program& program, const Product& product, ClockedPort& port, std::vector<Counters>& counters)
      : design_(program.design()),
        rests_(design_.dataflow == Dataflow::input ? ACTIVATION_TILES : WEIGHT_TILES),
        passes_(rests_ == WEIGHT_TILES ? ACTIVATION_TILES : WEIGHT_TILES),
        folds_(program),
        counters_(counters),
        resting_(port, rests_, folds_),
        passing_(port, passes_, folds_),
        vector_(port, counters) {
    if (product.a) grid_.emplace_back(program, product);
  }

  void begin() { gap_.open(); }
  void complete(int64_t now, size_t part) {
    if (loading_ && load_count_ == loads_.back().cycles) {
      loading_ = false;
      laid_++;
    }
    if (!loads_.empty() && loads_.front().entered == loads_.front().cycles + design_.array_columns - 1) {
      loads_.pop_front();
    }
    if (streaming_ && streams_.back().entered == streams_.back().cycles) {
      streaming_ = false;
      if (next_ == folds_.size() || folds_[next_].fresh[passes_]) freed_++;
      if (!design_.shadowed() && next_ < folds_.size() && folds_[next_].fresh[rests_]) {
        lock_ = design_.release_cycles(); /* no fold uses the tile any more */
        taken_ = laid_;
      }
    }
    if (!streams_.empty() && streams_.front().entered == streams_.front().cycles + design_.array_depth()) {
      if (streams_.front().fold->last_slice) vector_.take(streams_.front().fold);
      streams_.pop_front();
    }
    vector_.complete(now, part);
  }
  /* Activations of the part; weights whatever part they belong to. */
  void request(int64_t now, size_t part) {
    resting_.request(now, laid_ + design_.weight_fifo_tiles, rests_ == WEIGHT_TILES ? EVERY_PART : part);
    passing_.request(now, freed_ + 2, passes_ == WEIGHT_TILES ? EVERY_PART : part);
  }
  /* All folds of the part are through. */
  bool over(size_t part) const { return !folds_.of_part(next_, part) && vector_.passed() == tile_; }
  void start(size_t part) {
    vector_.start();
    if (!streaming_ && folds_.of_part(next_, part)) {
      const Fold& fold = folds_[next_];
      const bool rested = !fold.fresh[rests_] || laid_ > resting_.of_fold(next_);
      const bool passed = passing_.arrived(passing_.of_fold(next_));
      const bool step = !fold.waits || vector_.passed() == tile_;
      const bool bank = !fold.first_slice || tile_ < 2 || vector_.passed() >= tile_ - 1;
      const bool weights = rests_ == WEIGHT_TILES ? rested : passed;
      if (gap_.closes(counters_[part], weights, rests_ == WEIGHT_TILES ? passed : rested, step, bank)) {
        streaming_ = true;
        const Lasting lasting(design_, fold, {passes_}, fold.lasting);
        streams_.push_back({&fold, 0, lasting.cycles});
        counters_[part].memory_conflicts += lasting.conflicts;
        tally(fold, counters_[part]);
        next_++;
        tile_ += fold.last_slice;
        if (fold.fresh[rests_] && design_.shadowed()) {
          taken_++;
          lock_ = design_.release_cycles();
        }
      }
    }
    if (!loading_ && laid_ == taken_ && lock_ == 0 && resting_.arrived(laid_)) {
      const Fold& fold = resting_[laid_];
      /* results of the stage before have to be there before they can rest in the array */
      const bool made = rests_ != ACTIVATION_TILES || !fold.waits ||
                        (next_ < folds_.size() && &folds_[next_] == &fold && vector_.passed() == tile_);
      if (made) {
        loading_ = true;
        load_count_ = 0;
        const Lasting lasting(design_, fold, {rests_}, fold.laying);
        loads_.push_back({&fold, 0, lasting.cycles});
        counters_[resting_.part(laid_)].memory_conflicts += lasting.conflicts;
      }
    }
  }
  State state(int64_t now, int moves) const {
    return {now, loading_, streaming_ ? static_cast<int64_t>(next_) - 1 : -1, vector_.working(), moves};
  }
  /* `active`: the part has folds. */
  void tick(size_t part, bool active) {
    if (!grid_.empty()) grid_.front().clock(streams_, loads_);
    if (streaming_) {
      (streams_.back().entered < streams_.back().fold->cycles ? counters_[part].busy : counters_[part].stall_memory)++;
    } else if (active && !folds_.of_part(next_, part)) {
      counters_[part].drain++;
    }
    for (Stream& stream : streams_) stream.entered++;
    for (Stream& load : loads_) load.entered++;
    if (loading_) load_count_++;
    if (lock_ > 0) lock_--;
    vector_.tick(part);
  }

 private:
  const Design& design_;
  const Class rests_, passes_;
  const Folds folds_;
  std::vector<Counters>& counters_;
  Tiles resting_, passing_;
  ClockedVector vector_;
  std::vector<RestingGrid> grid_;
  std::deque<Stream> streams_, loads_;
  int64_t laid_ = 0, taken_ = 0, lock_ = 0; /* resting tiles laid in and taken into use; cycles until registers are free */
  bool loading_ = false, streaming_ = false;
  int64_t load_count_ = 0, freed_ = 0, tile_ = 0; /* streaming tiles done with; the output tile of the next fold */
  size_t next_ = 0;                               /* fold */
  Gap gap_;
};

/* The array in which sums rest, with the vector unit behind it. */
class ClockedSumming {
 public:
  ClockedSumming(const Program& program, const Product& product, ClockedPort& port, std::vector<Counters>& counters)
      : design_(program.design()),
        folds_(program),
        counters_(counters),
        weights_(port, WEIGHT_TILES, folds_),
        activations_(port, ACTIVATION_TILES, folds_),
        vector_(port, counters) {
    if (product.a) grid_.emplace_back(program, product);
    for (const Fold& fold : folds_.folds) {
      lastings_.emplace_back(design_, fold, std::vector<Class>{WEIGHT_TILES, ACTIVATION_TILES}, fold.lasting);
    }
  }

  void begin() { gap_.open(); }
  void complete(int64_t now, size_t part) {
    if (streaming_ && streams_.back().entered == streams_.back().cycles) {
      streaming_ = false;
      const bool last = next_ == folds_.size();
      if (streams_.back().fold->last_slice) chain_left_ = design_.array_depth() + design_.array_rows;
      weights_freed_ += last || folds_[next_].fresh[WEIGHTS];
      activations_freed_ += last || folds_[next_].fresh[ACTIVATIONS];
    }
    if (shifting_.fold && shifting_.entered == shifting_.cycles) {
      vector_.take(shifting_.fold);
      shifting_.fold = nullptr;
    }
    if (!streams_.empty() && streams_.front().entered == streams_.front().cycles + design_.array_depth()) {
      if (streams_.front().fold->last_slice) shifting_ = {streams_.front().fold, 0, design_.array_rows};
      streams_.pop_front();
    }
    vector_.complete(now, part);
  }
  void request(int64_t now, size_t part) {
    weights_.request(now, weights_freed_ + 2, EVERY_PART);
    activations_.request(now, activations_freed_ + 2, part);
  }
  bool over(size_t part) const { return !folds_.of_part(next_, part) && vector_.passed() == tile_; }
  void start(size_t part) {
    vector_.start();
    if (streaming_ || !folds_.of_part(next_, part)) return;
    const Fold& fold = folds_[next_];
    const bool step = !fold.waits || vector_.passed() == tile_;
    const Lasting& lasting = lastings_[next_];
    const bool room = !fold.last_slice || (chain_left_ <= lasting.cycles && (tile_ < 2 || vector_.passed() >= tile_ - 1));
    if (!gap_.closes(counters_[part], weights_.arrived(weights_.of_fold(next_)),
                     activations_.arrived(activations_.of_fold(next_)), step, room)) {
      return;
    }
    streaming_ = true;
    /* the memories take their time before the first operands, so that they follow each other without a gap */
    streams_.push_back({&fold, fold.cycles - lasting.cycles, fold.cycles});
    counters_[part].memory_conflicts += lasting.conflicts;
    tally(fold, counters_[part]);
    next_++;
    tile_ += fold.last_slice;
  }
  State state(int64_t now, int moves) const {
    return {now, false, streaming_ ? static_cast<int64_t>(next_) - 1 : -1, vector_.working(), moves};
  }
  /* `active`: the part has folds. */
  void tick(size_t part, bool active) {
    if (!grid_.empty()) grid_.front().clock(streams_, shifting_.fold ? &shifting_ : nullptr);
    if (streaming_) {
      (streams_.back().entered >= 0 ? counters_[part].busy : counters_[part].stall_memory)++;
    } else if (active && !folds_.of_part(next_, part)) {
      counters_[part].drain++;
    }
    for (Stream& stream : streams_) stream.entered++;
    if (shifting_.fold) shifting_.entered++;
    if (chain_left_ > 0) chain_left_--;
    vector_.tick(part);
  }

 private:
  const Design& design_;
  const Folds folds_;
  std::vector<Counters>& counters_;
  Tiles weights_, activations_;
  ClockedVector vector_;
  std::vector<SummingGrid> grid_;
  std::vector<Lasting> lastings_;
  std::deque<Stream> streams_;
  Stream shifting_{nullptr, 0, 0};
  bool streaming_ = false;
  int64_t weights_freed_ = 0, activations_freed_ = 0, tile_ = 0;
  int64_t chain_left_ = 0; /* cycles until the finished sums of the last tile have left the array */
  size_t next_ = 0;        /* fold */
  Gap gap_;
};

/* Blocks of the vector unit alone, a part of a run. */
class ClockedBlocks {
 public:
  ClockedBlocks(const Design& design, const VectorBlocks& blocks, ClockedPort& port, Counters& counters, size_t part)
      : design_(design), blocks_(blocks), port_(port), counters_(counters), part_(part) {
    counters_.folds = blocks_.count();
  }

  void complete(int64_t now) {
    if (!working_ || left_ > 0) return;
    working_ = false;
    port_.request(OUTPUTS, now, blocks_[ended_++].output_bytes, part_);
  }
  void request(int64_t now) {
    while (static_cast<int64_t>(inputs_.size()) < std::min(ended_ + 2, blocks_.count())) {
      const VectorBlock block = blocks_[static_cast<int64_t>(inputs_.size())];
      inputs_.push_back(port_.request(ACTIVATION_TILES, now, block.input_bytes, part_));
    }
  }
  bool over() const { return ended_ == blocks_.count(); }
  void start() {
    if (working_ || started_ == blocks_.count()) return;
    const bool input = port_.arrived(ACTIVATION_TILES, inputs_[static_cast<size_t>(started_)]);
    if (!input || !port_.room_for_outputs()) {
      lacked_input_ = !input;
      gap_++;
      return;
    }
    (started_ == 0 ? counters_.fill : lacked_input_ ? counters_.stall_activations : counters_.stall_outputs) += gap_;
    gap_ = 0;
    working_ = true;
    const VectorBlock block = blocks_[started_++];
    Fold read;
    read.reads[ACTIVATION_TILES] = block.reads;
    read.fills[ACTIVATION_TILES] = block.input_bytes;
    const Lasting lasting(design_, read, {ACTIVATION_TILES}, block.cycles);
    left_ = lasting.cycles;
    slow_ = left_ - block.cycles;
    counters_.memory_conflicts += lasting.conflicts;
    counters_.lane_operations += block.lane_operations;
    counters_.activation_reads += block.reads;
    counters_.activation_writes += block.writes;
  }
  bool working() const { return working_; }
  void tick() {
    if (working_) {
      (left_ > slow_ ? counters_.busy : counters_.stall_memory)++;
      left_--;
    } else if (started_ == blocks_.count()) {
      counters_.drain++;
    }
    counters_.vector_busy = counters_.busy;
  }

 private:
  const Design& design_;
  const VectorBlocks& blocks_;
  ClockedPort& port_;
  Counters& counters_;
  const size_t part_;
  std::vector<int64_t> inputs_; /* the requests */
  int64_t started_ = 0, ended_ = 0, left_ = 0, slow_ = 0, gap_ = 0; /* slow: of those left, lost to the memory */
  bool working_ = false, lacked_input_ = false;
};

/* An array with what is around it, on its way through the parts of a run. */
template <typename Array>
class ClockedCore {
 public:
  ClockedCore(const Chain& chain, const Product& product, ClockedMemory& memory, size_t number,
              std::vector<Counters>& counters)
      : design_(chain.program().design()),
        parts_(chain.parts()),
        counters_(counters),
        port_(memory, number, counters),
        array_(chain.program(), product, port_, counters) {
    array_.request(0, 0);
  }
  ClockedCore(const ClockedCore&) = delete; /* there are references within */

  void begin(size_t part, int64_t now) {
    part_ = part;
    begun_ = now;
    over_ = false;
    blocks_.clear();
    counters_[part].macs = parts_[part].macs;
    if (parts_[part].blocks) {
      blocks_.emplace_back(design_, *parts_[part].blocks, port_, counters_[part], part);
      blocks_.front().request(now);
    } else {
      array_.begin();
      array_.request(now, part);
    }
  }
  void complete(int64_t now) {
    array_.complete(now, part_);
    for (ClockedBlocks& each : blocks_) each.complete(now);
    array_.request(now, part_);
    for (ClockedBlocks& each : blocks_) each.request(now);
    port_.complete();
  }
  /* The part's work is done, its results are in DRAM. */
  bool over(int64_t now) {
    if (over_ || !port_.all_arrived(OUTPUTS)) return over_;
    over_ = blocks_.empty() ? array_.over(part_) : blocks_.front().over();
    if (over_) counters_[part_].cycles = now - begun_;
    return over_;
  }
  void start() {
    array_.start(part_);
    for (ClockedBlocks& each : blocks_) each.start();
  }
  State state(int64_t now) const {
    State state = array_.state(now, port_.moves());
    for (const ClockedBlocks& each : blocks_) state.vector = each.working();
    return state;
  }
  void tick() {
    array_.tick(part_, blocks_.empty() && !over_);
    if (over_) return; /* it waits for the others */
    for (ClockedBlocks& each : blocks_) each.tick();
  }

 private:
  const Design& design_;
  const std::vector<Part>& parts_;
  std::vector<Counters>& counters_;
  ClockedPort port_;
  Array array_;
  std::vector<ClockedBlocks> blocks_; /* of the part, if it has any */
  size_t part_ = 0;
  int64_t begun_ = 0;
  bool over_ = false;
};

template <typename Array>
std::vector<std::vector<Counters>> step_parts(const std::vector<Chain>& chains, const Product& product,
                                              std::vector<State>* states) {
  const size_t parts = chains.front().parts().size();
  std::vector<std::vector<Counters>> counters(chains.size(), std::vector<Counters>(parts));
  if (parts == 0) return counters;
  ClockedMemory memory(chains.front().program().design(), counters);
  std::deque<ClockedCore<Array>> cores;
  for (size_t i = 0; i < chains.size(); i++) cores.emplace_back(chains[i], product, memory, i, counters[i]);
  size_t part = 0;
  for (ClockedCore<Array>& core : cores) core.begin(part, 0);
  for (int64_t now = 0;; now++) {
    memory.complete();
    for (ClockedCore<Array>& core : cores) core.complete(now);
    while (true) {
      size_t over = 0;
      for (ClockedCore<Array>& core : cores) over += core.over(now);
      if (over < cores.size()) break;
      if (++part == parts) {
        if (states) states->push_back({now, false, -1, false, 0});
        return counters;
      }
      for (ClockedCore<Array>& core : cores) core.begin(part, now);
    }
    memory.start();
    for (ClockedCore<Array>& core : cores) core.start();
    see(states, cores.front().state(now));
    for (ClockedCore<Array>& core : cores) core.tick();
    memory.tick();
  }
}

std::vector<std::vector<Counters>> step(const std::vector<Chain>& chains, const Product& product,
                                        std::vector<State>* states) {
  return chains.front().program().design().dataflow == Dataflow::output
             ? step_parts<ClockedSumming>(chains, product, states)
             : step_parts<ClockedResting>(chains, product, states);
}

}  // namespace

Counters step_program(const Program& program, const Product& product, std::vector<State>* states) {
  return step({Chain(program)}, product, states).front().front();
}

Counters step_vector(const Design& design, const VectorStage& stage, std::vector<State>* states) {
  Chain chain(design);
  chain.add(VectorBlocks(design, stage));
  return step({chain}, {}, states).front().front();
}

std::vector<Counters> step_chain(const Chain& chain, std::vector<State>* states) {
  return step({chain}, {}, states).front();
}

std::vector<std::vector<Counters>> step_cores(const std::vector<Chain>& chains) { return step(chains, {}, nullptr); }

}  // namespace asic
