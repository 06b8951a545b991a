/* See timing.h. Each recurrence is one function here, and is stepped cycle by cycle in reference.cpp.
 *
 * Loops whose iterations are alike soon take turns that are alike: when all that the future depends on, seen from the
 * end of the fold before, is what it was an iteration ago, so is what follows. Such iterations are skipped: every time
 * moves on by what the last one took, every count by what it counted. Where sums rest, slices are skipped too that find
 * their operands on the chip, or wait for nothing but weights that keep the port busy. Nothing is rounded or assumed. */
#include "timing.h"

#include <deque>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dram.h"

namespace asic {
namespace {

/* What goes over the port: weights and activations as in Operand, and results. */
enum Class { WEIGHT_TILES = WEIGHTS, ACTIVATION_TILES = ACTIVATIONS, OUTPUTS, CLASSES };

/* What the future depends on, as numbers; times are seen from `base`. */
using State = std::vector<int64_t>;

/* Takes down what happens for parts of a run, if anybody asks. */
class Record {
 public:
  Record() = default;
  Record(std::vector<Event>& events, size_t most, int64_t first, int64_t last)
      : events_(&events), most_(most), first_(first), last_(last) {}

  /* The same for a core. */
  Record of(size_t core) const {
    Record record = *this;
    record.core_ = static_cast<int64_t>(core);
    return record;
  }
  bool wanted(int64_t part) const { return events_ != nullptr && part >= first_ && part < last_; }
  void operator()(int64_t part, Event::Part what, int64_t begin, int64_t end, int64_t bytes = 0,
                  int64_t channel = 0) const {
    if (!wanted(part) || begin == end) return;
    if (events_->size() == most_) {
      throw std::length_error("more than " + std::to_string(most_) + " events happen");
    }
    events_->push_back({what, begin, end, bytes, channel, core_});
  }

 private:
  std::vector<Event>* events_ = nullptr;
  size_t most_ = 0;
  int64_t first_ = 0, last_ = 0, core_ = 0;
};

/* First in, first out; a ring that grows. */
template <typename T>
class Queue {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return room_[(first_ + i) & (room_.size() - 1)]; }
  const T& operator[](size_t i) const { return room_[(first_ + i) & (room_.size() - 1)]; }
  const T& front() const { return room_[first_]; }
  void pop_front() {
    first_ = (first_ + 1) & (room_.size() - 1);
    size_--;
  }
  void push_back(const T& value) {
    if (size_ == room_.size()) {
      std::vector<T> larger(room_.size() * 2);
      for (size_t i = 0; i < size_; i++) larger[i] = (*this)[i];
      room_.swap(larger);
      first_ = 0;
    }
    (*this)[size_++] = value;
  }

 private:
  std::vector<T> room_ = std::vector<T>(8); /* a power of two */
  size_t first_ = 0, size_ = 0;
};

struct Request {
  int64_t time;
  Class kind;
  int64_t id; /* of its core's of that class */
  int64_t bytes, part;
  size_t core;
  bool operator<(const Request& other) const {
    return std::tie(time, kind, core, id) < std::tie(other.time, other.kind, other.core, other.id);
  }
};

class Port;

/* DRAM behind the ports of all cores. It serves requests in the order of their times, then of their classes, then the cores
 * in turn: the first behind the one that was served last. */
class Memory {
 public:
  Memory(const Design& design, size_t cores)
      : dram(design, static_cast<int64_t>(CLASSES * cores)), cores_(cores), latency_(design.dram_latency_cycles) {}

  void join(Port& port) { ports_.push_back(&port); }
  bool alone() const { return cores_ == 1; }
  size_t area_of(Class kind, size_t core) const { return static_cast<size_t>(kind) * cores_ + core; }

  void request(const Request& request) {
    /* the queue is short and what comes is almost always the last in order */
    queue.push_back(request);
    for (size_t i = queue.size() - 1; i > 0 && request < queue[i - 1]; i--) std::swap(queue[i], queue[i - 1]);
  }
  /* Serves the first request; whose it was. */
  size_t serve();
  /* Takes it, to be served. */
  Request next() {
    const Request request = queue.front();
    queue.pop_front();
    return request;
  }

  DramTiming dram;
  Queue<Request> queue; /* in order but for the cores' turns */

 private:
  const size_t cores_;
  const int64_t latency_;
  size_t turn_ = 0; /* the core that comes first where others ask for the same at the same time */
  std::vector<Port*> ports_;
};

/* A core's port to DRAM. Transactions of a class are numbered from 0 in the order of their requests, and taken in it.
 *
 * Requests become known while folds are worked through. To `take` one that has not been served, all that come no later
 * have to be served; this is right because whatever the core requests afterwards it requests later: each request follows
 * an event that waits for that arrival. A core that has the memory to itself serves them; one of several waits until
 * all of them wait. */
class Port {
 public:
  struct Counts {
    int64_t requested[CLASSES] = {}, taken[CLASSES] = {};
  };

  /* counters: of each part of the run, as in a request. */
  Port(const Design& design, int64_t most_in_flight, std::vector<Counters>& counters, const Record& record,
       Memory& memory, size_t core)
      : design_(design),
        counters_(counters),
        record_(record),
        memory_(memory),
        dram_(memory.dram),
        queue_(memory.queue),
        core_(core),
        arrivals_{Ring(most_in_flight), Ring(most_in_flight), Ring(most_in_flight)} {
    memory.join(*this);
  }

  void request(Class kind, int64_t time, int64_t bytes, int64_t part) {
    const int64_t id = counts_.requested[kind]++;
    arrivals_[kind][id] = bytes ? UNKNOWN : time;
    if (!bytes) return;
    counters_[static_cast<size_t>(part)].*BYTES[kind] += bytes;
    memory_.request({time, kind, id, bytes, part, core_});
  }

  /* Whether it is known when the next of a class arrives. */
  bool known(Class kind) {
    while (arrivals_[kind][counts_.taken[kind]] == UNKNOWN) {
      if (!memory_.alone()) return false;
      serve(memory_.next(), design_.dram_latency_cycles);
    }
    return true;
  }
  /* When it does; it has to be known. */
  int64_t take(Class kind) { return arrivals_[kind][counts_.taken[kind]++]; }

  /* A request is served. */
  void serve(const Request& request, int64_t latency) {
    int64_t left = request.bytes;
    Counters& counters = counters_[static_cast<size_t>(request.part)];
    const int64_t end = dram_.move(
        area(request.kind), request.time, request.bytes, counters, [&](const DramTiming::Move& move) {
          if (!record_.wanted(request.part)) return;
          const int64_t bytes = std::min(left, move.bursts * design_.dram.burst_bytes);
          left -= bytes;
          record_(request.part, static_cast<Event::Part>(Event::DRAM_WEIGHTS + request.kind), dram_.begins(move.begin),
                  move.end, bytes, move.channel);
        });
    arrivals_[request.kind][request.id] = end + latency;
  }

  bool in_flight(Class kind) const { return counts_.requested[kind] > counts_.taken[kind]; }

  const Counts& counts() const { return counts_; }

