// Pooling along one axis after the other.
//
// Square windows of 3, 5, 7, 9 and 13 with stride 1, and of 3 with stride 2, go down the rows at one vector of columns
// after the other, in a band that stays in the first-level cache. What a window holds of a line is loaded and reduced
// in registers, and the result meets the output rows whose windows hold the line; these stay open in registers. With
// stride 1 a vector of outputs takes K loads and 2 K - 2 reductions. Vectors that hang over an end of a row are loaded
// under a mask, and lines outside the plane are left out.
//
// All others take two passes: the window's rows are reduced into one row, then that row along the width. An output row
// first reduces the input rows of its window, over height and depth, four vectors of columns at a time, in the order in
// which they lie in memory. Along the width
//   - windows of 2, 4, 8 or 16 neighbours that do not overlap are halved in registers: pairs of neighbours in two
//     vectors make one vector, and so on;
//   - all others go through a line in the first-level cache, whose ends hold the reduction's identity. Lines are parted
//     by the phases of the stride, so that the taps of neighbouring outputs are neighbours whatever the dilation, and
//     each tap is one vector load. A batch of lines is filled before it is read: what was stored last cannot be
//     forwarded to loads that straddle it;
//   - long windows of stride and dilation 1 double: the reductions over 1, 2, 4, … columns make up a window of k in
//     about log2 k steps over a whole batch.
// Small windows are bound by what moves a plane between the caches, and planes that no cache holds are fetched ahead.
// Sums are never carried from one window to the next: a NaN or an infinity stays in the windows that hold it. The last
// vector of a row overlaps the one before.
//
// Accepts float32 max, average, and lp with p 1 or 2, any window over one to three axes.
// Workspace: two batches of lines and the room behind them, see pool.py's `separable_workspace`.
#include "pool_vector.h"

namespace {

constexpr int64_t DOUBLING_FROM = 16;  // taps along the width from which doubling is the faster way

// out[i] = reduction of `taps` neighbours from row[i] on, for i < count; row is used up.
template <class Op>
QF_INLINE void double_up(float* row, float* out, int64_t count, int64_t taps) {
  int64_t done = 0;  // taps that `out` holds so far
  for (int64_t power = 1; power <= taps; power *= 2) {
    if (taps & power) {
      for (int64_t i = 0; i < count; i += LANES) {
        const vfloat v = load(row + i + done);
        store(out + i, done ? Op::combine(v, load(out + i)) : v);
      }
      done += power;
    }
    if (2 * power > taps) return;
    for (int64_t i = 0; i < count + taps; i += LANES) store(row + i, Op::combine(load(row + i + power), load(row + i)));
  }
}

constexpr int VECTORS = 4;               // of columns that a pass takes together
constexpr int64_t BAND_FLOATS = 4096;    // of x that are gone down together: 16 KiB
constexpr int64_t FAR_FLOATS = 1 << 21;  // of x and y from which x is fetched ahead: 8 MiB
constexpr int64_t AHEAD = 1024;          // how many floats, in two passes; a band otherwise

// The input rows of an output row's window, those that are inside.
struct Rows {
  const float* first;
  int64_t depths, depth_step, rows, row_step;
  int64_t seen;  // of the rows, that an output row before has looked at for NaN
};

// How many rows a window has over depth and height, where that is known; 0 to count them. NEWEST: whether output rows
// before have looked at all but the last of them.
template <int DEPTHS, int ROWS, bool NEWEST>
struct Counts {};

// V vectors of the window's rows, where `load_columns` finds them.
template <class Op, int V, class Load, int DEPTHS, int ROWS, bool NEWEST>
QF_INLINE void down(Counts<DEPTHS, ROWS, NEWEST>, const Rows& window, const Load& load_columns, vfloat (&sums)[V],
                    Op& op) {
  QF_UNROLL for (int i = 0; i < V; i++) sums[i] = broadcast(Op::identity());
  const auto add = [&](const float* line, bool see) __attribute__((always_inline)) {
    vfloat v[V];
    QF_UNROLL for (int i = 0; i < V; i++) v[i] = load_columns(line, i);
    if (see)
      QF_UNROLL for (int i = 0; i < V; i += 2) op.see(v[i], v[i + 1 < V ? i + 1 : i]);
    QF_UNROLL for (int i = 0; i < V; i++) sums[i] = Op::combine(Op::value(v[i]), sums[i]);
  };
  if constexpr (ROWS > 0) {
    QF_UNROLL for (int depth = 0; depth < DEPTHS; depth++)
      QF_UNROLL for (int row = 0; row < ROWS; row++)
        add(window.first + depth * window.depth_step + row * window.row_step, !NEWEST || row == ROWS - 1);
  } else {
    for (int64_t depth = 0; depth < window.depths; depth++)
      for (int64_t row = 0; row < window.rows; row++)
        add(window.first + depth * window.depth_step + row * window.row_step, row >= window.seen);
  }
}

// 2^LEVELS neighbouring vectors, each 2^LEVELS neighbours of them reduced to one.
template <int LEVELS, class Op, class Counts>
QF_INLINE vfloat halved(Counts counts, const Rows& window, int64_t column, Op& op) {
  if constexpr (LEVELS > 2) {
    const vfloat low = halved<LEVELS - 1>(counts, window, column, op);
    return pairs<Op>(low, halved<LEVELS - 1>(counts, window, column + (LANES << (LEVELS - 1)), op));
  } else {
    vfloat v[1 << LEVELS];
    down(counts, window,
         [&](const float* line, int i) __attribute__((always_inline)) { return load(line + column + i * LANES); }, v,
         op);
    QF_UNROLL for (int count = 1 << (LEVELS - 1); count > 0; count /= 2)
      QF_UNROLL for (int i = 0; i < count; i++) v[i] = pairs<Op>(v[2 * i], v[2 * i + 1]);
    return v[0];
  }
}

// The neighbours that a row of a K by K window holds, reduced, for a vector of outputs; the first is at `column`.
// EDGE: columns outside the row hold the identity.
template <class Op, int K, int STRIDE, bool EDGE>
struct Neighbours {
  static constexpr int LOADS = STRIDE == 1 ? K : 2;
  Span spans[EDGE ? LOADS : 1][STRIDE];

