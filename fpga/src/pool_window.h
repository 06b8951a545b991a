/* What a pooling window gathers, tap by tap: shared by the pooling kernels.
 *
 * X_T and Y_T are the element types, INTEGERS is defined for integers; MODE is one of the codes below. `place` numbers
 * the tap inside its plane, row-major. Fixed point (fixed_max_pool, fixed_average_pool) defines FIXED and the constants
 * of fixed_sum.h, with the format of x as the accumulator of a maximum; DROP is negative where the accumulator has more
 * fraction bits than x.
 */
#ifdef FIXED
#include "fixed_sum.h"
#endif
#define MODE_MAX 0
#define MODE_AVERAGE 1
#define MODE_LP 2

#if MODE == MODE_MAX
typedef struct {
  X_T value;
  int place; /* -1 before the first tap */
} window_t;

static inline void open(window_t* window) {
  window->value = LOWEST;
  window->place = -1;
}

/* The first of equal values wins, and the first NaN wins over everything. */
static inline int beats(X_T value, X_T best) {
#ifdef INTEGERS
  return value > best;
#else
  return value > best || (isnan(value) && !isnan(best));
#endif
}

static inline void add(window_t* window, X_T value, int place, int p) {
  int better = window->place < 0 || beats(value, window->value);
  window->value = better ? value : window->value;
  window->place = better ? place : window->place;
}

static inline void close_row(window_t* window) {}

#ifdef FIXED
typedef long COUNT_T;
static inline Y_T result(const window_t* window, COUNT_T count, int p) { return fixed_output(window->value); }
#else
typedef float COUNT_T;
static inline Y_T result(const window_t* window, COUNT_T count, int p) { return window->value; }
#endif
#elif defined(FIXED)
typedef long COUNT_T;
typedef struct {
  SUM_T total;
} window_t;

static inline void open(window_t* window) { window->total = 0; }

static inline void add(window_t* window, X_T value, int place, int p) {
  window->total = added(window->total, value, DROP);
}

static inline void close_row(window_t* window) {}

/* Division in C is toward zero, as it should be. */
static inline Y_T result(const window_t* window, COUNT_T count, int p) {
  return fixed_output((SUM_T)(settled(window->total) / count));
}
#else
typedef float COUNT_T;
/* Sums by rows first: the rounding error of a global window grows with its side instead of its area. */
typedef struct {
  float total;
  float row;
} window_t;

static inline void open(window_t* window) { window->total = window->row = 0.0f; }

static inline void add(window_t* window, X_T value, int place, int p) {
#if MODE == MODE_AVERAGE
  window->row += value;
#else
  window->row += p == 1 ? fabs(value) : p == 2 ? value * value : pown(fabs(value), p);
#endif
}

static inline void close_row(window_t* window) {
  window->total += window->row;
  window->row = 0.0f;
}

static inline Y_T result(const window_t* window, COUNT_T count, int p) {
#if MODE == MODE_AVERAGE
  return window->total / count;
#else
  return p == 1 ? window->total : p == 2 ? sqrt(window->total) : pow(window->total, 1.0f / (float)p);
#endif
}
#endif

#if MODE == MODE_MAX
/* ONNX's index of a place: planes one after the other, within a plane row-major or with the axes reversed. */
static inline long index_of(long plane, int place, int depth, int height, int width, int column_major) {
  if (place < 0) return -1;
  if (column_major) {
    int w = place % width, h = place / width % height, d = place / width / height;
    place = (w * height + h) * depth + d;
  }
  return plane * ((long)depth * height * width) + place;
}
#endif
