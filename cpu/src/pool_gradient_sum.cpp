// The gradients of average and lp pooling: a window's share, summed over the windows that hold a place, along one axis after the
// other.
//
// dy is weighted once (by the count of an average's taps, or by 1 / y), into lines with zeros around them. For each line of dx
// the lines of outputs whose windows hold it are summed (over height and depth), and then each of its places gathers its
// columns. Lines that lie in the same windows are computed once. A norm's slope at x comes last. Nothing is scattered, and sums
// are never carried from one place to the next: an infinity stays with the places that it concerns.
//
// Accepts float32 average, and lp with p 1 or 2, any window over one to three axes.
// Workspace: pool_gradient.py's `sum_workspace`.
#include "pool_gradient_rows.h"

namespace {

// What norms' gradients are weighted by, and what their sums are multiplied by.
QF_INLINE vfloat weighted(const PoolGradientArguments& a, vfloat dy, vfloat y) {
  return a.p == 1 ? dy : y == (vfloat){} ? (vfloat){} : dy / y;
}
QF_INLINE vfloat slope(const PoolGradientArguments& a, vfloat x) {
  if (a.p > 1) return x;
  return x > (vfloat){} ? broadcast(1.0f) : x < (vfloat){} ? broadcast(-1.0f) : x;
}

// value(i) for each vector of i below count, to to[0 .. count).
template <class Value>
QF_INLINE void fill(float* to, int64_t count, const Value& value) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(to + i, value(i, LANES));
  if (i < count) store_first(to + i, value(i, int(count - i)), int(count - i));
}

struct SumGradient {
  const PoolGradientArguments& a;
  const int64_t width = a.input[2], columns = a.output[2], taps = a.kernel[2], stride = a.strides[2], line = a.line_floats;
  const int64_t rows = a.output[0] * a.output[1];

  // The workspace: the shares of every output row, the sums of lines of dx, the taps of each phase, a vector for each, the
  // output rows of a line, and where the sums of lines are.
  float* const shares;
  float* const sums = shares + rows * line;
  PhaseTaps* const phases = reinterpret_cast<PhaseTaps*>(sums + a.slots * line);
  float* const scratch = reinterpret_cast<float*>(phases + stride);
  const float** const found = reinterpret_cast<const float**>(scratch + stride * 16);

  void prepare() const {
    for (int64_t i = 0; i < (rows + a.slots) * line; i += LANES) store(shares + i, (vfloat){});
    for (int64_t phase = 0; phase < stride; phase++) phases[phase] = taps_of_phase(a, phase);
  }

  __attribute__((noinline)) void weigh(const float* dy, const float* y) const {
    for (int64_t row = 0; row < rows; row++, dy += columns, y += columns) {
      const float* weights = a.column_weights;
      const vfloat weight = broadcast(a.row_weights[row]);
      float* to = shares + row * line + a.lead;
      if (a.kind == POOL_AVERAGE)
        fill(to, columns, [&](int64_t i, int lanes) __attribute__((always_inline)) {
          return (lanes == LANES ? load(dy + i) : load_first(dy + i, lanes)) * (weight * load(weights + i));
        });
      else
        fill(to, columns, [&](int64_t i, int lanes) __attribute__((always_inline)) {
          return lanes == LANES ? weighted(a, load(dy + i), load(y + i))
                                : weighted(a, load_first(dy + i, lanes), load_first(y + i, lanes));
        });
    }
  }

  // The sum of output rows' shares over the windows that hold a line of dx; null where there are none.
  QF_INLINE const float* line_of(int64_t d, int64_t h, float* to) const {
    const int32_t *depths = a.holders[0], *heights = a.holders[1];
    const int64_t d_end = depths[d + 1], h_begin = heights[h], h_end = heights[h + 1];
    const int64_t count = (d_end - depths[d]) * (h_end - h_begin);
    if (count == 0) return nullptr;
    const auto share = [&](int64_t at_d, int64_t at_h) __attribute__((always_inline)) {
      return shares + (depths[at_d] * a.output[1] + heights[at_h]) * line;
    };
    if (count == 1) return share(depths[d], h_begin);
    const int64_t floats = (columns + LANES - 1) / LANES * LANES;
    for (int64_t i = a.lead; i < a.lead + floats; i += LANES) {
      vfloat sum = {};
      for (int64_t at_d = depths[d]; at_d < d_end; at_d++)
        for (int64_t at_h = h_begin; at_h < h_end; at_h++) sum += load(share(at_d, at_h) + i);
      store(to + i, sum);
    }
    return to;
  }

  // Whether the lines of two places along an axis lie in the same windows.
  QF_INLINE bool alike(int axis, int64_t place, int64_t other) const {
    const int32_t* places = a.holders[axis];
    const int64_t count = places[place + 1] - places[place];
    if (count != places[other + 1] - places[other]) return false;
    for (int64_t i = 0; i < count; i++)
      if (places[places[place] + i] != places[places[other] + i]) return false;
    return true;
  }

