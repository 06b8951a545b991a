// rnn, lstm and gru in float32 with packed weights.
//
// The hidden units are cut into blocks of one vector, or of up to four in rnn, which has but one gate. A block's
// weights lie together as [k][column][lane], a column being a gate or one of these vectors, so that one pass over
// them, in order, gives all gates of its units, ready for the fused activations. The products with the inputs do not
// depend on the state: they are taken for a chunk of steps at once. Then the steps run one after the other: the
// products with the state, and the cells. (The split is that of Appleyard et al., "Optimizing performance of recurrent
// neural networks on GPUs", 2016.)
//
// Both products multiply a block's panel of weights with groups of rows that are held in registers, 3 rows of 4 columns
// with 16 registers, 6 rows with 32. For many rows the limit is arithmetic: a panel is cut along k into parts that
// stay in the first cache while all groups pass by. For one group, as in batch 1, it is the weights' way from the
// cache or memory that holds them all: they are read once, as four streams side by side, each from a quarter of the
// panel. The prefetchers follow each stream on its own; on Zen 3, four bring 71 GB/s from the third level where one
// brings 60, 96 instead of 63 from the second, and 24 instead of 16 from memory. Every second step takes the blocks in
// the opposite order, over calls too: it begins with the weights that the step before left in the cache.
//
// gru without linear_before_reset needs the reset gate of all units before its candidate: two passes a step.
// Threads take blocks, and meet once (such a gru twice) a step; the two directions of a bidirectional layer are
// independent, so that two threads take one each and never meet.
// Steps from sequence_lens on keep the state and give 0; time is aligned at the first step in both directions.
// Accepts every option; hidden sizes are padded up to whole blocks, and what is in the padding is never read.
#include <omp.h>

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

QF_INLINE Layout layout_of(const RnnArguments& a) {
  Layout l;
  l.gates = gates_of(a.kind);
  const int64_t all = divide_up(a.hidden, LANES);
  l.blocks = l.gates == 1 ? divide_up(all, 4) : all;
  l.vectors = divide_up(all, l.blocks);
  l.columns = l.gates * l.vectors;
  l.slots = l.gates == 1 ? l.columns : 4;
  const int64_t all_lanes = l.blocks * l.vectors * LANES, lanes = a.passing ? l.vectors * LANES : all_lanes;
  l.w = 0;
  l.r = l.w + lanes * a.inputs * l.gates;
  // the candidate's recurrent weights follow in a panel of their own where gru takes a second pass
  const bool apart = a.kind == RNN_GRU && !a.linear_before_reset;
  l.candidate = l.r + lanes * a.hidden * (apart ? 2 : l.gates);
  l.bias = l.candidate + (apart ? lanes * a.hidden : 0);
  l.peepholes = l.bias + l.blocks * l.slots * LANES;
  l.size = l.peepholes + (a.p ? all_lanes * 3 : 0);
  return l;
}

// Floats of one direction's workspace: two states, cells, reset states, and the sums of a chunk. `row` is from one
// row of a state to the next.
struct Workspace {
  int64_t chunk_steps, row, state, sums, size;
};

QF_INLINE Workspace workspace_of(const RnnArguments& a, const Layout& l) {
  Workspace w;
  const int64_t chunks = a.batch ? divide_up(a.steps, divide_up(CHUNK_ROWS, a.batch)) : 0;
  w.chunk_steps = chunks ? divide_up(a.steps, chunks) : 1;
  w.row = l.blocks * l.vectors * LANES + ROW_GAP;
  w.state = a.batch * w.row;
  w.sums = 4 * w.state;
  w.size = w.sums + w.chunk_steps * a.batch * l.blocks * l.slots * LANES;
  return w;
}

