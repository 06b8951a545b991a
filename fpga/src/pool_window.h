/* What a pooling window gathers, tap by tap: shared by the pooling kernels.
 *
 * X_T is the element type, INTEGERS is defined for uint8 and int8; MODE is one of the codes below. `place` numbers the tap inside its plane, row-major.
 */
#define MODE_MAX 0
#define MODE_AVERAGE 1
#define MODE_LP 2

#ifdef UNROLL_LOOPS
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

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

static inline X_T result(const window_t* window, float count, int p) { return window->value; }
#else
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

static inline X_T result(const window_t* window, float count, int p) {
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