  /* Nothing that is still to come asks for a time before `low`: what is over by then is the same to it. */
  void describe(int64_t base, int64_t low, State& state) const {
    if (!queue_.empty()) low = std::min(low, queue_.front().time);
    for (int kind = 0; kind < CLASSES; kind++) {
      for (int64_t id = counts_.taken[kind]; id < counts_.requested[kind]; id++) {
        const int64_t arrival = arrivals_[kind][id];
        state.push_back(arrival == UNKNOWN ? INT64_MIN : std::max(arrival, low) - base);
      }
      state.push_back(counts_.requested[kind] - counts_.taken[kind]);
    }
    for (size_t i = 0; i < queue_.size(); i++) {
      const Request& request = queue_[i];
      state.insert(state.end(), {request.time - base, request.kind, counts_.requested[request.kind] - request.id,
                                 request.bytes});
    }
    dram_.describe(base, low, state);
  }
  bool repeats() const { return memory_.alone() && dram_.repeats(); }

  /* When the next of a class arrives, as far as it is known; else the greatest time. */
  int64_t first(Class kind) const {
    const int64_t arrival = arrivals_[kind][counts_.taken[kind]];
    return arrival == UNKNOWN ? INT64_MAX : arrival;
  }
  /* So many tiles without bytes, two or more, are taken and as many asked for, the last two at these times. */
  void pass(Class kind, int64_t tiles, int64_t before, int64_t last) {
    counts_.requested[kind] += tiles;
    counts_.taken[kind] += tiles;
    arrivals_[kind][counts_.requested[kind] - 2] = before;
    arrivals_[kind][counts_.requested[kind] - 1] = last;
  }

  /* Whether a class's tiles of so many bytes come one behind the other: nothing but two of them waits, and each that
   * follows is asked for at most `delay` cycles after the one two before has arrived. */
  bool streams(Class kind, int64_t bytes, int64_t delay) {
    if (!memory_.alone() || queue_.size() != 2 || counts_.requested[kind] - counts_.taken[kind] != 2) return false;
    for (size_t i = 0; i < 2; i++) {
      if (queue_[i].kind != kind || queue_[i].bytes != bytes) return false;
    }
    return dram_.streams(area(kind), bytes, queue_[0].time, queue_[1].time, design_.dram_latency_cycles + delay);
  }
  /* So many of them are taken, two or more, and as many asked for, `delay` cycles after one has arrived; when the last has
   * arrived. */
  int64_t stream(Class kind, int64_t tiles, int64_t bytes, int64_t delay) {
    Counters& counters = counters_[static_cast<size_t>(queue_.front().part)];
    const int64_t before = dram_.stream(area(kind), tiles - 1, bytes, counters) + design_.dram_latency_cycles;
    const int64_t arrived = dram_.stream(area(kind), 1, bytes, counters) + design_.dram_latency_cycles;
    counts_.requested[kind] += tiles;
    counts_.taken[kind] += tiles;
    counters.*BYTES[kind] += tiles * bytes;
    for (size_t i = 0; i < 2; i++) {
      queue_[i].id += tiles;
      queue_[i].time = (i ? arrived : before) + delay;
      arrivals_[kind][queue_[i].id] = UNKNOWN;
    }
    return arrived;
  }

  /* Weights and activations in turn, as DramTiming::alternate has it: what they have come to. */
  struct Pace {
    bool early = false; /* nothing but two pairs waits, and is known before its turn by as long as a row takes to open */
    int64_t page = -1, free = 0, hits = 0, misses = 0, waits = 0;
  };
  Pace pace(const Counters& counters) {
    const bool early = queue_.size() == 4 && dram_.worked_until(queue_.front().time) + row_cycles() <= dram_.free();
    return {early,
            dram_.page(area(ACTIVATION_TILES)),
            dram_.free(),
            counters.row_hits,
            counters.row_misses,
            counters.row_waits};
  }
  bool alternate(int64_t weight_bytes) const { return memory_.alone() && dram_.alternate(weight_bytes); }
  /* Of at most so many pairs those that certainly go on as the last one did, from one pace to the other, a pair being asked for
   * `delay` cycles after the one two before has arrived: how many have been taken, and as many asked for. */
  int64_t skip_pairs(const Pace& then, const Pace& now, int64_t most, int64_t weight_bytes, int64_t activation_bytes,
                     int64_t delay, int64_t& end) {
    const int64_t cycles = now.free - then.free, latency = design_.dram_latency_cycles;
    const int64_t pairs = std::min(most, dram_.left_in_row(area(ACTIVATION_TILES), activation_bytes));
    if (pairs < 2 || !now.early || latency + delay + row_cycles() > cycles) return 0;
    for (size_t i = 0; i < 4; i++) {
      if (queue_[i].kind != (i % 2 ? ACTIVATION_TILES : WEIGHT_TILES)) return 0;
      if (queue_[i].bytes != (i % 2 ? activation_bytes : weight_bytes)) return 0;
      if (dram_.worked_until(queue_[i].time) + row_cycles() > now.free + (i < 2 ? 0 : cycles)) return 0;
    }
    if (end > dram_.ended(now.free + cycles) + latency) return 0;
    Counters& counters = counters_[static_cast<size_t>(queue_.front().part)];
    dram_.skip_pairs(area(WEIGHT_TILES), weight_bytes, area(ACTIVATION_TILES), activation_bytes, pairs, cycles, counters);
    counters.row_hits += pairs * (now.hits - then.hits);
    counters.row_misses += pairs * (now.misses - then.misses);
    counters.row_waits += pairs * (now.waits - then.waits);
    counters.weight_bytes += pairs * weight_bytes;
    counters.activation_bytes += pairs * activation_bytes;
    const int64_t before = dram_.ended(now.free + (pairs - 1) * cycles) + latency + delay;
    end = dram_.ended(now.free + pairs * cycles) + latency + delay;
    for (size_t i = 0; i < 4; i++) {
      queue_[i].id += pairs;
      queue_[i].time = i < 2 ? before : end;
      arrivals_[queue_[i].kind][queue_[i].id] = UNKNOWN;
    }
    for (const Class kind : {WEIGHT_TILES, ACTIVATION_TILES}) {
      counts_.requested[kind] += pairs;
      counts_.taken[kind] += pairs;
    }
    return pairs;
  }

  /* So many iterations on, each of which took `cycles` and counted on from `before` to now. */
  void skip(int64_t iterations, int64_t cycles, const Counts& before) {
    const int64_t time = iterations * cycles;
    int64_t ids[CLASSES];
    for (int kind = 0; kind < CLASSES; kind++) {
      ids[kind] = iterations * (counts_.requested[kind] - before.requested[kind]);
      std::vector<int64_t> in_flight;
      for (int64_t id = counts_.taken[kind]; id < counts_.requested[kind]; id++) {
        const int64_t arrival = arrivals_[kind][id];
        in_flight.push_back(arrival == UNKNOWN ? UNKNOWN : arrival + time);
      }
      counts_.requested[kind] += ids[kind];
      counts_.taken[kind] += ids[kind]; /* as many are in flight as were */
      for (size_t i = 0; i < in_flight.size(); i++) {
        arrivals_[kind][counts_.taken[kind] + static_cast<int64_t>(i)] = in_flight[i];
      }
    }
    for (size_t i = 0; i < queue_.size(); i++) {
      Request& request = queue_[i];
      request.time += time;
      request.id += ids[request.kind];
    }
    dram_.skip(time);
  }

