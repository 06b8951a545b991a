// Pooling with the whole plane as window: one number a plane, read once from end to end.
//
// LANES planes go together: each is reduced to one vector (four accumulate, so that neither the latency of an addition
// nor rounding piles up in one of them), and log2(LANES) rounds of halving bring the planes' numbers into one vector.
// Accepts float32 max, average, and lp with p 1 or 2; the window has no padding.
#include "pool_vector.h"

namespace {

// The planes' vectors first to first + COUNT, halved until they fill one vector.
template <class Op, int COUNT = LANES>
QF_INLINE vfloat folded(const vfloat* v) {
  if constexpr (COUNT == 1) return v[0];
  else return pairs<Op>(folded<Op, COUNT / 2>(v), folded<Op, COUNT / 2>(v + COUNT / 2));
}

// A plane reduced to one vector.
template <class Op>
QF_INLINE vfloat reduce(const float* x, int64_t size, const Span& tail, Op& op) {
  vfloat sums[4];
  QF_UNROLL for (int i = 0; i < 4; i++) sums[i] = broadcast(Op::identity());
  int64_t at = 0;
  for (; at + 4 * LANES <= size; at += 4 * LANES) {
    vfloat v[4];
    QF_UNROLL for (int i = 0; i < 4; i++) v[i] = load(x + at + i * LANES);
    QF_UNROLL for (int i = 0; i < 4; i++) sums[i] = Op::combine(Op::value(v[i]), sums[i]);
    op.see(v[0], v[1]);
    op.see(v[2], v[3]);
  }
  QF_UNROLL for (int i = 0; i < 3; i++) {
    if (at + LANES > size) break;
    const vfloat v = load(x + at);
    sums[i] = Op::combine(Op::value(v), sums[i]);
    op.see(v, v);
    at += LANES;
  }
  if (at < size) {
    const vfloat v = load_span(x, tail, Op::identity());
    sums[3] = Op::combine(Op::value(v), sums[3]);
    op.see(v, v);
  }
  return Op::combine(Op::combine(sums[0], sums[1]), Op::combine(sums[2], sums[3]));
}

template <class Op>
void every_plane(const PoolArguments& a) {
  const int64_t size = a.input[0] * a.input[1] * a.input[2];
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
      v[i] = i < count ? reduce(static_cast<const float*>(a.x) + (first + i) * size, size, tail, op) : (vfloat){};
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
