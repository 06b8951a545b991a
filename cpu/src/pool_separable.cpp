// Pooling in two passes: the window's rows are reduced into one row, then that row along the width.
//
// Each output row first reduces the input rows of its window, over height and depth, element by element into a row
// buffer whose ends hold the reduction's identity; the buffer then gives each output column its taps. Where the width
// has a stride, the buffer is split into one row for each phase of it, so that the taps of neighbouring outputs are
// neighbours in memory whatever the stride and the dilation. Long windows of stride and dilation 1 double instead:
// the reductions over 1, 2, 4, … columns make up a window of k in about log2 k steps. Sums are never carried from one
// window to the next: a NaN or an infinity stays in the windows that hold it.
//
// Accepts float32 max, average, and lp with p 1 or 2, any window over one to three axes.
// Workspace: two row buffers of pool.py's `separable_workspace`.
#include "pool_vector.h"

namespace {

constexpr int64_t DOUBLING_FROM = 7;  // taps along the width from which doubling is the faster way

// out[i] = window of `taps` neighbours from row[i] on, for i < count, by doubling in place.
template <class Op>
QF_INLINE void double_up(float* row, float* out, int64_t count, int64_t taps) {
  int64_t done = 0;  // taps that `out` holds so far
  for (int64_t power = 1; power <= taps; power *= 2) {
    if (taps & power) {
      for (int64_t i = 0; i < count; i += LANES) {
        const vfloat v = load(row + i + done);
        store(out + i, done ? Op::combine(v, load(out + i)) : v);
      }
      done += power;
    }
    if (2 * power > taps) break;
    for (int64_t i = 0; i < count + taps; i += LANES) store(row + i, Op::combine(load(row + i + power), load(row + i)));
  }
}

template <class Op>
void every_row(const PoolArguments& a) {
  const int64_t height = a.input[1], width = a.input[2], columns = a.output[2], pad = a.pads[2];
  const int64_t stride = a.strides[2], taps = a.kernel[2], dilation = a.dilations[2];
  const int64_t volume = a.input[0] * height * width;
  const int64_t length = a.workspace_floats / 2;
  const int64_t phase_length = length / stride / LANES * LANES;
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int thread) {
    const float* x = static_cast<const float*>(a.x) + plane * volume;
    float* y = static_cast<float*>(a.y) + plane * a.output[0] * a.output[1] * columns;
    float* row = a.workspace + thread * a.workspace_floats;
    float* second = row + length;
    Op op;
    for (int64_t i = 0; i < a.workspace_floats; i++) row[i] = Op::identity();
    for (int64_t r = begin; r < end; r++) {
      const Taps td = window_taps(a, 0, r / a.output[1]), th = window_taps(a, 1, r % a.output[1]);
      const float* first = x + (td.start * height + th.start) * width;
      for (int64_t i = 0; i < width; i += LANES) {
        const int lanes = clamp_lane(width - i);
        vfloat down = broadcast(Op::identity());
        for (int64_t kd = td.begin; kd < td.end; kd++)
          for (int64_t kh = th.begin; kh < th.end; kh++) {
            const float* line = first + (kd * a.dilations[0] * height + kh * a.dilations[1]) * width + i;
            const vfloat v = lanes == LANES ? load(line) : load_span(line, span_at(0, lanes), Op::identity());
            op.see(v, v);
            down = Op::combine(Op::value(v), down);
          }
        store(row + pad + i, down);
      }
      const float scale = Op::scaled ? row_weight(a, r) : 1.0f;
      const float* source = row;
      if (stride > 1) {
        if (stride == 2) {
          for (int64_t i = 0; i < phase_length; i += LANES) {
            const vfloat low = load(row + 2 * i), high = load(row + 2 * i + LANES);
            store(second + i, every_second<0>(low, high));
            store(second + phase_length + i, every_second<1>(low, high));
          }
        } else {
          for (int64_t i = 0; i < phase_length; i++)
            for (int64_t phase = 0; phase < stride; phase++) second[phase * phase_length + i] = row[i * stride + phase];
        }
        source = second;
      } else if (dilation == 1 && taps >= DOUBLING_FROM) {
        double_up<Op>(row, second, columns, taps);
        source = second;
      }
      const bool doubled = stride == 1 && source == second;
      float* out = y + r * columns;
      for (int64_t i = 0; i < columns; i += LANES) {
        vfloat v = load(source + i);
        if (!doubled)
          for (int64_t k = 1; k < taps; k++) {
            const int64_t at = k * dilation;
            v = Op::combine(load(source + at % stride * phase_length + at / stride + i), v);
          }
        v = Op::finish(v);
        const int lanes = clamp_lane(columns - i);
        if constexpr (Op::scaled) v *= scale * load_first(a.column_weights + i, lanes);
        store_first(out + i, v, lanes);
      }
      if (doubled) {  // what lies before and behind the next row's elements
        for (int64_t i = 0; i < pad; i++) row[i] = Op::identity();
        for (int64_t i = pad + width; i < length; i++) row[i] = Op::identity();
      }
    }
    if (op.again())
      for (int64_t r = begin; r < end; r++) row_by_definition<float>(a, plane, r);
  });
}

}  // namespace

extern "C" int QF_EXPORT(pool_separable_f32)(const PoolArguments* a) {
  switch (a->kind) {
    case POOL_MAX: every_row<MaxReduction>(*a); return 0;
    case POOL_AVERAGE: every_row<SumReduction>(*a); return 0;
    default:
      if (a->p == 1) every_row<MagnitudeReduction>(*a);
      else if (a->p == 2) every_row<SquareReduction>(*a);
      else return 1;
      return 0;
  }
}
