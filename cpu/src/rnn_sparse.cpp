// rnn, lstm and gru in float32 whose weights are sparse: compressed rows in slices of a vector's lanes (SELL-C, Kreutzer et
// al., "A unified sparse matrix data format for efficient general sparse matrix-vector multiplication on modern processors
// with wide SIMD units", 2014), padded to the longest row of a slice.
//
// The layer is that of rnn_layer.h. Few rows of x, as a state of one sequence, are looked up at the stored columns, a lane
// each: limited by these loads. More rows, as the inputs of all steps of a chunk, are transposed first, GROUP of them to
// (depth, GROUP), a cache line on AVX2, so that a stored value multiplies vectors without a look-up.
//
// What is not stored is a zero that multiplies: a row of x with an infinity or a NaN makes NaN of the sums of all rows that
// leave columns out. `poison` is 0 times the sum of a row, which is 0 or NaN.
#include "lookup.h"
#include "rnn_layer.h"

namespace {

constexpr int64_t MANY = LANES == 16 ? 3 : LANES / 2;  // rows that are worth transposing
constexpr int64_t GROUP = 2 * LANES;                   // of them

struct Sparse {
  static constexpr bool SPREADS = true;
  static int64_t panel_floats(int64_t, int64_t) { return 0; }

  // Rows brought into another form: the poison of each, and groups of rows as (depth, GROUP).
  struct Room {
    float *poison, *groups;
  };
  static int64_t room_of(int64_t rows, int64_t depth) { return divide_up(rows, GROUP) * GROUP * (1 + (rows < MANY ? 0 : depth)); }
  static int64_t room_floats(const RnnArguments& a, int64_t rows) { return room_of(rows, a.inputs) + room_of(a.batch, a.hidden); }

  static Room room(const RnnArguments& a, const Direction& d, Part part, int64_t rows) {
    float* at = part == INPUTS ? d.room + room_of(a.batch, a.hidden) : d.room;
    return {at, at + divide_up(rows, GROUP) * GROUP};
  }

  static void spread(const RnnArguments& a, const Direction& d, Part part, const float* x, int64_t rows, int64_t x_row,
                     int64_t first, int64_t last) {
    const int64_t depth = depth_of(a, part);
    const Room r = room(a, d, part, rows);
    for (int64_t group = first; group < last; group++) {
      const float* from = x + group * LANES * x_row;
      const int count = clamped(rows - group * LANES, LANES);
      for (int row = 0; row < LANES; row++) r.poison[group * LANES + row] = row < count ? poison_of(from + row * x_row, depth) : 0.0f;
      if (rows < MANY) continue;
      float* to = r.groups + group / 2 * GROUP * depth + group % 2 * LANES;
      for (int64_t k = 0; k < depth; k += LANES) {
        const int some = clamped(depth - k, LANES);
        vfloat square[LANES];
        for (int row = 0; row < LANES; row++) square[row] = row < count ? load_first(from + row * x_row + k, some) : (vfloat){};
        transpose(square);
        for (int i = 0; i < some; i++) store(to + (k + i) * GROUP, square[i]);
      }
    }
  }

  static float poison_of(const float* x, int64_t count) {
    vfloat sums[4] = {};
    int64_t k = 0;
    for (; k + 4 * LANES <= count; k += 4 * LANES)
      QF_UNROLL for (int i = 0; i < 4; i++) sums[i] += load(x + k + i * LANES) * 0.0f;
    vfloat all = sums[0] + sums[1] + sums[2] + sums[3];
    for (; k < count; k += LANES) all += load_first(x + k, clamped(count - k, LANES)) * 0.0f;
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += all[lane];
    return sum;
  }

  static void pack(const RnnArguments&, const Layout&, Part, int64_t, float*) {}

  static void product(const RnnArguments& a, const Layout& l, const Direction& d, Part part, int64_t block, int64_t rows,
                      const float* x, int64_t x_row, const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
    const RnnSlices& slices = part == INPUTS ? a.w_slices : a.r_slices;
    if (slices.wide) by_width<int32_t>(a, l, d, part, slices, block, rows, x, x_row, from, from_row, out, out_row, last);
    else by_width<uint16_t>(a, l, d, part, slices, block, rows, x, x_row, from, from_row, out, out_row, last);
  }

