/* Random numbers that are a pure function of (seed, stream, position), to the last bit as kernels/random.py gives them.
 *
 * Philox4x32-10: J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011. Written in the common subset of C, C++, CUDA C++ and OpenCL C; only integer arithmetic, and conversions of
 * integers that are exact or rounded to nearest, so that no compiler's choice of float instructions shows. Before
 * including it, QF_FUNCTION may be set to the qualifiers a function needs (CUDA: __device__).
 */
#ifndef QUATREFOIL_RANDOM_H
#define QUATREFOIL_RANDOM_H

#ifndef QF_FUNCTION
#define QF_FUNCTION static inline
#endif
#ifdef __OPENCL_VERSION__
typedef uint qf_random_word;
typedef long qf_random_int64;
typedef ulong qf_random_uint64;
#else
typedef unsigned int qf_random_word;
typedef long long qf_random_int64;
typedef unsigned long long qf_random_uint64;
#endif

typedef struct {
  qf_random_word word[4];
} qf_random_block;

/* Ten rounds over a counter of four words, under a key of two. */
QF_FUNCTION qf_random_block qf_philox(qf_random_block counter, qf_random_word key0, qf_random_word key1) {
  int round;
  for (round = 0; round < 10; round++) {
    qf_random_uint64 even = (qf_random_uint64)0xD2511F53u * counter.word[0];
    qf_random_uint64 odd = (qf_random_uint64)0xCD9E8D57u * counter.word[2];
    counter.word[0] = (qf_random_word)(odd >> 32) ^ counter.word[1] ^ key0;
    counter.word[2] = (qf_random_word)(even >> 32) ^ counter.word[3] ^ key1;
    counter.word[1] = (qf_random_word)odd;
    counter.word[3] = (qf_random_word)even;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

/* Block number `block` of a stream: its words 4 * block to 4 * block + 3. */
QF_FUNCTION qf_random_block qf_random_words(qf_random_uint64 seed, qf_random_uint64 stream, qf_random_uint64 block) {
  qf_random_block counter;
  counter.word[0] = (qf_random_word)block;
  counter.word[1] = (qf_random_word)(block >> 32);
  counter.word[2] = (qf_random_word)stream;
  counter.word[3] = (qf_random_word)(stream >> 32);
  return qf_philox(counter, (qf_random_word)seed, (qf_random_word)(seed >> 32));
}

/* From 0 to below 1, a multiple of 2^-24. */
QF_FUNCTION float qf_random_uniform(qf_random_word word) { return (float)(word >> 8) * 5.9604644775390625e-8f; }

/* 1 with the probability given, in steps of 2^-24 rounded up; a NaN gives 0. */
QF_FUNCTION int qf_random_bernoulli(qf_random_word word, float probability) {
  float scaled = probability * 16777216.0f; /* exact: a power of two */
  qf_random_word threshold;
  if (!(scaled > 0.0f)) return 0;
  if (scaled >= 16777216.0f) return 1;
  threshold = (qf_random_word)scaled;
  if ((float)threshold < scaled) threshold++;
  return (word >> 8) < threshold;
}

/* From 0 to below count, 1 to 2^32; each is drawn with its probability to within 2^-32. */
QF_FUNCTION qf_random_word qf_random_integer(qf_random_word word, qf_random_uint64 count) {
  return (qf_random_word)((word * count) >> 32);
}

/* ln(1 + x), x from 0 to 1 with 31 fraction bits, the result with 30: Chebyshev interpolation, 1e-9 off at most. */
QF_FUNCTION qf_random_int64 qf_random_log1p(qf_random_int64 x) {
  qf_random_int64 sum = -2427725;
  sum = 16165559 + ((sum * x) >> 31);
  sum = -50520772 + ((sum * x) >> 31);
  sum = 101743012 + ((sum * x) >> 31);
  sum = -156057253 + ((sum * x) >> 31);
  sum = 207787834 + ((sum * x) >> 31);
  sum = -267061634 + ((sum * x) >> 31);
  sum = 357751363 + ((sum * x) >> 31);
  sum = -536860845 + ((sum * x) >> 31);
  sum = 1073741577 + ((sum * x) >> 31);
  sum = 1 + ((sum * x) >> 31);
  return sum;
}

/* sin(x pi / 2), x from 0 to 1 with 31 fraction bits, the result with 30: x times a polynomial of x^2, 2e-9 off at most. */
QF_FUNCTION qf_random_int64 qf_random_sine(qf_random_int64 x) {
  qf_random_int64 square = (x * x) >> 31;
  qf_random_int64 sum = -3685;
  sum = 172072 + ((sum * square) >> 31);
  sum = -5026892 + ((sum * square) >> 31);
  sum = 85569282 + ((sum * square) >> 31);
  sum = -693598666 + ((sum * square) >> 31);
  sum = 1686629713 + ((sum * square) >> 31);
  return (sum * x) >> 31;
}

/* The whole part of a square root, a bit at a time. */
QF_FUNCTION qf_random_uint64 qf_random_root(qf_random_uint64 square) {
  qf_random_uint64 root = 0, bit = (qf_random_uint64)1 << 62;
  for (; bit; bit >>= 2) {
    if (square >= root + bit) {
      square -= root + bit;
      root = (root >> 1) + bit;
    } else {
      root >>= 1;
    }
  }
  return root;
}

/* One of the two normal numbers, `which` 0 or 1, that Box and Muller (1958) make of two words: sqrt(-2 ln u) times the
 * cosine or the sine of 2 pi v. In fixed point: 28 fraction bits, magnitudes to 6.76, rounded to float once. */
QF_FUNCTION float qf_random_normal(qf_random_word first, qf_random_word second, int which) {
  qf_random_uint64 odd = 2 * (qf_random_uint64)first + 1; /* u = odd / 2^33 = (1 + fraction) 2^(exponent - 33) */
  int exponent = 32, quarter = (int)(second >> 30);
  qf_random_int64 minus_log, x, trigonometric, size;
  while (!(odd >> 32)) {
    odd <<= 1;
    exponent--;
  }
  minus_log = (33 - exponent) * (qf_random_int64)744261118 - /* ln 2, 30 fraction bits */
              qf_random_log1p((qf_random_int64)((odd & 0xFFFFFFFFu) >> 1));
  if (minus_log < 0) minus_log = 0;
  x = 2 * (qf_random_int64)(second & 0x3FFFFFFFu) + 1; /* within a quarter turn */
  if ((quarter ^ which ^ 1) & 1) x = ((qf_random_int64)1 << 31) - x;
  trigonometric = qf_random_sine(x);
  size = (qf_random_int64)qf_random_root((qf_random_uint64)minus_log << 27);
  x = (size * trigonometric) >> 30;
  if (which ? quarter >= 2 : quarter == 1 || quarter == 2) x = -x;
  return (float)x * 3.7252902984619140625e-9f; /* 2^-28 */
}
#endif
