// Steps of a sequence between fixed-point operators: element-wise functions and casts of integers, and softmax by tables.
// Their meaning is models/fixed/elements.py's, to the last bit.
//
// A piece of a row at a time becomes 64-bit integers on the stack, in which everything is exact, is worked on in loops
// that each do one thing, and is cast in vectors. x, y int16 or int32; float32 where real numbers come in or go out.
#include <math.h>

#include "fixed_vector.h"
#include "sequence_walk.h"

namespace {

constexpr int64_t PIECE = 256;
constexpr int COUNT = Lanes<vlong>::COUNT;

template <class X>
QF_INLINE void fetch_as(int64_t* to, const X* x, int64_t stride, int64_t begin, int64_t count) {
  if (stride == 1)
    for (int64_t i = 0; i < count; i++) to[i] = x[begin + i];
  else
    for (int64_t i = 0; i < count; i++) to[i] = x[(begin + i) * stride];
}

void fetch(int64_t* to, const void* x, int bytes, int64_t at, int64_t stride, int64_t begin, int64_t count) {
  if (bytes == 2) fetch_as(to, (const int16_t*)x + at, stride, begin, count);
  else fetch_as(to, (const int32_t*)x + at, stride, begin, count);
}

void put(void* y, int bytes, int64_t at, const int64_t* from, int64_t count) {
  if (bytes == 2)
    for (int64_t i = 0; i < count; i++) ((int16_t*)y)[at + i] = int16_t(from[i]);
  else
    for (int64_t i = 0; i < count; i++) ((int32_t*)y)[at + i] = int32_t(from[i]);
}

void cast_piece(const VectorCast<vlong>& cast, int64_t* values) {
  for (int64_t i = 0; i < PIECE; i += COUNT) {
    const vlong v = cast.applied(load_vector<vlong>(values + i));
    memcpy(values + i, &v, sizeof v);
  }
}

// A real number times 2^fraction, rounded and brought into the format: numerics.Fixed.quantize, which rounds the
// difference to the next lower whole number, where qf_rounded looks at the bits that are dropped.
int64_t quantized(double scaled, const qf_format& format) {
  const double whole = floor(scaled), rest = scaled - whole;  // exact
  bool up = false;
  switch (format.rounding) {
    case QF_TRN: break;
    case QF_TRN_ZERO: up = scaled < 0 && rest > 0; break;
    case QF_RND: up = rest >= 0.5; break;
    case QF_RND_MIN_INF: up = rest > 0.5; break;
    case QF_RND_ZERO: up = scaled < 0 ? rest >= 0.5 : rest > 0.5; break;
    case QF_RND_INF: up = scaled < 0 ? rest > 0.5 : rest >= 0.5; break;
    default: up = rest > 0.5 || (rest == 0.5 && fmod(whole, 2) != 0); break;
  }
  double rounded = whole + up;
  constexpr double MOST = double(int64_t(1) << 62);
  if (rounded >= MOST || rounded <= -MOST)
    // 64 bits do not hold it: what is left of 2^width is exact in floating point
    rounded = format.overflow == QF_WRAP ? fmod(rounded, ldexp(1, format.width)) : rounded > 0 ? MOST : -MOST;
  return qf_fitted(int64_t(rounded), format);
}

QF_INLINE bool finite(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return (bits & 0x7F800000) != 0x7F800000;
}

// What the exact result is, and what becomes of values below 0 afterwards.
void piece(const FixedElementsContext& s, const VectorCast<vlong>& cast, const VectorCast<vlong>& below, int64_t* a,
           int64_t* b) {
  switch (s.function) {
    case FIXED_SUM:
      for (int64_t i = 0; i < PIECE; i++)
        a[i] = int64_t(uint64_t(a[i]) << s.shifts[0]) + s.factor * int64_t(uint64_t(b[i]) << s.shifts[1]);
      break;
    case FIXED_PRODUCT:
      for (int64_t i = 0; i < PIECE; i++) a[i] *= b[i];
      break;
    case FIXED_AFFINE:
      for (int64_t i = 0; i < PIECE; i++) {
        const int64_t v = a[i] * s.factor + s.offset;
        a[i] = v < s.low ? s.low : v > s.high ? s.high : v;
      }
      break;
    case FIXED_TABLE:
      for (int64_t i = 0; i < PIECE; i++) a[i] = s.table[qf_table_index(a[i], s.table_bits, s.table_size)];
      return;
    case FIXED_SLOPE_BELOW:
      for (int64_t i = 0; i < PIECE; i++) b[i] = a[i] * s.factor;
      cast_piece(below, b);
      break;
    case FIXED_TABLE_BELOW:
      for (int64_t i = 0; i < PIECE; i++) b[i] = s.table[qf_table_index(a[i], s.table_bits, s.table_size)];
      break;
  }
  if (s.function < FIXED_SLOPE_BELOW) return cast_piece(cast, a);
  int64_t above[PIECE];
  memcpy(above, a, sizeof above);
  cast_piece(cast, above);
  for (int64_t i = 0; i < PIECE; i++) a[i] = a[i] > 0 ? above[i] : b[i];
}

}  // namespace

