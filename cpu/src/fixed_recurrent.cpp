// Fixed-point recurrent layers: the input's products are computed for a few steps at a time, the state's for a batch;
// lanes are gates (fixed_products.cpp). What follows runs on vectors of units in 64 bits, functions by table.
//
// x, y and the states int16 or int32, in ONNX's layouts. Rows of a batch that have ended are left out.
#include "fixed_vector.h"

namespace {

constexpr int PLACES = FIXED_PLACES;
constexpr int UNITS = LANES / 2;

QF_INLINE int64_t units_of(int64_t hidden) { return divide_up(hidden, UNITS) * UNITS; }

QF_INLINE int64_t read(const void* from, int bytes, int64_t at) {
  return bytes == 2 ? ((const int16_t*)from)[at] : ((const int32_t*)from)[at];
}

// Looks a function up for values of `fraction` fraction bits, or takes Relu of them; gives integers of the accumulator.
struct Function {
  const int32_t* table;
  int bits, size;
  VectorCast<vlong> cast;

  Function(const FixedRecurrent& r, const FixedFunction& f, int fraction)
      : table(f.table),
        bits(f.reach_bits + fraction - f.size_bits),
        size(1 << f.size_bits),
        cast({fraction - r.fraction, r.accumulator}) {}

  QF_INLINE vlong operator()(vlong v) const {
    if (!table) return cast(most(v, (vlong){}));
    vlong found;
    if (bits < 0 || bits > 62) {
      for (int i = 0; i < UNITS; i++) found[i] = table[qf_table_index(v[i], bits, size)];
      return found;
    }
    const vlong negative = v < (vlong){};
    // past half of the table every place is its end
    const vlong steps = least(((v ^ negative) - negative) >> bits, fill_lanes<vlong>(size));
    const vlong place = ((steps ^ negative) - negative) + size / 2;
    const vlong inside = least(most(place, (vlong){}), fill_lanes<vlong>(size - 1));
    QF_UNROLL for (int i = 0; i < UNITS; i++) found[i] = table[inside[i]];
    return found;
  }
};

// Vectors of x, of a state, or of a state times a gate, as products take them.
struct Rows {
  char* data;
  int64_t size;  // elements of a row, with one to spare: pairs may read it
  int bytes;

  Rows(char* to, int64_t count, const FixedTiles& tiles) : data(to), size(count + 2), bytes(tiles.x_bytes) {}
  QF_INLINE void put(int64_t row, int64_t at, int64_t value) const {
    if (bytes == 2)
      ((int16_t*)data)[row * size + at] = int16_t(value);
    else
      ((int32_t*)data)[row * size + at] = int32_t(value);
  }
  const void* of(int64_t row) const { return data + row * size * bytes; }
};

// Sums of `count` (PLACES at most) rows of x, to sums[to[i]].
void sum_rows(const FixedProducts& f, const FixedTiles& tiles, const void* const* x, const int64_t* rows, int count,
              int64_t* sums) {
  FixedTarget to;
  to.y = (char*)sums;
  to.stride = 1;
  to.beside = false;
  if (count > 2) {
    const void* from[PLACES];
    for (int p = 0; p < PLACES; p++) {
      from[p] = x[p < count ? p : 0];
      to.at[p] = rows[p < count ? p : 0] * f.rows;
    }
    to.places = count;
    tiles.full(&f, 0, from, &to);
    return;
  }
  to.places = 1;
  for (int p = 0; p < count; p++) {
    to.at[0] = rows[p] * f.rows;
    tiles.lone(&f, 0, x + p, &to);
  }
}

// What a call needs, in bytes from the workspace on; each part is followed by room for a vector.
struct Places {
  int64_t x, h, kept, from_x, from_h, from_kept, state_h, state_c, all;

  explicit Places(const FixedRecurrent& r) {
    const int64_t gates = r.from_x[0].rows, units = units_of(r.hidden);
    int64_t at = 0;
    auto part = [&](int64_t bytes) {
      const int64_t here = at;
      at += divide_up(bytes, 64) * 64 + 64;
      return here;
    };
    x = part(PLACES * (r.inputs + 2) * 4);
    h = part(r.batch * (units + 2) * 4);
    kept = part(r.batch * (units + 2) * 4);
    from_x = part(r.batch * PLACES * gates * 8);
    from_h = part(r.batch * r.from_h[0].rows * 8);
    from_kept = part(r.batch * r.hidden * 8);
    state_h = part(r.batch * units * 8);
    state_c = part(r.batch * units * 8);
    all = at;
  }
};

struct Layer {
  const FixedRecurrent& r;
  const FixedRecurrentCall& call;
  const int direction;
  const Places places;
  const FixedProducts &of_x, &of_h, &of_kept;
  const FixedTiles &tiles_x, &tiles_h, &tiles_kept;
  const Rows x, h, kept;
  int64_t *const from_x, *const from_h, *const from_kept, *const state_h, *const state_c;
  const int64_t units;
  const Function f, g, last;
  const VectorCast<vlong> fit, gate_product, state_product, new_state, from_function, output;
  const int up_sum, up_state;

