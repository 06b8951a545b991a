// Max and average pooling over small windows by the register sliding window.
//
// The plane is cut into strips of one or two output vectors. A strip walks down the rows: the rows of the window that
// the next output row needs again stay in registers and move up, so that each input row is loaded once. The window is
// reduced downwards first and then along the row: stride 1 by vectors shifted between neighbours, other strides
// by splitting neighbours into the stride's phases. No row is ever copied; columns beyond the row's ends are loaded as
// the reduction's identity by masked loads in the first and last strip, rows beyond the plane's ends are identities.
// With three axes a row is the reduction of the rows of the window's slices.
// (The scheme is the sliding window of Snytsar, "Accelerating machine learning primitives on commodity hardware",
// 2023, turned downwards.)
//
// Accepts float32, no dilation of height and width, and the windows listed at the end with any depth.
#include "pool_vector.h"

namespace {

template <int KW, int SW, int U>
constexpr int vectors_read() {
  return ((U * LANES - 1) * SW + KW + LANES - 1) / LANES;
}

template <class Op, int K, int KW, int SW, int U, int N>
QF_INLINE void further_taps(const vfloat (&even)[N], const vfloat (&odd)[N], vfloat (&out)[U]) {
  if constexpr (K < KW) {
    constexpr int steps = K / SW, vector = steps / LANES, lane = steps % LANES;
    QF_UNROLL for (int u = 0; u < U; u++) {
      const int next = u + vector + (lane != 0);
      const vfloat* columns = K % SW ? odd : even;
      out[u] = Op::combine(shifted<lane>(columns[u + vector], columns[next]), out[u]);
    }
    further_taps<Op, K + 1, KW, SW, U, N>(even, odd, out);
  }
}

// The window along the row.
template <class Op, int KW, int SW, int U, int N>
QF_INLINE void along_row(const vfloat (&v)[N], vfloat (&out)[U]) {
  if constexpr (SW == 1) {
    QF_UNROLL for (int u = 0; u < U; u++) out[u] = v[u];
    further_taps<Op, 1, KW, 1, U, N>(v, v, out);
  } else if constexpr (SW == 2) {
    constexpr int HALF = (N + 1) / 2;
    vfloat even[HALF], odd[HALF];
    QF_UNROLL for (int i = 0; i < HALF; i++) {
      const vfloat second = v[2 * i + 1 < N ? 2 * i + 1 : N - 1];
      even[i] = even_lanes(v[2 * i], second);
      odd[i] = odd_lanes(v[2 * i], second);
    }
    QF_UNROLL for (int u = 0; u < U; u++) out[u] = even[u];
    further_taps<Op, 1, KW, 2, U, HALF>(even, odd, out);
  } else if constexpr (SW == 3 && KW == 3) {
    QF_UNROLL for (int u = 0; u < U; u++) {
      const vfloat* w = v + 3 * u;
      const vfloat low = Op::combine(every_third<0>(w[0], w[1], w[2]), every_third<1>(w[0], w[1], w[2]));
      out[u] = Op::combine(low, every_third<2>(w[0], w[1], w[2]));
    }
  } else {
    static_assert(SW == 4 && KW == 4, "three and three, or pairs of pairs");
    QF_UNROLL for (int u = 0; u < U; u++) {
      const vfloat* w = v + 4 * u;
      const vfloat low = Op::combine(even_lanes(w[0], w[1]), odd_lanes(w[0], w[1]));
      const vfloat high = Op::combine(even_lanes(w[2], w[3]), odd_lanes(w[2], w[3]));
      out[u] = Op::combine(even_lanes(low, high), odd_lanes(low, high));
    }
  }
}

// The input slices of one output depth: the first, how many, and the elements from one to the next.
struct Slices {
  const float* x;
  int64_t count, step;
};

// U * LANES output columns from `column` on, of the output rows begin to end of one depth; y and weights are of its
// row 0. Only the first LOADED vectors that the columns need reach into the rows.
template <class Op, int KH, int KW, int SH, int SW, int U, bool EDGE, int LOADED = vectors_read<KW, SW, U>()>
__attribute__((noinline)) Op strip(const PoolArguments& a, const Slices& slices, float* y, const float* row_weights,
                                   int64_t column, int64_t begin, int64_t end, Op op) {
  constexpr int N = vectors_read<KW, SW, U>(), KEPT = KH > SH ? KH - SH : 0;
  const int64_t height = a.input[1], width = a.input[2], columns = a.output[2];
  const int64_t from = column * SW - a.pads[2];
  Span spans[LOADED];
  if constexpr (EDGE) {
    QF_UNROLL for (int i = 0; i < LOADED; i++) spans[i] = span_at(from + i * LANES, width);
  }
  const auto load_columns = [&](const float* line, int i) __attribute__((always_inline)) {
    return EDGE ? load_span(line, spans[i], Op::identity()) : load(line + from + i * LANES);
  };
  const auto read = [&](int64_t row, vfloat(&v)[N]) __attribute__((always_inline)) {
    QF_UNROLL for (int i = 0; i < N; i++) v[i] = broadcast(Op::identity());
    if (row < 0 || row >= height || slices.count == 0) return;
    const float* line = slices.x + row * width;
    QF_UNROLL for (int i = 0; i < LOADED; i++) v[i] = load_columns(line, i);
    QF_UNROLL for (int i = 0; i < LOADED; i += 2) op.see(v[i], v[i + 1 < LOADED ? i + 1 : i]);
    for (int64_t slice = 1; slice < slices.count; slice++) {
      vfloat w[LOADED];
      line += slices.step;
      QF_UNROLL for (int i = 0; i < LOADED; i++) w[i] = load_columns(line, i);
      QF_UNROLL for (int i = 0; i < LOADED; i += 2) op.see(w[i], w[i + 1 < LOADED ? i + 1 : i]);
      QF_UNROLL for (int i = 0; i < LOADED; i++) v[i] = Op::combine(w[i], v[i]);
    }
  };
  vfloat weights[U];
  int lanes[U];
  QF_UNROLL for (int u = 0; u < U; u++) {
    lanes[u] = EDGE ? clamp_lane(columns - column - u * LANES) : LANES;
    if constexpr (Op::scaled)
      weights[u] = EDGE ? load_first(a.column_weights + column + u * LANES, lanes[u])
                        : load(a.column_weights + column + u * LANES);
  }
  vfloat rows[KH][N];
  int64_t next = begin * SH - a.pads[1];
  QF_UNROLL for (int k = 0; k < KEPT; k++) read(next++, rows[k]);
  for (int64_t row = begin; row < end; row++) {
    QF_UNROLL for (int k = KEPT; k < KH; k++) read(next++, rows[k]);
    vfloat down[N], out[U];
    QF_UNROLL for (int i = 0; i < N; i++) down[i] = rows[0][i];
    QF_UNROLL for (int k = 1; k < KH; k++)
      QF_UNROLL for (int i = 0; i < N; i++) down[i] = Op::combine(rows[k][i], down[i]);
    along_row<Op, KW, SW, U, N>(down, out);
    if constexpr (Op::scaled) {
      const float weight = row_weights[row];
      QF_UNROLL for (int u = 0; u < U; u++) out[u] *= weight * weights[u];
    }
    float* line = y + row * columns + column;
    QF_UNROLL for (int u = 0; u < U; u++) {
      if (EDGE) store_first(line + u * LANES, out[u], lanes[u]);
      else store(line + u * LANES, out[u]);
    }
    QF_UNROLL for (int k = 0; k < KEPT; k++)
      QF_UNROLL for (int i = 0; i < N; i++) rows[k][i] = rows[k + SH][i];
    if (SH > KH) next += SH - KH;
  }
  return op;
}

// The output rows begin to end of one depth.
template <class Op, int KH, int KW, int SH, int SW>
void strips(const PoolArguments& a, const Slices& slices, float* y, const float* weights, int64_t begin, int64_t end,
            Op& op) {
  // two vectors share what hangs over, where the rows of both fit into the registers
  constexpr int WIDE = KH * vectors_read<KW, SW, 2>() < REGISTERS ? 2 : 1, N = vectors_read<KW, SW, 1>();
  const int64_t width = a.input[2], columns = a.output[2];
  for (int64_t column = 0; column < columns;) {
    const int64_t from = column * SW - a.pads[2], left = columns - column;
    if (from >= 0 && from + vectors_read<KW, SW, WIDE>() * LANES <= width && left >= WIDE * LANES) {
      op = strip<Op, KH, KW, SH, SW, WIDE, false>(a, slices, y, weights, column, begin, end, op);
      column += WIDE * LANES;
    } else if (WIDE == 2 && left > LANES) {
      op = strip<Op, KH, KW, SH, SW, WIDE, true>(a, slices, y, weights, column, begin, end, op);
      column += WIDE * LANES;
    } else {
      if (width - from <= LANES)
        op = strip<Op, KH, KW, SH, SW, 1, true, 1>(a, slices, y, weights, column, begin, end, op);
      else if (N > 2 && width - from <= 2 * LANES)
        op = strip<Op, KH, KW, SH, SW, 1, true, (N < 2 ? N : 2)>(a, slices, y, weights, column, begin, end, op);
      else
        op = strip<Op, KH, KW, SH, SW, 1, true>(a, slices, y, weights, column, begin, end, op);
      column += LANES;
    }
  }
}

template <class Op, int KH, int KW, int SH, int SW>
void planes(const PoolArguments& a) {
  const int64_t size = a.input[1] * a.input[2], columns = a.output[2], rows = a.output[1];
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    const float* x = static_cast<const float*>(a.x) + plane * a.input[0] * size;
    float* y = static_cast<float*>(a.y) + plane * a.output[0] * rows * columns;
    Op op;
    for (int64_t od = depth_of(a, begin); od * rows < end; od++) {
      const Taps taps = window_taps(a, 0, od);
      const Slices slices{x + (taps.start + taps.begin * a.dilations[0]) * size, taps.end - taps.begin,
                          a.dilations[0] * size};
      const int64_t first = od * rows, from = begin > first ? begin - first : 0;
      const int64_t to = end - first < rows ? end - first : rows;
      strips<Op, KH, KW, SH, SW>(a, slices, y + first * columns, a.row_weights + first, from, to, op);
    }
    if (op.again())
      for (int64_t row = begin; row < end; row++) row_by_definition<float>(a, plane, row);
  });
}

