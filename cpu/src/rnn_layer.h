// A recurrent layer on packed weights, however these are stored: how units make blocks, the passes of a step, the cells.
//
// The hidden units are cut into blocks of one vector, or of up to four in rnn, which has but one gate. A block's sums are
// [column][lane], a column being a gate or one of these vectors, so that one product gives all gates of its units, ready for
// the fused activations. The products with the inputs do not depend on the state: they are taken for a chunk of steps at
// once. Then the steps run one after the other: the products with the state, and the cells. (The split is that of Appleyard
// et al., "Optimizing performance of recurrent neural networks on GPUs", 2016.) Every second step takes the blocks in the
// opposite order, over calls too: it begins with the weights that the step before left in the cache.
//
// gru without linear_before_reset needs the reset gate of all units before its candidate: two passes a step.
// Threads take blocks, and meet once (such a gru twice) a step; the two directions of a bidirectional layer are
// independent, so that two threads take one each and never meet.
// Steps from sequence_lens on keep the state and give 0; time is aligned at the first step in both directions.
// Accepts every option; hidden sizes are padded up to whole blocks, and what is in the padding is never read.
#pragma once

#include <omp.h>

#include "cache_size.h"
#include "rnn.h"
#include "rnn_product.h"

namespace {

constexpr int64_t CHUNK_ROWS = 64;      // rows whose input products are taken at once
constexpr int64_t CELLS = 16;           // that are taken one after the other at least, so that their latencies overlap
constexpr int64_t ROW_GAP = 16;         // floats between states: rows a power of two apart share few sets of a cache
constexpr int64_t WORTH_THREADS = 1 << 18;  // multiply-accumulates between two barriers that pay for them
constexpr int64_t WORTH_TWO = 1 << 18;      // multiply-accumulates of a direction that pay for a thread of its own

// How units make blocks of vectors, and where things are in the packed weights of one direction, in floats. A block's
// sums have slots for its columns; gru has one more, since its candidate's two products stay apart.
struct Layout {
  int64_t gates, blocks, vectors, columns, slots, w, r, candidate, bias, peepholes, size;
};

// The three products of a layer: with the inputs, with the state, and with the reset state where gru's candidate takes a second pass.
enum Part { INPUTS, STATE, CANDIDATE };

QF_INLINE bool takes_two_passes(const RnnArguments& a) { return a.kind == RNN_GRU && !a.linear_before_reset; }
QF_INLINE int columns_of(const RnnArguments& a, const Layout& l, Part part) {
  return part == CANDIDATE ? 1 : part == STATE && takes_two_passes(a) ? 2 : (int)l.columns;
}
QF_INLINE int64_t depth_of(const RnnArguments& a, Part part) { return part == INPUTS ? a.inputs : a.hidden; }

template <class Weights>
QF_INLINE Layout layout_of(const RnnArguments& a) {
  Layout l;
  l.gates = gates_of(a.kind);
  const int64_t all = divide_up(a.hidden, LANES);
  l.blocks = l.gates == 1 ? divide_up(all, 4) : all;
  l.vectors = divide_up(all, l.blocks);
  l.columns = l.gates * l.vectors;
  l.slots = l.gates == 1 ? l.columns : 4;
  const int64_t panels = a.passing ? 1 : l.blocks;
  const auto floats = [&](Part part) { return panels * Weights::panel_floats(depth_of(a, part), columns_of(a, l, part)); };
  l.w = 0;
  l.r = l.w + floats(INPUTS);
  // the candidate's recurrent weights follow in a panel of their own where gru takes a second pass
  l.candidate = l.r + floats(STATE);
  l.bias = l.candidate + (takes_two_passes(a) ? floats(CANDIDATE) : 0);
  l.peepholes = l.bias + l.blocks * l.slots * LANES;
  l.size = l.peepholes + (a.p ? l.blocks * l.vectors * LANES * 3 : 0);
  return l;
}

// Floats of one direction's workspace: two states, cells, reset states, the sums of a chunk, and what the weights' products
// need. `row` is from one row of a state to the next.
struct Workspace {
  int64_t chunk_steps, row, state, sums, room, size;
};

template <class Weights>
QF_INLINE Workspace workspace_of(const RnnArguments& a, const Layout& l) {
  Workspace w;
  const int64_t chunks = a.batch ? divide_up(a.steps, divide_up(CHUNK_ROWS, a.batch)) : 0;
  w.chunk_steps = chunks ? divide_up(a.steps, chunks) : 1;
  w.row = l.blocks * l.vectors * LANES + ROW_GAP;
  w.state = a.batch * w.row;
  w.sums = 4 * w.state;
  w.room = w.sums + w.chunk_steps * a.batch * l.blocks * l.slots * LANES;
  w.size = w.room + Weights::room_floats(a, w.chunk_steps * a.batch);
  return w;
}

// One direction of one call.
struct Direction {
  const float *w, *r, *candidate, *bias, *peepholes;
  Function f, g, h;
  float clip;
  bool input_forget, reverse, standard;
  float *states[2], *cells, *resets, *sums, *room;
  int64_t index;
};

// The standard activations without clip, or any.
template <bool STANDARD>
struct Gates {
  const Direction& d;
  QF_INLINE vfloat clipped(vfloat x) const {
    return STANDARD ? x : at_most(at_least(x, broadcast(-d.clip)), broadcast(d.clip));
  }
  QF_INLINE vfloat f(vfloat x) const { return STANDARD ? sigmoid(x) : apply_any(d.f, clipped(x)); }
  QF_INLINE vfloat g(vfloat x) const { return STANDARD ? tangent_hyperbolic(x) : apply_any(d.g, clipped(x)); }
  QF_INLINE vfloat h(vfloat x) const { return STANDARD ? tangent_hyperbolic(x) : apply_any(d.h, x); }
};

// The new state of a cell from the sums of its gates, and then its output.
template <bool STANDARD>
QF_INLINE vfloat lstm_state(const Direction& d, int64_t block, const float* sums, vfloat cell) {
  const Gates<STANDARD> gates{d};
  vfloat i = load(sums), f = load(sums + 2 * LANES);
  if (!STANDARD && d.peepholes) {
    const float* p = d.peepholes + block * 3 * LANES;
    i += load(p) * cell;
    f += load(p + 2 * LANES) * cell;
  }
  i = gates.f(i);
  f = !STANDARD && d.input_forget ? 1.0f - i : gates.f(f);
  return f * cell + i * gates.g(load(sums + 3 * LANES));
}

template <bool STANDARD>
QF_INLINE vfloat lstm_output(const Direction& d, int64_t block, const float* sums, vfloat cell) {
  const Gates<STANDARD> gates{d};
  vfloat o = load(sums + LANES);
  if (!STANDARD && d.peepholes) o += load(d.peepholes + (block * 3 + 1) * LANES) * cell;
  return gates.f(o) * gates.h(cell);
}

QF_INLINE vfloat between(vfloat z, vfloat candidate, vfloat h) { return (1.0f - z) * candidate + z * h; }

template <bool STANDARD>
QF_INLINE vfloat gru_cell_linear(const Direction& d, const float* sums, vfloat h) {
  const Gates<STANDARD> gates{d};
  const vfloat z = gates.f(load(sums)), r = gates.f(load(sums + LANES));
  return between(z, gates.g(load(sums + 2 * LANES) + r * load(sums + 3 * LANES)), h);
}

// A layer as a thread sees it. Weights is how its weights are stored:
//   panel_floats(depth, columns)   of a block's panel among the packed weights; 0 where they are elsewhere
//   pack(a, l, part, index, to)    packs the panels of a product of direction `index`
//   product(...)                   multiplies rows with a block's panel, as rnn_product.h does
//   SPREADS, spread(...), room_floats(a, rows)
//                                  whether rows are brought into another form first, and the memory that this takes
template <class Weights>
struct Layer {
  const RnnArguments& a;
  Layout l;
  Workspace w;
  int64_t longest;  // steps until every sequence has ended