  QF_INLINE Neighbours(int64_t column, int64_t width) {
    if constexpr (EDGE)
      QF_UNROLL for (int t = 0; t < LOADS; t++)
        QF_UNROLL for (int v = 0; v < STRIDE; v++) spans[t][v] = span_at(column + t + v * LANES, width);
  }
  // row: of x; first: its `column`.
  QF_INLINE vfloat reduced(const float* row, const float* first, Op& op) const {
    vfloat x[LOADS][STRIDE];
    QF_UNROLL for (int t = 0; t < LOADS; t++)
      QF_UNROLL for (int v = 0; v < STRIDE; v++)
        if constexpr (EDGE)
          x[t][v] = load_span(row, spans[t][v], Op::identity());
        else
          x[t][v] = load(first + t + v * LANES);
    QF_UNROLL for (int t = 0; t < LOADS - 1; t += LANES)
      QF_UNROLL for (int v = 0; v < STRIDE; v++) op.see(x[t][v], x[t + LANES < LOADS ? t + LANES : LOADS - 1][v]);
    QF_UNROLL for (int t = 0; t < LOADS; t++)
      QF_UNROLL for (int v = 0; v < STRIDE; v++) x[t][v] = Op::value(x[t][v]);
    if constexpr (STRIDE == 1) {
      vfloat all = x[0][0];
      QF_UNROLL for (int t = 1; t < K; t++) all = Op::combine(x[t][0], all);
      return all;
    } else {
      const vfloat first_two = Op::combine(merge_fours<0, 2, 0, 2, false>(x[0][0], x[0][1]),
                                           merge_fours<1, 3, 1, 3, false>(x[0][0], x[0][1]));
      return Op::combine(merge_fours<1, 3, 1, 3, false>(x[1][0], x[1][1]), first_two);
    }
  }
};

template <class Op>
struct Separable {
  const PoolArguments& a;
  const int64_t width = a.input[2], columns = a.output[2], stride = a.strides[2], taps = a.kernel[2];
  const int64_t dilation = a.dilations[2], pitch = a.row_floats, phase = pitch / stride;
  // The place of a line's first column, whole vectors.
  const int64_t lead = (a.pads[2] + stride * LANES - 1) / (stride * LANES) * (stride * LANES), start = lead / stride;
  const TapPlace first_tap{dilation, stride, lead - a.pads[2]};
  const bool doubles = stride == 1 && dilation == 1 && taps >= DOUBLING_FROM;
  const bool halves = taps == stride && dilation == 1 && a.pads[2] == 0 && columns * stride <= width &&
                      columns >= LANES && (taps == 2 || taps == 4 || taps == 8 || taps == 16);

