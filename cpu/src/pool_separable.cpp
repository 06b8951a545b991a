// Pooling in two passes: the window's rows are reduced into one row, then that row along the width.
//
// Each output row first reduces the input rows of its window, over height and depth, element by element into a row
// buffer whose ends hold the reduction's identity; the buffer then gives each output column its taps. A batch of
// output rows goes through the passes together, their buffers one behind the other, so that a pass along the width is
// one long walk over all of them. Along the width
//   - long windows of stride and dilation 1 double: the reductions over 1, 2, 4, … columns make up a window of k in
//     about log2 k steps;
//   - strides from 3 on with few taps take them one by one;
//   - other strides split the buffers by the phases of the stride, so that the taps of neighbouring outputs are
//     neighbours in memory whatever the dilation, and each tap is one vector load.
// Sums are never carried from one window to the next: a NaN or an infinity stays in the windows that hold it.
//
// Accepts float32 max, average, and lp with p 1 or 2, any window over one to three axes.
// Workspace: two batches of row buffers and the room behind them, see pool.py's `separable_workspace`.
#include "pool_vector.h"

namespace {

constexpr int64_t DOUBLING_FROM = 7;  // taps along the width from which doubling is the faster way

// out[i] = reduction of `taps` neighbours from row[i] on, for i < count; row is used up.
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
    if (2 * power > taps) return;
    for (int64_t i = 0; i < count + taps; i += LANES) store(row + i, Op::combine(load(row + i + power), load(row + i)));
  }
}

// The window's rows in V neighbouring vectors.
template <class Op, int V>
QF_INLINE void down(const float* from, const Taps& td, const Taps& th, int64_t row_step, int64_t depth_step,
                    const Span* span, float* to) {
  vfloat sums[V];
  QF_UNROLL for (int i = 0; i < V; i++) sums[i] = broadcast(Op::identity());
  for (int64_t kd = td.begin; kd < td.end; kd++) {
    const float* line = from + kd * depth_step + th.begin * row_step;
    for (int64_t kh = th.begin; kh < th.end; kh++, line += row_step)
      QF_UNROLL for (int i = 0; i < V; i++) {
        const vfloat v = span ? load_span(line, *span, Op::identity()) : load(line + i * LANES);
        sums[i] = Op::combine(Op::value(v), sums[i]);
      }
  }
  QF_UNROLL for (int i = 0; i < V; i++) store(to + i * LANES, sums[i]);
}

template <class Op>
void every_row(const PoolArguments& a) {
  const int64_t height = a.input[1], width = a.input[2], columns = a.output[2], pad = a.pads[2];
  const int64_t stride = a.strides[2], taps = a.kernel[2], dilation = a.dilations[2];
  const int64_t volume = a.input[0] * height * width, length = a.row_floats, phase_length = a.batch_rows * length / stride;
  const bool doubles = stride == 1 && dilation == 1 && taps >= DOUBLING_FROM;
  const bool one_by_one = stride > 2 && taps <= 2 * stride;
  const bool splits = stride > 1 && !one_by_one;
  const int64_t row_step = a.dilations[1] * width, depth_step = a.dilations[0] * height * width;
  const int64_t whole = width / LANES * LANES;
  const Span tail = span_at(0, width - whole);
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int thread) {
    const float* x = static_cast<const float*>(a.x) + plane * volume;
    float* y = static_cast<float*>(a.y) + plane * a.output[0] * a.output[1] * columns;
    float* rows = a.workspace + thread * a.workspace_floats;
    float* second = rows + a.workspace_floats / 2;
    if (Op::has_nan(x, volume)) {
      for (int64_t r = begin; r < end; r++) row_by_definition<float>(a, plane, r);
      return;
    }
    for (int64_t i = 0; i < a.workspace_floats / 2; i += LANES) store(rows + i, broadcast(Op::identity()));
    for (int64_t r = begin; r < end; r += a.batch_rows) {
      const int64_t batch = end - r < a.batch_rows ? end - r : a.batch_rows;
      for (int64_t j = 0; j < batch; j++) {
        const int64_t od = depth_of(a, r + j);
        const Taps td = window_taps(a, 0, od), th = window_taps(a, 1, r + j - od * a.output[1]);
        const float* from = x + (td.start * height + th.start) * width;
        float* to = rows + j * length + pad;
        int64_t i = 0;
        for (; i + 4 * LANES <= whole; i += 4 * LANES)
          down<Op, 4>(from + i, td, th, row_step, depth_step, nullptr, to + i);
        for (; i < whole; i += LANES) down<Op, 1>(from + i, td, th, row_step, depth_step, nullptr, to + i);
        if (i < width) down<Op, 1>(from + i, td, th, row_step, depth_step, &tail, to + i);
      }
      const float* source = rows;
      int64_t row_length = length;
      if (splits) {
        split(rows, second, phase_length, stride);
        source = second;
        row_length = length / stride;
      } else if (doubles) {
        double_up<Op>(rows, second, batch * length, taps);
        source = second;
        for (int64_t j = 0; j < batch; j++) {  // the ends of the next batch's rows
          float* row = rows + j * length;
          for (int64_t i = 0; i < pad; i++) row[i] = Op::identity();
          for (int64_t i = pad + width; i < length; i++) row[i] = Op::identity();
        }
      }
      for (int64_t j = 0; j < batch; j++) {
        const float* row = source + j * row_length;
        float* out = y + (r + j) * columns;
        if (one_by_one)
          for (int64_t i = 0; i < columns; i++) {
            float value = row[i * stride];
            for (int64_t k = 1; k < taps; k++) value = Op::combine(row[i * stride + k * dilation], value);
            second[i] = value;
          }
        for (int64_t i = 0; i < columns; i += LANES) {
          vfloat v = load((one_by_one ? second : row) + i);
          if (!doubles && !one_by_one) {
            TapPlace tap(dilation, stride);
            for (int64_t k = 1; k < taps; k++) {
              tap.next();
              v = Op::combine(load(row + tap.phase * phase_length + tap.along + i), v);
            }
          }
          v = Op::finish(v);
          const int lanes = clamp_lane(columns - i);
          if constexpr (Op::scaled) v *= a.row_weights[r + j] * load(a.column_weights + i);
          if (lanes == LANES) store(out + i, v);
          else store_first(out + i, v, lanes);
        }
      }
    }
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