  Layer(const FixedRecurrent& layer, const FixedRecurrentCall& c, int d)
      : r(layer),
        call(c),
        direction(d),
        places(layer),
        of_x(layer.from_x[d]),
        of_h(layer.from_h[d]),
        of_kept(layer.from_kept[d]),
        tiles_x(layer.tiles_x[d]),
        tiles_h(layer.tiles_h[d]),
        tiles_kept(layer.tiles_kept[d]),
        x(c.workspace + places.x, layer.inputs, tiles_x),
        h(c.workspace + places.h, layer.hidden, tiles_h),
        kept(c.workspace + places.kept, layer.hidden, tiles_kept),
        from_x((int64_t*)(c.workspace + places.from_x)),
        from_h((int64_t*)(c.workspace + places.from_h)),
        from_kept((int64_t*)(c.workspace + places.from_kept)),
        state_h((int64_t*)(c.workspace + places.state_h)),
        state_c((int64_t*)(c.workspace + places.state_c)),
        units(units_of(layer.hidden)),
        f(layer, layer.functions[d][0], layer.fraction),
        g(layer, layer.functions[d][1], layer.fraction),
        last(layer, layer.functions[d][2], layer.state_fraction),
        fit({0, layer.accumulator}),
        gate_product({layer.fraction, layer.accumulator}),
        state_product({layer.fraction, layer.state}),
        new_state({wide(layer) + layer.fraction - layer.state_fraction, layer.state}),
        from_function({layer.fraction - layer.state_fraction, layer.state}),
        output({2 * layer.fraction - layer.state_fraction, layer.state}),
        up_sum(wide(layer) - layer.fraction),
        up_state(wide(layer) - layer.state_fraction) {}

  static int wide(const FixedRecurrent& r) { return r.fraction > r.state_fraction ? r.fraction : r.state_fraction; }

  // a b + state gate as a new state
  QF_INLINE vlong blend(vlong a, vlong b, vlong state, vlong gate) const {
    return new_state(shift_up(multiply_low(a, b), up_sum) + shift_up(multiply_low(state, gate), up_state));
  }

  int64_t length(int64_t n) const { return call.lengths ? call.lengths[n] : r.steps; }
  int64_t time(int64_t n, int64_t k) const { return r.reverse[direction] ? length(n) - 1 - k : k; }
  int64_t place(int64_t n) const { return (direction * r.batch + n) * r.hidden; }

  void begin() const {
    for (int64_t n = 0; n < r.batch; n++)
      for (int64_t u = 0; u < units; u++) {
        const bool given = u < r.hidden;
        const int64_t first_h = given && call.initial_h ? read(call.initial_h, r.y_bytes, place(n) + u) : 0;
        state_h[n * units + u] = first_h;
        state_c[n * units + u] = given && call.initial_c ? read(call.initial_c, r.y_bytes, place(n) + u) : 0;
        if (given) h.put(n, u, first_h);
      }
  }

  // Products of x for the steps from k on, PLACES of them.
  void take_inputs(int64_t k) const {
    for (int64_t n = 0; n < r.batch; n++) {
      const void* from[PLACES];
      int64_t rows[PLACES];
      int count = 0;
      for (; count < PLACES && k + count < length(n); count++) {
        const int64_t at = (time(n, k + count) * r.batch + n) * r.inputs;
        for (int64_t i = 0; i < r.inputs; i++) x.put(count, i, read(call.x, r.x_bytes, at + i));
        from[count] = x.of(count);
        rows[count] = n * PLACES + count;
      }
      sum_rows(of_x, tiles_x, from, rows, count, from_x);
    }
  }

  // Products of the rows of a batch that are not over at step k.
  void take_states(int64_t k, const FixedProducts& products, const FixedTiles& tiles, const Rows& values,
                   int64_t* sums) const {
    const void* from[PLACES];
    int64_t rows[PLACES];
    int count = 0;
    for (int64_t n = 0; n < r.batch; n++) {
      if (k >= length(n)) continue;
      from[count] = values.of(n);
      rows[count++] = n;
      if (count < PLACES) continue;
      sum_rows(products, tiles, from, rows, count, sums);
      count = 0;
    }
    sum_rows(products, tiles, from, rows, count, sums);
  }

