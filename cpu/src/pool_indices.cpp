// Max pooling with indices.
//
// Input rows are staged into a ring of row buffers, once for each: padded with -infinity, and split by the phases of
// the stride along the width, so that each tap of neighbouring outputs is one vector load. The taps are then compared
// in their order, the place of the best beside it; a later equal value does not replace an earlier one, and padding
// replaces nothing. Places are 32 bits inside a volume and widened at the end of a row.
//
// A window that is the whole plane takes two passes instead: the maximum, then the first place that holds it.
//
// Accepts float32 volumes of less than 2^31 elements, any window over one to three axes.
// Workspace: pool.py's `indices_workspace`.
#include "pool_vector.h"

namespace {

QF_INLINE vint iota() {
  vint v;
  for (int lane = 0; lane < LANES; lane++) v[lane] = lane;
  return v;
}

QF_INLINE vint same(int64_t x) { return (int32_t)x - (vint){}; }

struct Best {
  vfloat value;
  vint place;
  QF_INLINE void meet(vfloat v, vint at) {
#if defined(QF_AVX512)
    const __mmask16 wins = _mm512_cmp_ps_mask((__m512)v, (__m512)value, _CMP_GT_OQ);
    place = (vint)_mm512_mask_mov_epi32((__m512i)place, wins, (__m512i)at);
#else
    place = v > value ? at : place;
#endif
    value = larger(v, value);
  }
};

// One output with the whole plane as window: the maximum, then the first place that holds it.
void global_maxima(const PoolArguments& a) {
  const int64_t volume = a.input[0] * a.input[1] * a.input[2];
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int) {
    if (begin == end) return;
    const float* x = static_cast<const float*>(a.x) + plane * volume;
    if (a.storage_order || MaxReduction::has_nan(x, volume)) {
      row_by_definition<float>(a, plane, 0);
      return;
    }
    vfloat most = broadcast(MaxReduction::identity());
    for (int64_t i = 0; i < volume; i += LANES)
      most = larger(load_span(x + i, span_at(0, volume - i), MaxReduction::identity()), most);
    float best = most[0];
    for (int lane = 1; lane < LANES; lane++) best = most[lane] > best ? most[lane] : best;
    int64_t place = 0;
    while (x[place] != best) place++;
    static_cast<float*>(a.y)[plane] = best;
    a.indices[plane] = plane * volume + place;
  });
}

}  // namespace

extern "C" int QF_EXPORT(pool_indices_f32)(const PoolArguments* arguments) {
  const PoolArguments& a = *arguments;
  if (a.row_floats == 0) {
    global_maxima(a);
    return 0;
  }
  const int64_t depth = a.input[0], height = a.input[1], width = a.input[2], volume = depth * height * width;
  const int64_t columns = a.output[2], stride = a.strides[2], taps = a.kernel[2], dilation = a.dilations[2];
  const int64_t row_step = a.dilations[1], span = (a.kernel[1] - 1) * row_step + 1;
  const int64_t slots = a.kernel[0] * span;
  // what one step along each axis adds to a place
  const int64_t d_place = a.storage_order ? 1 : height * width, h_place = a.storage_order ? depth : width;
  const int64_t w_place = a.storage_order ? depth * height : 1;
  const int64_t places = (columns + 15) / 16 * 16;
  const int64_t length = a.row_floats, phase_length = length / stride;
  over_planes(a, [&](int64_t plane, int64_t begin, int64_t end, int thread) {
    const float* x = static_cast<const float*>(a.x) + plane * volume;
    const int64_t at = plane * a.output[0] * a.output[1] * columns;
    float* y = static_cast<float*>(a.y) + at;
    float* scratch = a.workspace + thread * a.workspace_floats;
    int32_t* row_places = reinterpret_cast<int32_t*>(scratch);
    float* row = scratch + places;
    float* ring = row + length;
    NanWatch nans;
    for (int64_t i = 0; i < length * (slots + 1); i++) row[i] = MaxReduction::identity();
    const vint lane_places = iota() * same(stride * w_place);
    int64_t staged_depth = -1, staged = 0;
    for (int64_t r = begin; r < end; r++) {
      const int64_t od = depth_of(a, r);
      const Taps td = window_taps(a, 0, od), th = window_taps(a, 1, r - od * a.output[1]);
      const bool padding_alone = td.begin == td.end || th.begin == th.end;
      if (od != staged_depth) staged = 0;
      staged_depth = od;
      if (!padding_alone) {
        // every row under the window, since with a dilation a later window may need one between this window's taps
        const int64_t behind = th.start + span < height ? th.start + span : height;
        for (int64_t ih = th.start > staged ? th.start : staged; ih < behind; ih++)
          for (int64_t kd = td.begin; kd < td.end; kd++)
            stage_line(x + ((td.start + kd * a.dilations[0]) * height + ih) * width, width, a.pads[2], stride,
                       phase_length, MaxReduction::identity(), row, ring + (kd * span + ih % span) * length, nans);
        staged = behind;
      }
      const int64_t first_row =
          (td.start + td.begin * a.dilations[0]) * d_place + (th.start + th.begin * row_step) * h_place;
      for (int64_t i = 0; i < columns; i += LANES) {
        vint inside;
        memcpy(&inside, a.first_columns + i, sizeof inside);
        Best best;
        best.value = broadcast(MaxReduction::identity());
        best.place = inside < 0 ? same(-1) : inside * same(w_place) + same(first_row);
        if (padding_alone) best.place = same(-1);
        for (int64_t kd = td.begin; kd < td.end; kd++)
          for (int64_t kh = th.begin; kh < th.end; kh++) {
            const int64_t id = td.start + kd * a.dilations[0], ih = th.start + kh * row_step;
            const float* line = ring + (kd * span + ih % span) * length + i;
            const int64_t base = id * d_place + ih * h_place + (i * stride - a.pads[2]) * w_place;
            TapPlace tap(dilation, stride);
            for (int64_t kw = 0; kw < taps; kw++, tap.next())
              best.meet(load(line + tap.phase * phase_length + tap.along),
                        lane_places + same(base + kw * dilation * w_place));
          }
        store_first(y + r * columns + i, best.value, clamp_lane(columns - i));
        memcpy(row_places + i, &best.place, sizeof best.place);
      }
      int64_t* indices = a.indices + at + r * columns;
      const int64_t before = plane * volume;
      for (int64_t i = 0; i < columns; i++) indices[i] = row_places[i] < 0 ? -1 : before + row_places[i];
    }
    if (nans.any())
      for (int64_t r = begin; r < end; r++) row_by_definition<float>(a, plane, r);
  });
  return 0;
}
