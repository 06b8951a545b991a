// The gradient of max pooling, along one axis after the other.
//
// The first greatest tap of a window, in memory order, is the first greatest of its line's part of the first line that holds
// the maximum. So each line is staged once (padded with NaN, which no comparison finds, and parted by the phases of the
// stride, so that a tap of neighbouring outputs is one load), and for each output column the greatest of the line's taps
// is kept with the first tap that is equal. Then every output row gives its dy to the first of its lines that holds the
// maximum, column by column; and when no further window holds a line, each of its places gathers from the columns whose tap
// it is. With a window of k by k that is about 2 k comparisons a place instead of k * k; nothing is scattered.
//
// As many lines as fit into the first-level cache are staged before they are compared, and gathered when they are all done:
// what was stored last cannot be forwarded to loads that straddle it. Lines of windows along the depth stay open for as many
// slices as the window spans. A plane with a NaN is computed by the definition.
//
// Accepts float32, any window over one to three axes.
// Workspace: pool_gradient.py's `max_workspace`.
#include "pool_gradient_rows.h"

namespace {

QF_INLINE vint same(int64_t x) { return (int32_t)x - (vint){}; }

struct MaxGradient {
  const PoolGradientArguments& a;
  const int64_t height = a.input[1], width = a.input[2], columns = a.output[2], taps = a.kernel[2];
  const int64_t stride = a.strides[2], dilation = a.dilations[2];
  const int64_t whole = (columns + 15) / 16 * 16;  // columns in whole vectors
  const int64_t line = a.line_floats, slot_floats = a.row_floats + whole + 2 * line;

  // The workspace: what belongs to each open line; then a line that is staged, the taps of each phase, a vector for each, and
  // the lines of a window.
  float* const slots;
  float* const row = slots + a.slots * slot_floats;
  PhaseTaps* const phases = reinterpret_cast<PhaseTaps*>(row + a.row_floats);
  float* const scratch = reinterpret_cast<float*>(phases + stride);
  float** const window = reinterpret_cast<float**>(scratch + stride * 16);

  QF_INLINE float* best(float* slot) const { return slot + a.row_floats; }
  QF_INLINE float* gradient(float* slot) const { return best(slot) + whole + a.lead; }
  QF_INLINE float* winners(float* slot) const { return gradient(slot) + line; }

  void prepare() const {
    const vfloat nan = broadcast(__builtin_nanf(""));
    for (int64_t i = 0; i < a.row_floats; i += LANES) store(row + i, nan);
    for (int64_t k = 0; k < a.slots; k++) {
      float* slot = slots + k * slot_floats;
      for (int64_t i = 0; i < a.row_floats; i += LANES) store(slot + i, nan);
      for (int64_t i = 0; i < whole + line; i += LANES) store(best(slot) + i, (vfloat){});
      for (int64_t i = 0; i < line; i += LANES) store(winners(slot) - a.lead + i, (vfloat)same(-1));
    }
    for (int64_t phase = 0; phase < stride; phase++) phases[phase] = taps_of_phase(a, phase);
  }

  // The greatest of a line's taps for each output column, and which is the first.
  template <int K>
  __attribute__((noinline)) void compare(float* slot) const {
    const int64_t phase_length = a.row_floats / stride, columns = this->columns, taps = this->taps;
    float *best = this->best(slot), *winners = this->winners(slot), *gradient = this->gradient(slot);
    int64_t places[K > 0 ? K : 1];
    if constexpr (K > 0) {
      TapPlace tap(dilation, stride);
      for (int k = 0; k < K; k++, tap.next()) places[k] = tap.phase * phase_length + tap.along;
    }
    for (int64_t i = 0; i < columns; i += LANES) {
      vfloat most = broadcast(MaxReduction::identity());
      vint at = same(-1);
      if constexpr (K > 0) {
        vfloat v[K];
        QF_UNROLL for (int k = 0; k < K; k++) most = larger(v[k] = load(slot + places[k] + i), most);
        QF_UNROLL for (int k = K - 1; k >= 0; k--) at = v[k] == most ? same(k) : at;
      } else {
        TapPlace tap(dilation, stride);
        for (int64_t k = 0; k < taps; k++, tap.next()) {
          const vfloat v = load(slot + tap.phase * phase_length + tap.along + i);
          // the first value of a window may be as small as nothing is
          at = v > most ? same(k) : (vint)((v == most) & (at < 0)) ? same(k) : at;
          most = larger(v, most);
        }
      }
      store(best + i, most);
      store(winners + i, (vfloat)at);
      store(gradient + i, (vfloat){});
    }
    for (int64_t i = columns; i < whole; i++) memset(winners + i, -1, sizeof(float));
  }

