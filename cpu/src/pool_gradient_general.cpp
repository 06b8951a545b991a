// Gradients of pooling by their definition, for every float dtype, window and option; and that of max_unpool, a gather from
// the last element on, which leaves out places that a later element has taken.
#include "pool_gradient_rows.h"

namespace {

template <class T>
void every_plane(const PoolGradientArguments& a) {
  over_whole_planes(a, [&](int64_t plane, int) { plane_by_definition<T>(a, plane); });
}

// Plane by plane, so that the places that are taken stay in the first-level cache. False where an index is of another plane.
template <class T>
bool gather_planes(const UnpoolGradientArguments& a) {
  const int64_t size = a.output[0] * a.output[1] * a.output[2], each = a.size / a.planes;
  const int64_t* indices = a.indices;
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  for (int64_t plane = 0; plane < a.planes; plane++, dy += size, dx += each, indices += each) {
    memset(a.taken, 0, size);
    for (int64_t i = each - 1; i >= 0; i--) {
      const int64_t at = indices[i] - plane * size;
      if (at < 0 || at >= size) return false;
      dx[i] = a.taken[at] ? T(0) : dy[at];
      a.taken[at] = 1;
    }
  }
  return true;
}

template <class T>
int gather(const UnpoolGradientArguments& a) {
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  const int64_t from = a.indexed[0] * a.indexed[1] * a.indexed[2], to = a.output[0] * a.output[1] * a.output[2];
  if (from == to && gather_planes<T>(a)) return 0;
  memset(a.taken, 0, a.planes * to);
  for (int64_t i = a.size - 1; i >= 0; i--) {
    const int64_t index = a.indices[i], w = index % a.indexed[2], h = index / a.indexed[2] % a.indexed[1];
    const int64_t d = index / (a.indexed[2] * a.indexed[1]) % a.indexed[0];
    const int64_t at = index / from * to + (d * a.output[1] + h) * a.output[2] + w;
    dx[i] = a.taken[at] ? T(0) : dy[at];
    a.taken[at] = 1;
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