  template <int STEPS>
  __attribute__((noinline)) void gather(const float* from, float* dx) const {
    const PhaseTaps* phases = this->phases;
    const int64_t taps = this->taps;
    from += a.lead;
    put_line(dx, width, stride, scratch, [&](int64_t phase, int64_t i) __attribute__((always_inline)) {
      const PhaseTaps tap = phases[phase];
      int64_t at = i + tap.along;
      vfloat sum = {};
      if constexpr (STEPS > 0) {
        sum = load(from + at);
        QF_UNROLL for (int step = 1; step < STEPS; step++) sum += load(from + at - step * tap.back);
      } else {
        for (int64_t k = tap.first; k < taps; k += tap.step, at -= tap.back) sum += load(from + at);
      }
      return sum;
    });
  }

  void plane(const float* dy, const float* x, const float* y, float* dx) const {
    const int64_t height = a.input[1], lines = a.input[0] * height;
    weigh(dy, y);
    const float* before = nullptr;
    for (int64_t first = 0; first < lines; first += a.slots) {
      const int64_t end = smaller(first + a.slots, lines);
      for (int64_t at = first; at < end; at++) {
        const int64_t d = at / height, h = at - d * height;
        const bool again = at > first && h > 0 && alike(1, h, h - 1);
        found[at - first] = again ? before : line_of(d, h, sums + (at - first) * line);
        before = found[at - first];
      }
      for (int64_t at = first; at < end; at++) {
        const float* from = found[at - first];
        float* to = dx + at * width;
        if (!from)
          memset(to, 0, width * sizeof(float));
        else if (at > first && from == found[at - first - 1] && a.kind == POOL_AVERAGE)
          memcpy(to, to - width, width * sizeof(float));
        else if (stride == taps && a.dilations[2] == 1)
          gather<1>(from, to);
        else if (stride == 1 && taps == 3)
          gather<3>(from, to);
        else if (stride == 1 && taps == 5)
          gather<5>(from, to);
        else
          gather<0>(from, to);
        if (a.kind == POOL_LP && from) {
          const float* places = x + at * width;
          fill(to, width, [&](int64_t i, int lanes) __attribute__((always_inline)) {
            return lanes == LANES ? load(to + i) * slope(a, load(places + i))
                                  : load_first(to + i, lanes) * slope(a, load_first(places + i, lanes));
          });
        }
      }
    }
  }
};

}  // namespace

extern "C" int QF_EXPORT(pool_gradient_sum_f32)(const PoolGradientArguments* arguments) {
  const PoolGradientArguments& a = *arguments;
  if (a.kind == POOL_MAX || (a.kind == POOL_LP && a.p > 2)) return 1;
  const int64_t volume = a.input[0] * a.input[1] * a.input[2], outputs = a.output[0] * a.output[1] * a.output[2];
  for (int thread = 0; thread < a.threads; thread++)
    SumGradient{a, .shares = a.workspace + thread * a.workspace_floats}.prepare();
  over_whole_planes(a, [&](int64_t plane, int thread) {
    SumGradient{a, .shares = a.workspace + thread * a.workspace_floats}.plane(
        static_cast<const float*>(a.dy) + plane * outputs, static_cast<const float*>(a.x) + plane * volume,
        static_cast<const float*>(a.y) + plane * outputs, static_cast<float*>(a.dx) + plane * volume);
  });
  return 0;
}

// The window is the whole plane: one number a plane, to all of it, or for max to the first place of the greatest.
extern "C" int QF_EXPORT(pool_gradient_global_f32)(const PoolGradientArguments* arguments) {
  const PoolGradientArguments& a = *arguments;
  if (a.kind == POOL_LP && a.p > 2) return 1;
  const int64_t size = a.input[0] * a.input[1] * a.input[2];
  over_whole_planes(a, [&](int64_t plane, int) {
    const float* x = static_cast<const float*>(a.x) + plane * size;
    float* dx = static_cast<float*>(a.dx) + plane * size;
    const float dy = static_cast<const float*>(a.dy)[plane];
    if (a.kind == POOL_AVERAGE) {
      const vfloat share = broadcast(dy * a.row_weights[0] * a.column_weights[0]);
      if (size < LANES) {
        store_first(dx, share, int(size));
        return;
      }
      for (int64_t i = 0; i + LANES <= size; i += LANES) store(dx + i, share);
      store(dx + size - LANES, share);
    } else if (a.kind == POOL_LP) {
      const vfloat share = weighted(a, broadcast(dy), broadcast(static_cast<const float*>(a.y)[plane]));
      fill(dx, size, [&](int64_t i, int lanes) __attribute__((always_inline)) {
        return share * slope(a, lanes == LANES ? load(x + i) : load_first(x + i, lanes));
      });
    } else if (MaxReduction::has_nan(x, size)) {
      plane_by_definition<float>(a, plane);
    } else {
      vfloat most = broadcast(MaxReduction::identity());
      for (int64_t i = 0; i < size; i += LANES)
        most = larger(load_span(x + i, span_at(0, size - i), MaxReduction::identity()), most);
      float best = most[0];
      for (int lane = 1; lane < LANES; lane++) best = most[lane] > best ? most[lane] : best;
      int64_t place = 0;
      while (x[place] != best) place++;
      memset(dx, 0, size * sizeof(float));
      dx[place] = dy;
    }
  });
  return 0;
}
