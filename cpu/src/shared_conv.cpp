// Convolution, and dense layers, with weights by a codebook, any window: rows of x times panels of codes (codes.h).
//
// A row is what the window reads at one place, (taps, channels), so that places of all images follow one another. Vectors
// hold output channels: a panel is up to MOST_COLUMNS_OF_PANEL vectors of them. For some rows
//   for each slice of the depth: the rows' part of it is brought together, in the second-level cache
//     for each panel: a part of it becomes floats in the first-level cache, where all rows pass by
// and in the end sums are turned into planes. Rows of a dense layer are x itself; up to two of them decode in registers,
// so that nothing but codes is read from memory. Limited by decoding for few rows, by the multiply-adds for many.
//
// Padding is read as zeros, which would make NaN of an infinite weight: with such a codebook each output is computed by its
// definition. Threads share rows and panels.
#include <omp.h>

#include "codes.h"
#include "conv_epilogue.h"
#include "shared_conv.h"

namespace {

constexpr int64_t MOST_COLUMNS_OF_PANEL = 4;
constexpr int64_t MOST_ROWS_TOGETHER = LANES == 16 ? 224 : 96;  // that share what is decoded
constexpr int64_t ROOM_BYTES = 256 << 10;                       // of rows that are brought together
constexpr int64_t GAP = 16;                                     // floats between rows: rows a power of two apart share few sets of a cache

struct Plan {
  int64_t depth, plane, rows, row_blocks;
  int columns;                 // vectors of a panel
  int64_t panels, panel_bytes;  // of one group
  bool in_place;               // rows are x itself
  int64_t slice, pitch;        // values of a row that are brought together, and from one row to the next

  explicit Plan(const SharedConv& c) {
    const ConvShape& s = c.shape;
    depth = s.in_channels * volume(s.kernel), plane = volume(s.output), rows = s.batch * plane;
    const int64_t vectors = divide_up(s.out_channels, LANES);
    panels = divide_up(vectors, MOST_COLUMNS_OF_PANEL);
    columns = int(divide_up(vectors, panels));
    panels = divide_up(vectors, columns);
    panel_bytes = bytes_of_codes(c.bits, depth, columns);
    row_blocks = divide_up(rows, MOST_ROWS_TOGETHER);
    in_place = volume(s.kernel) == 1 && volume(s.input) == 1 && plane == 1 && s.pads[0] + s.pads[1] + s.pads[2] == 0;
    const int64_t fit = ROOM_BYTES / 4 / (row_blocks ? divide_up(rows, row_blocks) : 1) / STEP * STEP;
    slice = in_place ? divide_up(depth, STEP) * STEP : smaller(fit, divide_up(depth, STEP) * STEP);
    pitch = slice + GAP;
  }