  int64_t row_sums() const { return l.slots * LANES; }
  bool active(int64_t t, int64_t n) const { return !a.lengths || t < a.lengths[n]; }

  // The i-th block of a step: up and down in turn.
  int64_t block_of(int64_t i, int64_t begin, int64_t end, int phase) const {
    return (phase ^ a.downwards) ? end - 1 - (i - begin) : i;
  }

  // A block's sums of the chunk's first row, and from one row to the next.
  float* block_sums(const Direction& d, int64_t block) const {
    return d.sums + block * w.chunk_steps * a.batch * row_sums();
  }

  void initial_state(const Direction& d, int64_t begin, int64_t end) const {
    for (int64_t n = 0; n < a.batch; n++)
      for (int64_t vector = begin * l.vectors; vector < end * l.vectors; vector++) {
        const int64_t at = (d.index * a.batch + n) * a.hidden + vector * LANES, to = n * w.row + vector * LANES;
        const int lanes = lanes_of(vector);
        const float* h = static_cast<const float*>(a.initial_h);
        const float* c = static_cast<const float*>(a.initial_c);
        store(d.states[0] + to, h ? load_first(h + at, lanes) : (vfloat){});
        store(d.cells + to, c ? load_first(c + at, lanes) : (vfloat){});
      }
  }

