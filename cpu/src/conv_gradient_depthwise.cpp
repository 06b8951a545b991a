// The gradient of a depthwise convolution's weight (one input and one output channel a group) on plain NCHW, vectors along a
// row of dy.
//
// The rows of a plane of x are copied with their padding, parted by the phases of the stride (conv_padded.h), so that what a
// tap reads for neighbouring places lies side by side. A band of rows of dy passes over them: a vector of dy is loaded once
// for up to twelve taps (some rows of the kernel), whose sums stay in registers for the whole band. A band is some rows of a
// plane, or the planes of several images where they are small: to add up the lanes of nine sums takes as long as all products
// of 7x7 places. Limited by the loads of x, one for each multiply-add, and by memory where planes are large. Sums of a band are
// float, lane by lane; those of all bands are added in double.
//
// Takes kernels of up to 7 columns, without volumes. Padding is read as zeros, which an infinite dy would make NaN of: values
// that are not finite are computed anew by their definition. Threads share the channels.
#include <omp.h>

#include "conv_gradient.h"
#include "conv_padded.h"

namespace {

constexpr int64_t BAND_FLOATS = 4096;  // of x, half the first-level cache
constexpr int MOST_SUMS = 12, MOST_WIDE = 7;

struct Bands {
  PaddedRows padded;
  int64_t rows, lines;  // of dy, and of x, in one band of an image
  int64_t images;       // in one band
  explicit Bands(const ConvShape& s) : padded(s) {
    const int64_t reach = (s.kernel[1] - 1) * s.dilations[1] + 1, most = BAND_FLOATS / padded.pitch;
    rows = most > reach ? (most - reach) / s.strides[1] + 1 : 1;
    rows = smaller(rows, s.output[1]);
    lines = (rows - 1) * s.strides[1] + reach;
    const int64_t fit = rows == s.output[1] && floats() > 0 ? BAND_FLOATS / floats() : 1;
    images = smaller(fit > 1 ? fit : 1, s.batch);
  }
  int64_t floats() const { return lines * padded.pitch; }  // of an image's lines
};

// What one call of `pass` goes over: rows of dy, and the lines of x that its first tap reads.
struct Pass {
  const float *dy, *lines;
  int64_t images, rows, width;     // of dy
  int64_t next_dy, next_lines;     // floats from one image to the next
  int64_t line_step;               // floats of x from one row of dy to the next
  int64_t tap_line;                // floats of x from one row of the kernel to the next
  const int64_t* places;           // in a line, of each column of the kernel
};

// Adds to totals[KH][KW] the products of dy with what these rows and columns of the kernel read.
template <int KH, int KW>
void pass(const Pass& p, double* totals) {
  vfloat sums[KH][KW] = {};
  const int left = int(p.width % LANES);
  const int64_t whole = p.width - left;
  const lanemask inside = lanes_between(0, left);
  int64_t places[KW];
  for (int j = 0; j < KW; j++) places[j] = p.places[j];
  // one body for all vectors of a row, so that the sums stay in registers
  for (int64_t image = 0; image < p.images; image++) {
    const float *dy = p.dy + image * p.next_dy, *line = p.lines + image * p.next_lines;
    for (int64_t row = 0; row < p.rows; row++, dy += p.width, line += p.line_step)
      for (int64_t w = 0; w < p.width; w += LANES) {
        const vfloat value = w < whole ? load(dy + w) : load_masked(dy + w, inside);
        QF_UNROLL for (int i = 0; i < KH; i++)
          QF_UNROLL for (int j = 0; j < KW; j++) sums[i][j] += value * load(line + i * p.tap_line + places[j] + w);
      }
  }
  float lanes[KH * KW][LANES];  // in memory only now
  QF_UNROLL for (int i = 0; i < KH; i++)
    QF_UNROLL for (int j = 0; j < KW; j++) store(lanes[i * KW + j], sums[i][j]);
  for (int tap = 0; tap < KH * KW; tap++)
    for (int lane = 0; lane < LANES; lane++) totals[tap] += lanes[tap][lane];
}

typedef void (*PassFunction)(const Pass&, double*);

template <int KH, int KW>
constexpr PassFunction pass_or_null() {
  if constexpr (KH * KW <= MOST_SUMS)
    return pass<KH, KW>;
  else
    return nullptr;
}
#define QF_PASSES(KW) \
  {pass_or_null<1, KW>(), pass_or_null<2, KW>(), pass_or_null<3, KW>(), pass_or_null<4, KW>(), pass_or_null<5, KW>(), pass_or_null<6, KW>()}
constexpr PassFunction PASSES[MOST_WIDE][6] = {QF_PASSES(1), QF_PASSES(2), QF_PASSES(3), QF_PASSES(4),
                                               QF_PASSES(5), QF_PASSES(6), QF_PASSES(7)};

// Brings floats into the cache that are read soon.
QF_INLINE void ask_for(const float* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(from + i, 0, 2);
}

void run_channel(const ConvShape& s, const ConvGradientCall& call, const Bands& bands, int64_t channel, float* lines,
                 double* totals) {
  const int64_t taps = s.kernel[1] * s.kernel[2], in_plane = volume(s.input), out_plane = volume(s.output);
  const int64_t high = smaller(s.kernel[1], smaller(MOST_SUMS / s.kernel[2], 6));
  int64_t places[MOST_WIDE];
  for (int64_t j = 0; j < s.kernel[2]; j++) places[j] = bands.padded.place(j * s.dilations[2]);
  // planes of one channel lie far apart in memory, so that the processor does not foresee where the next one is
  const bool small = bands.rows == s.output[1];
  memset(totals, 0, sizeof(double) * taps);
  for (int64_t image = 0; image < s.batch; image += bands.images) {
    const int64_t images = smaller(bands.images, s.batch - image);
    for (int64_t first = 0; first < s.output[1]; first += bands.rows) {
      const int64_t rows = smaller(bands.rows, s.output[1] - first), line = first * s.strides[1] - s.pads[1];
      const int64_t count = (rows - 1) * s.strides[1] + (s.kernel[1] - 1) * s.dilations[1] + 1;
      // lines above and below the plane are zeros
      const int64_t above = clamped(-line, count), below = clamped(line + count - s.input[1], count - above);
      for (int64_t i = 0; i < images; i++) {
        const float* x = (const float*)call.x + ((image + i) * s.groups + channel) * in_plane;
        float* own = lines + i * bands.floats();
        if (small) ask_for(x + in_plane, in_plane), ask_for((const float*)call.dy + ((image + i) * s.groups + channel + 1) * out_plane, out_plane);
        bands.padded.clear(own, above);
        bands.padded.copy(x + (line + above) * s.input[2], count - above - below, own + above * bands.padded.pitch, 0);
        bands.padded.clear(own + (count - below) * bands.padded.pitch, below);
      }
      const float* dy = (const float*)call.dy + (image * s.groups + channel) * out_plane + first * s.output[2];
      for (int64_t kh = 0; kh < s.kernel[1]; kh += high) {
        const int64_t tall = smaller(high, s.kernel[1] - kh);
        PASSES[s.kernel[2] - 1][tall - 1]({dy, lines + kh * s.dilations[1] * bands.padded.pitch, images, rows, s.output[2],
                                           s.groups * out_plane, bands.floats(), s.strides[1] * bands.padded.pitch,
                                           s.dilations[1] * bands.padded.pitch, places},
                                          totals + kh * s.kernel[2]);
      }
    }
  }
  float* dw = (float*)call.dw + channel * taps;
  for (int64_t tap = 0; tap < taps; tap++) {
    dw[tap] = float(totals[tap]);
    if (!__builtin_isfinite(dw[tap])) dw[tap] = float(weight_by_taps<float>(s, call, channel, 0, 0, tap));
  }
}

int64_t lines_floats(const Bands& bands) { return divide_up(bands.images * bands.floats(), 16) * 16; }

}  // namespace

extern "C" size_t QF_EXPORT(conv_gradient_depthwise_f32_needs)(const ConvShape* s) {
  return sizeof(float) * lines_floats(Bands(*s)) + sizeof(double) * divide_up(volume(s->kernel), 8) * 8;
}

extern "C" void QF_EXPORT(conv_gradient_depthwise_f32)(const ConvShape* s, const ConvGradientCall* call) {
  const Bands bands(*s);
  const size_t each = QF_EXPORT(conv_gradient_depthwise_f32_needs)(s);
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
    float* lines = (float*)(call->workspace + omp_get_thread_num() * each);
    double* totals = (double*)(lines + lines_floats(bands));
    bands.padded.clear(lines, bands.images * bands.lines);  // what is never copied over stays zero
#pragma omp for schedule(static)
    for (int64_t channel = 0; channel < s->groups; channel++) run_channel(*s, *call, bands, channel, lines, totals);
  }
}