// One direction of one call.
struct Direction {
  const float *w, *r, *candidate, *bias, *peepholes;
  Function f, g, h;
  float clip;
  bool input_forget, reverse, standard;
  float *states[2], *cells, *resets, *sums;
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

// to[k][gate][unit of the block] = from[gate][unit][k] of the block that begins with unit `first`, units beyond the hidden size 0.
// LANES of k at a time, so that what is written lies together.
void pack_block(const float* from, int64_t hidden, int64_t count, int64_t gates, int64_t units, int64_t first, float* to) {
  const int64_t step = gates * units;  // from one k to the next
  for (int64_t k = 0; k < count; k += LANES)
    for (int64_t gate = 0; gate < gates; gate++)
      for (int64_t unit = first; unit < first + units; unit += LANES) {
        const float* rows = from + (gate * hidden + unit) * count + k;
        const int64_t there = hidden - unit, some = smaller(LANES, count - k);
        vfloat square[LANES];
        if (there >= LANES && some == LANES)
          QF_UNROLL for (int i = 0; i < LANES; i++) square[i] = load(rows + i * count);
        else
          for (int i = 0; i < LANES; i++) square[i] = i < there ? load_first(rows + i * count, (int)some) : (vfloat){};
        transpose(square);
        float* column = to + k * step + gate * units + unit - first;
        for (int64_t i = 0; i < some; i++) store(column + i * step, square[i]);
      }
}

void pack_panels(const float* from, int64_t hidden, int64_t count, int64_t gates, int64_t units, float* to) {
  for (int64_t first = 0; first < hidden; first += units, to += count * gates * units)
    pack_block(from, hidden, count, gates, units, first, to);
}

// A layer as a thread sees it.
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

  // A block's weights of `gates` gates, packed; those of a layer that packs them in passing, from its plain weights.
  const float* panel(const float* packed, const void* plain, const Direction& d, int64_t first_gate, int64_t gates, int64_t count,
                     int64_t block) const {
    const int64_t units = l.vectors * LANES;
    if (!a.passing) return packed + block * count * gates * units;
    const float* from = static_cast<const float*>(plain) + (d.index * l.gates + first_gate) * a.hidden * count;
    pack_block(from, a.hidden, count, gates, units, block * units, const_cast<float*>(packed));
    return packed;
  }