 private:
  static constexpr int64_t UNKNOWN = -1;
  static constexpr int64_t Counters::* BYTES[] = {&Counters::weight_bytes, &Counters::activation_bytes,
                                                  &Counters::output_bytes};
  size_t area(Class kind) const { return memory_.area_of(kind, core_); }
  int64_t row_cycles() const { return std::max<int64_t>(design_.dram.row_miss_cycles, 1); }

  class Ring {
   public:
    explicit Ring(int64_t size) { /* a power of two at least as large */
      size_t room = 1;
      while (room < static_cast<size_t>(size)) room *= 2;
      values_.resize(room);
    }
    int64_t& operator[](int64_t id) { return values_[static_cast<size_t>(id) & (values_.size() - 1)]; }
    int64_t operator[](int64_t id) const { return values_[static_cast<size_t>(id) & (values_.size() - 1)]; }

   private:
    std::vector<int64_t> values_;
  };

  const Design& design_;
  std::vector<Counters>& counters_;
  const Record record_;
  Memory& memory_;
  DramTiming& dram_;
  Queue<Request>& queue_;
  const size_t core_;
  Ring arrivals_[CLASSES];
  Counts counts_;
};

size_t Memory::serve() {
  size_t first = 0;
  if (cores_ > 1) {
    const auto from_turn = [&](const Request& request) { return (request.core + cores_ - turn_) % cores_; };
    for (size_t i = 1; i < queue.size() && queue[i].time == queue[0].time && queue[i].kind == queue[0].kind; i++) {
      if (from_turn(queue[i]) < from_turn(queue[first])) first = i;
    }
    for (size_t i = first; i > 0; i--) std::swap(queue[i], queue[i - 1]);
  }
  const Request request = next();
  turn_ = (request.core + 1) % cores_;
  ports_[request.core]->serve(request, latency_);
  return request.core;
}

enum : int { BUFFERS = 2 }; /* of a streaming operand and of the results */

/* How long the memories on the chip take over what a fold reads, or over a tile that is laid in, of which they cannot
 * pass more in a cycle than they are made for. */
class Memories {
 public:
  explicit Memories(const Design& design)
      : memories_{Memory(design.weight_sram), Memory(design.activation_sram)},
        output_(design.dataflow == Dataflow::output),
        streams_(design.dataflow == Dataflow::input ? WEIGHTS : ACTIVATIONS) {}

  /* `all` that a fold takes, `conflicts` of them for what is written, beyond what it takes to read. */
  struct Cycles {
    int64_t all, conflicts;
  };
  Cycles streaming(const Fold& fold) const {
    Cycles cycles = passing(streams_, fold.reads[streams_], fold.fills[streams_], fold.lasting);
    if (output_) {
      const Cycles weights = passing(WEIGHTS, fold.reads[WEIGHTS], fold.fills[WEIGHTS], fold.lasting);
      const int64_t alone = std::max(cycles.all - cycles.conflicts, weights.all - weights.conflicts);
      cycles.all = std::max(cycles.all, weights.all);
      cycles.conflicts = cycles.all - alone;
    }
    return cycles;
  }
  /* The same of bytes that are read from a memory while `fills` are written to it, in `least` cycles or more. */
  Cycles passing(Operand operand, int64_t reads, int64_t fills, int64_t least) const {
    const Memory& memory = memories_[operand];
    if (!memory.rate) return {least, 0};
    const int64_t passed = memory.shared ? reads + fills : std::max(reads, fills);
    if (passed <= times(least, memory.rate)) return {least, 0};
    const int64_t alone = std::max(least, ceil_div(reads, memory.rate));
    const int64_t all = std::max(least, ceil_div(passed, memory.rate));
    return {all, all - alone};
  }

 private:
  struct Memory {
    explicit Memory(const Sram& sram) : rate(sram.buffer_bytes_per_cycle()), shared(sram.shared()) {}
    int64_t rate; /* bytes in a cycle, out of the buffer that the array reads; 0: any number */
    bool shared;
  };
  Memory memories_[OPERANDS];
  bool output_;
  Operand streams_; /* where sums rest, besides weights */
};

/* Asks for tiles ahead of the folds that need them. */
class Ahead {
 public:
  Ahead(const Program& program, Port& port, Operand operand, bool rests)
      : fold_(program, operand),
        port_(port),
        operand_(operand),
        rests_(rests),
        memories_(program.design()) {}

  /* Asks for the tiles of no part behind this one. */
  void until(int64_t part) { last_part_ = part; }
  void request(int64_t time) {
    const int64_t part = fold_.part();
    if (fold_.done() || part > last_part_) return;
    port_.request(static_cast<Class>(operand_), time, fold_->bytes[operand_], part);
    if (rests_) {
      const Memories::Cycles loading =
          memories_.passing(operand_, fold_->reads[operand_], fold_->fills[operand_], fold_->laying);
      tiles_.push_back({fold_->waits, loading.all, loading.conflicts, part});
    }
    fold_.next();
  }
  /* Of the operand that rests. */
  struct Tile {
    bool waits;            /* it holds results of the stage before */
    int64_t load_cycles;
    int64_t conflicts;     /* among them */
    int64_t part;          /* of the run */
  };
  bool any_left() const { return !tiles_.empty(); }
  const Tile& first() const { return tiles_.front(); }

  /* When the first tile that has been requested and not taken arrives. */
  int64_t take() {
    if (rests_) tiles_.pop_front();
    return port_.take(static_cast<Class>(operand_));
  }

  TileCursor& fold() { return fold_; }
  void describe(State& state) const {
    for (size_t i = 0; i < tiles_.size(); i++) {
      state.insert(state.end(), {tiles_[i].waits, tiles_[i].load_cycles, tiles_[i].conflicts});
    }
  }

 private:
  TileCursor fold_;
  Port& port_;
  Operand operand_;
  const bool rests_; /* in the array */
  const Memories memories_;
  int64_t last_part_ = INT64_MAX;
  Queue<Tile> tiles_; /* requested and not taken, if they rest */
};

/* The vector unit, behind the array in every dataflow. */
class Vector {
 public:
  Vector(Port& port, const Record& record) : port_(port), record_(record) {}

  /* A part of a run begins: nothing is under way. */
  void begin(int64_t part, int64_t time, Counters& counters) {
    part_ = part;
    end_ = before_ = time;
    counters_ = &counters;
  }

  /* What the last slice of a tile hands on. */
  struct Tile {
    Tile() = default;
    explicit Tile(const Fold& fold)
        : finished(fold.last_slice), cycles(fold.vector_cycles), output_bytes(fold.output_bytes) {}
    bool finished = false;
    int64_t cycles = 0, output_bytes = 0;
  };
  /* False: it waits to be known when there is room for the results. */
  bool pass(int64_t out, const Tile& tile) {
    const Port::Counts& counts = port_.counts();
    const bool full = counts.requested[OUTPUTS] - counts.taken[OUTPUTS] == BUFFERS;
    if (full && !port_.known(OUTPUTS)) return false;
    const int64_t slot_free = full ? port_.take(OUTPUTS) : 0;
    before_ = end_;
    end_ = std::max({out, end_, slot_free}) + tile.cycles;
    counters_->vector_busy += tile.cycles;
    record_(part_, Event::VECTOR, end_ - tile.cycles, end_);
    port_.request(OUTPUTS, end_, tile.output_bytes, part_);
    return true;
  }
  int64_t end() const { return end_; }       /* of the tile before the one that folds add to */
  int64_t before() const { return before_; } /* of the tile before that */

