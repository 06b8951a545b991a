// Pooling with the whole plane as window: one number a plane, read once from end to end.
//
// LANES planes go together: each is reduced to one vector (four accumulate, so that neither the latency of an addition
// nor rounding piles up in one of them), and log2(LANES) rounds of halving bring the planes' numbers into one vector.
// Planes of up to MOST_WHOLE vectors, whose ends would cost as much as their sums, each have an instance of their own.
// Accepts float32 max, average, and lp with p 1 or 2; the window has no padding.
#include "pool_vector.h"

namespace {

// The planes' vectors first to first + COUNT, halved until they fill one vector.
template <class Op, int COUNT = LANES>
QF_INLINE vfloat folded(const vfloat* v) {
  if constexpr (COUNT == 1) return v[0];
  else return pairs<Op>(folded<Op, COUNT / 2>(v), folded<Op, COUNT / 2>(v + COUNT / 2));
}

// A plane of size floats reduced to one vector. WHOLE: how many whole vectors it has, where that is known, else -1.
template <int WHOLE, class Op>
QF_INLINE vfloat reduce(const float* x, int64_t size, const Span& tail, Op& op) {
  vfloat sums[4];
  QF_UNROLL for (int i = 0; i < 4; i++) sums[i] = broadcast(Op::identity());
  const auto add = [&](int i, vfloat v) __attribute__((always_inline)) {
    sums[i] = Op::combine(Op::value(v), sums[i]);
  };
  const int64_t whole = WHOLE < 0 ? size / LANES : WHOLE;
  int64_t at = 0;
  const auto four = [&]() __attribute__((always_inline)) {
    vfloat v[4];
    QF_UNROLL for (int i = 0; i < 4; i++) add(i, v[i] = load(x + at + i * LANES));
    op.see(v[0], v[1]);
    op.see(v[2], v[3]);
    at += 4 * LANES;
  };
  if constexpr (WHOLE < 0)
    while (at + 4 * LANES <= size) four();
  else
    QF_UNROLL for (int i = 0; i < WHOLE / 4; i++) four();
  QF_UNROLL for (int i = 0; i < 3; i++) {
    if (i >= whole % 4) break;
    const vfloat v = load(x + at);
    add(i, v);
    op.see(v, v);
    at += LANES;
  }
  if (at < size) {
    const vfloat v = load_span(x, tail, Op::identity());
    add(3, v);
    op.see(v, v);
  }
  return Op::combine(Op::combine(sums[0], sums[1]), Op::combine(sums[2], sums[3]));
}

constexpr int MOST_WHOLE = 8;  // planes of more vectors are reduced by a loop

template <class Op, int WHOLE = 0>
void every_plane(const PoolArguments& a) {
  const int64_t size = a.input[0] * a.input[1] * a.input[2];
  if constexpr (WHOLE >= 0)
    if (size / LANES != WHOLE) return every_plane<Op, WHOLE < MOST_WHOLE ? WHOLE + 1 : -1>(a);
  const float weight = Op::scaled ? a.row_weights[0] * a.column_weights[0] : 1.0f;
  const Span tail = span_at(size / LANES * LANES, size);
  float* y = static_cast<float*>(a.y);
  PoolArguments groups = a;
  groups.planes = (a.planes + LANES - 1) / LANES;
  over_planes(groups, [&](int64_t group, int64_t begin, int64_t end, int) {
    if (begin == end) return;
    const int64_t first = group * LANES;
    const int count = clamp_lane(a.planes - first);
    Op op;
    vfloat v[LANES];
    QF_UNROLL for (int i = 0; i < LANES; i++)
      v[i] = i < count ? reduce<WHOLE>(static_cast<const float*>(a.x) + (first + i) * size, size, tail, op) : (vfloat){};
    store_first(y + first, Op::finish(folded<Op>(v)) * weight, count);
    if (op.again())
      for (int i = 0; i < count; i++) row_by_definition<float>(a, first + i, 0);
  });
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
