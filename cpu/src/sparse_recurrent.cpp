// A recurrent layer of leaky units with a sparse recurrent matrix, float32 (ops/sparse.py).
//
// The matrix stays as compressed rows. A few sequences go one by one: a row is a sum over its stored values, then the function
// takes a vector of units. More go LANES at a time, their states transposed to (units, LANES), so that each stored value is
// read once for all of them and multiplies a vector without a gather; lanes beyond the last sequence hold zeros.
// Workspace: a row of sums, or three transposed blocks.
#include "simd.h"
#include "sparse.h"

namespace {

constexpr int64_t FEW = LANES / 2;  // sequences up to which one by one is faster than transposing

QF_INLINE vfloat leaked(const SparseArguments& a, vfloat h, vfloat sum) {
  const vfloat leak = broadcast(a.leak);
  const vfloat f = activate(a.function, a.alpha, a.beta, sum);
  // without a leak the old state has no part, not even where it is infinite
  return a.leak == 1.0f ? f : (broadcast(1.0f) - leak) * h + leak * f;
}

void one_sequence(const SparseArguments& a, int64_t n) {
  float* sums = a.workspace;
  const float* h = a.initial_h ? a.initial_h + n * a.hidden : nullptr;
  for (int64_t t = 0; t < a.steps; t++) {
    const float* x = a.x + (t * a.batch + n) * a.hidden;
    float* y = a.y + (t * a.batch + n) * a.hidden;
    for (int64_t unit = 0; unit < a.hidden; unit++) {
      // two sums, so that an addition need not wait for the one before it
      float even = x[unit], odd = 0;
      if (h) {
        int64_t k = a.offsets[unit];
        const int64_t end = a.offsets[unit + 1];
        for (; k + 1 < end; k += 2) {
          even += a.values[k] * h[a.columns[k]];
          odd += a.values[k + 1] * h[a.columns[k + 1]];
        }
        if (k < end) even += a.values[k] * h[a.columns[k]];
      }
      sums[unit] = even + odd;
    }
    for (int64_t unit = 0; unit < a.hidden; unit += LANES) {
      const int count = clamped(a.hidden - unit, LANES);
      const vfloat before = h ? load_first(h + unit, count) : (vfloat){};
      store_first(y + unit, leaked(a, before, load_first(sums + unit, count)), count);
    }
    h = y;
  }
}

// (count, hidden) rows of x to (hidden, LANES)
void transpose_in(const float* x, int64_t hidden, int count, float* to) {
  for (int64_t unit = 0; unit < hidden; unit++)
    for (int lane = 0; lane < LANES; lane++) to[unit * LANES + lane] = lane < count ? x[lane * hidden + unit] : 0.0f;
}

void block_of_sequences(const SparseArguments& a, int64_t n) {
  const int64_t size = a.hidden * LANES;
  const int count = clamped(a.batch - n, LANES);
  float *x = a.workspace, *h = x + size, *next = h + size;
  if (a.initial_h)
    transpose_in(a.initial_h + n * a.hidden, a.hidden, count, h);
  else
    memset(h, 0, sizeof(float) * size);
  for (int64_t t = 0; t < a.steps; t++) {
    const int64_t first = (t * a.batch + n) * a.hidden;
    transpose_in(a.x + first, a.hidden, count, x);
    for (int64_t unit = 0; unit < a.hidden; unit++) {
      vfloat sum = load(x + unit * LANES);
      for (int64_t k = a.offsets[unit]; k < a.offsets[unit + 1]; k++)
        sum += broadcast(a.values[k]) * load(h + int64_t(a.columns[k]) * LANES);
      store(next + unit * LANES, leaked(a, load(h + unit * LANES), sum));
    }
    for (int lane = 0; lane < count; lane++)
      for (int64_t unit = 0; unit < a.hidden; unit++) a.y[first + lane * a.hidden + unit] = next[unit * LANES + lane];
    float* old = h;
    h = next;
    next = old;
  }
}

}  // namespace

extern "C" int64_t QF_EXPORT(sparse_workspace_f32)(const SparseArguments* a) {
  return a->batch > FEW ? 3 * a->hidden * LANES : a->hidden;
}

extern "C" void QF_EXPORT(sparse_recurrent_f32)(const SparseArguments* a) {
  if (a->batch > FEW)
    for (int64_t n = 0; n < a->batch; n += LANES) block_of_sequences(*a, n);
  else
    for (int64_t n = 0; n < a->batch; n++) one_sequence(*a, n);
}
