// Gradients of pooling by their definition, for every float dtype, window and option; and that of max_unpool, a gather from
// the last element on, which leaves out places that a later element has taken.
#include "pool_gradient_rows.h"

namespace {

template <class T>
void every_plane(const PoolGradientArguments& a) {
  over_whole_planes(a, [&](int64_t plane, int) { plane_by_definition<T>(a, plane); });
}

template <class T>
int gather(const UnpoolGradientArguments& a) {
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  const int64_t from = a.indexed[0] * a.indexed[1] * a.indexed[2], to = a.output[0] * a.output[1] * a.output[2];
  for (int64_t i = a.size - 1; i >= 0; i--) {
    int64_t index = a.indices[i];
    if (from != to) {
      const int64_t w = index % a.indexed[2], h = index / a.indexed[2] % a.indexed[1];
      const int64_t d = index / (a.indexed[2] * a.indexed[1]) % a.indexed[0];
      index = index / from * to + (d * a.output[1] + h) * a.output[2] + w;
    }
    const uint64_t bit = uint64_t(1) << (index % 64);
    uint64_t& taken = a.taken[index / 64];
    dx[i] = taken & bit ? T(0) : dy[index];
    taken |= bit;
  }
  return 0;
}

}  // namespace

extern "C" int QF_EXPORT(pool_gradient_general)(const PoolGradientArguments* a) {
  switch (a->type) {
    case POOL_FLOAT32: every_plane<float>(*a); return 0;
    case POOL_FLOAT64: every_plane<double>(*a); return 0;
    default: return 1;
  }
}

extern "C" int QF_EXPORT(pool_gradient_unpool)(const UnpoolGradientArguments* a) {
  switch (a->element_bytes) {
    case 4: return gather<uint32_t>(*a);
    case 8: return gather<uint64_t>(*a);
    default: return 1;
  }
}
