// Pooling with the whole plane as window: one number a plane, read once from end to end.
//
// LANES planes go together: each is reduced to one vector, and log2(LANES) rounds of halving bring the planes' numbers into
// one vector. Planes of up to MOST_WHOLE vectors, whose ends would cost as much as their sums, each have an instance of their
// own; in longer ones four vectors accumulate, so that neither the latency of an addition nor rounding piles up in one of them.
// Where a vector is a whole cache line, short planes are read line by line, under masks at both ends: otherwise every vector
// of a plane of 7x7 would lie across two lines.
// Accepts float32 max, average, and lp with p 1 or 2; the window has no padding.
#include "pool_vector.h"

namespace {

// LANES vectors, each reduced to one number: lane i is that of v[i]. Two vectors become one by turns: halves, then quarters,
// and so on; the lanes that stay where they are need no shuffle.
template <class Op, int BLOCK = LANES / 2>
QF_INLINE vfloat folded(vfloat* v) {
  if constexpr (BLOCK == 0) {
    return v[0];
  } else {
    vint stay, cross;
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      stay[i] = i & BLOCK ? LANES + i : i;
      cross[i] = i & BLOCK ? LANES + i - BLOCK : i + BLOCK;
    }
    QF_UNROLL for (int i = 0; i < BLOCK; i++) {
      const vfloat a = v[i], b = v[i + BLOCK];
      v[i] = Op::combine(__builtin_shuffle(a, b, stay), __builtin_shuffle(a, b, cross));
    }
    return folded<Op, BLOCK / 2>(v);
  }
}

// What a plane has of the vector that it begins in, of the one in which it ends or nearly does, and of the one behind that.
struct Ends {
  Span first, last, behind;
  bool reaches_behind;
};

// Of a plane that begins at `at`; before: floats of its first line that come before it.
QF_INLINE Ends ends_of(int64_t at, int64_t before, int64_t size) {
  const int64_t last = size / LANES * LANES - before;
  Ends ends{span_at(-before, size), span_at(last, size), span_at(last + LANES, size), last + LANES < size};
  ends.first.column += at, ends.last.column += at, ends.behind.column += at;
  return ends;
}

// A plane of size floats, which begins `at` floats behind x, reduced to one vector. WHOLE: how many whole vectors it has,
// where that is known, else -1. LINES: whether it is read line by line. The result does not depend on that: wherever a plane
// begins, values whose places are alike modulo LANES are combined one after the other.
template <int WHOLE, bool LINES, class Op>
QF_INLINE vfloat reduce(const float* x, int64_t at, int64_t size, const Ends& ends, Op& op) {
  const float* from = LINES ? x + ends.first.column : x + at;
  const auto value = [&](vfloat v) __attribute__((always_inline)) {
    op.see(v, v);
    return Op::value(v);
  };
  if constexpr (WHOLE >= 0) {
    if constexpr (WHOLE == 0) return value(load_span(x, ends.last, Op::identity()));
    vfloat sum = value(LINES ? load_span(x, ends.first, Op::identity()) : load(from));
    settle(sum);  // a square is rounded here, and no part of a multiply-add, in every instance
    QF_UNROLL for (int i = 1; i < WHOLE; i++) sum = Op::combine(value(load(from + i * LANES)), sum);
    if (LINES || size % LANES) sum = op.with_span(sum, x, ends.last);
    if (LINES && ends.reaches_behind) sum = op.with_span(sum, x, ends.behind);
    return sum;
  } else {
    vfloat sums[4];
    QF_UNROLL for (int i = 0; i < 4; i++) sums[i] = broadcast(Op::identity());
    for (int64_t i = 0; i < size / LANES / 4; i++, from += 4 * LANES) {
      vfloat v[4];
      QF_UNROLL for (int j = 0; j < 4; j++) sums[j] = Op::combine(Op::value(v[j] = load(from + j * LANES)), sums[j]);
      op.see(v[0], v[1]);
      op.see(v[2], v[3]);
    }
    QF_UNROLL for (int i = 0; i < 3; i++)
      if (i < size / LANES % 4) sums[i] = Op::combine(value(load(from + i * LANES)), sums[i]);
    if (size % LANES) sums[3] = op.with_span(sums[3], x, ends.last);
    return Op::combine(Op::combine(sums[0], sums[1]), Op::combine(sums[2], sums[3]));
  }
}

constexpr int MOST_WHOLE = 12;     // planes of more vectors are reduced by a loop
constexpr int MOST_UNROLLED = 64;  // floats in whole vectors; for larger planes there is a loop over them, too

template <class Op, int WHOLE, bool LINES>
void reduce_planes(const PoolArguments& a, int64_t size) {
  const float weight = Op::scaled ? a.row_weights[0] * a.column_weights[0] : 1.0f;
  const float* x = static_cast<const float*>(a.x);
  float* y = static_cast<float*>(a.y);
  Ends ends[LANES];  // of the planes of a group, which begin alike in all groups
  for (int i = 0; i < LANES; i++) {
    const int64_t before = int64_t(uintptr_t(x + i * size) / sizeof(float) % LANES);
    ends[i] = ends_of(i * size, LINES ? before : 0, size);
  }
  PoolArguments groups = a;
  groups.planes = (a.planes + LANES - 1) / LANES;
  over_planes(groups, [&](int64_t group, int64_t begin, int64_t end, int) {
    if (begin == end) return;
    const int64_t first = group * LANES;
    const float* from = x + first * size;
    const int count = clamp_lane(a.planes - first);
    Op op;
    vfloat v[LANES];
    const auto reduce_plane = [&](int i) __attribute__((always_inline)) {
      return i < count ? reduce<WHOLE, LINES>(from, i * size, size, ends[i], op) : (vfloat){};
    };
    if constexpr (WHOLE >= 0 && WHOLE * LANES <= MOST_UNROLLED) {
      QF_UNROLL for (int i = 0; i < LANES; i++) v[i] = reduce_plane(i);
    } else {
#pragma GCC unroll 1
      for (int i = 0; i < LANES; i++) v[i] = reduce_plane(i);
    }
    store_first(y + first, Op::finish(folded<Op>(v)) * weight, count);
    if (op.again())
      for (int i = 0; i < count; i++) row_by_definition<float>(a, first + i, 0);
  });
}

template <class Op, int WHOLE = 0>
void every_plane(const PoolArguments& a) {
  const int64_t size = a.input[0] * a.input[1] * a.input[2];
  if constexpr (WHOLE >= 0)
    if (size / LANES != WHOLE) return every_plane<Op, WHOLE < MOST_WHOLE ? WHOLE + 1 : -1>(a);
  constexpr bool LINES = LANES * sizeof(float) == 64 && WHOLE > 0;
  if (LINES && (size % LANES || uintptr_t(a.x) % 64)) return reduce_planes<Op, WHOLE, LINES>(a, size);
  reduce_planes<Op, WHOLE, false>(a, size);
}

}  // namespace

extern "C" int QF_EXPORT(pool_global_f32)(const PoolArguments* a) {
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
