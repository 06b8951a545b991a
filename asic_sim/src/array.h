/* The numbers of the array, in the order in which it adds.
 *
 * Where weights or activations rest, a pass through the array takes `rows` rows of the depth: each column multiplies
 * and adds from the top row to the bottom one, starting from zero, and its sum is added to the accumulator below the
 * column. Where sums rest, an element adds the whole depth in order: `rows` is then any number beyond it. An activation that is padding is gated: the sum passes it unchanged.
 *
 * Value is float (Sum float: every product and every sum is rounded once) or int16_t (8-bit operands less their zero
 * points; Sum uint32_t, so that sums wrap as 32-bit two's complement does).
 */
#ifndef QUATREFOIL_ASIC_ARRAY_H
#define QUATREFOIL_ASIC_ARRAY_H

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace asic {

constexpr int64_t COLUMN_GROUP = 16; /* columns that are computed together, in registers */

inline float multiply(float a, float b) { return a * b; }
inline uint32_t multiply(int16_t a, int16_t b) { return static_cast<uint32_t>(int32_t{a} * int32_t{b}); }

template <typename Value>
using SumOf = std::conditional_t<std::is_same_v<Value, float>, float, uint32_t>;

template <int64_t Columns, typename Value>
void multiply_columns(const Value* activations, const uint8_t* present, int64_t depth, int64_t rows,
                      const Value* weights, int64_t weight_stride, int64_t columns, SumOf<Value>* accumulators) {
  const int64_t width = Columns ? Columns : columns;
  for (int64_t block = 0; block < depth; block += rows) {
    SumOf<Value> sums[COLUMN_GROUP] = {};
    const int64_t end = std::min(block + rows, depth);
    for (int64_t k = block; k < end; k++) {
      if (!present[k]) continue;
      const Value* row = weights + k * weight_stride;
      for (int64_t c = 0; c < width; c++) sums[c] += multiply(activations[k], row[c]);
    }
    for (int64_t c = 0; c < width; c++) accumulators[c] += sums[c];
  }
}

/* accumulators[m][n] += activations[m][k] weights[k][n] for `count` rows of activations, `depth` deep and contiguous,
 * the weights' rows weight_stride apart; `rows` is the height of the array. */
template <typename Value>
void multiply_on_array(const Value* activations, const uint8_t* present, int64_t count, int64_t depth, int64_t rows,
                       const Value* weights, int64_t weight_stride, int64_t columns, SumOf<Value>* accumulators) {
  for (int64_t c = 0; c < columns; c += COLUMN_GROUP) {
    for (int64_t m = 0; m < count; m++) {
      const Value* a = activations + m * depth;
      const uint8_t* p = present + m * depth;
      SumOf<Value>* out = accumulators + m * columns + c;
      if (columns - c >= COLUMN_GROUP) {
        multiply_columns<COLUMN_GROUP>(a, p, depth, rows, weights + c, weight_stride, COLUMN_GROUP, out);
      } else {
        multiply_columns<0>(a, p, depth, rows, weights + c, weight_stride, columns - c, out);
      }
    }
  }
}

}  // namespace asic

#endif