  // dy of an output row to the first of N lines that holds the maximum. N is 0 to count them.
  template <int N>
  __attribute__((noinline)) void share(const float* dy, int64_t lines) const {
    float** const window = this->window;
    const int64_t columns = this->columns, to_best = a.row_floats, to_gradient = a.row_floats + whole + a.lead;
    if (N > 0) lines = N;
    for (int64_t i = 0; i < columns; i += LANES) {
      vfloat left = i + LANES <= columns ? load(dy + i) : load_first(dy + i, int(columns - i));
      if constexpr (N == 1) {
        float* to = window[0] + to_gradient + i;
        store(to, load(to) + left);
        continue;
      }
      vfloat most = load(window[0] + to_best + i);
      const auto reduce = [&](int64_t k) __attribute__((always_inline)) {
        most = larger(load(window[k] + to_best + i), most);
      };
      const auto give = [&](int64_t k) __attribute__((always_inline)) {
        const vint wins = load(window[k] + to_best + i) == most;
        float* to = window[k] + to_gradient + i;
        store(to, load(to) + (vfloat)((vint)left & wins));
        left = (vfloat)((vint)left & ~wins);
      };
      if constexpr (N > 0) {
        QF_UNROLL for (int k = 1; k < N; k++) reduce(k);
        QF_UNROLL for (int k = 0; k < N; k++) give(k);
      } else {
        for (int64_t k = 1; k < lines; k++) reduce(k);
        for (int64_t k = 0; k < lines; k++) give(k);
      }
    }
  }

  // A line that no further window holds, to dx.
  template <int STEPS>
  __attribute__((noinline)) void gather(const float* slot, float* dx) const {
    const float *gradient = this->gradient(const_cast<float*>(slot)), *winners = gradient + line;
    const PhaseTaps* phases = this->phases;
    const int64_t taps = this->taps;
    put_line(dx, width, stride, scratch, [&](int64_t phase, int64_t i) __attribute__((always_inline)) {
      const PhaseTaps tap = phases[phase];
      int64_t at = i + tap.along;
      vfloat sum = {};
      const auto add = [&](int64_t k) __attribute__((always_inline)) {
        sum += (vfloat)((vint)load(gradient + at) & ((vint)load(winners + at) == same(k)));
        at -= tap.back;
      };
      if constexpr (STEPS > 0)
        QF_UNROLL for (int step = 0; step < STEPS; step++) add(tap.first + step * tap.step);
      else
        for (int64_t k = tap.first; k < taps; k += tap.step) add(k);
      return sum;
    });
  }

  QF_INLINE void stage(const float* x, int64_t first, int64_t end, int64_t modulus, int64_t slice, NanWatch& nans) const {
    for (int64_t h = first; h < end; h++)
      stage_line(x + h * width, width, a.pads[2], stride, a.row_floats / stride, __builtin_nanf(""), row,
                 slots + (slice + h % modulus) * slot_floats, nans);
    for (int64_t h = first; h < end; h++) {
      float* slot = slots + (slice + h % modulus) * slot_floats;
      if (taps == 2) compare<2>(slot);
      else if (taps == 3) compare<3>(slot);
      else if (taps == 5) compare<5>(slot);
      else compare<0>(slot);
    }
  }

  QF_INLINE void put(float* dx, int64_t first, int64_t end, int64_t modulus, int64_t slice) const {
    for (int64_t h = first; h < end; h++) {
      const float* slot = slots + (slice + h % modulus) * slot_floats;
      if (stride == 1 && taps == 3) gather<3>(slot, dx + h * width);
      else if (stride == 1 && taps == 5) gather<5>(slot, dx + h * width);
      else if (stride == taps && dilation == 1) gather<1>(slot, dx + h * width);
      else gather<0>(slot, dx + h * width);
    }
  }