  void describe(int64_t base, State& state) const { state.insert(state.end(), {end_ - base, before_ - base}); }
  void skip(int64_t time) {
    end_ += time;
    before_ += time;
  }

 private:
  Port& port_;
  const Record record_;
  Counters* counters_ = nullptr;
  int64_t part_ = 0, end_ = 0, before_ = 0;
};

/* What the start of a fold waited for. The first that holds, in this order, takes the gap. */
struct Cause {
  int64_t time;
  int64_t Counters::* stall;
};

/* What both kinds of array share: the clock, the port, the vector unit and the skipping of iterations that are alike.
 * Array: `describe(state)`, with times seen from `end`, and `skip(time)` for what it holds itself; `low()`, before which
 * nothing will be asked for; `ahead`. */
class Clock {
 public:
  /* counters: of each part. */
  Clock(const Program& program, std::vector<Counters>& counters, const Record& record, Memory& memory, size_t core)
      : record(record),
        port(program.design(), std::max<int64_t>(program.design().weight_fifo_tiles, BUFFERS) + 2, counters, record,
             memory, core),
        vector(port, record),
        memories(program.design()),
        repeats_(port.repeats()),
        all_(counters) {}

  const Record record;

  Port port;
  Vector vector;
  const Memories memories;
  int64_t end = 0; /* of the fold before */
  int64_t part = -1, begun = 0; /* of the run, and when it began */
  Counters& counters() { return *counters_; }

  /* The next part begins, now that all of the one before is over. */
  void begin(int64_t time) {
    part++;
    counters_ = &all_[static_cast<size_t>(part)];
    end = begun = done_ = time;
    waiting_ = true;
    vector.begin(part, begun, *counters_);
  }
  /* The part is over when its last results have left the vector unit, at `left` or before, and are in DRAM. False: it waits
   * for that to be known. */
  bool finish(int64_t left) {
    done_ = std::max(done_, left);
    while (port.in_flight(OUTPUTS)) {
      if (!port.known(OUTPUTS)) return false;
      done_ = std::max(done_, port.take(OUTPUTS));
    }
    counters_->cycles = done_ - begun;
    counters_->drain = done_ - end;
    end = done_;
    return true;
  }

  /* A tile has been laid in, some of its cycles lost to conflicts. */
  void laid(int64_t of_part, int64_t begin, int64_t end, int64_t conflicts) {
    all_[static_cast<size_t>(of_part)].memory_conflicts += conflicts;
    record(of_part, Event::LOADING, begin, end);
  }

  /* The fold, which takes so long, starts when every cause allows it. */
  int64_t start(const Fold& fold, const Memories::Cycles& cycles, const Cause (&causes)[4]) {
    int64_t start = end;
    Counters& counters = *counters_;
    for (const Cause& cause : causes) start = std::max(start, cause.time);
    if (waiting_) {
      counters.fill += start - end;
      waiting_ = false;
    } else if (start > end) {
      for (const Cause& cause : causes) {
        if (cause.time != start) continue;
        counters.*cause.stall += start - end;
        break;
      }
    }
    end = start + cycles.all;
    counters.busy += fold.cycles;
    counters.stall_memory += cycles.all - fold.cycles;
    counters.memory_conflicts += cycles.conflicts;
    record(part, Event::ARRAY, start, end);
    tally(fold, counters);
    return start;
  }

  /* Where folds wait for nothing but weights that come one behind the other: on to the last but three of those that are
   * alike. */
  void stream(Cursor& fold, TileCursor& weights) {
    const int64_t count = fold.slices_alike() - BUFFERS; /* the tiles of two more are asked for already */
    const int64_t bytes = fold->bytes[WEIGHTS], before = end;
    if (count < 2 || record.wanted(part) || fold->fresh[ACTIVATIONS] || bytes == 0) return;
    const Memories::Cycles cycles = memories.streaming(*fold);
    if (!port.streams(WEIGHT_TILES, bytes, cycles.all)) return;
    end = port.stream(WEIGHT_TILES, count, bytes, cycles.all) + cycles.all;
    counters_->stall_weights += end - before - count * cycles.all;
    passed(*fold, count, cycles);
    fold.skip_slices(count);
    weights.skip_slices(count);
  }

  /* Where they wait for nothing, their operands being on the chip: on to the last slice. */
  void stream_here(Cursor& fold, Ahead& weights) {
    if (fold->slice == 0 || fold->last_slice || fold->bytes[WEIGHTS] > 0 || fold->fresh[ACTIVATIONS]) return;
    if (fold.done() || record.wanted(part) || port.first(WEIGHT_TILES) > end) return;
    const Memories::Cycles cycles = memories.streaming(*fold);
    const int64_t count = fold.slices_alike(), alike = std::max<int64_t>(count - BUFFERS, 0);
    passed(*fold, count + 1, cycles);
    if (alike >= BUFFERS) {
      end += alike * cycles.all;
      port.pass(WEIGHT_TILES, alike, end - cycles.all, end);
      weights.fold().skip_slices(alike);
    }
    for (int64_t i = alike >= BUFFERS ? alike : 0; i <= count; i++) {
      port.take(WEIGHT_TILES);
      end += cycles.all;
      weights.request(end);
    }
    fold.skip_slices(count);
    fold.next();
  }

  /* Where folds that are alike but for their slice need fresh tiles of both operands: one after the other, without looking at
   * each of them, on to the last but two or to one that waits for what is not known. */
  void stream_both(Cursor& fold, Ahead (&ahead)[OPERANDS]) {
    const int64_t count = fold.slices_alike() - BUFFERS; /* the tiles of two more are asked for already */
    if (count < 1 || record.wanted(part) || !fold->fresh[ACTIVATIONS]) return;
    const Memories::Cycles cycles = memories.streaming(*fold);
    const int64_t weight_bytes = fold->bytes[WEIGHTS], activation_bytes = fold->bytes[ACTIVATIONS];
    const bool alternate = weight_bytes && activation_bytes && port.alternate(weight_bytes);
    Port::Pace pace;
    int64_t done = 0, alike = 0; /* pairs in a row of DRAM */
    for (; done < count; done++) {
      if (alternate) {
        const Port::Pace then = std::exchange(pace, port.pace(*counters_));
        alike = then.early && then.page == pace.page ? alike + 1 : 0;
        if (alike >= 2) {
          const int64_t before = end;
          const int64_t skipped =
              port.skip_pairs(then, pace, count - done, weight_bytes, activation_bytes, cycles.all, end);
          if (skipped > 0) {
            counters_->stall_activations += end - before - skipped * cycles.all;
            done += skipped;
            alike = 0;
            pace = {};
            if (done == count) break;
          }
        }
      }
      if (!port.known(WEIGHT_TILES) || !port.known(ACTIVATION_TILES)) break;
      const int64_t weights = port.take(WEIGHT_TILES), activations = port.take(ACTIVATION_TILES);
      const int64_t start = std::max({end, weights, activations});
      (start == weights ? counters_->stall_weights : counters_->stall_activations) += start - end;
      end = start + cycles.all;
      port.request(WEIGHT_TILES, end, weight_bytes, part);
      port.request(ACTIVATION_TILES, end, activation_bytes, part);
    }
    passed(*fold, done, cycles);
    fold.skip_slices(done);
    for (Ahead& each : ahead) each.fold().skip_slices(done);
  }

