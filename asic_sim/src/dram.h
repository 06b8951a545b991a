/* When a transfer over the port to DRAM ends: the channels, banks, rows and refreshes of design.h's Dram. reference.cpp
 * steps them cycle by cycle and shares nothing with this.
 *
 * Weights, activations and outputs each lie in DRAM in the order in which their tiles are moved, every tile from a burst
 * of its own on. Burst i of a class lies in channel i mod channels, there as burst j = i / channels, in page
 * p = j / (bursts of a row) of the class, in bank (p + class * banks / 3) mod banks.
 *
 * A channel moves the transfers' parts one after the other, in the order in which the port serves them, each from a
 * cycle's beginning on and without a gap but for rows that are not open: a bank that needs another row begins to open
 * it when the transfer is known and what was before it in that bank has been moved. All of this takes place in the time
 * in which DRAM is not refreshed: of every interval its last cycles are taken away, for all channels, and what goes on
 * then stands still. */
#ifndef QUATREFOIL_ASIC_DRAM_H
#define QUATREFOIL_ASIC_DRAM_H

#include <vector>

#include "geometry.h"
#include "timing.h"

namespace asic {

class DramTiming {
 public:
  /* The part of a transfer that a channel moves, from one cycle to another. */
  struct Move {
    int64_t channel, begin, end, bursts;
  };

  explicit DramTiming(const Design& design)
      : dram_(design.dram),
        bytes_per_cycle_(design.dram_bytes_per_cycle),
        burst_work_(dram_.burst_bytes * dram_.channels),
        row_bursts_(dram_.bursts_in_row()),
        open_cycles_(dram_.refresh_interval_cycles - dram_.refresh_cycles),
        pipe_(dram_.channels == 1 && !dram_.has_rows() && !dram_.refreshed()),
        channels_(static_cast<size_t>(dram_.channels)) {
    if (dram_.has_rows()) {
      for (Channel& channel : channels_) channel.banks.resize(static_cast<size_t>(dram_.banks));
    }
  }

  /* Nothing but the time of the last transfer's end bears on what follows. */
  bool is_pipe() const { return pipe_; }

  /* Moves what was requested at a time: when its last burst has been moved. `tell(Move)` for each channel's part. */
  template <typename Tell>
  int64_t move(int kind, int64_t time, int64_t bytes, Counters& counters, const Tell& tell) {
    if (bytes != measured_bytes_) { /* mostly tiles of one size: divisions less */
      measured_bytes_ = bytes;
      measured_bursts_ = ceil_div(bytes, dram_.burst_bytes);
      measured_cycles_ = cycles_of(measured_bursts_);
    }
    if (pipe_) {
      int64_t& free = channels_.front().free;
      free = std::max(free, time) + measured_cycles_;
      tell(Move{0, free - measured_cycles_, free, measured_bursts_});
      return free;
    }
    const int64_t first = next_[kind], last = first + measured_bursts_, count = dram_.channels;
    next_[kind] = last;
    if (count == 1) return move_part(0, kind, time, first, last, counters, tell);
    int64_t end = 0;
    for (int64_t channel = 0; channel < count; channel++) {
      const int64_t from = (first + count - 1 - channel) / count, to = (last + count - 1 - channel) / count;
      if (from < to) end = std::max(end, move_part(channel, kind, time, from, to, counters, tell));
    }
    return end;
  }

  void describe(int64_t base, std::vector<int64_t>& state) const {
    for (const Channel& channel : channels_) state.push_back(channel.free - base);
    for (const int64_t next : next_) state.push_back(next % dram_.channels);
  }
  /* Rows and refreshes depend on where and when they are: nothing can be known to happen again. */
  bool repeats() const { return !dram_.has_rows() && !dram_.refreshed(); }
  void skip(int64_t time) {
    for (Channel& channel : channels_) channel.free += time;
  }

 private:
  enum : int { CLASSES = 3 };
  struct Bank {
    int64_t page = -1; /* that is open, counted over all classes */
    int64_t free = 0;  /* when the last of its data has been moved */
  };
  struct Channel {
    int64_t free = 0;  /* when it has moved all, in cycles without refresh */
    int64_t ended = 0; /* the same, in cycles */
    std::vector<Bank> banks;
  };

  int64_t cycles_of(int64_t bursts) const { return ceil_div(times(bursts, burst_work_), bytes_per_cycle_); }

  /* Cycles without refresh before a cycle, and back: the cycle in which the next one of them begins, and the one with
   * which they end. */
  int64_t worked(int64_t time) const {
    if (!dram_.refreshed()) return time;
    const int64_t intervals = time / dram_.refresh_interval_cycles;
    return intervals * open_cycles_ + std::min(time - intervals * dram_.refresh_interval_cycles, open_cycles_);
  }
  int64_t begins(int64_t worked) const {
    return dram_.refreshed() ? worked + worked / open_cycles_ * dram_.refresh_cycles : worked;
  }
  int64_t ends(int64_t worked) const {
    return dram_.refreshed() ? worked + (worked - 1) / open_cycles_ * dram_.refresh_cycles : worked;
  }

  /* Bursts from .. to - 1 of a channel. */
  template <typename Tell>
  int64_t move_part(int64_t number, int kind, int64_t time, int64_t from, int64_t to, Counters& counters,
                    const Tell& tell) {
    Channel& channel = channels_[static_cast<size_t>(number)];
    const int64_t known = worked(time), turn = std::max(channel.free, known);
    int64_t since = turn, bursts = 0, begin = turn; /* bursts moved since a cycle without a gap */
    if (!dram_.has_rows()) {
      bursts = to - from;
    } else {
      int64_t waits = 0;
      for (int64_t at = from; at < to;) {
        const int64_t page = at / row_bursts_, end = std::min(to, (page + 1) * row_bursts_);
        Bank& bank = channel.banks[static_cast<size_t>((page + kind * dram_.banks / CLASSES) % dram_.banks)];
        if (bank.page != page * CLASSES + kind) {
          const int64_t open = std::max(known, bank.free) + dram_.row_miss_cycles;
          if (open > since + times(bursts, burst_work_) / bytes_per_cycle_) {
            waits += open - since - cycles_of(bursts);
            since = open;
            bursts = 0;
            if (at == from) begin = open;
          }
          bank.page = page * CLASSES + kind;
          counters.row_misses++;
          counters.row_hits--;
        }
        bursts += end - at;
        bank.free = since + cycles_of(bursts);
        at = end;
      }
      counters.row_waits += waits;
      counters.row_hits += to - from;
    }
    channel.free = since + cycles_of(bursts);
    const int64_t ended = ends(channel.free);
    if (dram_.refreshed()) {
      const int64_t asked = std::max(channel.ended, time);
      counters.refresh_waits += ended - asked - (channel.free - turn);
      channel.ended = ended;
    }
    tell(Move{number, begins(begin), ended, to - from});
    return ended;
  }

  const Dram& dram_;
  const int64_t bytes_per_cycle_, burst_work_, row_bursts_, open_cycles_;
  const bool pipe_;
  std::vector<Channel> channels_;
  int64_t next_[CLASSES] = {}; /* the burst that a class's next tile begins with */
  int64_t measured_bytes_ = 0, measured_bursts_ = 0, measured_cycles_ = 0;
};

}  // namespace asic

#endif
