/* Casts of fixed-point integers, to the last bit as kernels/numerics.py defines them (class Fixed).
 *
 * Written in the common subset of C, C++, CUDA C++ and OpenCL C. Before including it, QF_FUNCTION may be set to the
 * qualifiers a function needs (CUDA: __device__). A format is given by the codes of its rounding and overflow (their
 * places in numerics.ROUNDINGS and OVERFLOWS), its width, its sign, and its least and greatest integer.
 */
#ifndef QUATREFOIL_FIXED_H
#define QUATREFOIL_FIXED_H

#ifndef QF_FUNCTION
#define QF_FUNCTION static inline
#endif
#ifdef __OPENCL_VERSION__
typedef long qf_int64;
typedef ulong qf_uint64;
#else
typedef long long qf_int64;
typedef unsigned long long qf_uint64;
#endif

enum { QF_TRN = 0, QF_TRN_ZERO = 1, QF_RND = 2, QF_RND_CONV = 3, QF_RND_ZERO = 4, QF_RND_INF = 5, QF_RND_MIN_INF = 6 };
enum { QF_WRAP = 0, QF_SAT = 1, QF_SAT_ZERO = 2, QF_SAT_SYM = 3 };

typedef struct {
  qf_int64 low, high; /* SAT_SYM's low is -high */
  int width, is_signed, rounding, overflow;
} qf_format;

/* v << by without leaving what C defines; bits beyond 64 are lost */
QF_FUNCTION qf_int64 qf_shifted(qf_int64 v, int by) { return by > 63 ? 0 : (qf_int64)((qf_uint64)v << by); }

/* v / 2^drop, rounded; |v| is at most 2^62, drop from 0 on */
QF_FUNCTION qf_int64 qf_rounded(qf_int64 v, int drop, int rounding) {
  qf_int64 whole, rest, middle;
  int up;
  if (drop == 0) return v;
  if (drop > 62) return v < 0 && rounding == QF_TRN ? -1 : 0;
  whole = v >> drop;
  if (rounding == QF_TRN) return whole;
  rest = v - (qf_int64)((qf_uint64)whole << drop);
  if (rounding == QF_TRN_ZERO) return whole + (v < 0 && rest > 0);
  middle = (qf_int64)1 << (drop - 1);
  switch (rounding) {
    case QF_RND: up = rest >= middle; break;
    case QF_RND_MIN_INF: up = rest > middle; break;
    case QF_RND_ZERO: up = v < 0 ? rest >= middle : rest > middle; break;
    case QF_RND_INF: up = v < 0 ? rest > middle : rest >= middle; break;
    default: up = rest > middle || (rest == middle && (whole & 1)); break;
  }
  return whole + up;
}

/* v brought into the format's range; |v| below 2^63 */
QF_FUNCTION qf_int64 qf_fitted(qf_int64 v, qf_format format) {
  if (format.overflow == QF_WRAP) {
    int spare = 64 - format.width;
    qf_uint64 top = (qf_uint64)v << spare;
    return format.is_signed ? (qf_int64)top >> spare : (qf_int64)(top >> spare);
  }
  if (v >= format.low && v <= format.high) return v;
  if (format.overflow == QF_SAT_ZERO) return 0;
  return v < format.low ? format.low : format.high;
}

/* An integer with ``drop`` more fraction bits than the format has (fewer where negative), |v| at most 2^62, as one of
 * the format. */
QF_FUNCTION qf_int64 qf_cast(qf_int64 v, int drop, qf_format format) {
  int up = -drop;
  if (drop >= 0) return qf_fitted(qf_rounded(v, drop, format.rounding), format);
  if (format.overflow == QF_WRAP) return qf_fitted(qf_shifted(v, up), format);
  /* what would leave 64 bits when it is shifted is known before */
  if (v > (format.high >> (up > 62 ? 62 : up))) return format.overflow == QF_SAT_ZERO ? 0 : format.high;
  if (v < -((-format.low) >> (up > 62 ? 62 : up))) return format.overflow == QF_SAT_ZERO ? 0 : format.low;
  return qf_fitted(qf_shifted(v, up), format);
}

/* The place of v in a function's table (numerics.table_index); ``bits`` is numerics.table_bits */
QF_FUNCTION int qf_table_index(qf_int64 v, int bits, int size) {
  qf_int64 most = (qf_int64)1 << 20, steps = v < 0 ? -v : v;
  if (bits >= 0) {
    steps = steps >> (bits > 62 ? 62 : bits);
  } else {
    steps = (steps > most ? most : steps) << (-bits > 40 ? 40 : -bits);
  }
  if (steps > most) steps = most;
  steps = (v < 0 ? -steps : steps) + size / 2;
  return steps < 0 ? 0 : steps > size - 1 ? size - 1 : (int)steps;
}

#endif
