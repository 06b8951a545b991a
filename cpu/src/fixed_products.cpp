// Sums of products in the order of their steps, for a tile of places and all rows of a group: what convolutions, dense
// and recurrent layers have in common.
//
// Lanes are rows (output channels, gates), so that each sum is one lane's business, and saturating or rounding after
// each product keeps the operator's order. A step loads a vector of weights for each block of rows, and one value of x
// for each place, which it multiplies all of them with. How x lies is the caller's choice: a step finds it at an offset.
#include "fixed_vector.h"

namespace {

constexpr int PLACES = FIXED_PLACES;
constexpr int BLOCKS = REGISTERS > 16 ? 2 : 1;  // of rows at a time, for a tile of places
constexpr int LONE_BLOCKS = 4;                // for a single place

// low * low + high * high of each lane's two int16.
QF_INLINE vint multiply_pairs(vint a, vint b) {
#if defined(QF_AVX512)
  return (vint)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(QF_ISA_V3)
  return (vint)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(QF_SSE2)
  return (vint)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const vint low = ((a << 16) >> 16) * ((b << 16) >> 16);
  return add(low, (a >> 16) * (b >> 16));
#endif
}

// Two int16 values side by side, anywhere.
QF_INLINE vint fill_pair(const int16_t* p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return fill_lanes<vint>(pair);
}

struct PairStep {
  typedef vint V;
  typedef int16_t X;
  explicit PairStep(const FixedProducts&) {}
  static QF_INLINE V fill(const X* x) { return fill_pair(x); }
  static QF_INLINE V load(const X* x) { return load_vector<V>(x); }
  QF_INLINE V operator()(V sum, V x, V w) const {
#if defined(QF_ISA_V4_VNNI) && defined(QF_AVX512)
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
#else
    return add(sum, multiply_pairs(x, w));
#endif
  }
};

// x and w as 32-bit values, of which w has its upper half cleared: the pair product is that of the lower halves.
struct ShortProduct {
  typedef vint V;
  typedef int32_t X;
  static QF_INLINE V fill(const X* x) { return fill_lanes<V>(*x); }
  static QF_INLINE V load(const X* x) { return load_vector<V>(x); }
  static QF_INLINE V multiply(V x, V w) { return multiply_pairs(x, w); }
};

struct WideProduct {
  typedef vlong V;
  typedef int32_t X;
  static QF_INLINE V fill(const X* x) { return fill_low(*x); }
  static QF_INLINE V load(const X* x) { return widen(x); }
  static QF_INLINE V multiply(V x, V w) { return multiply_low(x, w); }
};

template <class Product>
struct ExactStep : Product {
  typedef typename Product::V V;
  explicit ExactStep(const FixedProducts&) {}
  QF_INLINE V operator()(V sum, V x, V w) const { return add(sum, Product::multiply(x, w)); }
};

// Each product is cast, and each sum where it does not wrap: what wraps may do so once, at the end.
template <class Product, int ROUNDING, int OVERFLOW>
struct CastStep : Product {
  typedef typename Product::V V;
  VectorCast<V> product, sum;
  explicit CastStep(const FixedProducts& f) : product(f.product), sum(f.sum) {}
  QF_INLINE V operator()(V total, V x, V w) const {
    const V exact = Product::multiply(x, w);
    if constexpr (ROUNDING == ANY)
      return sum(add(total, product(exact)));
    else if constexpr (OVERFLOW == QF_WRAP)
      return add(total, product.template rounded<ROUNDING>(exact));
    else
      return sum.template fitted<OVERFLOW>(
          add(total, product.template fitted<OVERFLOW>(product.template rounded<ROUNDING>(exact))));
  }
};

template <class Step, int P, int Q, bool LANEWISE>
QF_INLINE void sum_tile(const Step& step, int64_t steps, const int64_t* offsets, const typename Step::X* const* x,
                        const typename Step::V* w, const typename Step::V* start, typename Step::V* sums) {
  typedef typename Step::V V;
  V held[Q][P];
  QF_UNROLL for (int q = 0; q < Q; q++)
    QF_UNROLL for (int p = 0; p < P; p++) held[q][p] = load_vector<V>(start + q);
  const typename Step::X* from[P];
  QF_UNROLL for (int p = 0; p < P; p++) from[p] = x[p];
  for (int64_t k = 0; k < steps; k++) {
    const int64_t offset = offsets[k];
    V rows[Q];
    QF_UNROLL for (int q = 0; q < Q; q++) rows[q] = load_vector<V>(w + q * steps + k);
    QF_UNROLL for (int p = 0; p < P; p++) {
      const V value = LANEWISE ? Step::load(from[p] + offset) : Step::fill(from[p] + offset);
      QF_UNROLL for (int q = 0; q < Q; q++) held[q][p] = step(held[q][p], value, rows[q]);
    }
  }
  QF_UNROLL for (int q = 0; q < Q; q++)
    QF_UNROLL for (int p = 0; p < P; p++) sums[q * P + p] = held[q][p];
}

// What makes y of sums.
template <class V>
struct Finish {
  typedef typename Lanes<V>::Element Element;
  static constexpr int COUNT = Lanes<V>::COUNT;
  VectorCast<V> sum, y;
  int up;
  bool wraps, relu;

