// Pooling with the whole plane as window: one number a plane, read once from end to end.
//
// Four vectors accumulate, so that neither the latency of an addition nor rounding piles up in one of them.
// Accepts float32 max, average, and lp with p 1 or 2; the window has no padding.
#include "pool_vector.h"

namespace {

// All lanes of v combined, in every lane of the result's first.
template <class Op, int STEP = LANES / 2>
QF_INLINE vfloat fold(vfloat v) {
  if constexpr (STEP == 0) return v;
  else return fold<Op, STEP / 2>(Op::combine(shifted<STEP>(v, v), v));
}

template <class Op>
void every_plane(const PoolArguments& a) {
  const int64_t size = a.input[0] * a.input[1] * a.input[2];
  const float weight = Op::scaled ? a.row_weights[0] * a.column_weights[0] : 1.0f;
  float* y = static_cast<float*>(a.y);
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    if (begin == end) return;
    const float* x = static_cast<const float*>(a.x) + plane * size;
    Op op;
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
    QF_UNROLL for (int i = 0; i < 4; i++) {
      if (at >= size) break;
      const vfloat v = load_span(x, span_at(at, size), Op::identity());
      sums[i] = Op::combine(Op::value(v), sums[i]);
      op.see(v, v);
      at += LANES;
    }
    const vfloat all = fold<Op>(Op::combine(Op::combine(sums[0], sums[1]), Op::combine(sums[2], sums[3])));
    y[plane] = Op::finish(all)[0] * weight;
    if (op.again()) row_by_definition<float>(a, plane, 0);
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