  // A block's products with the inputs of some steps, all rows.
  void input_product(const Direction& d, int64_t block, int64_t first_step, int64_t steps) const {
    const float* x = static_cast<const float*>(a.x) + first_step * a.batch * a.inputs;
    const float* bias = d.bias + block * row_sums();
    float* sums = block_sums(d, block);
    const int64_t rows = steps * a.batch;
    const int columns = (int)l.columns;
    products_of(columns, rows, x, a.inputs, a.inputs, panel(d.w, a.w, d, 0, l.gates, a.inputs, block), bias, 0, sums,
                row_sums(), columns - 1);
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
    const bool two_passes = a.kind == RNN_GRU && !a.linear_before_reset;
    const int columns = two_passes ? 2 : (int)l.columns, last = a.kind == RNN_GRU && !two_passes ? 3 : columns - 1;
    const Gates<STANDARD> functions{d};
    const int64_t together = a.batch >= CELLS ? 1 : CELLS / a.batch;
    for (int64_t i = begin; i < end; i += together) {
      const int64_t stop = smaller(i + together, end);
      for (int64_t j = i; j < stop; j++) {
        const int64_t block = block_of(j, begin, end, phase);
        float* sums = block_sums(d, block) + row * row_sums();
        if (alone) input_product(d, block, t, 1);
        if (!still)
          products_of(columns, a.batch, now, w.row, a.hidden, panel(d.r, a.r, d, 0, two_passes ? 2 : l.gates, a.hidden, block),
                      sums, row_sums(), sums, row_sums(), last);
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
        products<1>(a.batch, d.resets, w.row, a.hidden, panel(d.candidate, a.r, d, 2, 1, a.hidden, block), sums, row_sums(), sums,
                    row_sums(), 2);
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
    const bool two_passes = a.kind == RNN_GRU && !a.linear_before_reset;
    for (int i = 0; i < count; i++) initial_state(directions[i], begin, end);
    meet();
    int now = 0;  // which of the two states holds the present one
    for (int64_t done = 0; done < longest; done += w.chunk_steps) {
      const int64_t steps = longest - done < w.chunk_steps ? longest - done : w.chunk_steps;
      const bool alone = steps == 1;
      for (int i = 0; i < count && !alone; i++)
        for (int64_t block = begin; block < end; block++)
          input_product(directions[i], block, directions[i].reverse ? longest - done - steps : done, steps);
      for (int64_t s = 0; s < steps; s++, now ^= 1) {
        const bool still = done + s == 0 && !a.initial_h && a.finite;
        for (int i = 0; i < count; i++) {
          const Direction& d = directions[i];
          first_pass<STANDARD>(d, begin, end, d.reverse ? longest - 1 - done - s : done + s,
                               (d.reverse ? steps - 1 - s : s) * a.batch, now, alone, still);
        }
        meet();
        if (!two_passes) continue;
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

template <bool STANDARD>
void layer(const RnnArguments& a) {
  const Layout l = layout_of(a);
  int64_t longest = a.lengths ? 0 : a.steps;
  if (a.lengths)
    for (int64_t n = 0; n < a.batch; n++) longest = a.lengths[n] > longest ? a.lengths[n] : longest;
  const Layer layer{a, l, workspace_of(a, l), longest};
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
    layer.template run<STANDARD>(directions, a.directions, 0, l.blocks, [] {});
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

}  // namespace

extern "C" void QF_EXPORT(rnn_needs_f32)(const RnnArguments* a, RnnNeeds* needs) {
  const Layout l = layout_of(*a);
  needs->packed_floats = l.size * a->directions;
  needs->workspace_floats = workspace_of(*a, l).size * a->directions;
  RnnArguments unlimited = *a;
  unlimited.threads = INT32_MAX;
  needs->threads = team_of(unlimited, l);
}

// Whether no weight of r is infinite or NaN, so that its product with a zero state is zero.
extern "C" int QF_EXPORT(rnn_finite_f32)(const RnnArguments* a) {
  const float* r = static_cast<const float*>(a->r);
  const int64_t count = a->directions * layout_of(*a).gates * a->hidden * a->hidden;
  vfloat sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES)
    QF_UNROLL for (int j = 0; j < 4; j++) sums[j] += load(r + i + j * LANES) * 0.0f;
  const vfloat all = sums[0] + sums[1] + sums[2] + sums[3];
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; lane++) sum += all[lane];
  for (; i < count; i++) sum += r[i] * 0.0f;
  return sum == 0.0f;
}

extern "C" void QF_EXPORT(rnn_pack_f32)(const RnnArguments* a, float* packed) {
  const Layout l = layout_of(*a);
  const int64_t hidden = a->hidden, rows = l.gates * hidden, units = l.vectors * LANES;
  for (int64_t index = 0; index < a->directions; index++, packed += l.size) {
    const float* r = static_cast<const float*>(a->r) + index * rows * hidden;
    const float* w = static_cast<const float*>(a->w) + index * rows * a->inputs;
    if (!a->passing) {
      const bool apart = l.candidate != l.bias;
      pack_panels(w, hidden, a->inputs, l.gates, units, packed + l.w);
      pack_panels(r, hidden, hidden, apart ? 2 : l.gates, units, packed + l.r);
      if (apart) pack_panels(r + 2 * hidden * hidden, hidden, hidden, 1, units, packed + l.candidate);
    }
    // the biases of W and R are added up, but for gru's candidate where the reset gate stands between them
    const float* b = a->b ? static_cast<const float*>(a->b) + index * 2 * rows : nullptr;
    const float* p = a->p ? static_cast<const float*>(a->p) + index * 3 * hidden : nullptr;
    for (int64_t unit = 0; unit < l.blocks * units; unit++) {
      const int64_t block = unit / units, lane = unit % units;
      float* bias = packed + l.bias + block * l.slots * LANES + lane;
      for (int64_t gate = 0; gate < l.slots / l.vectors; gate++) {
        const bool candidate = a->linear_before_reset && gate >= 2;
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

extern "C" void QF_EXPORT(rnn_packed_f32)(const RnnArguments* a) {
  if (is_standard(*a)) layer<true>(*a);
  else layer<false>(*a);
}
