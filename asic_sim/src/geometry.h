/* The places that a sliding window visits, axis by axis.
 *
 * One form serves the convolution, the pool, each phase of a transposed convolution and (with one tap) a plain matrix
 * product: output q's tap j reads input position q * stride + offset + j * tap_step, and counts as padding where that
 * lies outside 0 .. input - 1. Output q lands at place out_start + q * out_step of the result.
 */
#ifndef QUATREFOIL_ASIC_GEOMETRY_H
#define QUATREFOIL_ASIC_GEOMETRY_H

#include <algorithm>
#include <cstdint>

namespace asic {

inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/* a * b and a + b, or the greatest value where that is beyond 64 bits; for counts, which are never negative */
inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}
inline int64_t plus(int64_t a, int64_t b) { return a > INT64_MAX - b ? INT64_MAX : a + b; }

struct Axis {
  int64_t input = 1;
  int64_t outputs = 1;
  int64_t taps = 1;
  int64_t stride = 1;
  int64_t offset = 0;
  int64_t tap_step = 1;
  int64_t out_start = 0;
  int64_t out_step = 1;

  int64_t position(int64_t q, int64_t tap) const { return q * stride + offset + tap * tap_step; }
  int64_t place(int64_t q) const { return out_start + q * out_step; }

  /* How many input positions the outputs first .. first + count - 1 read: the span from the least to the greatest,
   * cut to the input, but never more than one for each tap. */
  int64_t touched(int64_t first, int64_t count) const {
    int64_t reach = (taps - 1) * tap_step;
    int64_t low = position(first, 0) + std::min<int64_t>(reach, 0);
    int64_t high = position(first + count - 1, 0) + std::max<int64_t>(reach, 0);
    low = std::max<int64_t>(low, 0);
    high = std::min(high, input - 1);
    return std::min(std::max<int64_t>(high - low + 1, 0), per_tap(count));
  }

  /* No run of `count` outputs reads more positions than this. */
  int64_t touched_at_most(int64_t count) const {
    int64_t span = (count - 1) * stride + (taps - 1) * (tap_step < 0 ? -tap_step : tap_step) + 1;
    return std::min({span, input, per_tap(count)});
  }

  /* The taps [first, last) of output q that lie inside the input. */
  void inside(int64_t q, int64_t& first, int64_t& last) const {
    int64_t base = q * stride + offset;
    if (tap_step > 0) {
      first = base < 0 ? ceil_div(-base, tap_step) : 0;
      last = base < input ? (input - 1 - base) / tap_step + 1 : 0;
    } else {
      int64_t step = -tap_step;
      first = base >= input ? ceil_div(base - input + 1, step) : 0;
      last = base >= 0 ? base / step + 1 : 0;
    }
    last = std::min(last, taps);
    first = std::min(first, last);
  }

 private:
  /* count * taps or the whole input, whichever is less (the product could be beyond 64 bits) */
  int64_t per_tap(int64_t count) const { return count > input / taps ? input : count * taps; }
};

}  // namespace asic

#endif
