/* Convolution as the array computes it: a matrix product of implicitly gathered activations and packed weights.
 *
 * Row m of the product is an output place (n, d, h, w), its depth K runs over taps and, innermost, the channels of
 * the group; column n is an output channel of the group. The weights come packed as (groups, K, columns). Chunks of
 * output places are gathered from x (N, C, D, H, W), multiplied, and handed to `finish(n, channel, place, sum)`, the
 * vector unit's part, which writes the result.
 */
#ifndef QUATREFOIL_ASIC_CONVOLUTION_H
#define QUATREFOIL_ASIC_CONVOLUTION_H

#include <array>
#include <cstddef>
#include <vector>

#include "array.h"
#include "geometry.h"

namespace asic {

struct Convolution {
  int64_t batch = 1;
  int64_t groups = 1;
  int64_t channels = 1; /* input channels of a group */
  int64_t columns = 1;  /* output channels of a group */
  std::array<Axis, 3> axes;
  std::array<int64_t, 3> plane{1, 1, 1}; /* extents of y, into which the axes place their outputs */

  int64_t taps() const { return axes[0].taps * axes[1].taps * axes[2].taps; }
  int64_t input_size() const { return axes[0].input * axes[1].input * axes[2].input; }
  int64_t outputs() const { return axes[0].outputs * axes[1].outputs * axes[2].outputs; }
  int64_t output_size() const { return plane[0] * plane[1] * plane[2]; }
};

/* One row of the product: the activations under the window of output place (q0, q1, q2), and which of them exist. */
template <typename Value>
void gather(const Convolution& c, const Value* image, const std::array<int64_t, 3>& q, Value* row, uint8_t* present) {
  const int64_t size = c.input_size();
  std::array<int64_t, 3> at;
  for (int64_t i = 0; i < c.axes[0].taps; i++) {
    at[0] = c.axes[0].position(q[0], i);
    for (int64_t j = 0; j < c.axes[1].taps; j++) {
      at[1] = c.axes[1].position(q[1], j);
      for (int64_t k = 0; k < c.axes[2].taps; k++) {
        at[2] = c.axes[2].position(q[2], k);
        bool inside = true;
        for (int axis = 0; axis < 3; axis++) inside = inside && at[axis] >= 0 && at[axis] < c.axes[axis].input;
        std::fill_n(present, c.channels, uint8_t{inside});
        if (inside) {
          const Value* source = image + (at[0] * c.axes[1].input + at[1]) * c.axes[2].input + at[2];
          for (int64_t channel = 0; channel < c.channels; channel++) row[channel] = source[channel * size];
        }
        row += c.channels;
        present += c.channels;
      }
    }
  }
}

/* multiply(rows, present, count, depth, packed weights, first channel, sums): the products of a chunk. */
template <typename Sum, typename Value, typename Multiply, typename Finish>
void convolve(const Convolution& c, const Value* x, const Value* weights, const Multiply& multiply,
              const Finish& finish) {
  const int64_t depth = c.taps() * c.channels;
  const int64_t places = c.batch * c.outputs();
  if (places == 0) return;
  const int64_t chunk = std::min<int64_t>(places, std::max<int64_t>(1, std::min<int64_t>(256, (1 << 20) / depth)));
  std::vector<Value> rows(static_cast<size_t>(chunk * depth));
  std::vector<uint8_t> present(static_cast<size_t>(chunk * depth));
  std::vector<Sum> sums(static_cast<size_t>(chunk * c.columns));
  struct Place {
    int64_t image, place;
  };
  std::vector<Place> where(static_cast<size_t>(chunk));
  for (int64_t group = 0; group < c.groups; group++) {
    const Value* packed = weights + group * depth * c.columns;
    for (int64_t first = 0; first < places; first += chunk) {
      const int64_t count = std::min(chunk, places - first);
      for (int64_t m = 0; m < count; m++) {
        int64_t rest = first + m;
        std::array<int64_t, 3> q;
        for (int axis = 2; axis >= 0; axis--) {
          q[axis] = rest % c.axes[axis].outputs;
          rest /= c.axes[axis].outputs;
        }
        const int64_t line = c.axes[0].place(q[0]) * c.plane[1] + c.axes[1].place(q[1]);
        where[m] = {rest, line * c.plane[2] + c.axes[2].place(q[2])};
        const Value* image = x + (rest * c.groups + group) * c.channels * c.input_size();
        gather(c, image, q, rows.data() + m * depth, present.data() + m * depth);
      }
      multiply(rows.data(), present.data(), count, depth, packed, group * c.columns, sums.data());
      for (int64_t n = 0; n < c.columns; n++) {
        for (int64_t m = 0; m < count; m++) {
          finish(where[m].image, group * c.columns + n, where[m].place, sums[m * c.columns + n]);
        }
      }
    }
  }
}

/* In the order of the array (array.h). */
template <typename Value, typename Finish>
void convolve(const Convolution& c, int64_t array_rows, const Value* x, const Value* weights, const Finish& finish) {
  const auto multiply = [&](const Value* rows, const uint8_t* present, int64_t count, int64_t depth,
                            const Value* packed, int64_t, SumOf<Value>* sums) {
    std::fill_n(sums, count * c.columns, SumOf<Value>{});
    multiply_on_array(rows, present, count, depth, array_rows, packed, c.columns, c.columns, sums);
  };
  convolve<SumOf<Value>>(c, x, weights, multiply, finish);
}

}  // namespace asic

#endif