  /* To be called when `fold` has gone on. */
  template <typename Array>
  void look_back(Cursor& fold, Array& array) {
    if (!repeats_ || fold.part() != part || record.wanted(part)) return; /* what is to be told is not skipped */
    if (fold->slice > 0) return;
    const Cursor::Position here = fold.position();
    const auto loop = static_cast<Cursor::Loop>(
        std::mismatch(here.begin(), here.end(), last_.begin()).first - here.begin());
    last_ = here;
    if (loop == Cursor::SECTION || loop == Cursor::STAGE || loop >= Cursor::SLICE) return;
    const int64_t alike = fold.alike_until(loop);
    if (here[loop] < 1 || here[loop] + 2 >= alike) return;
    Moment now{here, end, alike, *counters_, port.counts(), {},
               {array.ahead[WEIGHTS].fold().position(), array.ahead[ACTIVATIONS].fold().position()}};
    port.describe(end, array.low(), now.state);
    vector.describe(end, now.state);
    array.describe(now.state);
    std::vector<Moment>& before = moments_[loop];
    for (size_t i = before.size(); i-- > 0;) {
      const int64_t iterations = could_skip(before[i], now, loop, array);
      if (iterations < 1) continue;
      skip(before[i], now, iterations, loop, fold, array);
      /* those of the loops around it are as if all had been walked */
      for (size_t inner = loop; inner < Cursor::LOOPS; inner++) moments_[inner].clear();
      return;
    }
    if (before.size() == MOMENTS) before.erase(before.begin());
    before.push_back(std::move(now));
  }

 private:
  /* So many folds that are alike but for their slice have streamed. */
  void passed(const Fold& fold, int64_t count, const Memories::Cycles& cycles) {
    Counters& counters = *counters_;
    counters.busy += count * fold.cycles;
    counters.stall_memory += count * (cycles.all - fold.cycles);
    counters.memory_conflicts += count * cycles.conflicts;
    tally(fold, counters, count);
  }

  enum : size_t { MOMENTS = 3 }; /* the longest turn that is looked for, in iterations */

  struct Moment {
    Cursor::Position here;
    int64_t end, alike;
    Counters counters;
    Port::Counts counts;
    State state;
    Cursor::Position ahead[OPERANDS];
  };

  /* How often what happened from `then` to `now` will happen again for certain. */
  template <typename Array>
  static int64_t could_skip(const Moment& then, const Moment& now, Cursor::Loop loop, Array& array) {
    const int64_t turn = now.here[loop] - then.here[loop];
    if (turn < 1 || then.alike != now.alike || then.state != now.state) return 0;
    if (!std::equal(now.here.begin(), now.here.begin() + loop, then.here.begin())) return 0;
    int64_t iterations = (now.alike - 1 - now.here[loop]) / turn;
    for (int operand = 0; operand < OPERANDS; operand++) {
      const Cursor::Position &ahead = now.ahead[operand], &was = then.ahead[operand];
      if (ahead == was) continue; /* it is asked for nothing */
      Cursor::Position moved = was;
      moved[loop] += turn;
      if (moved != ahead || array.ahead[operand].fold().done()) return 0;
      if (!std::equal(ahead.begin(), ahead.begin() + loop, now.here.begin())) return 0;
      iterations = std::min(iterations, (now.alike - 1 - ahead[loop]) / turn);
    }
    return iterations;
  }

  template <typename Array>
  void skip(const Moment& then, const Moment& now, int64_t iterations, Cursor::Loop loop, Cursor& fold, Array& array) {
    const int64_t cycles = now.end - then.end, turn = now.here[loop] - then.here[loop];
    for (int64_t Counters::* counter : COUNTED) {
      (*counters_).*counter += iterations * (now.counters.*counter - then.counters.*counter);
    }
    port.skip(iterations, cycles, then.counts);
    vector.skip(iterations * cycles);
    array.skip(iterations * cycles);
    end += iterations * cycles;
    fold.skip(loop, iterations * turn);
    last_ = fold.position();
    for (int operand = 0; operand < OPERANDS; operand++) {
      if (now.ahead[operand] != then.ahead[operand]) array.ahead[operand].fold().skip(loop, iterations * turn);
    }
  }

  static constexpr int64_t Counters::* COUNTED[] = {
      &Counters::busy,         &Counters::stall_weights, &Counters::stall_activations, &Counters::stall_outputs,
      &Counters::stall_steps,  &Counters::stall_memory,  &Counters::memory_conflicts,
      &Counters::vector_busy,  &Counters::folds,         &Counters::weight_reads,      &Counters::lookups,
      &Counters::gated_macs,
      &Counters::activation_reads, &Counters::accumulator_accesses, &Counters::lane_operations,
      &Counters::activation_writes, &Counters::weight_bytes, &Counters::activation_bytes, &Counters::output_bytes};

  const bool repeats_;
  std::vector<Counters>& all_;
  Counters* counters_ = nullptr; /* of the part */
  bool waiting_ = true;          /* for its first fold */
  int64_t done_ = 0;             /* so far */
  Cursor::Position last_{};
  std::vector<Moment> moments_[Cursor::LOOPS];
};

/* Weights or activations rest. */
struct RestingArray {
  RestingArray(const Program& program, Clock& clock)
      : design(program.design()),
        rests(design.dataflow == Dataflow::input ? ACTIVATIONS : WEIGHTS),
        streams(rests == WEIGHTS ? ACTIVATIONS : WEIGHTS),
        clock(clock),
        ahead{Ahead(program, clock.port, WEIGHTS, rests == WEIGHTS),
              Ahead(program, clock.port, ACTIVATIONS, rests == ACTIVATIONS)} {}

