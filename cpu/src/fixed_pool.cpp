// Fixed-point pooling, along the rows of y: each tap of the window is taken for a piece of a row at once, or, where a
// window is longer than the row, each place of the row takes its taps one after the other. Either way a place's taps
// come in the operator's order. Threads share the rows of y.
//
// x, y int16 or int32, (planes, D, H, W). Sums are 32 bits wide where nothing is lost by it, else 64.
#include "fixed_vector.h"

namespace {

constexpr int64_t PIECE = 256;  // places of a row that are summed together, on the stack

// How a tap joins what was there.
template <class Sum>
struct Greatest {
  explicit Greatest(const FixedPool&) {}
  static Sum start() { return sizeof(Sum) == 4 ? Sum(INT32_MIN) : Sum(INT64_MIN); }
  QF_INLINE Sum operator()(Sum found, Sum x) const { return found > x ? found : x; }
};

// Where sums stay inside the accumulator, or wrap: that may wait until the last one.
template <class Sum>
struct Total {
  int up;
  explicit Total(const FixedPool& f) : up(-f.x.drop) {}
  static Sum start() { return 0; }
  QF_INLINE Sum operator()(Sum found, Sum x) const { return found + (x << up); }
};

// Where each sum is cast.
template <class Sum>
struct CastTotal {
  const FixedCast x, sum;
  explicit CastTotal(const FixedPool& f) : x(f.x), sum(f.sum) {}
  static Sum start() { return 0; }
  QF_INLINE Sum operator()(Sum found, Sum value) const {
    return Sum(qf_cast(found + qf_cast(value, x.drop, x.format), sum.drop, sum.format));
  }
};

// a / b rounded up, without a division for the usual b.
QF_INLINE int64_t steps(int64_t a, int64_t b) { return b == 1 ? a : b == 2 ? (a + 1) >> 1 : divide_up(a, b); }

QF_INLINE int32_t quotient(int32_t total, int32_t divisor) { return int32_t(double(total) / divisor); }  // exact
QF_INLINE int64_t quotient(int64_t total, int32_t divisor) { return total / divisor; }

template <class Sum, class X, class Join>
void pool(const FixedPool& f, const X* x, void* y, int threads) {
  typedef typename VectorOf<Sum>::V V;
  const Join join(f);
  const VectorCast<V> wrap(f.sum), cast(f.y);
  const bool wraps = f.average && f.sum.format.overflow == QF_WRAP;
  const int64_t rows = f.planes * f.output[0] * f.output[1], x_size = f.input[0] * f.input[1] * f.input[2];
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t h = row % f.output[1], d = row / f.output[1] % f.output[0], plane = row / f.output[1] / f.output[0];
    for (int64_t first = 0; first < f.output[2]; first += PIECE) {
      const int64_t count = smaller(PIECE, f.output[2] - first), stride = f.strides[2];
      alignas(64) Sum found[PIECE];
      for (int64_t i = 0; i < divide_up(count, LANES) * LANES; i++) found[i] = Join::start();
      for (int64_t kd = 0; kd < f.kernel[0]; kd++) {
        const int64_t id = d * f.strides[0] + kd * f.dilations[0] - f.pads[0];
        if (id < 0 || id >= f.input[0]) continue;
        for (int64_t kh = 0; kh < f.kernel[1]; kh++) {
          const int64_t ih = h * f.strides[1] + kh * f.dilations[1] - f.pads[1];
          if (ih < 0 || ih >= f.input[1]) continue;
          const X* line = x + plane * x_size + (id * f.input[1] + ih) * f.input[2];
          if (f.kernel[2] > count) {
            for (int64_t i = 0; i < count; i++) {
              const int64_t column = (first + i) * stride - f.pads[2], step = f.dilations[2];
              const int64_t begin = column < 0 ? steps(-column, step) : 0, room = f.input[2] - column;
              const int64_t end = room > 0 ? smaller(f.kernel[2], steps(room, step)) : 0;
              Sum sum = found[i];
              if (step == 1)
                for (int64_t k = begin; k < end; k++) sum = join(sum, line[column + k]);
              else
                for (int64_t k = begin; k < end; k++) sum = join(sum, line[column + k * step]);
              found[i] = sum;
            }
            continue;
          }
          for (int64_t kw = 0; kw < f.kernel[2]; kw++) {
            const int64_t column = first * stride + kw * f.dilations[2] - f.pads[2], room = f.input[2] - column;
            const int64_t begin = column < 0 ? steps(-column, stride) : 0;
            const int64_t end = room > 0 ? smaller(count, steps(room, stride)) : 0;
            if (stride == 1)
              for (int64_t i = begin; i < end; i++) found[i] = join(found[i], line[column + i]);
            else if (stride == 2)
              for (int64_t i = begin; i < end; i++) found[i] = join(found[i], line[column + 2 * i]);
            else
              for (int64_t i = begin; i < end; i++) found[i] = join(found[i], line[column + i * stride]);
          }
        }
      }
      if (f.average) {
        const int32_t* divisors = f.divisors + (d * f.output[1] + h) * f.output[2] + first;
        if (wraps)
          for (int64_t i = 0; i < count; i += Lanes<V>::COUNT) {
            const V v = wrap.template fitted<QF_WRAP>(load_vector<V>(found + i));
            memcpy(found + i, &v, sizeof v);
          }
        for (int64_t i = 0; i < count; i++) found[i] = quotient(found[i], divisors[i]);
      }
      for (int64_t i = 0; i < count; i += Lanes<V>::COUNT) {
        const V v = cast.applied(load_vector<V>(found + i));
        memcpy(found + i, &v, sizeof v);
      }
      const int64_t at = row * f.output[2] + first;
      if (f.y_bytes == 2)
        for (int64_t i = 0; i < count; i++) ((int16_t*)y)[at + i] = int16_t(found[i]);
      else
        for (int64_t i = 0; i < count; i++) ((int32_t*)y)[at + i] = int32_t(found[i]);
    }
  }
}

template <class Sum, class X>
void pool_of(const FixedPool& f, const X* x, void* y, int threads) {
  if (!f.average)
    pool<Sum, X, Greatest<Sum>>(f, x, y, threads);
  else if (f.exact)
    pool<Sum, X, Total<Sum>>(f, x, y, threads);
  else
    pool<Sum, X, CastTotal<Sum>>(f, x, y, threads);
}

template <class X>
void pool_from(const FixedPool& f, const X* x, void* y, int threads) {
  if (f.narrow)
    pool_of<int32_t>(f, x, y, threads);
  else
    pool_of<int64_t>(f, x, y, threads);
}

}  // namespace

extern "C" void QF_EXPORT(fixed_pool)(const FixedPool* pool, const void* x, void* y, int threads) {
  if (pool->x_bytes == 2)
    pool_from(*pool, (const int16_t*)x, y, threads);
  else
    pool_from(*pool, (const int32_t*)x, y, threads);
}