extern "C" void QF_EXPORT(sequence_fixed_elements)(const void* context, const void* const* inputs, void* const* outputs,
                                                   char*, int threads) {
  const FixedElementsContext& s = *static_cast<const FixedElementsContext*>(context);
  const VectorCast<vlong> cast(s.cast), below(s.below);
  const int64_t last = s.rank - 1;
  void* const y = outputs[0];
  walk_rows<3>(s, threads, [&](const int64_t (&offsets)[3], int64_t begin, int64_t end) {
    const int64_t to = offsets[0], from = offsets[1], stride = s.strides[1][last];
    if (s.function == FIXED_COPY) {
      const int16_t* const x = (const int16_t*)inputs[0] + from;
      if (stride == 1) memcpy((int16_t*)y + to + begin, x + begin, size_t(end - begin) * 2);
      else
        for (int64_t i = begin; i < end; i++) ((int16_t*)y)[to + i] = x[i * stride];
      return;
    }
    if (s.function == FIXED_DEQUANTIZE) {
      for (int64_t i = begin; i < end; i++) {
        const double v = s.x_bytes[0] == 2 ? ((const int16_t*)inputs[0])[from + i * stride]
                                           : ((const int32_t*)inputs[0])[from + i * stride];
        ((float*)y)[to + i] = float(v * s.scale);
      }
      return;
    }
    alignas(64) int64_t a[PIECE] = {}, b[PIECE] = {};
    for (int64_t first = begin; first < end; first += PIECE) {
      const int64_t count = smaller(PIECE, end - first);
      bool fits = true;
      if (s.function == FIXED_QUANTIZE) {
        for (int64_t i = 0; i < count; i++) {
          const float v = ((const float*)inputs[0])[from + (first + i) * stride];
          fits &= finite(v);
          a[i] = finite(v) ? quantized(double(v) * s.scale, s.cast.format) : 0;
        }
      } else {
        fetch(a, inputs[0], s.x_bytes[0], from, stride, first, count);
        if (s.x_bytes[1]) fetch(b, inputs[1], s.x_bytes[1], offsets[2], s.strides[2][last], first, count);
        if (s.function == FIXED_CHECK)
          for (int64_t i = 0; i < count; i++) fits &= a[i] >= s.low && a[i] <= s.high;
        else piece(s, cast, below, a, b);
      }
      if (!fits) __atomic_store_n((int32_t*)outputs[1], 1, __ATOMIC_RELAXED);
      put(y, s.y_bytes, to + first, a, count);
    }
  });
}

extern "C" void QF_EXPORT(sequence_fixed_softmax)(const void* context, const void* const* inputs, void* const* outputs,
                                                  char*, int) {
  const FixedSoftmaxContext& s = *static_cast<const FixedSoftmaxContext*>(context);
  const VectorCast<vlong> cast(s.y);
  for (int64_t row = 0; row < s.rows; row++) {
    alignas(64) int64_t v[PIECE] = {};
    const int64_t at = row * s.length;
    int64_t greatest = INT64_MIN, sum = 0;
    const auto place = [&](int64_t x) {
      return qf_cast(greatest - x, s.difference.drop, s.difference.format) >> s.difference_shift;
    };
    for (int64_t first = 0; first < s.length; first += PIECE) {
      const int64_t count = smaller(PIECE, s.length - first);
      fetch(v, inputs[0], s.x_bytes, at, 1, first, count);
      for (int64_t i = 0; i < count; i++) greatest = v[i] > greatest ? v[i] : greatest;
    }
    for (int64_t first = 0; first < s.length; first += PIECE) {
      const int64_t count = smaller(PIECE, s.length - first);
      fetch(v, inputs[0], s.x_bytes, at, 1, first, count);
      for (int64_t i = 0; i < count; i++) sum += s.powers[place(v[i])];
    }
    const int64_t total = qf_cast(qf_cast(sum, 0, s.accumulator.format), s.sum.drop, s.sum.format);
    const int64_t inverse = s.inverses[total >> s.sum_shift];
    for (int64_t first = 0; first < s.length; first += PIECE) {
      const int64_t count = smaller(PIECE, s.length - first);
      fetch(v, inputs[0], s.x_bytes, at, 1, first, count);
      for (int64_t i = 0; i < count; i++) v[i] = s.powers[place(v[i])] * inverse;
      cast_piece(cast, v);
      put(outputs[0], s.y_bytes, at + first, v, count);
    }
  }
}
