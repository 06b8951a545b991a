/* Fixed point as the array and the vector unit compute it; kernels/ops/fixed.py says what.
 *
 * An element casts its product to the accumulator's format, and so it does the sum that it passes on. A column does not
 * start from zero: what the accumulator below it holds, at first the bias, enters on top. Products are so added in the
 * operator's order, slice after slice, whatever rests; with `reuse` the depth comes in that order. Where the accumulator
 * wraps, the order makes no difference, and one cast at the end does.
 */
#ifndef QUATREFOIL_ASIC_FIXED_H
#define QUATREFOIL_ASIC_FIXED_H

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pooling.h"
#include "quatrefoil/fixed.h"

namespace asic {

/* A format: what fits into it, how it rounds and overflows (by default 32 bits that wrap), and its fraction bits. */
struct Fixed {
  qf_format format{INT32_MIN, INT32_MAX, 32, 1, QF_TRN, QF_WRAP};
  int fraction = 0;

  /* An integer with `of` fraction bits as one of this format. */
  int64_t cast(int64_t value, int of) const { return qf_cast(value, of - fraction, format); }
  bool wraps() const { return format.overflow == QF_WRAP; }
};

/* How products are added. */
struct FixedSums {
  Fixed accumulator;
  int fraction;      /* bits of a product */
  int64_t reuse = 1; /* products 0, reuse, 2 reuse, … come first, then 1, reuse + 1, … */

  int64_t added(int64_t sum, int64_t product) const {
    return accumulator.cast(sum + accumulator.cast(product, fraction), accumulator.fraction);
  }

  /* sums[m][n] = start[n] + activations[m][k] weights[k][n] for `count` rows of activations, contiguous and `depth`
   * deep; rows of the weights and of the sums lie a stride apart. start: null for zeros; present: null where no
   * activation is padding. */
  void multiply(const int32_t* activations, const uint8_t* present, int64_t count, int64_t depth,
                const int32_t* weights, int64_t weight_stride, int64_t columns, const int64_t* start, int64_t* sums,
                int64_t sum_stride) const {
    for (int64_t m = 0; m < count; m++) {
      const int32_t* a = activations + m * depth;
      const uint8_t* gate = present ? present + m * depth : nullptr;
      int64_t* row = sums + m * sum_stride;
      for (int64_t c = 0; c < columns; c++) row[c] = start ? start[c] : 0;
      for (int64_t first = 0; first < std::min(reuse, depth); first++) {
        for (int64_t k = first; k < depth; k += reuse) {
          if (gate && !gate[k]) continue;
          add(a[k], weights + k * weight_stride, columns, row);
        }
      }
      if (!accumulator.wraps()) continue;
      for (int64_t c = 0; c < columns; c++) row[c] = qf_fitted(row[c], accumulator.format);
    }
  }

 private:
  void add(int64_t activation, const int32_t* weights, int64_t columns, int64_t* sums) const {
    if (!accumulator.wraps()) {
      for (int64_t c = 0; c < columns; c++) sums[c] = added(sums[c], activation * weights[c]);
      return;
    }
    const int drop = fraction - accumulator.fraction, rounding = accumulator.format.rounding;
    for (int64_t c = 0; c < columns; c++) {
      const int64_t product = activation * weights[c];
      const int64_t cast = drop < 0 ? qf_shifted(product, -drop) : qf_rounded(product, drop, rounding);
      sums[c] = static_cast<int64_t>(static_cast<uint64_t>(sums[c]) + static_cast<uint64_t>(cast));
    }
  }
};

/* A function that the vector unit looks up, or Relu where there is no table. */
struct FixedFunction {
  std::vector<int64_t> table; /* in the accumulator's format */
  int bits = 0;               /* log2(2 reach / entries) */

  int64_t operator()(const Fixed& accumulator, int64_t value, int fraction) const {
    if (table.empty()) return accumulator.cast(std::max<int64_t>(value, 0), fraction);
    return table[static_cast<size_t>(qf_table_index(value, bits + fraction, static_cast<int>(table.size())))];
  }
};

/* `x` in its format as `y` in another, element by element. */
inline void cast_all(const Fixed& format, int fraction, int64_t count, const int32_t* x, int32_t* y) {
  for (int64_t i = 0; i < count; i++) y[i] = static_cast<int32_t>(format.cast(x[i], fraction));
}

/* divisors: of the output places of a plane. */
inline void fixed_average_pool(const Pool& pool, const Fixed& accumulator, const Fixed& format, int fraction,
                               const int64_t* divisors, const int32_t* x, int32_t* y) {
  const auto& [depth, height, width] = pool.axes;
  const int64_t outputs = depth.outputs * height.outputs * width.outputs;
  for_each_output(pool, [&](int64_t output, int64_t plane, const auto& q, const auto& first, const auto& last) {
    int64_t sum = 0;
    for (int64_t i = first[0]; i < last[0]; i++) {
      for (int64_t j = first[1]; j < last[1]; j++) {
        const int64_t line = depth.position(q[0], i) * height.input + height.position(q[1], j);
        for (int64_t k = first[2]; k < last[2]; k++) {
          const int32_t tap = x[plane + line * width.input + width.position(q[2], k)];
          sum = accumulator.cast(sum + accumulator.cast(tap, fraction), accumulator.fraction);
        }
      }
    }
    y[output] = static_cast<int32_t>(format.cast(sum / divisors[output % outputs], accumulator.fraction));
  });
}

}  // namespace asic

#endif