  const bool far = a.planes * (a.input[0] * a.input[1] * width + a.output[0] * a.output[1] * columns) > FAR_FLOATS;

  static QF_INLINE void fetch(const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i);
  }

  template <int LEVELS, class Counts>
  QF_INLINE void halve(Counts counts, const Rows& window, int64_t row, float* y, Op& op) const {
    const int64_t columns = this->columns;
    const float* weights = a.column_weights;
    const vfloat weight = Op::scaled ? broadcast(a.row_weights[row]) : (vfloat){};
    const auto reduce = [&](int64_t column) __attribute__((always_inline)) {
      const vfloat v = halved<LEVELS>(counts, window, column << LEVELS, op);
      store(y + column, Op::scaled ? v * (weight * load(weights + column)) : Op::finish(v));
    };
    int64_t column = 0;
    for (; column <= columns - LANES; column += LANES) reduce(column);
    if (column < columns) reduce(columns - LANES);
  }

  // The window's rows into a line.
  template <class Counts>
  QF_INLINE void fill(Counts counts, const Rows& window, int64_t width, float* to, Op& op) const {
    if (width < LANES) {
      const Span span = span_at(0, width);
      vfloat v[1];
      down(counts, window,
           [&](const float* line, int) __attribute__((always_inline)) { return load_span(line, span, Op::identity()); },
           v, op);
      store(to, v[0]);
      return;
    }
    for (int64_t i = 0; i < width; i += VECTORS * LANES) {
      int64_t at[VECTORS];
      QF_UNROLL for (int k = 0; k < VECTORS; k++) at[k] = smaller(i + k * LANES, width - LANES);
      vfloat v[VECTORS];
      down(counts, window, [&](const float* line, int k) __attribute__((always_inline)) { return load(line + at[k]); },
           v, op);
      QF_UNROLL for (int k = 0; k < VECTORS; k++) store(to + at[k], v[k]);
    }
  }

  // The same with even and odd columns apart, by pairs of vectors. The last pair overlaps the ones before; what pairs
  // cannot reach is masked.
  template <class Counts>
  QF_INLINE void fill_parted(Counts counts, const Rows& window, int64_t width, float* to, int64_t phase, Op& op) const {
    const auto part = [&](int64_t at, vfloat a, vfloat b) __attribute__((always_inline)) {
      store(to + at / 2, even_lanes(a, b));
      store(to + phase + at / 2, odd_lanes(a, b));
    };
    const int64_t reached = width / 2 * 2 - 2 * LANES;
    for (int64_t begin = 0; begin < reached + 2 * LANES && reached >= 0; begin += 4 * LANES) {
      const int64_t i = smaller(begin, reached), next = smaller(begin + 2 * LANES, reached);
      vfloat v[VECTORS];
      down(counts, window,
           [&](const float* line, int k) __attribute__((always_inline)) {
             return load(line + (k < 2 ? i : next) + k % 2 * LANES);
           },
           v, op);
      part(i, v[0], v[1]);
      part(next, v[2], v[3]);
    }
    if (reached >= 0 && width % 2 == 0) return;
    const int64_t last = reached < 0 ? 0 : width - 1;
    const Span spans[2] = {span_at(last, width), span_at(last + LANES, width)};
    vfloat v[2];
    down(counts, window,
         [&](const float* line, int k) __attribute__((always_inline)) {
           return load_span(line, spans[k], Op::identity());
         },
         v, op);
    part(last, v[0], v[1]);
  }