  // How many units a vector holds.
  int lanes_of(int64_t vector) const { return clamped(a.hidden - vector * LANES, LANES); }

  // A block's products with the inputs of some steps, all rows.
  void input_product(const Direction& d, int64_t block, int64_t first_step, int64_t steps) const {
    const float* x = static_cast<const float*>(a.x) + first_step * a.batch * a.inputs;
    const float* bias = d.bias + block * row_sums();
    float* sums = block_sums(d, block);
    const int64_t rows = steps * a.batch;
    Weights::product(a, l, d, INPUTS, block, rows, x, a.inputs, bias, 0, sums, row_sums(), (int)l.columns - 1);
    if (a.linear_before_reset)
      for (int64_t row = 0; row < rows; row++) store(sums + row * row_sums() + 3 * LANES, load(bias + 3 * LANES));
  }

  // `slots` of the sums of a step from slot `first` on, into a training form's output; 0 of sequences that have ended.
  void keep(const Direction& d, int64_t block, int64_t t, const float* sums, int first, int slots) const {
    const int64_t width = slots_of(a) * a.hidden;
    for (int64_t n = 0; n < a.batch; n++, sums += row_sums()) {
      float* to = static_cast<float*>(a.sums) + ((t * a.directions + d.index) * a.batch + n) * width;
      for (int slot = first; slot < first + slots; slot++) {
        // rnn's columns are vectors of units, the others' are gates of one vector
        const int64_t vector = l.gates == 1 ? block * l.vectors + slot : block, gate = l.gates == 1 ? 0 : slot;
        const vfloat sum = active(t, n) ? load(sums + slot * LANES) : (vfloat){};
        const int lanes = lanes_of(vector);
        float* at = to + gate * a.hidden + vector * LANES;
        if (lanes == LANES) store(at, sum);
        else store_first(at, sum, lanes);
      }
    }
  }

  // A vector of a row's new state, into the state, and into y.
  QF_INLINE void put(const Direction& d, int64_t t, int64_t n, int64_t vector, vfloat h, bool ended, float* next) const {
    store(next + n * w.row + vector * LANES, h);
    float* y = static_cast<float*>(a.y) + ((t * a.directions + d.index) * a.batch + n) * a.hidden + vector * LANES;
    const int lanes = lanes_of(vector);
    if (ended) h = (vfloat){};
    if (lanes == LANES) store(y, h);
    else store_first(y, h, lanes);
  }