  int64_t first_row(int64_t block) const { return rows * block / row_blocks; }
  int64_t most_rows() const { return divide_up(rows, row_blocks); }
  int64_t sums_row() const { return panels * columns * LANES; }
  int64_t gathered_floats() const { return in_place ? 0 : most_rows() * pitch; }
  int64_t own_floats() const { return gathered_floats() + most_rows() * sums_row() + sums_row(); }
};

// A place of an output, from one to the next.
struct Place {
  const ConvShape& s;
  int64_t image, d, h, w;
  Place(const ConvShape& s, int64_t row) : s(s) {
    w = row % s.output[2], h = row / s.output[2] % s.output[1], d = row / s.output[2] / s.output[1] % s.output[0];
    image = row / volume(s.output);
  }
};

// Values `begin` to `end` of the depth of rows `first` to `last`. x: the group's first channel in the first image.
void bring_together(const SharedConv& c, const Plan& plan, const float* x, int64_t first, int64_t last, int64_t begin,
                    int64_t end, float* to) {
  const ConvShape& s = c.shape;
  const int64_t channel = volume(s.input), image_step = s.groups * s.in_channels * channel;
  for (int64_t row = first; row < last;) {  // runs of places of one row of an output plane, up to a vector
    const Place at(s, row);
    const int64_t count = smaller(smaller(LANES, s.output[2] - at.w), last - row);
    for (int64_t k = begin; k < end;) {
      const int64_t tap = k / s.in_channels, from_channel = k % s.in_channels;
      const int64_t channels = smaller(s.in_channels - from_channel, end - k);
      const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
      const int64_t id = at.d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
      const int64_t ih = at.h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
      const int64_t iw = at.w * s.strides[2] + kw * s.dilations[2] - s.pads[2], stride = s.strides[2];
      const bool there = id >= 0 && id < s.input[0] && ih >= 0 && ih < s.input[1];
      const int64_t low = iw < 0 ? divide_up(-iw, stride) : 0, high = s.input[2] > iw ? divide_up(s.input[2] - iw, stride) : 0;
      const int begin_lane = there ? clamped(low, count) : 0, end_lane = there ? clamped(high, count) : 0;
      const lanemask inside = lanes_between(begin_lane, end_lane < begin_lane ? begin_lane : end_lane);
      // an address outside of x only where no lane is read
      const float* from = x + at.image * image_step + from_channel * channel + (id * s.input[1] + ih) * s.input[2] + iw;
      float* target = to + (row - first) * plan.pitch + k - begin;
      for (int64_t i = 0; i < channels; i += LANES) {
        const int some = clamped(channels - i, LANES);
        vfloat square[LANES];
        for (int lane = 0; lane < LANES; lane++) {
          if (lane >= some || begin_lane >= end_lane) square[lane] = (vfloat){};
          else if (stride == 1) square[lane] = load_masked(from + (i + lane) * channel, inside);
          else {
            square[lane] = (vfloat){};
            for (int n = begin_lane; n < end_lane; n++) square[lane][n] = from[(i + lane) * channel + n * stride];
          }
        }
        transpose(square);
        for (int n = 0; n < count; n++) {
          if (some == LANES) store(target + n * plan.pitch + i, square[n]);
          else store_first(target + n * plan.pitch + i, square[n], some);
        }
      }
      k += channels;
    }
    row += count;
  }
}

// Sums of `panels` panels from `first_panel` on into y.
void write(const SharedConv& c, const Plan& plan, const SharedConvCall& call, const Epilogue& epilogue, int64_t group,
           int64_t first, int64_t last, int64_t first_panel, int64_t last_panel, const float* sums) {
  const ConvShape& s = c.shape;
  const int64_t width = plan.columns * LANES, all = s.groups * s.out_channels;
  const int64_t from = first_panel * width, to = smaller(last_panel * width, s.out_channels);
  for (int64_t row = first; row < last;) {
    const int64_t image = row / plan.plane, place = row % plan.plane, count = smaller(plan.plane - place, last - row);
    for (int64_t m = from; m < to; m += LANES) {
      const int64_t at = (image * all + group * s.out_channels + m) * plan.plane + place;
      const float* vectors = sums + (row - first) * plan.sums_row() + m;
      const int channels = clamped(to - m, LANES);
      const float* residual = call.residual ? call.residual + at : nullptr;
      if (plan.plane > 1) {
        for (int64_t p = 0; p < count; p += LANES) {
          float block[LANES * LANES];
          const int64_t some = smaller(LANES, count - p);
          for (int64_t i = 0; i < some; i++) store(block + i * LANES, load(vectors + (p + i) * plan.sums_row()));
          write_planes(epilogue, block, channels, plan.plane, some, residual ? residual + p : nullptr, call.y + at + p);
        }
      } else {
        vfloat value = load(vectors);
        if (residual) value += load_first(residual, channels);
        store_first(call.y + at, epilogue.apply(value), channels);
      }
    }
    row += count;
  }
}

template <int BITS>
void convolve(const SharedConv& c, const SharedConvCall& call) {
  const ConvShape& s = c.shape;
  const Plan plan(c);
  const Epilogue epilogue(s);
  const int64_t others = plan.row_blocks * s.groups;
  const int64_t splits = smaller(plan.panels, divide_up(call.threads, others)), parts = others * splits;
  const int64_t width = plan.columns * LANES;
#pragma omp parallel for schedule(dynamic) num_threads(call.threads) if (call.threads > 1)
  for (int64_t part = 0; part < parts; part++) {
    const int64_t split = part % splits, group = part / splits % s.groups, block = part / splits / s.groups;
    const int64_t first = plan.first_row(block), last = plan.first_row(block + 1), rows = last - first;
    const int64_t first_panel = plan.panels * split / splits, last_panel = plan.panels * (split + 1) / splits;
    float* gathered = reinterpret_cast<float*>(call.workspace) + omp_get_thread_num() * plan.own_floats();
    float* sums = gathered + plan.gathered_floats();
    float* bias = sums + plan.most_rows() * plan.sums_row();
    for (int64_t m = 0; m < plan.sums_row(); m++) bias[m] = c.bias && m < s.out_channels ? c.bias[group * s.out_channels + m] : 0.0f;
    const float* x = call.x + group * s.in_channels * volume(s.input);
    for (int64_t k = 0; k < plan.depth; k += plan.slice) {
      const int64_t count = smaller(plan.slice, plan.depth - k);
      if (!plan.in_place) bring_together(c, plan, x, first, last, k, k + count, gathered);
      const float* from = plan.in_place ? x + first * s.groups * s.in_channels : gathered;
      for (int64_t panel = first_panel; panel < last_panel; panel++) {
        const uint8_t* codes = c.packed + (group * plan.panels + panel) * plan.panel_bytes + bytes_of_codes(BITS, k, plan.columns);
        float* out = sums + panel * width;
        coded_products_of<BITS>(plan.columns, rows, from, plan.in_place ? s.groups * s.in_channels : plan.pitch, count, codes,
                                c.book, k ? out : bias + panel * width, k ? plan.sums_row() : 0, out, plan.sums_row(),
                                plan.columns - 1);
      }
    }
    write(c, plan, call, epilogue, group, first, last, first_panel, last_panel, sums);
  }
}

// The definition, tap by tap: padding has no part in it.
void convolve_directly(const SharedConv& c, const SharedConvCall& call) {
  const ConvShape& s = c.shape;
  const int64_t plane = volume(s.output), image = volume(s.input), taps = volume(s.kernel), all = s.groups * s.out_channels;
  const auto inside = [&](const Place& at, int64_t tap) {
    const int64_t kw = tap % s.kernel[2], kh = tap / s.kernel[2] % s.kernel[1], kd = tap / s.kernel[2] / s.kernel[1];
    const int64_t d = at.d * s.strides[0] + kd * s.dilations[0] - s.pads[0];
    const int64_t h = at.h * s.strides[1] + kh * s.dilations[1] - s.pads[1];
    const int64_t w = at.w * s.strides[2] + kw * s.dilations[2] - s.pads[2];
    const bool there = d >= 0 && d < s.input[0] && h >= 0 && h < s.input[1] && w >= 0 && w < s.input[2];
    return there ? (d * s.input[1] + h) * s.input[2] + w : -1;
  };
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.threads > 1)
  for (int64_t index = 0; index < s.batch * all * plane; index++) {
    const int64_t m = index / plane % all, group = m / s.out_channels;
    const Place at(s, index / plane / all * plane + index % plane);
    const float* x = call.x + (at.image * s.groups + group) * s.in_channels * image;
    const uint8_t* codes = c.plain + m * s.in_channels * taps;
    float sum = c.bias ? c.bias[m] : 0.0f;
    for (int64_t tap = 0; tap < taps; tap++) {
      const int64_t place = inside(at, tap);
      if (place < 0) continue;
      for (int64_t i = 0; i < s.in_channels; i++) sum += x[i * image + place] * c.book[codes[i * taps + tap]];
    }
    if (call.residual) sum += call.residual[index];
    call.y[index] = qf_activation(s.activation, s.alpha, s.beta, sum);
  }
}

