// The register sliding window's view of a row of x: for one vector of outputs, the K vectors that the taps of a row
// meet. Every value is loaded once for each tap of a row; a stride of 2 loads pairs of taps and parts them.
#pragma once

#include "conv_arguments.h"
#include "simd.h"

namespace {

template <int K, int STRIDE, bool MASKED>
struct RowWindow {
  static_assert(STRIDE == 1 || STRIDE == 2);
  static constexpr int LOADS = STRIDE == 1 ? K : 2 * ((K + 1) / 2);

  int64_t column;  // where the first tap of the first lane lies; may be negative
  int lanes;       // outputs that exist
  lanemask masks[LOADS];

  // Where load i starts: the taps of stride 1, or for stride 2 both halves of each pair of taps.
  QF_INLINE int64_t offset(int i) const { return column + (STRIDE == 1 ? i : (i & ~1) + (i & 1) * LANES); }

  // first: the column of y that lane 0 makes.
  QF_INLINE RowWindow(const ConvShape& s, int64_t first)
      : column(first * STRIDE - s.pads[2]), lanes(int(smaller(LANES, s.output[2] - first))) {
    QF_UNROLL for (int i = 0; i < LOADS; i++) {
      // Lanes beyond what the last output needs are masked too: they may lie outside x.
      const int64_t needed = STRIDE == 1 ? lanes : 2 * lanes - (i & 1) * LANES;
      const int from = clamped(-offset(i), LANES), to = clamped(smaller(needed, s.input[2] - offset(i)), LANES);
      masks[i] = lanes_between(from < to ? from : to, to);
    }
  }

  // Whether everything that unmasked loads and stores would touch is there.
  QF_INLINE static bool inside(const ConvShape& s, int64_t first) {
    const int64_t column = first * STRIDE - s.pads[2];
    const int64_t reach = STRIDE == 1 ? LANES + K - 1 : 2 * LANES + 2 * ((K - 1) / 2);
    return column >= 0 && column + reach <= s.input[2] && first + LANES <= s.output[2];
  }

  // x[tap]: what that tap of the row meets.
  QF_INLINE void read(const float* row, vfloat (&x)[LOADS]) const {
    QF_UNROLL for (int i = 0; i < LOADS; i++)
      x[i] = MASKED ? load_masked(row + offset(i), masks[i]) : load(row + offset(i));
    if constexpr (STRIDE == 2)
      QF_UNROLL for (int i = 0; i < LOADS; i += 2) {
        const vfloat even = even_lanes(x[i], x[i + 1]), odd = odd_lanes(x[i], x[i + 1]);
        x[i] = even;
        x[i + 1] = odd;
      }
  }

  QF_INLINE vfloat read_outputs(const float* p) const { return MASKED ? load_first(p, lanes) : load(p); }
  QF_INLINE void write_outputs(float* p, vfloat v) const {
    if (MASKED)
      store_first(p, v, lanes);
    else
      store(p, v);
  }
};

}  // namespace