  /* A run begins, and later each of its parts. */
  void open() {
    ask(WEIGHTS);
    if (rests == WEIGHTS) plan(0);
  }
  void begin() {
    ahead[ACTIVATIONS].until(clock.part);
    ask(ACTIVATIONS);
    if (rests == ACTIVATIONS) plan(clock.end);
  }
  /* Works until the part's folds are done, or, which is false, until something is not known that it waits for. */
  bool run(Cursor& fold) {
    Vector& vector = clock.vector;
    for (;;) {
      switch (step_) {
        case LAY:
          if (!settle()) return false;
          if (fold.part() != clock.part) return true;
          if (fold->fresh[rests] && !laid) {
            if (!clock.port.known(static_cast<Class>(rests))) return false;
            lay(std::max(free, fold->waits ? vector.end() : 0));
          }
          step_ = STREAM;
          [[fallthrough]];
        case STREAM: {
          if (fold->fresh[streams]) {
            if (!clock.port.known(static_cast<Class>(streams))) return false;
            streamed = ahead[streams].take();
          }
          const int64_t rested = fold->fresh[rests] ? ready : 0; /* `ready` may be the next tile's already */
          const Cause causes[] = {{rests == WEIGHTS ? rested : streamed, &Counters::stall_weights},
                                  {rests == WEIGHTS ? streamed : rested, &Counters::stall_activations},
                                  {fold->waits ? vector.end() : 0, &Counters::stall_steps},
                                  {fold->first_slice ? vector.before() : 0, &Counters::stall_outputs}};
          const int64_t start = clock.start(*fold, clock.memories.streaming(*fold), causes);
          if (fold->fresh[rests] && design.shadowed()) plan(start + design.release_cycles());
          step_ = NEXT;
          [[fallthrough]];
        }
        case NEXT:
          if (!settle()) return false;
          tile_ = Vector::Tile(*fold);
          fold.next();
          if (fold.done() || fold->fresh[streams]) ahead[streams].request(clock.end);
          if (!fold.done() && fold->fresh[rests] && !design.shadowed()) plan(clock.end + design.release_cycles());
          step_ = PASS;
          [[fallthrough]];
        case PASS:
          if (!settle()) return false;
          if (tile_.finished && !vector.pass(clock.end + design.array_depth(), tile_)) return false;
          clock.look_back(fold, *this);
          step_ = LAY;
      }
    }
  }
  /* A tile that is to be laid in as soon as it can be is, or, which is false, it is not known yet when it comes. */
  bool settle() {
    if (!planned_) return true;
    if (!clock.port.known(static_cast<Class>(rests))) return false;
    planned_ = false;
    lay(free);
    return true;
  }

  int64_t low() const { return laid ? clock.end : std::min(clock.end, free); }
  void describe(State& state) const {
    /* the streaming tile, if it is used on, has been waited for; the resting one likewise */
    const bool left = ahead[rests].any_left();
    state.insert(state.end(), {laid, laid ? std::max<int64_t>(ready - clock.end, 0) : left ? free - clock.end : 0});
    for (const Ahead& each : ahead) each.describe(state);
  }
  void skip(int64_t time) {
    ready += time;
    free += time;
    streamed += time;
  }

  const Design& design;
  const Operand rests, streams;
  Clock& clock;
  Ahead ahead[OPERANDS];

 private:
  void ask(Operand operand) {
    const int64_t count = operand == rests ? design.weight_fifo_tiles : int64_t{BUFFERS};
    for (int64_t tile = 0; tile < count; tile++) ahead[operand].request(clock.end);
  }
  void lay(int64_t from) {
    const Ahead::Tile tile = ahead[rests].first();
    ready = std::max(ahead[rests].take(), from) + tile.load_cycles;
    clock.laid(tile.part, ready - tile.load_cycles, ready, tile.conflicts);
    ahead[rests].request(ready);
  }
  /* A tile is laid in as soon as it can be, however many folds use the one before; a tile of results of the stage
   * before has to wait for them, and is then known only when its fold is next. */
  void plan(int64_t from) {
    free = from;
    laid = planned_ = ahead[rests].any_left() && !(rests == ACTIVATIONS && ahead[rests].first().waits);
  }

  enum { LAY, STREAM, NEXT, PASS } step_ = LAY;
  Vector::Tile tile_;
  bool planned_ = false;
  bool laid = false;                            /* the next tile is, or will be without further ado */
  int64_t ready = 0, free = 0, streamed = 0;
};

/* Sums rest. */
struct SummingArray {
  SummingArray(const Program& program, Clock& clock)
      : design(program.design()),
        clock(clock),
        ahead{Ahead(program, clock.port, WEIGHTS, false), Ahead(program, clock.port, ACTIVATIONS, false)} {}

  /* As of the other one. */
  void open() { ask(WEIGHTS); }
  void begin() {
    ahead[ACTIVATIONS].until(clock.part);
    ask(ACTIVATIONS);
  }
  bool settle() { return true; }
  bool run(Cursor& fold) {
    for (;;) {
      if (!passed_) {
        if (!clock.vector.pass(out, tile_)) return false;
        passed_ = true;
        look_ahead(fold);
      }
      if (fold.part() != clock.part) return true;
      for (int operand = 0; operand < OPERANDS; operand++) {
        if (!fold->fresh[operand] || taken_[operand]) continue;
        if (!clock.port.known(static_cast<Class>(operand))) return false;
        ready[operand] = ahead[operand].take();
        taken_[operand] = true;
      }
      taken_ = {};
      const Memories::Cycles cycles = clock.memories.streaming(*fold);
      const int64_t room = fold->last_slice ? std::max(out - cycles.all, clock.vector.before()) : 0;
      const Cause causes[] = {{ready[WEIGHTS], &Counters::stall_weights},
                              {ready[ACTIVATIONS], &Counters::stall_activations},
                              {fold->waits ? clock.vector.end() : 0, &Counters::stall_steps},
                              {room, &Counters::stall_outputs}};
      clock.start(*fold, cycles, causes);
      tile_ = Vector::Tile(*fold);
      fold.next();
      for (int operand = 0; operand < OPERANDS; operand++) {
        if (fold.done() || fold->fresh[operand]) ahead[operand].request(clock.end);
      }
      if (tile_.finished) {
        out = clock.end + design.array_depth() + design.array_rows;
        passed_ = false;
      } else {
        look_ahead(fold);
      }
    }
  }

  int64_t low() const { return clock.end; }
  void describe(State& state) const {
    state.push_back(out - clock.end);
    for (const Ahead& each : ahead) each.describe(state);
  }
  void skip(int64_t time) {
    out += time;
    for (int64_t& each : ready) each += time;
  }

  const Design& design;
  Clock& clock;
  Ahead ahead[OPERANDS];

 private:
  void ask(Operand operand) {
    for (int tile = 0; tile < BUFFERS; tile++) ahead[operand].request(clock.end);
  }

  void look_ahead(Cursor& fold) {
    clock.stream(fold, ahead[WEIGHTS].fold());
    clock.stream_here(fold, ahead[WEIGHTS]);
    clock.stream_both(fold, ahead);
    clock.look_back(fold, *this);
  }