  template <class Column>
  static void by_width(const RnnArguments& a, const Layout& l, const Direction& d, Part part, const RnnSlices& slices, int64_t block,
                       int64_t rows, const float* x, int64_t x_row, const float* from, int64_t from_row, float* out,
                       int64_t out_row, int last) {
    const int columns = columns_of(a, l, part);
    const int64_t first = (d.index * l.blocks + block) * l.columns + (part == CANDIDATE ? 2 : 0);
    const Room r = room(a, d, part, rows);
    for (int column = 0; column < columns; column++) {
      const int64_t begin = slices.starts[first + column], count = slices.starts[first + column + 1] - begin;
      const float* values = slices.values + begin * LANES;
      const Column* places = static_cast<const Column*>(slices.columns) + begin * LANES;
      vint gaps;
      memcpy(&gaps, slices.gaps + (first + column) * LANES, sizeof gaps);
      const int64_t slot = (column == columns - 1 ? last : column) * LANES;
      const auto poison = [&](int64_t row) __attribute__((always_inline)) {
        return (vfloat)((vint)broadcast(r.poison[row]) & gaps);
      };
      if (rows < MANY)
        for (int64_t row = 0; row < rows; row++)
          store(out + row * out_row + slot, looked_up_sum(values, places, count, x + row * x_row,
                                                          load(from + row * from_row + slot) + poison(row)));
      else
        for (int64_t row = 0; row < rows; row += GROUP) {
          vfloat sums[2][LANES];
          const float* group = r.groups + row * depth_of(a, part);
          if (rows - row > LANES) sums_of_group<2>(values, places, count, group, sums);
          else sums_of_group<1>(values, places, count, group, sums);
          for (int64_t i = row; i < smaller(row + GROUP, rows); i++)
            store(out + i * out_row + slot,
                  load(from + i * from_row + slot) + poison(i) + sums[(i - row) / LANES][(i - row) % LANES]);
        }
    }
  }

  template <class Column>
  QF_INLINE static vfloat looked_up_sum(const float* values, const Column* places, int64_t count, const float* x, vfloat sum) {
    vfloat other = {};
    int64_t i = 0;
    for (; i + 2 <= count; i += 2, values += 2 * LANES, places += 2 * LANES) {
      sum += load(values) * looked_up(x, places);
      other += load(values + LANES) * looked_up(x, places + LANES);
    }
    if (i < count) sum += load(values) * looked_up(x, places);
    return sum + other;
  }

  // sums[row of x][row of the slice] for V vectors of a group: half of the slice's rows at a time, so that they fit the registers.
  template <int V, class Column>
  static void sums_of_group(const float* values, const Column* places, int64_t count, const float* group, vfloat (&sums)[2][LANES]) {
    constexpr int LANES_AT_ONCE = LANES / V;
    QF_UNROLL for (int first = 0; first < LANES; first += LANES_AT_ONCE) {
      vfloat some[V][LANES_AT_ONCE] = {};
      const float* value = values + first;
      const Column* place = places + first;
      for (int64_t i = 0; i < count; i++, value += LANES, place += LANES)
        QF_UNROLL for (int lane = 0; lane < LANES_AT_ONCE; lane++)
          QF_UNROLL for (int v = 0; v < V; v++)
            some[v][lane] += value[lane] * load(group + int64_t(place[lane]) * GROUP + v * LANES);
      QF_UNROLL for (int v = 0; v < V; v++)
        QF_UNROLL for (int lane = 0; lane < LANES_AT_ONCE; lane++) sums[v][first + lane] = some[v][lane];
    }
    QF_UNROLL for (int v = 0; v < V; v++) transpose(sums[v]);
  }
};

}  // namespace

extern "C" void QF_EXPORT(rnn_rows_needs_f32)(const RnnArguments* a, RnnNeeds* needs) { layer_needs<Sparse>(*a, *needs); }
extern "C" void QF_EXPORT(rnn_rows_pack_f32)(const RnnArguments* a, float* packed) { pack_layer<Sparse>(*a, packed); }
extern "C" void QF_EXPORT(rnn_rows_f32)(const RnnArguments* a) { any_layer<Sparse>(*a); }