  QF_INLINE void share(const float* dy, int64_t lines) const {
    if (lines == 1) share<1>(dy, 1);
    else if (lines == 2) share<2>(dy, 2);
    else if (lines == 3) share<3>(dy, 3);
    else if (lines > 0) share<0>(dy, lines);
  }

  // One slice, with windows that have no depth. Whether a NaN turned up, and nothing is right.
  bool slice(const float* x, const float* dy, float* dx) const {
    const int64_t span = (a.kernel[1] - 1) * a.dilations[1] + 1;
    int64_t done = 0, staged = 0;
    NanWatch nans;
    for (int64_t oh = 0; oh < a.output[1]; oh++) {
      const Taps taps = window_taps(a, 1, oh);
      const int64_t first = taps.start < 0 ? 0 : taps.start;
      if (taps.begin == taps.end) continue;
      if (smaller(taps.start + span, height) > staged) {
        put(dx, done, smaller(first, staged), a.slots, 0);
        if (first > staged) {
          memset(dx + staged * width, 0, (first - staged) * width * sizeof(float));
          staged = first;
        }
        done = first;
        const int64_t end = smaller(first + a.slots, height);
        stage(x, staged, end, a.slots, 0, nans);
        staged = end;
      }
      int64_t lines = 0;
      for (int64_t k = taps.begin; k < taps.end; k++)
        window[lines++] = slots + (taps.start + k * a.dilations[1]) % a.slots * slot_floats;
      share(dy + oh * columns, lines);
    }
    put(dx, done, staged, a.slots, 0);
    memset(dx + staged * width, 0, (height - staged) * width * sizeof(float));
    return nans.any();
  }

  bool plane(const float* x, const float* dy, float* dx) const {
    const int64_t size = height * width, out_size = a.output[1] * columns;
    const int64_t span = (a.kernel[0] - 1) * a.dilations[0] + 1;
    int64_t done = 0, staged = 0;
    NanWatch nans;
    for (int64_t od = 0; od < a.output[0]; od++, dy += out_size) {
      const Taps taps = window_taps(a, 0, od);
      if (taps.begin == taps.end) continue;
      const int64_t first = taps.start < 0 ? 0 : taps.start, end = smaller(taps.start + span, a.input[0]);
      for (; done < smaller(first, staged); done++) put(dx + done * size, 0, height, height, done % span * height);
      if (first > staged) {
        memset(dx + staged * size, 0, (first - staged) * size * sizeof(float));
        staged = first;
      }
      done = first;
      if (a.kernel[0] == 1) {
        if (slice(x + first * size, dy, dx + first * size)) return true;
        done = staged = first + 1;
        continue;
      }
      for (; staged < end; staged++) stage(x + staged * size, 0, height, height, staged % span * height, nans);
      for (int64_t oh = 0; oh < a.output[1]; oh++) {
        const Taps along = window_taps(a, 1, oh);
        int64_t lines = 0;
        for (int64_t k = taps.begin; k < taps.end; k++)
          for (int64_t j = along.begin; j < along.end; j++)
            window[lines++] = slots + ((taps.start + k * a.dilations[0]) % span * height + along.start +
                                       j * a.dilations[1]) * slot_floats;
        share(dy + oh * columns, lines);
      }
    }
    for (; done < staged; done++) put(dx + done * size, 0, height, height, done % span * height);
    memset(dx + staged * size, 0, (a.input[0] - staged) * size * sizeof(float));
    return nans.any();
  }
};

}  // namespace

extern "C" int QF_EXPORT(pool_gradient_max_f32)(const PoolGradientArguments* arguments) {
  const PoolGradientArguments& a = *arguments;
  const int64_t volume = a.input[0] * a.input[1] * a.input[2], outputs = a.output[0] * a.output[1] * a.output[2];
  for (int thread = 0; thread < a.threads; thread++)
    MaxGradient{a, .slots = a.workspace + thread * a.workspace_floats}.prepare();
  over_whole_planes(a, [&](int64_t plane, int thread) {
    const MaxGradient gradient{a, .slots = a.workspace + thread * a.workspace_floats};
    if (gradient.plane(static_cast<const float*>(a.x) + plane * volume, static_cast<const float*>(a.dy) + plane * outputs,
                       static_cast<float*>(a.dx) + plane * volume))
      plane_by_definition<float>(a, plane);
  });
  return 0;
}