template <int BITS>
void pack(const SharedConv& c, const uint8_t* codes, uint8_t* packed) {
  const ConvShape& s = c.shape;
  const Plan plan(c);
  const int64_t taps = volume(s.kernel);
  for (int64_t group = 0; group < s.groups; group++)
    for (int64_t panel = 0; panel < plan.panels; panel++, packed += plan.panel_bytes)
      pack_codes<BITS>(plan.depth, plan.columns, [&](int64_t k, int64_t column, int lane) {
        const int64_t m = (panel * plan.columns + column) * LANES + lane;
        if (m >= s.out_channels) return uint8_t(0);
        return codes[((group * s.out_channels + m) * s.in_channels + k % s.in_channels) * taps + k / s.in_channels];
      }, packed);
}

}  // namespace

extern "C" void QF_EXPORT(shared_conv_needs)(const SharedConv* c, SharedConvNeeds* needs) {
  const Plan plan(*c);
  *needs = {size_t(c->shape.groups * plan.panels * plan.panel_bytes), sizeof(float) * divide_up(plan.own_floats(), 16) * 16};
}

extern "C" void QF_EXPORT(shared_conv_pack)(const SharedConv* c, const uint8_t* codes, uint8_t* packed) {
  if (c->bits == 4) pack<4>(*c, codes, packed);
  else pack<8>(*c, codes, packed);
}

extern "C" void QF_EXPORT(shared_conv_f32)(const SharedConv* c, const SharedConvCall* call) {
  if (c->plain) convolve_directly(*c, *call);
  else if (c->bits == 4) convolve<4>(*c, *call);
  else convolve<8>(*c, *call);
}