  // `count` output rows whose windows have the same extent: in registers to y where that is all, else into lines.
  template <class Counts>
  __attribute__((noinline)) Op reduce_rows(Counts counts, Rows window, int64_t row, int64_t count, float* y,
                                           float* lines, float* scratch, Op op) const {
    const int64_t step = a.strides[1] * a.input[2], width = this->width, columns = this->columns, pitch = this->pitch;
    const int64_t stride = this->stride, phase = this->phase, start = this->start, taps = halves ? this->taps : 0;
    const bool far = this->far;
    for (int64_t end = row + count; row < end; row++, window.first += step, y += columns, lines += pitch) {
      if (far) fetch(window.first + AHEAD, step);
      if (taps == 2)
        halve<1>(counts, window, row, y, op);
      else if (taps == 4)
        halve<2>(counts, window, row, y, op);
      else if (taps == 8)
        halve<3>(counts, window, row, y, op);
      else if (taps == 16)
        halve<4>(counts, window, row, y, op);
      else if (stride == 1)
        fill(counts, window, width, lines + start, op);
      else if (stride == 2)
        fill_parted(counts, window, width, lines + start, phase, op);
      else {
        fill(counts, window, width, scratch, op);
        for (int64_t k = 0; k < stride; k++)
          for (int64_t from = k, place = start + k * phase; from < width; from += stride, place++)
            lines[place] = scratch[from];
      }
    }
    return op;
  }

  // Output rows from lines on. K: how many taps there are along the width, or 0 to count them. A row narrower than a
  // vector spills into the next, which is written later.
  template <int K>
  __attribute__((noinline)) void reduce_columns(const float* lines, int64_t row, int64_t end, int64_t last,
                                                float* y) const {
    const int64_t columns = this->columns, pitch = this->pitch, phase = this->phase, taps = this->taps;
    int64_t places[K > 0 ? K : 1];
    if (K > 0) {
      TapPlace tap = first_tap;
      for (int k = 0; k < K; k++, tap.next()) places[k] = tap.phase * phase + tap.along;
    }
    const float* weights = a.column_weights;
    const auto along = [&](const auto& at, auto& v) __attribute__((always_inline)) {
      constexpr int V = sizeof v / sizeof v[0];
      if constexpr (K > 0) {
        QF_UNROLL for (int i = 0; i < V; i++) v[i] = load(lines + places[0] + at[i]);
        QF_UNROLL for (int k = 1; k < K; k++)
          QF_UNROLL for (int i = 0; i < V; i++) v[i] = Op::combine(load(lines + places[k] + at[i]), v[i]);
      } else {
        TapPlace tap = first_tap;
        QF_UNROLL for (int i = 0; i < V; i++) v[i] = load(lines + tap.phase * phase + tap.along + at[i]);
        for (int64_t k = 1; k < taps; k++) {
          tap.next();
          const float* from = lines + tap.phase * phase + tap.along;
          QF_UNROLL for (int i = 0; i < V; i++) v[i] = Op::combine(load(from + at[i]), v[i]);
        }
      }
      QF_UNROLL for (int i = 0; i < V; i++)
        v[i] = Op::scaled ? v[i] * (a.row_weights[row] * load(weights + at[i])) : Op::finish(v[i]);
    };
    for (; row < end; row++, lines += pitch, y += columns) {
      if (columns < LANES) {
        const int64_t at[1] = {0};
        vfloat v[1];
        along(at, v);
        store_first(y, v[0], (last - row) * columns >= LANES ? LANES : int(columns));
        continue;
      }
      for (int64_t i = 0; i < columns; i += VECTORS * LANES) {
        int64_t at[VECTORS];
        QF_UNROLL for (int k = 0; k < VECTORS; k++) at[k] = smaller(i + k * LANES, columns - LANES);
        vfloat v[VECTORS];
        along(at, v);
        QF_UNROLL for (int k = 0; k < VECTORS; k++) store(y + at[k], v[k]);
      }
    }
  }

  // Whether go_down has an instance for the window. Of the lines above a plane it leaves out only those that come
  // before the first output.
  QF_INLINE bool goes_down() const {
    const bool flat = a.input[0] == 1 && a.output[0] == 1 && a.kernel[0] == 1;
    if (!flat || a.kernel[1] != taps || dilation != 1 || a.dilations[1] != 1 || a.strides[1] != stride) return false;
    if (stride == 2) return taps == 3 && a.pads[1] <= 1;
    return stride == 1 && (taps == 3 || taps == 5 || taps == 7 || taps == 9 || taps == 13) && a.pads[1] < taps;
  }

