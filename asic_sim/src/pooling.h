/* Pooling as the vector unit computes it: tap by tap in the order of the window, one lane an output.
 *
 * x and y are planes of three axes. Taps on padding are left out. Sums are taken along a line of the window first,
 * then over lines, in float32; powers for lp_pool in double, so that they do not overflow.
 */
#ifndef QUATREFOIL_ASIC_POOLING_H
#define QUATREFOIL_ASIC_POOLING_H

#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

#include "geometry.h"

namespace asic {

struct Pool {
  int64_t planes = 0;
  std::array<Axis, 3> axes;

  int64_t input_size() const { return axes[0].input * axes[1].input * axes[2].input; }
};

/* Calls body(output index, plane's first input, first tap, last tap) for every output; taps are those inside x. */
template <typename Body>
void for_each_output(const Pool& pool, const Body& body) {
  int64_t output = 0;
  std::array<int64_t, 3> q, first, last;
  for (int64_t plane = 0; plane < pool.planes; plane++) {
    for (q[0] = 0; q[0] < pool.axes[0].outputs; q[0]++) {
      pool.axes[0].inside(q[0], first[0], last[0]);
      for (q[1] = 0; q[1] < pool.axes[1].outputs; q[1]++) {
        pool.axes[1].inside(q[1], first[1], last[1]);
        for (q[2] = 0; q[2] < pool.axes[2].outputs; q[2]++) {
          pool.axes[2].inside(q[2], first[2], last[2]);
          body(output++, plane * pool.input_size(), q, first, last);
        }
      }
    }
  }
}

template <typename Value>
Value lowest() {
  if constexpr (std::is_floating_point_v<Value>) return -std::numeric_limits<Value>::infinity();
  return std::numeric_limits<Value>::min();
}

template <typename Value>
bool is_nan(Value value) {
  if constexpr (std::is_floating_point_v<Value>) return std::isnan(value);
  return false;
}

/* NaN wins over everything, the first one counts; of equal values the first tap wins. `indices` may be null. */
template <typename Value>
void max_pool(const Pool& pool, bool column_major, const Value* x, Value* y, int64_t* indices) {
  const auto& [depth, height, width] = pool.axes;
  for_each_output(pool, [&](int64_t output, int64_t plane, const auto& q, const auto& first, const auto& last) {
    Value best = lowest<Value>();
    int64_t at = -1;
    for (int64_t i = first[0]; i < last[0]; i++) {
      for (int64_t j = first[1]; j < last[1]; j++) {
        for (int64_t k = first[2]; k < last[2]; k++) {
          const int64_t d = depth.position(q[0], i), h = height.position(q[1], j), w = width.position(q[2], k);
          const Value value = x[plane + (d * height.input + h) * width.input + w];
          if (at < 0 || value > best || (is_nan(value) && !is_nan(best))) {
            best = value;
            at = column_major ? (w * height.input + h) * depth.input + d : (d * height.input + h) * width.input + w;
          }
        }
      }
    }
    y[output] = best;
    if (indices) indices[output] = at < 0 ? -1 : plane + at;
  });
}

/* sum of term(x) over a window, along lines first */
template <typename Sum, typename Term, typename Triple>
Sum window_sum(const Pool& pool, const float* plane, const Triple& q, const Triple& first, const Triple& last,
               const Term& term) {
  const auto& [depth, height, width] = pool.axes;
  Sum total = 0;
  for (int64_t i = first[0]; i < last[0]; i++) {
    Sum slice = 0;
    for (int64_t j = first[1]; j < last[1]; j++) {
      const float* line = plane + (depth.position(q[0], i) * height.input + height.position(q[1], j)) * width.input;
      Sum sum = 0;
      for (int64_t k = first[2]; k < last[2]; k++) sum += term(line[width.position(q[2], k)]);
      slice += sum;
    }
    total += slice;
  }
  return total;
}

/* `divisor` has the same outputs as `pool`, and an input that holds the padding too if that counts: the number of its
 * taps inside is what a sum is divided by. */
inline void average_pool(const Pool& pool, const Pool& divisor, const float* x, float* y) {
  for_each_output(pool, [&](int64_t output, int64_t plane, const auto& q, const auto& first, const auto& last) {
    double count = 1;
    for (int axis = 0; axis < 3; axis++) {
      int64_t begin, end;
      divisor.axes[axis].inside(q[axis], begin, end);
      count *= static_cast<double>(end - begin);
    }
    const float sum = window_sum<float>(pool, x + plane, q, first, last, [](float value) { return value; });
    y[output] = sum / static_cast<float>(count);
  });
}

inline void lp_pool(const Pool& pool, int64_t p, const float* x, float* y) {
  const double power = static_cast<double>(p);
  for_each_output(pool, [&](int64_t output, int64_t plane, const auto& q, const auto& first, const auto& last) {
    const auto term = [&](float value) {
      const double size = std::fabs(static_cast<double>(value));
      return p == 1 ? size : p == 2 ? size * size : std::pow(size, power);
    };
    const double sum = window_sum<double>(pool, x + plane, q, first, last, term);
    y[output] = static_cast<float>(p == 1 ? sum : p == 2 ? std::sqrt(sum) : std::pow(sum, 1 / power));
  });
}

/* y starts as zeros; index counts in planes of `indexed` extents, which fill the leading corner of y's planes. The
 * indices have been checked to lie inside. */
template <typename Value>
void max_unpool(int64_t count, const std::array<int64_t, 3>& indexed, const std::array<int64_t, 3>& plane,
                const Value* x, const int64_t* indices, Value* y) {
  for (int64_t i = 0; i < count; i++) {
    int64_t rest = indices[i];
    const int64_t w = rest % indexed[2];
    rest /= indexed[2];
    const int64_t h = rest % indexed[1];
    rest /= indexed[1];
    const int64_t d = rest % indexed[0];
    y[((rest / indexed[0] * plane[0] + d) * plane[1] + h) * plane[2] + w] = x[i];
  }
}

}  // namespace asic

#endif