  int64_t ready[OPERANDS] = {}, out = 0;
  std::array<bool, OPERANDS> taken_{}; /* for the fold that comes */
  bool passed_ = true;                 /* the last tile, to the vector unit */
  Vector::Tile tile_;
};

/* Blocks of the vector unit alone. */
class Blocks {
 public:
  Blocks(const VectorBlocks& blocks, Clock& clock) : blocks_(blocks), clock_(clock) {
    clock.counters().folds = blocks.count();
    for (int64_t b = 0; b < BUFFERS; b++) ask(b);
  }
  /* As of the arrays. */
  bool run() {
    Port& port = clock_.port;
    Counters& counters = clock_.counters();
    for (; next_ < blocks_.count(); next_++) {
      if (!port.known(ACTIVATION_TILES) || (next_ >= BUFFERS && !port.known(OUTPUTS))) return false;
      const VectorBlock block = blocks_[next_];
      const int64_t arrived = port.take(ACTIVATION_TILES);
      const int64_t slot_free = next_ >= BUFFERS ? port.take(OUTPUTS) : 0;
      const int64_t start = std::max({clock_.end, arrived, slot_free});
      int64_t& wait = next_ == 0 ? counters.fill : start == arrived ? counters.stall_activations : counters.stall_outputs;
      wait += start - clock_.end;
      const Memories::Cycles cycles =
          clock_.memories.passing(ACTIVATIONS, block.reads, block.input_bytes, block.cycles);
      clock_.end = start + cycles.all;
      clock_.record(clock_.part, Event::VECTOR, start, clock_.end);
      counters.vector_busy = counters.busy += block.cycles;
      counters.stall_memory += cycles.all - block.cycles;
      counters.memory_conflicts += cycles.conflicts;
      counters.lane_operations += block.lane_operations;
      counters.activation_reads += block.reads;
      counters.activation_writes += block.writes;
      ask(next_ + BUFFERS);
      port.request(OUTPUTS, clock_.end, block.output_bytes, clock_.part);
    }
    return true;
  }

 private:
  void ask(int64_t block) {
    if (block >= blocks_.count()) return;
    clock_.port.request(ACTIVATION_TILES, clock_.end, blocks_[block].input_bytes, clock_.part);
  }

  const VectorBlocks& blocks_;
  Clock& clock_;
  int64_t next_ = 0;
};

/* An array with what is around it, on its way through the parts of a run. */
template <typename Array>
class Core {
 public:
  Core(const Chain& chain, std::vector<Counters>& counters, const Record& record, Memory& memory, size_t number)
      : parts_(chain.parts()),
        clock_(chain.program(), counters, record, memory, number),
        array_(chain.program(), clock_),
        fold_(chain.program()) {
    array_.open();
  }
  Core(const Core&) = delete; /* there are references within */

  void begin(int64_t time) {
    clock_.begin(time);
    over_ = false;
    const Part& part = parts_[static_cast<size_t>(clock_.part)];
    clock_.counters().macs = part.macs;
    if (part.blocks) {
      blocks_.emplace(*part.blocks, clock_);
    } else {
      blocks_.reset();
      array_.begin();
    }
  }
  /* On with the part: whether it is over. If not, something is not known that it waits for. */
  bool advance() {
    if (over_) return true;
    if (!array_.settle()) return false;
    over_ = blocks_ ? blocks_->run() && clock_.finish(clock_.end)
                    : array_.run(fold_) && clock_.finish(clock_.vector.end());
    return over_;
  }
  bool over() const { return over_; }
  int64_t end() const { return clock_.end; }

 private:
  const std::vector<Part>& parts_;
  Clock clock_;
  Array array_;
  Cursor fold_;
  std::optional<Blocks> blocks_;
  bool over_ = false;
};

}  // namespace

void tally(const Fold& fold, Counters& counters, int64_t times) {
  counters.folds += times;
  counters.weight_reads += times * fold.reads[WEIGHTS];
  counters.activation_reads += times * fold.reads[ACTIVATIONS];
  counters.lookups += times * fold.lookups;
  counters.gated_macs += times * fold.gated_macs;
  counters.accumulator_accesses += times * fold.accumulator_accesses;
  counters.lane_operations += times * fold.lane_operations;
  counters.activation_writes += times * fold.kept_bytes;
}

/* Of each core, of each part. All cores begin a part when all of them have ended the one before. */
template <typename Array>
static std::vector<std::vector<Counters>> run_cores(const std::vector<Chain>& chains, const Record& record) {
  const size_t parts = chains.front().parts().size();
  std::vector<std::vector<Counters>> counters(chains.size(), std::vector<Counters>(parts));
  Memory memory(chains.front().program().design(), chains.size());
  std::deque<Core<Array>> cores;
  for (size_t i = 0; i < chains.size(); i++) cores.emplace_back(chains[i], counters[i], record.of(i), memory, i);
  int64_t begun = 0;
  for (size_t part = 0; part < parts; part++) {
    size_t at_work = 0;
    int64_t end = begun;
    for (Core<Array>& core : cores) core.begin(begun);
    for (Core<Array>& core : cores) at_work += !core.advance();
    while (at_work > 0) {
      Core<Array>& core = cores[memory.serve()];
      if (!core.over()) at_work -= core.advance();
    }
    for (const Core<Array>& core : cores) end = std::max(end, core.end());
    begun = end;
  }
  return counters;
}

static std::vector<std::vector<Counters>> run(const std::vector<Chain>& chains, const Record& record) {
  return chains.front().program().design().dataflow == Dataflow::output ? run_cores<SummingArray>(chains, record)
                                                                        : run_cores<RestingArray>(chains, record);
}

static std::vector<Counters> run(Chain chain, const Record& record) {
  std::vector<Chain> chains;
  chains.push_back(std::move(chain));
  return std::move(run(chains, record).front());
}

static void check_folds(const Program& program) {
  if (program.folds() <= Program::MOST_FOLDS) return;
  throw std::length_error("it takes more than " + std::to_string(Program::MOST_FOLDS) + " passes through the array");
}

static Counters run(const Program& program, const Record& record) { return run(Chain(program), record).front(); }

Counters time_program(const Program& program) { return run(program, {}); }

Counters trace_program(const Program& program, size_t most, std::vector<Event>& events) {
  return run(program, Record(events, most, 0, 1));
}

Chain::Chain(const Program& program) : program_(program), parts_{{program.macs(), {}}} { check_folds(program); }

void Chain::add(const Program& program) {
  check_folds(program);
  program_.append(program, static_cast<int64_t>(parts_.size()));
  parts_.push_back({program.macs(), {}});
}

std::vector<std::vector<Counters>> time_cores(const std::vector<Chain>& chains) { return run(chains, {}); }

std::vector<std::vector<Counters>> trace_cores(const std::vector<Chain>& chains, int64_t first, int64_t last, size_t most,
                                               std::vector<Event>& events) {
  const std::vector<std::vector<Counters>> counters = run(chains, Record(events, most, first, last));
  int64_t begun = 0;
  for (int64_t part = 0; part < first; part++) {
    int64_t longest = 0;
    for (const std::vector<Counters>& core : counters) longest = std::max(longest, core[static_cast<size_t>(part)].cycles);
    begun += longest;
  }
  for (Event& event : events) {
    event.begin -= begun;
    event.end -= begun;
  }
  return counters;
}

Program lower(const Design& design, const Sections& sections, const Mapping& mapping) {
  Program program(design);
  for (size_t i = 0; i < sections.stages.size(); i++) program.add(sections.stages[i], sections.repeats[i], mapping);
  return program;
}

