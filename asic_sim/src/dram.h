/* When a transfer over the port to DRAM ends: the channels, banks, rows and refreshes of design.h's Dram. reference.cpp
 * steps them cycle by cycle and shares nothing with this.
 *
 * Weights, activations and outputs of each core lie in areas of their own, in the order in which their tiles are moved, every
 * tile from a burst of its own on. Burst i of an area lies in channel i mod channels, there as burst j = i / channels, in
 * page p = j / (bursts of a row) of the area, in bank (p + area * banks / areas) mod banks; the areas are counted class by
 * class, core by core.
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
  /* The part of a transfer that a channel moves; `begin` without, `end` with the cycles of refreshes. */
  struct Move {
    int64_t channel, begin, end, bursts;
  };

  explicit DramTiming(const Design& design, int64_t areas)
      : dram_(design.dram),
        areas_(areas),
        bytes_per_cycle_(design.dram_bytes_per_cycle),
        burst_work_(dram_.burst_bytes * dram_.channels),
        whole_cycles_(burst_work_ % bytes_per_cycle_ ? 0 : burst_work_ / bytes_per_cycle_),
        row_bursts_(dram_.bursts_in_row()),
        open_cycles_(dram_.refresh_interval_cycles - dram_.refresh_cycles),
        pipe_(dram_.channels == 1 && repeats()),
        channels_(static_cast<size_t>(dram_.channels)),
        next_(static_cast<size_t>(areas)),
        measured_(static_cast<size_t>(areas)) {
    if (!dram_.has_rows()) return;
    for (Channel& channel : channels_) {
      channel.banks.resize(static_cast<size_t>(dram_.banks));
      channel.places.resize(static_cast<size_t>(areas));
      for (int64_t area = 0; area < areas; area++) {
        channel.places[static_cast<size_t>(area)].bank = area * dram_.banks / areas;
      }
    }
  }

  /* Moves what was requested at a time: when its last burst has been moved. `tell(Move)` for each channel's part. */
  template <typename Tell>
  int64_t move(size_t area, int64_t time, int64_t bytes, Counters& counters, const Tell& tell) {
    const int64_t count = dram_.channels;
    Measured& measured = measured_[area];
    if (bytes != measured.bytes) { /* mostly tiles of one size: divisions less */
      const int64_t bursts = ceil_div(bytes, dram_.burst_bytes), each = bursts / count;
      measured = {bytes, each, bursts % count, cycles_of(each)};
    }
    const int64_t each = measured.each, more = measured.more, each_cycles = measured.each_cycles;
    if (pipe_) {
      int64_t& free = channels_.front().free;
      free = std::max(free, time) + each_cycles;
      tell(Move{0, free - each_cycles, free, each});
      return free;
    }
    const int64_t known = worked(time);
    int64_t end = 0, channel = next_[area];
    for (int64_t i = 0; i < (each ? count : more); i++) {
      const int64_t bursts = each + (i < more);
      const int64_t cycles = bursts == each ? each_cycles : cycles_of(bursts);
      end = std::max(end, move_part(channel, area, time, known, bursts, cycles, counters, tell));
      if (++channel == count) channel = 0;
    }
    if (more) next_[area] = (next_[area] + more) % count;
    return end;
  }

  /* Whether requests of so many bytes each keep every channel moving, without a wait for a row: two that are waiting, made
   * at `first` and `second`, and others, each made `delay` cycles at most after the one two before has been moved. Then
   * no time of a request bears on anything. */
  bool streams(size_t area, int64_t bytes, int64_t first, int64_t second, int64_t delay) {
    const int64_t bursts = ceil_div(bytes, dram_.burst_bytes), early = std::max<int64_t>(dram_.row_miss_cycles, 1);
    if (bursts % dram_.channels) return false;
    const int64_t cycles = cycles_of(bursts / dram_.channels), earliest = earliest_free();
    if (latest_free() - earliest + delay + early > cycles) return false;
    if (worked(first) + early > earliest || worked(second) + early > earliest + cycles) return false;
    if (!dram_.has_rows()) return true;
    if (!whole_cycles_ || (dram_.banks - 1) * cycles_of(row_bursts_) < early) return false;
    for (const Channel& channel : channels_) {
      const Place& place = channel.places[area];
      const int64_t last = place.burst ? place.bank : (place.bank + dram_.banks - 1) % dram_.banks;
      for (int64_t number = 0; number < dram_.banks; number++) {
        const Bank& bank = channel.banks[static_cast<size_t>(number)];
        if (number != last && bank.free + early > channel.free) return false;
        if (number == last && place.burst && bank.row != row_of(place.page, area)) return false;
      }
    }
    return true;
  }
  /* Moves so many of such requests; when the last one has been moved. */
  int64_t stream(size_t area, int64_t requests, int64_t bytes, Counters& counters) {
    const int64_t each = ceil_div(bytes, dram_.burst_bytes) / dram_.channels, count = requests * each;
    for (Channel& channel : channels_) {
      const int64_t since = channel.free;
      channel.free += requests * cycles_of(each);
      if (dram_.has_rows()) stream_rows(channel, area, since, count, counters);
      if (!dram_.refreshed()) continue;
      const int64_t ended = ends(channel.free);
      counters.refresh_waits += ended - channel.ended - (channel.free - since);
      channel.ended = ended;
    }
    return ends(latest_free());
  }

  /* Whether requests of two areas, one of each in turn, may be alike: there are no rows, or the first one's use every bank as
   * often, and begin where the one before began. Then what a pair of them takes depends, in cycles without refresh, on nothing but the bank of the
   * second one's row, as long as that is the same one, and each is known in time. */
  bool alternate(int64_t first_bytes) const {
    if (dram_.channels > 1) return false;
    return !dram_.has_rows() || ceil_div(first_bytes, dram_.burst_bytes) % (row_bursts_ * dram_.banks) == 0;
  }
  /* Cycles without refresh until all has been moved, and the cycle; of one channel. */
  int64_t free() const { return channels_.front().free; }
  int64_t ended(int64_t free) { return ends(free); }
  int64_t worked_until(int64_t time) { return worked(time); }
  int64_t page(size_t area) const { return dram_.has_rows() ? channels_.front().places[area].page : 0; }
  /* How many more requests of so many bytes lie in the row and do not end it. */
  int64_t left_in_row(size_t area, int64_t bytes) const {
    if (!dram_.has_rows()) return INT64_MAX;
    return (row_bursts_ - channels_.front().places[area].burst - 1) / ceil_div(bytes, dram_.burst_bytes);
  }
  /* So many pairs on, each of which takes so many cycles without refresh. */
  void skip_pairs(size_t first, int64_t first_bytes, size_t second, int64_t second_bytes, int64_t pairs, int64_t cycles,
                  Counters& counters) {
    Channel& channel = channels_.front();
    channel.free += pairs * cycles;
    if (dram_.has_rows()) {
      const int64_t pages = pairs * (ceil_div(first_bytes, dram_.burst_bytes) / row_bursts_);
      for (Bank& bank : channel.banks) {
        if (bank.row % areas_ == static_cast<int64_t>(first)) bank.row += pages * areas_;
        bank.free += pairs * cycles;
      }
      channel.places[first].page += pages;
      channel.places[second].burst += pairs * ceil_div(second_bytes, dram_.burst_bytes);
    }
    if (!dram_.refreshed()) return;
    const int64_t ended = ends(channel.free);
    counters.refresh_waits += ended - channel.ended - pairs * cycles;
    channel.ended = ended;
  }

  /* The cycle with which the next one begins in which DRAM works, so many having passed. */
  int64_t begins(int64_t worked) const {
    return dram_.refreshed() ? worked + worked / open_cycles_ * dram_.refresh_cycles : worked;
  }

  /* `low`: no request to come is earlier. */
  void describe(int64_t base, int64_t low, std::vector<int64_t>& state) const {
    for (const Channel& channel : channels_) state.push_back(std::max(channel.free, low) - base);
    state.insert(state.end(), next_.begin(), next_.end());
  }
  /* Rows and refreshes depend on where and when they are: nothing can be known to happen again. */
  bool repeats() const { return !dram_.has_rows() && !dram_.refreshed(); }
  void skip(int64_t time) {
    for (Channel& channel : channels_) channel.free += time;
  }

 private:
  struct Bank {
    int64_t row = -1; /* that is open */
    int64_t free = 0; /* when the last of its data has been moved */
  };
  /* Where an area's next burst lies. */
  struct Place {
    int64_t page = 0, bank = 0, burst = 0;
  };
  struct Channel {
    int64_t free = 0;  /* when it has moved all, in cycles without refresh */
    int64_t ended = 0; /* the same, in cycles */
    std::vector<Place> places;
    std::vector<Bank> banks;
  };

  int64_t row_of(int64_t page, size_t area) const { return page * areas_ + static_cast<int64_t>(area); }
  int64_t cycles_of(int64_t bursts) const {
    return whole_cycles_ ? times(bursts, whole_cycles_) : ceil_div(times(bursts, burst_work_), bytes_per_cycle_);
  }
  int64_t whole_cycles_of(int64_t bursts) const { /* rounded down */
    return whole_cycles_ ? times(bursts, whole_cycles_) : times(bursts, burst_work_) / bytes_per_cycle_;
  }

  /* Cycles without refresh before a cycle. */
  int64_t worked(int64_t time) {
    if (!dram_.refreshed()) return time;
    if (time < interval_begin_ || time >= interval_begin_ + dram_.refresh_interval_cycles) {
      interval_ = time / dram_.refresh_interval_cycles;
      interval_begin_ = interval_ * dram_.refresh_interval_cycles;
    }
    return interval_ * open_cycles_ + std::min(time - interval_begin_, open_cycles_);
  }
  /* The cycle with which so many without refresh have ended. */
  int64_t ends(int64_t worked) {
    if (!dram_.refreshed()) return worked;
    if (worked <= ended_begin_ || worked > ended_begin_ + open_cycles_) {
      ended_interval_ = (worked - 1) / open_cycles_;
      ended_begin_ = ended_interval_ * open_cycles_;
    }
    return worked + ended_interval_ * dram_.refresh_cycles;
  }

  /* The next `count` bursts of an area in a channel, known to it from a cycle without refresh on. */
  template <typename Tell>
  int64_t move_part(int64_t number, size_t area, int64_t time, int64_t known, int64_t count, int64_t cycles,
                    Counters& counters, const Tell& tell) {
    Channel& channel = channels_[static_cast<size_t>(number)];
    const int64_t turn = std::max(channel.free, known);
    int64_t begin = turn;
    if (dram_.has_rows()) {
      begin = move_rows(channel, area, known, count, counters);
    } else {
      channel.free = turn + cycles;
    }
    const int64_t ended = ends(channel.free);
    if (dram_.refreshed()) {
      counters.refresh_waits += ended - std::max(channel.ended, time) - (channel.free - turn);
      channel.ended = ended;
    }
    tell(Move{number, begin, ended, count});
    return ended;
  }

  /* Row by row; when the first burst begins to move. */
  int64_t move_rows(Channel& channel, size_t area, int64_t known, int64_t count, Counters& counters) {
    Place& place = channel.places[area];
    int64_t since = std::max(channel.free, known), bursts = 0, end = since; /* bursts since a cycle without a gap */
    int64_t begin = since, missed = 0;
    counters.row_hits += count;
    for (bool first = true; count > 0; first = false) {
      Bank& bank = channel.banks[static_cast<size_t>(place.bank)];
      const int64_t row = row_of(place.page, area), here = std::min(count, row_bursts_ - place.burst);
      if (bank.row != row) {
        const int64_t open = std::max(known, bank.free) + dram_.row_miss_cycles;
        if (open > since + whole_cycles_of(bursts)) {
          counters.row_waits += open - end;
          since = open;
          bursts = 0;
          if (first) begin = open;
        }
        bank.row = row;
        missed++;
      }
      bursts += here;
      count -= here;
      end = bank.free = since + cycles_of(bursts);
      place.burst += here;
      if (place.burst < row_bursts_) continue;
      place.burst = 0;
      place.page++;
      if (++place.bank == dram_.banks) place.bank = 0;
    }
    channel.free = end;
    counters.row_misses += missed;
    counters.row_hits -= missed;
    return begin;
  }

  void stream_rows(Channel& channel, size_t area, int64_t since, int64_t count, Counters& counters) {
    Place& place = channel.places[area];
    const int64_t touched = ceil_div(place.burst + count, row_bursts_), opened = touched - (place.burst > 0);
    counters.row_misses += opened;
    counters.row_hits += count - opened;
    for (int64_t i = std::max<int64_t>(0, touched - dram_.banks); i < touched; i++) {
      Bank& bank = channel.banks[static_cast<size_t>((place.bank + i) % dram_.banks)];
      bank.row = row_of(place.page + i, area);
      bank.free = since + cycles_of(std::min(count, (i + 1) * row_bursts_ - place.burst));
    }
    const int64_t left = (place.burst + count) / row_bursts_; /* rows behind it */
    place.page += left;
    place.bank = (place.bank + left) % dram_.banks;
    place.burst = (place.burst + count) % row_bursts_;
  }

  int64_t latest_free() const {
    int64_t latest = 0;
    for (const Channel& channel : channels_) latest = std::max(latest, channel.free);
    return latest;
  }
  int64_t earliest_free() const {
    int64_t earliest = INT64_MAX;
    for (const Channel& channel : channels_) earliest = std::min(earliest, channel.free);
    return earliest;
  }

  const Dram& dram_;
  const int64_t areas_;
  const int64_t bytes_per_cycle_, burst_work_; /* the work of a burst: of bytes_per_cycle_ in a cycle */
  const int64_t whole_cycles_;                 /* of a burst; 0 where they are not whole */
  const int64_t row_bursts_, open_cycles_;
  const bool pipe_; /* nothing but the end of the last transfer bears on the next one */
  std::vector<Channel> channels_;
  std::vector<int64_t> next_; /* the channel of an area's next burst */
  struct Measured {
    int64_t bytes = 0, each = 0, more = 0, each_cycles = 0; /* bursts of each channel; channels with one more */
  };
  std::vector<Measured> measured_; /* an area's last request */
  int64_t interval_ = 0, interval_begin_ = 0, ended_interval_ = 0, ended_begin_ = 0; /* found last */
};

}  // namespace asic

#endif