  // Rows begin to end of a plane: down a band of rows at one vector of columns after the other.
  template <int K, int STRIDE>
  __attribute__((noinline)) Op go_down(const float* plane, int64_t begin, int64_t end, float* y, Op op) const {
    const int64_t width = this->width, columns = this->columns, height = a.input[1], pad = a.pads[1];
    const int64_t band = BAND_FLOATS / (width * STRIDE) + 4;
    const int64_t inside = (height + pad - K + STRIDE) / STRIDE;  // rows of y that need no line below the plane
    const int64_t columns_inside = width - (LANES - 1) * STRIDE - K;
    const int64_t whole = columns >= LANES ? end : end - (LANES - 1) / columns;  // rows that may be whole vectors
    for (int64_t top = begin; top < end; top += band) {
      const int64_t bottom = smaller(top + band, end);
      const auto go = [&](int64_t column, int64_t from, const auto& neighbours) __attribute__((always_inline)) {
        int64_t row = top, at = row * STRIDE - pad;
        const float* line = plane + at * width;
        float* to = y + row * columns + column;
        const vfloat weights = Op::scaled ? load(a.column_weights + column) : (vfloat){};
        const auto next = [&](bool is_inside) __attribute__((always_inline)) {
          vfloat v = broadcast(Op::identity());
          if (is_inside || (at >= 0 && at < height)) v = neighbours.reduced(line, line + from, op);
          at++;
          line += width;
          return v;
        };
        const auto put = [&](vfloat v) __attribute__((always_inline)) {
          if constexpr (STRIDE == 2) v = in_order(v);
          v = Op::scaled ? v * (a.row_weights[row] * weights) : Op::finish(v);
          if (row < whole)
            store(to, v);
          else
            store_first(to, v, int(columns));
          to += columns;
        };
        vfloat open[K - 1];  // the reductions of the next rows of y, as far as they go
        const auto advance = [&](vfloat v) __attribute__((always_inline)) {
          QF_UNROLL for (int i = 0; i < K - 2; i++) open[i] = Op::combine(v, open[i + 1]);
          open[K - 2] = v;
        };
        QF_UNROLL for (int i = 0; i < K - 1; i++) open[i] = broadcast(Op::identity());
        if constexpr (STRIDE == 1)
          for (int k = 0; k < K - 1; k++) advance(next(false));
        else
          open[0] = next(false);
        const auto rows_until = [&](int64_t end, bool is_inside) __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (; row < end; row++)
            if constexpr (STRIDE == 1) {
              const vfloat v = next(is_inside);
              put(Op::combine(v, open[0]));
              advance(v);
            } else {
              const vfloat v = Op::combine(next(is_inside), open[0]);
              open[0] = next(is_inside);
              put(Op::combine(open[0], v));
            }
        };
        rows_until(smaller(bottom, inside), true);
        rows_until(bottom, false);
      };
      const int64_t part = (bottom - top) * STRIDE * STRIDE * LANES;  // of what follows in memory, for each column
      const float* ahead = plane + (top + band) * STRIDE * width;
      for (int64_t i = 0; i < columns; i += LANES, ahead += part) {
        if (far) fetch(ahead, part);
        const int64_t column = i + LANES <= columns || columns < LANES ? i : columns - LANES;
        const int64_t from = column * STRIDE - a.pads[2];
        if (from >= 0 && from <= columns_inside)
          go(column, from, Neighbours<Op, K, STRIDE, false>(from, width));
        else
          go(column, from, Neighbours<Op, K, STRIDE, true>(from, width));
      }
    }
    return op;
  }

  void rows(int64_t plane, int64_t begin, int64_t end, int thread) const {
    const int64_t height = a.input[1], size = height * width, out_height = a.output[1];
    const float* x = static_cast<const float*>(a.x) + plane * a.input[0] * size;
    float* y = static_cast<float*>(a.y) + plane * a.output[0] * out_height * columns;
    float* lines = a.workspace + thread * a.workspace_floats;
    float* second = lines + a.workspace_floats / 2;
    Op op;
    if (goes_down()) {
      op = stride == 2 ? go_down<3, 2>(x, begin, end, y, op)
           : taps == 3 ? go_down<3, 1>(x, begin, end, y, op)
           : taps == 5 ? go_down<5, 1>(x, begin, end, y, op)
           : taps == 7 ? go_down<7, 1>(x, begin, end, y, op)
           : taps == 9 ? go_down<9, 1>(x, begin, end, y, op)
                       : go_down<13, 1>(x, begin, end, y, op);
      if (op.again())
        for (int64_t row = begin; row < end; row++) row_by_definition<float>(a, plane, row);
      return;
    }
    // Output rows of one slice whose windows hang over neither end.
    const int64_t first_whole = (a.pads[1] + a.strides[1] - 1) / a.strides[1];
    const int64_t room = height + a.pads[1] - (a.kernel[1] - 1) * a.dilations[1] - 1;
    const int64_t end_whole = room < 0 ? 0 : smaller(room / a.strides[1] + 1, out_height);
    const bool watches = a.input[0] == 1 && a.dilations[1] == 1;
    int64_t looked = 0;  // input rows that were looked at for NaN, for windows of one slice
    for (int64_t first = begin; first < end; first += a.batch_rows) {
      const int64_t batch_end = smaller(end, first + a.batch_rows);
      for (int64_t row = first, count; row < batch_end; row += count) {
        const int64_t depth = depth_of(a, row), h = row - depth * out_height;
        const Taps td = window_taps(a, 0, depth), th = window_taps(a, 1, h);
        const int64_t top = th.start + th.begin * a.dilations[1];
        const bool whole = h >= first_whole && h < end_whole;
        Rows window{x + ((td.start + td.begin * a.dilations[0]) * height + top) * width, td.end - td.begin,
                    a.dilations[0] * size, th.end - th.begin, a.dilations[1] * width, watches ? looked - top : 0};
        const bool newest = window.seen == window.rows - 1 && a.strides[1] == 1;
        // The first of a run is alone where it has all rows to look at, and the others only some.
        const bool alone = watches && window.seen <= 0 && a.strides[1] < a.kernel[1];
        count = whole && !alone ? smaller(batch_end - row, end_whole - h) : 1;
        looked = top + (count - 1) * a.strides[1] + window.rows;
        float* to = y + row * columns;
        float* line = lines + (row - first) * pitch;
        const auto reduce = [&](auto counts) { op = reduce_rows(counts, window, row, count, to, line, second, op); };
        if (window.depths == 1 && window.rows == 1)
          reduce(Counts<1, 1, true>{});
        else if (window.depths == 1 && window.rows == 2)
          reduce(Counts<1, 2, false>{});
        else if (window.depths == 1 && window.rows == 3 && newest)
          reduce(Counts<1, 3, true>{});
        else if (window.depths == 1 && window.rows == 3)
          reduce(Counts<1, 3, false>{});
        else if (window.depths == 1 && window.rows == 5 && newest)
          reduce(Counts<1, 5, true>{});
        else if (window.depths == 2 && window.rows == 2)
          reduce(Counts<2, 2, false>{});
        else if (window.depths == 3 && window.rows == 3)
          reduce(Counts<3, 3, false>{});
        else
          reduce(Counts<0, 0, false>{});
      }
      if (halves) continue;
      float* to = y + first * columns;
      if (doubles) {
        double_up<Op>(lines, second, (batch_end - first) * pitch, taps);
        reduce_columns<1>(second, first, batch_end, end, to);
        clear(lines);
      } else if (taps == 2) {
        reduce_columns<2>(lines, first, batch_end, end, to);
      } else if (taps == 3) {
        reduce_columns<3>(lines, first, batch_end, end, to);
      } else if (taps == 5) {
        reduce_columns<5>(lines, first, batch_end, end, to);
      } else {
        reduce_columns<0>(lines, first, batch_end, end, to);
      }
    }
    if (op.again())
      for (int64_t row = begin; row < end; row++) row_by_definition<float>(a, plane, row);
  }

  QF_INLINE void clear(float* lines) const {
    for (int64_t i = 0; i < a.workspace_floats / 2; i += LANES) store(lines + i, broadcast(Op::identity()));
  }
};

template <class Op>
void every_plane(const PoolArguments& a) {
  const Separable<Op> pool{a};
  for (int thread = 0; thread < a.threads && !pool.halves && !pool.goes_down(); thread++)
    pool.clear(a.workspace + thread * a.workspace_floats);
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int thread) { pool.rows(plane, begin, end, thread); });
}

}  // namespace

extern "C" int QF_EXPORT(pool_separable_f32)(const PoolArguments* a) {
  switch (a->kind) {
    case POOL_MAX: every_plane<MaxReduction>(*a); return 0;
    case POOL_AVERAGE: every_plane<SumReduction>(*a); return 0;
    default:
      if (a->p == 1) every_plane<MagnitudeReduction>(*a);
      else if (a->p == 2) every_plane<SquareReduction>(*a);
      else return 1;
      return 0;
  }
}