namespace {

/* Bytes that the blocks of a stage's group bring from DRAM once. */
int64_t block_bytes(const Stage& stage, const Tiling& tiling) {
  if (!tiling.resident) return times(times(stage.places(), stage.depth()), stage.fetched_bytes());
  int64_t bytes = times(stage.channels, stage.fetched_bytes());
  for (int axis = 0; axis < 4; axis++) { /* boxes are products of what they touch along each axis */
    int64_t touched = 0;
    for (int64_t block = 0; block < tiling.blocks[axis]; block++) {
      const int64_t first = block * tiling.block[axis];
      touched = plus(touched, stage.axes[axis].touched(
                                  first, std::min(tiling.block[axis], stage.axes[axis].outputs - first)));
    }
    bytes = times(bytes, touched);
  }
  return bytes;
}

/* No run of the program takes fewer cycles: what streams, what the port has to carry, and how far apart resting tiles
 * follow each other. */
int64_t least_cycles(const Program& program) {
  const Design& design = program.design();
  const bool output = design.dataflow == Dataflow::output, input = design.dataflow == Dataflow::input;
  int64_t streams = 0, bytes = 0, loads = 0;
  for (const Section& section : program.sections()) {
    for (size_t i = 0; i < section.stages.size(); i++) {
      const Stage& stage = section.stages[i];
      const Tiling& tiling = section.tilings[i];
      const int64_t count = times(stage.groups, section.repeats);
      const int64_t passes = input ? times(tiling.block_count, tiling.slices) : tiling.passes;
      const int64_t each = output ? times(tiling.folds / std::max<int64_t>(tiling.passes, 1), tiling.rows)
                           : input ? times(stage.columns, passes)
                                   : times(stage.places(), passes);
      streams = plus(streams, times(count, times(each, stage.operand_cycles)));
      const bool shared = !input && tiling.strips_first && tiling.slices == 1; /* a tile by all blocks of its strip */
      if (passes > 1) loads = plus(loads, times(count, shared ? tiling.strips : tiling.folds));
      const bool once = stage.weights_kept || tiling.strip_resident || input || shared;
      const int64_t again = once ? 1 : tiling.block_count;
      const int64_t fetched = stage.weights_kept ? std::min(count, stage.groups) : count; /* of all repeats' groups */
      const int64_t weights = stage.indexed() ? stage.stored->weights() / stage.groups
                                              : times(stage.depth(), stage.columns);
      const int64_t each_bytes = stage.stored ? times(weights, stage.stored->bits) / 8 : times(weights, stage.weight_bytes);
      bytes = plus(bytes, times(times(fetched, again), each_bytes));
      const bool for_each_strip = input ? passes > 1 : tiling.strips_first || !tiling.resident;
      bytes = plus(bytes, times(count, times(for_each_strip ? tiling.strips : 1, block_bytes(stage, tiling))));
      bytes = plus(bytes, times(count, times(times(stage.places(), stage.columns), stage.output_bytes)));
    }
  }
  int64_t least = std::max(streams, bytes / design.dram_bytes_per_cycle);
  if (!output) {
    const int64_t apart = times(std::max<int64_t>(loads - 1, 0), design.release_cycles() + design.load_cycles());
    least = design.shadowed() ? std::max(least, apart) : std::max(least, plus(streams, apart));
  }
  return least;
}

/* Without what keeps iterations from being skipped. */
Design without_rows_and_refresh(Design design) {
  design.dram.row_miss_cycles = design.dram.refresh_cycles = 0;
  return design;
}

constexpr int64_t PARTS[] = {1, 2, 4}; /* of the largest block, that are tried */

struct Candidate {
  int64_t least;
  Mapping mapping;
  Program program;
};

bool cut_alike(const Program& one, const Program& other) {
  for (size_t i = 0; i < one.sections().size(); i++) {
    if (one.sections()[i].tilings != other.sections()[i].tilings) return false;
  }
  return true;
}

/* Those that can be walked and that cut differently; the most promising first. */
std::vector<Candidate> candidates_of(const Design& design, const Sections& sections, const Wish& wish) {
  std::vector<Candidate> candidates;
  for (const bool resident : {true, false}) {
    if (resident != wish.resident.value_or(resident)) continue;
    int64_t most_places = 1; /* of a block of any stage */
    for (const auto& stages : sections.stages) {
      for (const Stage& stage : stages) {
        const Tiling tiling = tile_stage(design, stage, {resident, Mapping{}.most_places});
        most_places = std::max(most_places, places_of(tiling.block));
      }
    }
    for (const bool strips_first : {false, true}) {
      if (strips_first != wish.strips_first.value_or(strips_first)) continue;
      for (const int64_t part : PARTS) {
        const int64_t places = wish.most_places.value_or(std::max<int64_t>(1, most_places / part));
        const Mapping mapping{resident, places, strips_first};
        Program program = lower(design, sections, mapping);
        if (program.folds() > Program::MOST_FOLDS) continue;
        const bool known = std::any_of(candidates.begin(), candidates.end(), [&](const Candidate& candidate) {
          return cut_alike(candidate.program, program);
        });
        if (known) continue;
        const int64_t least = least_cycles(program);
        candidates.push_back({least, mapping, std::move(program)});
      }
    }
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.least < b.least; });
  return candidates;
}

}  // namespace

Found time_fastest(const Design& given, const Sections& sections, const Wish& wish) {
  const Design design = without_rows_and_refresh(given);
  const std::vector<Candidate> candidates = candidates_of(design, sections, wish);
  if (candidates.empty()) { /* says why not */
    const Mapping any{wish.resident.value_or(true), wish.most_places.value_or(Mapping{}.most_places),
                      wish.strips_first.value_or(false)};
    return {any, time_program(lower(design, sections, any))};
  }
  Found best;
  best.counters.cycles = INT64_MAX;
  for (const Candidate& candidate : candidates) {
    if (candidate.least >= best.counters.cycles) break;
    const Counters counters = time_program(candidate.program);
    if (counters.cycles < best.counters.cycles) best = {candidate.mapping, counters};
  }
  if (!given.dram.has_rows() && !given.dram.refreshed()) return best;
  return {best.mapping, time_program(lower(given, sections, best.mapping))};
}

std::vector<Found> time_mappings(const Design& design, const Sections& sections, const Wish& wish) {
  std::vector<Found> found;
  for (const Candidate& candidate : candidates_of(design, sections, wish)) {
    found.push_back({candidate.mapping, time_program(candidate.program)});
  }
  return found;
}

namespace {

/* The vector unit's work as a stage without a matrix, to be cut by the same rule. */
Stage as_stage(const VectorStage& vector) {
  Stage stage;
  stage.axes = vector.axes;
  stage.activation_bytes = vector.input_bytes;
  stage.activations_here = vector.kept_input_bytes > 0 && vector.input_bytes == 0;
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
          ceil_div(outputs, design_.vector_lanes) * stage_.lane_cycles, times(outputs, stage_.lane_cycles),
          inputs * (stage_.input_bytes + stage_.kept_input_bytes), outputs * stage_.kept_output_bytes};
}

static Counters run(const Design& design, const VectorStage& stage, const Record& record) {
  Chain chain(design);
  chain.add(VectorBlocks(design, stage));
  return run(std::move(chain), record).front();
}

Counters time_vector(const Design& design, const VectorStage& stage) { return run(design, stage, {}); }

Counters trace_vector(const Design& design, const VectorStage& stage, size_t most, std::vector<Event>& events) {
  return run(design, stage, Record(events, most, 0, 1));
}

}  // namespace asic