  explicit Finish(const FixedProducts& f)
      : sum(f.sum), y(f.y), up(f.up), wraps(f.sum.format.overflow == QF_WRAP), relu(f.relu) {}
  QF_INLINE V operator()(V v, V late) const {
    v = add(shift_up(v, up), late);
    if (wraps) v = sum.template fitted<QF_WRAP>(v);
    v = y.applied(v);
    return relu ? most(v, (V){}) : v;
  }
};

template <class Y, class Element, int COUNT>
QF_INLINE void store_tile(const FixedTarget& to, int64_t row, int count, const Element (&tile)[PLACES][COUNT]) {
  Y* const y = reinterpret_cast<Y*>(to.y);
  if (to.stride == 1) {
    for (int p = 0; p < to.places; p++)
      for (int i = 0; i < count; i++) y[to.at[p] + row + i] = Y(tile[p][i]);
    return;
  }
  const bool beside = to.beside && to.places == PLACES;
  if constexpr (sizeof(Y) == 2 && COUNT % 8 == 0) {
    if (beside) {
      for (int first = 0; first < count; first += 8) {
        static_assert(PLACES == 8);
        eight_values rows[8];
        QF_UNROLL for (int p = 0; p < 8; p++)
          for (int i = 0; i < 8; i++) rows[p][i] = int16_t(tile[p][first + i]);
        transpose_eight(rows);
        Y* const line = y + to.at[0] + (row + first) * to.stride;
        QF_UNROLL for (int i = 0; i < 8; i++)
          if (first + i < count) memcpy(line + i * to.stride, &rows[i], sizeof rows[i]);
      }
      return;
    }
  }
  for (int i = 0; i < count; i++) {
    Y* const line = y + (row + i) * to.stride;
    if (beside)
      QF_UNROLL for (int p = 0; p < PLACES; p++) line[to.at[0] + p] = Y(tile[p][i]);
    else
      for (int p = 0; p < to.places; p++) line[to.at[p]] = Y(tile[p][i]);
  }
}

// Sums of a block of rows, for `places` places that lie one after the other, to y. row, count: of all rows.
template <class V>
__attribute__((noinline)) void finish_block(const FixedProducts& f, const V* sums, const void* late, int64_t row,
                                            int count, const FixedTarget& to) {
  typedef typename Lanes<V>::Element Element;
  const Finish<V> finish(f);
  const V added = load_vector<V>(late);
  Element tile[PLACES][Lanes<V>::COUNT];
  for (int p = 0; p < to.places; p++) {
    const V v = finish(sums[p], added);
    memcpy(tile[p], &v, sizeof v);
  }
  if (f.y_bytes == 2)
    store_tile<int16_t>(to, row, count, tile);
  else if (f.y_bytes == 4)
    store_tile<int32_t>(to, row, count, tile);
  else
    store_tile<int64_t>(to, row, count, tile);
}

// As finish_block for 32-bit sums whose finish takes 64 bits: by halves.
__attribute__((noinline)) void finish_widened(const FixedProducts& f, const vint* sums, const int64_t* late,
                                              int64_t row, int count, const FixedTarget& to) {
  constexpr int HALF = LANES / 2;
  for (int first = 0; first < count; first += HALF) {
    vlong halves[PLACES];
    for (int p = 0; p < to.places; p++) halves[p] = widen((const int32_t*)&sums[p] + first);
    finish_block(f, halves, late + first, row + first, int(smaller(HALF, count - first)), to);
  }
}

// A tile of P places, all rows of a group. x: where each place's products begin.
template <class Step, int P, int Q, bool LANEWISE>
QF_INLINE void sum_blocks(const Step& step, const FixedProducts& f, int64_t group, int64_t& block, int64_t blocks,
                          int64_t rows, const void* const* x, const FixedTarget& to) {
  typedef typename Step::V V;
  constexpr int COUNT = Lanes<V>::COUNT;
  for (; block + Q <= blocks; block += Q) {
    const int64_t at = group * divide_up(f.rows, COUNT) + block;
    V sums[Q * P];
    sum_tile<Step, P, Q, LANEWISE>(step, f.steps, f.offsets, (const typename Step::X* const*)x,
                                   (const V*)f.weights + at * f.steps, (const V*)f.start + at, sums);
    for (int q = 0; q < Q; q++) {
      const int64_t row = (block + q) * COUNT;
      const int count = int(smaller(COUNT, rows - row));
      const int64_t first = group * f.rows + row;
      if constexpr (sizeof(typename Lanes<V>::Element) == 4) {
        if (f.wide_finish) {
          finish_widened(f, sums + q * P, (const int64_t*)f.late + (at + q) * COUNT, first, count, to);
          continue;
        }
      }
      finish_block(f, sums + q * P, (const V*)f.late + at + q, first, count, to);
    }
  }
}

template <class Step, int P, bool LANEWISE>
void sum_group(const FixedProducts* products, int64_t group, const void* const* x, const FixedTarget* target) {
  const FixedProducts& f = *products;
  const FixedTarget& to = *target;
  const Step step(f);
  const int64_t rows = smaller(f.rows, f.channels - group * f.rows);
  const int64_t blocks = divide_up(rows, Lanes<typename Step::V>::COUNT);
  int64_t block = 0;
  if constexpr (!LANEWISE) sum_blocks<Step, P, P == 1 ? LONE_BLOCKS : BLOCKS, LANEWISE>(step, f, group, block, blocks, rows, x, to);
  sum_blocks<Step, P, 1, LANEWISE>(step, f, group, block, blocks, rows, x, to);
}

template <class Step>
FixedTiles tiles_of_step(const FixedProducts& f) {
  constexpr int BYTES = sizeof(typename Step::X);
  if constexpr (BYTES == 4)
    if (f.lanewise) return {sum_group<Step, PLACES, true>, nullptr, BYTES};
  return {sum_group<Step, PLACES, false>, sum_group<Step, 1, false>, BYTES};
}

template <class Product>
FixedTiles tiles_of_product(const FixedProducts& f) {
  if (f.exact) return tiles_of_step<ExactStep<Product>>(f);
  const VectorCast<typename Product::V> product(f.product);
  if (product.usual) {
    const bool saturates = product.overflow == QF_SAT;
    if (product.rounding == QF_TRN)
      return saturates ? tiles_of_step<CastStep<Product, QF_TRN, QF_SAT>>(f)
                       : tiles_of_step<CastStep<Product, QF_TRN, QF_WRAP>>(f);
    if (product.rounding == QF_RND)
      return saturates ? tiles_of_step<CastStep<Product, QF_RND, QF_SAT>>(f)
                       : tiles_of_step<CastStep<Product, QF_RND, QF_WRAP>>(f);
  }
  return tiles_of_step<CastStep<Product, ANY, ANY>>(f);
}

}  // namespace

extern "C" void QF_EXPORT(fixed_tiles)(const FixedProducts* products, FixedTiles* tiles) {
  const FixedProducts& f = *products;
  *tiles = f.kind == FIXED_PAIRS   ? tiles_of_step<PairStep>(f)
           : f.kind == FIXED_SHORT ? tiles_of_product<ShortProduct>(f)
                                   : tiles_of_product<WideProduct>(f);
}