  // The step t, whose sums are the chunk's from `row` on: everything up to the first (or only) meeting of threads.
  // With `alone` the step is the only one of its chunk and takes its input products itself; with `still` the state is
  // zero and its products are left out.
  template <bool STANDARD>
  void first_pass(const Direction& d, int64_t begin, int64_t end, int64_t t, int64_t row, int phase, bool alone,
                  bool still) const {
    const float* now = d.states[phase];
    float* next = d.states[phase ^ 1];
    const bool two_passes = takes_two_passes(a);
    const int last = a.kind == RNN_GRU && !two_passes ? 3 : columns_of(a, l, STATE) - 1;
    const Gates<STANDARD> functions{d};
    const int64_t together = a.batch >= CELLS ? 1 : CELLS / a.batch;
    for (int64_t i = begin; i < end; i += together) {
      const int64_t stop = smaller(i + together, end);
      for (int64_t j = i; j < stop; j++) {
        const int64_t block = block_of(j, begin, end, phase);
        float* sums = block_sums(d, block) + row * row_sums();
        if (alone) input_product(d, block, t, 1);
        if (!still)
          Weights::product(a, l, d, STATE, block, a.batch, now, w.row, sums, row_sums(), sums, row_sums(), last);
        if (a.sums) keep(d, block, t, sums, 0, two_passes ? 2 : l.gates == 1 ? (int)l.vectors : (int)slots_of(a));
      }
      const auto each_cell = [&](auto cell) __attribute__((always_inline)) {
        for (int64_t j = i; j < stop; j++) {
          const int64_t block = block_of(j, begin, end, phase);
          float* sums = block_sums(d, block) + row * row_sums();
          for (int64_t n = 0; n < a.batch; n++, sums += row_sums())
            cell(block, n, n * w.row + block * l.vectors * LANES, sums, active(t, n));
        }
      };
      if (two_passes) {
        each_cell([&](int64_t, int64_t, int64_t at, float* sums, bool) __attribute__((always_inline)) {
          store(sums, functions.f(load(sums)));
          store(d.resets + at, functions.f(load(sums + LANES)) * load(now + at));
        });
      } else if (a.kind == RNN_LSTM) {
        each_cell([&](int64_t block, int64_t, int64_t at, float* sums, bool runs) __attribute__((always_inline)) {
          if (runs) store(d.cells + at, lstm_state<STANDARD>(d, block, sums, load(d.cells + at)));
        });
        each_cell([&](int64_t block, int64_t n, int64_t at, float* sums, bool runs) __attribute__((always_inline)) {
          const vfloat h = runs ? lstm_output<STANDARD>(d, block, sums, load(d.cells + at)) : load(now + at);
          put(d, t, n, block, h, !runs, next);
        });
      } else if (a.kind == RNN_GRU) {
        each_cell([&](int64_t block, int64_t n, int64_t at, float* sums, bool runs) __attribute__((always_inline)) {
          const vfloat h = load(now + at);
          put(d, t, n, block, runs ? gru_cell_linear<STANDARD>(d, sums, h) : h, !runs, next);
        });
      } else {
        each_cell([&](int64_t block, int64_t n, int64_t at, float* sums, bool runs) __attribute__((always_inline)) {
          for (int64_t v = 0; v < l.vectors; v++) {
            const vfloat sum = load(sums + v * LANES);
            const vfloat h = !runs ? load(now + at + v * LANES) : STANDARD ? tangent_hyperbolic(sum) : functions.f(sum);
            put(d, t, n, block * l.vectors + v, h, !runs, next);
          }
        });
      }
    }
  }

  // The candidate of gru without linear_before_reset, from the reset states of all units.
  template <bool STANDARD>
  void second_pass(const Direction& d, int64_t begin, int64_t end, int64_t t, int64_t row, int phase, bool still) const {
    const float* now = d.states[phase];
    float* next = d.states[phase ^ 1];
    for (int64_t i = begin; i < end; i++) {
      const int64_t block = block_of(i, begin, end, phase);
      float* sums = block_sums(d, block) + row * row_sums();
      if (!still)
        Weights::product(a, l, d, CANDIDATE, block, a.batch, d.resets, w.row, sums, row_sums(), sums, row_sums(), 2);
      if (a.sums) keep(d, block, t, sums, 2, 1);
      for (int64_t n = 0; n < a.batch; n++, sums += row_sums()) {
        const vfloat h = load(now + n * w.row + block * LANES);
        const bool ended = !active(t, n);
        const Gates<STANDARD> functions{d};
        put(d, t, n, block, ended ? h : between(load(sums), functions.g(load(sums + 2 * LANES)), h), ended, next);
      }
    }
  }

  void final_state(const Direction& d, int64_t begin, int64_t end, const float* state) const {
    for (int64_t n = 0; n < a.batch; n++)
      for (int64_t vector = begin * l.vectors; vector < end * l.vectors; vector++) {
        const int64_t to = (d.index * a.batch + n) * a.hidden + vector * LANES, at = n * w.row + vector * LANES;
        store_first(static_cast<float*>(a.y_h) + to, load(state + at), lanes_of(vector));
        if (a.kind == RNN_LSTM) store_first(static_cast<float*>(a.y_c) + to, load(d.cells + at), lanes_of(vector));
      }
  }

