// rnn, lstm and gru in float32 with packed weights.
//
// The layer is that of rnn_layer.h. A block's weights lie together as [k][column][lane], so that a product passes over them
// in order.
//
// Both products multiply a block's panel of weights with groups of rows that are held in registers, 3 rows of 4 columns
// with 16 registers, 6 rows with 32. For many rows the limit is arithmetic: a panel is cut along k into parts that
// stay in the first cache while all groups pass by. For one group, as in batch 1, it is the weights' way from the
// cache or memory that holds them all: they are read once, as four streams side by side, each from a quarter of the
// panel. The prefetchers follow each stream on its own; on Zen 3, four bring 71 GB/s from the third level where one
// brings 60, 96 instead of 63 from the second, and 24 instead of 16 from memory.
#include "rnn_layer.h"

namespace {

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


struct Dense {
  static constexpr bool SPREADS = false;
  static int64_t panel_floats(int64_t depth, int64_t columns) { return depth * columns * LANES; }
  static int64_t room_floats(const RnnArguments&, int64_t) { return 0; }

  // The plain weights of a product, from its first gate on.
  static const float* plain(const RnnArguments& a, const Layout& l, Part part, int64_t index) {
    const int64_t rows = index * l.gates * a.hidden + (part == CANDIDATE ? 2 * a.hidden : 0);
    return static_cast<const float*>(part == INPUTS ? a.w : a.r) + rows * depth_of(a, part);
  }

  static int64_t gates_in(const RnnArguments& a, const Layout& l, Part part) {
    return l.gates == 1 ? 1 : columns_of(a, l, part);
  }

  static void pack(const RnnArguments& a, const Layout& l, Part part, int64_t index, float* to) {
    pack_panels(plain(a, l, part, index), a.hidden, depth_of(a, part), gates_in(a, l, part), l.vectors * LANES, to);
  }

  static void product(const RnnArguments& a, const Layout& l, const Direction& d, Part part, int64_t block, int64_t rows,
                      const float* x, int64_t x_row, const float* from, int64_t from_row, float* out, int64_t out_row, int last) {
    const int columns = columns_of(a, l, part);
    const int64_t depth = depth_of(a, part), units = l.vectors * LANES;
    const float* panel = part == INPUTS ? d.w : part == STATE ? d.r : d.candidate;
    if (a.passing)
      pack_block(plain(a, l, part, d.index), a.hidden, depth, gates_in(a, l, part), units, block * units, const_cast<float*>(panel));
    else panel += block * panel_floats(depth, columns);
    products_of(columns, rows, x, x_row, depth, panel, from, from_row, out, out_row, last);
  }
};

}  // namespace

extern "C" void QF_EXPORT(rnn_needs_f32)(const RnnArguments* a, RnnNeeds* needs) { layer_needs<Dense>(*a, *needs); }

// Whether no weight of r is infinite or NaN, so that its product with a zero state is zero.
extern "C" int QF_EXPORT(rnn_finite_f32)(const RnnArguments* a) {
  const float* r = static_cast<const float*>(a->r);
  const int64_t count = a->directions * gates_of(a->kind) * a->hidden * a->hidden;
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

extern "C" void QF_EXPORT(rnn_pack_f32)(const RnnArguments* a, float* packed) { pack_layer<Dense>(*a, packed); }

extern "C" void QF_EXPORT(rnn_packed_f32)(const RnnArguments* a) { any_layer<Dense>(*a); }