  QF_INLINE void keep_state(int64_t n, int64_t u, vlong v) const { memcpy(state_h + n * units + u, &v, sizeof v); }

  // The gates of a row and what they make of its state. a, s: the row's sums.
  void step(int64_t n, const int64_t* a, const int64_t* s) const {
    const int64_t hidden = r.hidden;
    auto total = [&](int64_t gate, int64_t u) {
      return fit(load_vector<vlong>(a + gate * hidden + u) + load_vector<vlong>(s + gate * hidden + u));
    };
    for (int64_t u = 0; u < hidden; u += UNITS) {
      if (r.cell == FIXED_RNN) {
        keep_state(n, u, from_function(f(total(0, u))));
        continue;
      }
      if (r.cell == FIXED_LSTM) {
        const vlong i = f(total(0, u)), o = f(total(1, u)), forget = f(total(2, u)), z = g(total(3, u));
        const vlong c = blend(z, i, load_vector<vlong>(state_c + n * units + u), forget);
        memcpy(state_c + n * units + u, &c, sizeof c);
        keep_state(n, u, output(multiply_low(o, last(c))));
        continue;
      }
      const vlong z = f(total(0, u)), old = load_vector<vlong>(state_h + n * units + u);
      vlong t;
      if (r.cell == FIXED_GRU_LINEAR)
        t = gate_product(multiply_low(f(total(1, u)), load_vector<vlong>(s + 2 * hidden + u)));
      else
        t = load_vector<vlong>(from_kept + n * hidden + u);
      const vlong candidate = g(fit(load_vector<vlong>(a + 2 * hidden + u) + t));
      keep_state(n, u, blend(candidate, (int64_t(1) << r.fraction) - z, old, z));
    }
  }

  // gru: reset gate times state
  void reset(int64_t n, const int64_t* a, const int64_t* s) const {
    for (int64_t u = 0; u < r.hidden; u += UNITS) {
      const vlong gate = f(fit(load_vector<vlong>(a + r.hidden + u) + load_vector<vlong>(s + r.hidden + u)));
      const vlong product = state_product(multiply_low(gate, load_vector<vlong>(state_h + n * units + u)));
      for (int i = 0; i < UNITS && u + i < r.hidden; i++) kept.put(n, u + i, product[i]);
    }
  }

  void write(void* y, int64_t at, const int64_t* from) const {
    if (r.y_bytes == 2)
      for (int64_t u = 0; u < r.hidden; u++) ((int16_t*)y)[at + u] = int16_t(from[u]);
    else
      for (int64_t u = 0; u < r.hidden; u++) ((int32_t*)y)[at + u] = int32_t(from[u]);
  }

  void run() const {
    const int64_t gates = of_x.rows, gates_h = of_h.rows;
    begin();
    for (int64_t k = 0; k < r.steps; k++) {
      if (k % PLACES == 0) take_inputs(k);
      take_states(k, of_h, tiles_h, h, from_h);
      auto a_of = [&](int64_t n) { return from_x + (n * PLACES + k % PLACES) * gates; };
      if (r.cell == FIXED_GRU) {
        for (int64_t n = 0; n < r.batch; n++)
          if (k < length(n)) reset(n, a_of(n), from_h + n * gates_h);
        take_states(k, of_kept, tiles_kept, kept, from_kept);
      }
      for (int64_t n = 0; n < r.batch; n++) {
        if (k >= length(n)) continue;
        step(n, a_of(n), from_h + n * gates_h);
        for (int64_t u = 0; u < r.hidden; u++) h.put(n, u, state_h[n * units + u]);
        write(call.y, ((time(n, k) * r.directions + direction) * r.batch + n) * r.hidden, state_h + n * units);
      }
    }
    for (int64_t n = 0; n < r.batch; n++) {
      write(call.y_h, place(n), state_h + n * units);
      if (call.y_c) write(call.y_c, place(n), state_c + n * units);
    }
  }
};

}  // namespace

extern "C" int64_t QF_EXPORT(fixed_recurrent_workspace)(const FixedRecurrent* layer) { return Places(*layer).all; }

extern "C" void QF_EXPORT(fixed_recurrent)(const FixedRecurrent* layer, const FixedRecurrentCall* call) {
  for (int direction = 0; direction < layer->directions; direction++) Layer(*layer, *call, direction).run();
}