  // All steps of `count` directions, of their blocks begin to end. `meet` waits for the other threads of these.
  template <bool STANDARD, class Meet>
  void run(const Direction* directions, int count, int64_t begin, int64_t end, Meet meet) const {
    const bool two_passes = takes_two_passes(a);
    // Every thread brings its share of the rows of a product into the form that it takes.
    const auto spread = [&](Part part, auto rows_of, int64_t rows, int64_t x_row) {
      if constexpr (Weights::SPREADS) {
        const int64_t groups = divide_up(rows, LANES);
        for (int i = 0; i < count; i++)
          Weights::spread(a, directions[i], part, rows_of(directions[i]), rows, x_row, groups * begin / l.blocks,
                          groups * end / l.blocks);
        meet();
      }
    };
    for (int i = 0; i < count; i++) initial_state(directions[i], begin, end);
    meet();
    int now = 0;  // which of the two states holds the present one
    for (int64_t done = 0; done < longest; done += w.chunk_steps) {
      const int64_t steps = longest - done < w.chunk_steps ? longest - done : w.chunk_steps;
      const bool alone = steps == 1;
      const auto first_step = [&](const Direction& d) { return d.reverse ? longest - done - steps : done; };
      spread(INPUTS, [&](const Direction& d) { return static_cast<const float*>(a.x) + first_step(d) * a.batch * a.inputs; },
             steps * a.batch, a.inputs);
      for (int i = 0; i < count && !alone; i++)
        for (int64_t block = begin; block < end; block++) input_product(directions[i], block, first_step(directions[i]), steps);
      for (int64_t s = 0; s < steps; s++, now ^= 1) {
        const bool still = done + s == 0 && !a.initial_h && a.finite;
        if (!still) spread(STATE, [&](const Direction& d) { return d.states[now]; }, a.batch, w.row);
        for (int i = 0; i < count; i++) {
          const Direction& d = directions[i];
          first_pass<STANDARD>(d, begin, end, d.reverse ? longest - 1 - done - s : done + s,
                               (d.reverse ? steps - 1 - s : s) * a.batch, now, alone, still);
        }
        meet();
        if (!two_passes) continue;
        if (!still) spread(CANDIDATE, [&](const Direction& d) { return d.resets; }, a.batch, w.row);
        for (int i = 0; i < count; i++) {
          const Direction& d = directions[i];
          second_pass<STANDARD>(d, begin, end, d.reverse ? longest - 1 - done - s : done + s,
                                (d.reverse ? steps - 1 - s : s) * a.batch, now, still);
        }
        meet();
      }
    }
    for (int i = 0; i < count; i++) final_state(directions[i], begin, end, directions[i].states[now]);
  }
};

Direction direction_of(const RnnArguments& a, const Layout& l, const Workspace& w, int index) {
  const float* packed = a.packed + index * l.size;
  float* memory = static_cast<float*>(a.workspace) + index * w.size;
  Direction d;
  d.w = packed + l.w;
  d.r = packed + l.r;
  d.candidate = packed + l.candidate;
  d.bias = packed + l.bias;
  d.peepholes = a.p ? packed + l.peepholes : nullptr;
  d.f = narrowed(a.functions[index][0]);
  d.g = narrowed(a.functions[index][1]);
  d.h = narrowed(a.functions[index][2]);
  d.clip = (float)a.clip;
  d.input_forget = a.input_forget;
  d.reverse = a.reverse[index];
  d.states[0] = memory;
  d.states[1] = memory + w.state;
  d.cells = memory + 2 * w.state;
  d.resets = memory + 3 * w.state;
  d.sums = memory + w.sums;
  d.room = memory + w.room;
  d.index = index;
  return d;
}

// How many threads are worth it.
int team_of(const RnnArguments& a, const Layout& l) {
  const int64_t step = a.batch * l.gates * a.hidden * a.hidden;
  int64_t team = 1;
  if (a.passing) return 1;
  if (step >= WORTH_THREADS) team = a.threads < l.blocks * a.directions ? a.threads : l.blocks * a.directions;
  else if (a.directions == 2 && step * a.steps >= WORTH_TWO) team = a.threads < 2 ? 1 : 2;
  return a.directions == 2 && team > 1 ? (int)(team / 2 * 2) : (int)team;
}

template <class Weights, bool STANDARD>
void run_layer(const RnnArguments& a) {
  const Layout l = layout_of<Weights>(a);
  int64_t longest = a.lengths ? 0 : a.steps;
  if (a.lengths)
    for (int64_t n = 0; n < a.batch; n++) longest = a.lengths[n] > longest ? a.lengths[n] : longest;
  const Layer<Weights> layer{a, l, workspace_of<Weights>(a, l), longest};
  Direction directions[2];
  for (int i = 0; i < a.directions; i++) directions[i] = direction_of(a, l, layer.w, i);
  const int64_t written = longest * a.directions * a.batch * a.hidden;
  memset(static_cast<float*>(a.y) + written, 0,
         sizeof(float) * ((a.steps - longest) * a.directions * a.batch * a.hidden));
  if (a.sums)
    memset(static_cast<float*>(a.sums) + written * slots_of(a), 0,
           sizeof(float) * ((a.steps - longest) * a.directions * a.batch * a.hidden * slots_of(a)));
  const int team = team_of(a, l);
  if (team == 1) {
    // Directions take their steps by turns, so that one's products hide the latencies of the other's cells; but one after the
    // other where the weights that each step reads would push each other out of the cache.
    const int64_t read = a.directions * (l.bias - l.r) * int64_t(sizeof(float));
    const int together = read > second_level_cache() / 4 * 3 ? 1 : a.directions;
    for (int i = 0; i < a.directions; i += together)
      layer.template run<STANDARD>(directions + i, together, 0, l.blocks, [] {});
    return;
  }
#pragma omp parallel num_threads(team)
  {
    const int got = omp_get_num_threads(), me = omp_get_thread_num();
    if (got == team && a.directions == 2) {
      const int half = team / 2, place = me % half;
      const auto meet = [half] {
        if (half > 1) {
#pragma omp barrier
        }
      };
      layer.template run<STANDARD>(directions + me / half, 1, l.blocks * place / half, l.blocks * (place + 1) / half, meet);
    } else {
      const auto meet = [] {
#pragma omp barrier
      };
      layer.template run<STANDARD>(directions, a.directions, l.blocks * me / got, l.blocks * (me + 1) / got, meet);
    }
  }
}


template <class Weights>
void layer_needs(const RnnArguments& a, RnnNeeds& needs) {
  const Layout l = layout_of<Weights>(a);
  needs.packed_floats = l.size * a.directions;
  needs.workspace_floats = workspace_of<Weights>(a, l).size * a.directions;
  RnnArguments unlimited = a;
  unlimited.threads = INT32_MAX;
  needs.threads = team_of(unlimited, l);
}

template <class Weights>
void pack_layer(const RnnArguments& a, float* packed) {
  const Layout l = layout_of<Weights>(a);
  const int64_t hidden = a.hidden, rows = l.gates * hidden, units = l.vectors * LANES;
  for (int64_t index = 0; index < a.directions; index++, packed += l.size) {
    if (!a.passing) {
      Weights::pack(a, l, INPUTS, index, packed + l.w);
      Weights::pack(a, l, STATE, index, packed + l.r);
      if (takes_two_passes(a)) Weights::pack(a, l, CANDIDATE, index, packed + l.candidate);
    }
    // the biases of W and R are added up, but for gru's candidate where the reset gate stands between them
    const float* b = a.b ? static_cast<const float*>(a.b) + index * 2 * rows : nullptr;
    const float* p = a.p ? static_cast<const float*>(a.p) + index * 3 * hidden : nullptr;
    for (int64_t unit = 0; unit < l.blocks * units; unit++) {
      const int64_t block = unit / units, lane = unit % units;
      float* bias = packed + l.bias + block * l.slots * LANES + lane;
      for (int64_t gate = 0; gate < l.slots / l.vectors; gate++) {
        const bool candidate = a.linear_before_reset && gate >= 2;
        float value = 0.0f;
        if (b && unit < hidden) {
          if (candidate) value = b[(gate - 2) * rows + 2 * hidden + unit];
          else if (gate < l.gates) value = b[gate * hidden + unit] + b[rows + gate * hidden + unit];
        }
        bias[gate * LANES] = value;
      }
      if (p)
        for (int64_t gate = 0; gate < 3; gate++)
          packed[l.peepholes + (block * 3 + gate) * LANES + lane] = unit < hidden ? p[gate * hidden + unit] : 0.0f;
    }
  }
}

template <class Weights>
void any_layer(const RnnArguments& a) {
  if (is_standard(a)) run_layer<Weights, true>(a);
  else run_layer<Weights, false>(a);
}

}  // namespace
