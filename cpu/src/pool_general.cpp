// Pooling by its definition: plain loops over the taps that are inside, for every dtype, window and option.
// max_unpool, which is a scatter over zeros.
//
// Accepts everything. Each thread takes whole planes, or bands of rows where there are few planes.
#include "pool_rows.h"

namespace {

template <class T>
void every_row(const PoolArguments& a) {
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++) row_by_definition<T>(a, plane, row);
  });
}

// Plane by plane, while what it writes is in the first-level cache. False where an index is of another plane.
template <class T>
bool scatter_planes(const UnpoolArguments& a) {
  const int64_t size = a.output[0] * a.output[1] * a.output[2], each = a.size / a.planes;
  const int64_t* indices = a.indices;
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  for (int64_t plane = 0; plane < a.planes; plane++, y += size, x += each, indices += each) {
    memset(y, 0, size * sizeof(T));
    for (int64_t i = 0; i < each; i++) {
      const int64_t at = indices[i] - plane * size;
      if (at < 0 || at >= size) return false;
      y[at] = x[i];
    }
  }
  return true;
}

template <class T>
void scatter(const UnpoolArguments& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const int64_t from = a.indexed[0] * a.indexed[1] * a.indexed[2], to = a.output[0] * a.output[1] * a.output[2];
  // where both are the same the output, which holds the indexed shape on every axis, is just that
  if (from == to && scatter_planes<T>(a)) return;
  memset(y, 0, a.planes * to * sizeof(T));
  for (int64_t i = 0; i < a.size; i++) {
    const int64_t index = a.indices[i], w = index % a.indexed[2], h = index / a.indexed[2] % a.indexed[1];
    const int64_t d = index / (a.indexed[2] * a.indexed[1]) % a.indexed[0];
    y[index / from * to + (d * a.output[1] + h) * a.output[2] + w] = x[i];
  }
}

}  // namespace

extern "C" int QF_EXPORT(pool_general)(const PoolArguments* a) {
  switch (a->type) {
    case POOL_FLOAT32: every_row<float>(*a); return 0;
    case POOL_FLOAT64: every_row<double>(*a); return 0;
    case POOL_UINT8: every_row<uint8_t>(*a); return 0;
    case POOL_INT8: every_row<int8_t>(*a); return 0;
    default: return 1;
  }
}

extern "C" int QF_EXPORT(pool_unpool)(const UnpoolArguments* a) {
  switch (a->element_bytes) {
    case 1: scatter<uint8_t>(*a); return 0;
    case 2: scatter<uint16_t>(*a); return 0;
    case 4: scatter<uint32_t>(*a); return 0;
    case 8: scatter<uint64_t>(*a); return 0;
    default: return 1;
  }
}