template <class Op>
int with_window(const PoolArguments& a) {
  const int64_t window = ((a.kernel[1] * 10 + a.kernel[2]) * 10 + a.strides[1]) * 10 + a.strides[2];
  switch (window) {
    case 2222: planes<Op, 2, 2, 2, 2>(a); return 0;
    case 3322: planes<Op, 3, 3, 2, 2>(a); return 0;
    case 3333: planes<Op, 3, 3, 3, 3>(a); return 0;
    case 2211: planes<Op, 2, 2, 1, 1>(a); return 0;
    case 3311: planes<Op, 3, 3, 1, 1>(a); return 0;
    case 5511: planes<Op, 5, 5, 1, 1>(a); return 0;
    // one axis: a plane of a single row
    case 1212: planes<Op, 1, 2, 1, 2>(a); return 0;
    case 1312: planes<Op, 1, 3, 1, 2>(a); return 0;
    case 1414: planes<Op, 1, 4, 1, 4>(a); return 0;
    case 1211: planes<Op, 1, 2, 1, 1>(a); return 0;
    case 1311: planes<Op, 1, 3, 1, 1>(a); return 0;
    case 1511: planes<Op, 1, 5, 1, 1>(a); return 0;
    default: return 1;
  }
}

}  // namespace

extern "C" int QF_EXPORT(pool_sliding_f32)(const PoolArguments* a) {
  return a->kind == POOL_MAX ? with_window<MaxReduction>(*a) : with_window<SumReduction>(*a);
}
