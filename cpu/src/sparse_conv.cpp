// Convolution with a sparse weight, float32: vectors of neighbouring places, a stored value at a time.
//
// Elsen, Dukhan, Gale and Simonyan, "Fast sparse ConvNets" (2020), for 1x1 convolutions; the offsets of a stored value's
// channel and tap, worked out once, serve other windows (Park et al., "Faster CNNs with direct sparse convolutions and guided
// pruning", 2017). x is laid out with its padding, parted by the phases of the strides, so that every tap of every channel
// lies at a fixed distance from an output's place and neighbours in y are neighbours in x; where x lies so already
// it is read where it is. Small images follow each other, so that vectors are full; a dense layer's rows are such images.
// A tile of up to SPARSE_VECTORS vectors of places stays in registers over all stored values of an output channel: each is
// broadcast and multiplies as many loads. Channels are cut into blocks whose part of a tile fits the first-level cache; in
// between, sums wait in the workspace. Where a channel is read at one place alone (one tap), a tile's part of a block is
// brought together first: loads are aligned then, and do not each meet another page.
//
// A weight that is not stored is a zero that multiplies: if x holds a NaN or an infinity, the sums that meet it by a stored
// value show it, channels with a place that no value meets are looked at, and everything is computed by the definition.
// Threads share channels that are laid out, then tiles and rows.
#include <omp.h>

#include "conv_epilogue.h"
#include "conv_taps.h"
#include "lookup.h"
#include "simd.h"
#include "sparse.h"

namespace {

constexpr int64_t MOST_PLACES = SPARSE_VECTORS * LANES;

QF_INLINE bool has_nan(vfloat v) {
  bool found = false;
  QF_UNROLL for (int lane = 0; lane < LANES; lane++) found |= v[lane] != v[lane];
  return found;
}

// Whether any of count floats is a NaN or an infinity.
bool not_finite(const float* x, int64_t count) {
  vfloat seen = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) seen += load(x + i) * 0.0f;
  if (i < count) seen += load_first(x + i, int(count - i)) * 0.0f;
  return has_nan(seen);
}

// A vector of a line: elements first, first + stride, … of a row, 0 where these lie outside it.
template <int64_t STRIDE>
QF_INLINE vfloat line_vector(const float* row, int64_t width, int64_t first, int64_t stride) {
  if (STRIDE == 1) {
    if (first >= 0 && first + LANES <= width) return load(row + first);
    const int begin = clamped(-first, LANES), end = clamped(width - first, LANES);
    return end > begin ? load_between(row + first, begin, end) : (vfloat){};
  }
  if (STRIDE == 2 && first >= 0 && first + 2 * LANES <= width) {
    vfloat even, odd;
    load_parted(row + first, even, odd);
    return even;
  }
  vfloat found = {};
  for (int lane = 0; lane < LANES; lane++, first += stride)
    if (first >= 0 && first < width) found[lane] = row[first];
  return found;
}

template <int64_t STRIDE>
void lay_line(const float* row, int64_t width, int64_t first, int64_t stride, int64_t length, float* to) {
  int64_t i = 0;
  for (; i + LANES <= length; i += LANES) store(to + i, line_vector<STRIDE>(row, width, first + i * stride, stride));
  if (i < length) store_first(to + i, line_vector<STRIDE>(row, width, first + i * stride, stride), int(length - i));
}

// A channel of `count` images from x on; those beyond are zeros.
void lay_channel(const SparseConv& a, const float* x, int64_t count, int64_t channel, float* to) {
  const ConvShape& s = a.shape;
  const int64_t plane = volume(s.input);
  float* const end = to + a.channel_pitch;
  for (int64_t phase = 0; phase < a.phases; phase++) {
    const int64_t* at = a.phase_places + 3 * phase;
    for (int64_t image = 0; image < a.images; image++) {
      const float* from = x + (image * a.channels + channel) * plane;
      for (int64_t d = 0; d < a.lengths[0]; d++) {
        const int64_t depth = d * s.strides[0] + at[0] - s.pads[0];
        for (int64_t h = 0; h < a.lengths[1]; h++, to += a.lengths[2]) {
          const int64_t height = h * s.strides[1] + at[1] - s.pads[1];
          const float* row = from + (depth * s.input[1] + height) * s.input[2];
          const int64_t first = at[2] - s.pads[2];
          if (image >= count || depth < 0 || depth >= s.input[0] || height < 0 || height >= s.input[1])
            memset(to, 0, sizeof(float) * a.lengths[2]);
          else if (s.strides[2] == 1)
            lay_line<1>(row, s.input[2], first, 1, a.lengths[2], to);
          else if (s.strides[2] == 2)
            lay_line<2>(row, s.input[2], first, 2, a.lengths[2], to);
          else
            lay_line<0>(row, s.input[2], first, s.strides[2], a.lengths[2], to);
        }
      }
    }
  }
  memset(to, 0, sizeof(float) * (end - to));
}

// LANES channels of images of one place, turned; those beyond the images or the channels are zeros.
void lay_turned(const SparseConv& a, const float* x, int64_t count, int64_t channel, float* to) {
  const int channels = clamped(a.channels - channel, LANES);
  for (int64_t image = 0; image < a.channel_pitch; image += LANES) {
    vfloat rows[LANES];
    QF_UNROLL for (int i = 0; i < LANES; i++) {
      const float* from = x + (image + i) * a.channels + channel;
      rows[i] = image + i >= count ? (vfloat){} : channels == LANES ? load(from) : load_first(from, channels);
    }
    transpose(rows);
    for (int i = 0; i < channels; i++) store(to + i * a.channel_pitch + image, rows[i]);
  }
}

// x + place, worked out now: the compiler would add the place to each vector's own offset.
QF_INLINE const float* at_place(const float* x, int32_t place) {
  const float* from = x + place;
  asm("" : "+r"(from));
  return from;
}

// sums += values x places of x. Few vectors are kept in several sets, so that an addition need not wait for the one before.
template <int VECTORS>
QF_INLINE void add_entries(const SparseEntry* entry, const SparseEntry* end, const float* x, vfloat (&sums)[VECTORS]) {
  constexpr int SETS = VECTORS <= 2 ? 4 : VECTORS <= 4 ? 2 : 1;
  vfloat more[SETS][VECTORS];
  QF_UNROLL for (int set = 1; set < SETS; set++) QF_UNROLL for (int v = 0; v < VECTORS; v++) more[set][v] = (vfloat){};
  for (; entry + SETS <= end; entry += SETS)
    QF_UNROLL for (int set = 0; set < SETS; set++) {
      const vfloat value = broadcast(entry[set].value);
      const float* from = at_place(x, entry[set].place);
      QF_UNROLL for (int v = 0; v < VECTORS; v++) {
        vfloat& sum = set ? more[set][v] : sums[v];
        sum += value * load(from + v * LANES);
      }
    }
  if constexpr (SETS > 1) {
    for (; entry < end; entry++) {
      const vfloat value = broadcast(entry->value);
      const float* from = at_place(x, entry->place);
      QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] += value * load(from + v * LANES);
    }
    QF_UNROLL for (int set = 1; set < SETS; set++) QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] += more[set][v];
  }
}

struct Output {
  const float* residual;  // or null
  float* y;
  int64_t images;  // that there are
};

// A row of sums, with its bias, to where they belong in y; activated before if there is no residual.
void write_segments(const SparseConv& a, const SparseTile& tile, const Epilogue& epilogue, const Output& out, int64_t row,
                    const float* sums) {
  const int64_t plane = volume(a.shape.output);
  for (int64_t i = tile.begin; i < tile.end; i++) {
    const SparseSegment& part = a.segments[i];
    if (part.image >= out.images) continue;
    const float* from = sums + part.at;
    float* to = out.y + part.y + row * plane;
    if (part.length == 1 && !out.residual) {
      *to = *from;
      continue;
    }
    const float* residual = out.residual ? out.residual + part.y + row * plane : nullptr;
    for (int64_t p = 0; p < part.length; p += LANES) {
      const int count = clamped(part.length - p, LANES);
      vfloat value = load(from + p);
      if (residual) value = epilogue.apply(value + load_first(residual + p, count));
      if (count == LANES)
        store(to + p, value);
      else
        store_first(to + p, value, count);
    }
  }
}

// Sums of the rows begin to end, with their bias, of a tile of images of one place.
void write_turned(const SparseConv& a, const SparseTile& tile, const Epilogue& epilogue, const Output& out, int64_t begin,
                  int64_t end, const float* sums) {
  const int64_t pitch = tile.vectors * LANES, images = smaller(out.images - tile.first, pitch);
  for (int64_t row = begin; row < end; row += LANES, sums += LANES * pitch) {
    const int count = clamped(end - row, LANES);
    for (int64_t image = 0; image < images; image += LANES) {
      vfloat rows[LANES];
      QF_UNROLL for (int i = 0; i < LANES; i++) rows[i] = i < count ? load(sums + i * pitch + image) : (vfloat){};
      transpose(rows);
      for (int i = 0; i < LANES && image + i < images; i++) {
        const int64_t at = (tile.first + image + i) * a.rows + row;
        vfloat value = rows[i];
        if (out.residual) value += load_first(out.residual + at, count);
        value = epilogue.apply(value);
        if (count == LANES)
          store(out.y + at, value);
        else
          store_first(out.y + at, value, count);
      }
    }
  }
}

// A tile's part of a block's channels, beside each other and aligned. What lies beyond x's places is 0.
template <int VECTORS>
void pack_panel(const SparseConv& a, const SparseTile& tile, int64_t block, const float* x, float* panel) {
  const int64_t first = block * a.panel_channels, last = smaller(first + a.panel_channels, a.channels);
  const int64_t left = a.channel_pitch - tile.first;
  x += first * a.channel_pitch + tile.first;
  for (int64_t channel = first; channel < last; channel++, x += a.channel_pitch, panel += MOST_PLACES)
    if (left >= VECTORS * LANES)
      QF_UNROLL for (int v = 0; v < VECTORS; v++) store(panel + v * LANES, load(x + v * LANES));
    else
      for (int v = 0; v < VECTORS; v++) store(panel + v * LANES, load_first(x + v * LANES, clamped(left - v * LANES, LANES)));
}

// A tile's outputs of the rows begin to end. waiting: sums between blocks, panel: room for a block's channels. Returns
// whether a sum is not finite.
template <int VECTORS>
bool tile_rows(const SparseConv& a, const SparseTile& tile, int64_t begin, int64_t end, const float* x, const Output& out,
               float* panel, float* waiting) {
  const Epilogue epilogue(a.shape);
  const int64_t plane = volume(a.shape.output);
  const float* const from = a.panel_channels ? panel : x + tile.first;
  vfloat seen = {};
  for (int64_t block = 0; block < a.blocks; block++) {
    if (a.panel_channels) pack_panel<VECTORS>(a, tile, block, x, panel);
    const bool last = block + 1 == a.blocks;
    const int32_t *starts = a.starts + block * a.rows, *order = a.order + block * a.rows;
    for (int64_t i = begin; i < end; i++) {
      const int64_t row = order[i];
      const SparseEntry *entry = a.entries + starts[i], *stop = a.entries + starts[i + 1];
      float* wait = waiting + (row - begin) * VECTORS * LANES;
      vfloat sums[VECTORS];
      if (block == 0)
        QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] = (vfloat){};
      else if (entry == stop && !last)
        continue;
      else
        QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] = load(wait + v * LANES);
      add_entries<VECTORS>(entry, stop, from, sums);
      if (!last) {
        QF_UNROLL for (int v = 0; v < VECTORS; v++) store(wait + v * LANES, sums[v]);
        continue;
      }
      QF_UNROLL for (int v = 0; v < VECTORS; v++) seen += sums[v] * 0.0f;
      if (a.bias) {
        const vfloat bias = broadcast(a.bias[row]);
        QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] += bias;
      }
      if (a.turned) {
        QF_UNROLL for (int v = 0; v < VECTORS; v++) store(wait + v * LANES, sums[v]);
        continue;
      }
      if (tile.whole) {
        const int64_t at = a.segments[tile.begin].y + row * plane;
        if (out.residual) QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] += load(out.residual + at + v * LANES);
        QF_UNROLL for (int v = 0; v < VECTORS; v++) store(out.y + at + v * LANES, epilogue.apply(sums[v]));
        continue;
      }
      alignas(64) float places[(VECTORS + 1) * LANES];  // a segment's last vector reads beyond
      if (!out.residual) QF_UNROLL for (int v = 0; v < VECTORS; v++) sums[v] = epilogue.apply(sums[v]);
      QF_UNROLL for (int v = 0; v < VECTORS; v++) store(places + v * LANES, sums[v]);
      write_segments(a, tile, epilogue, out, row, places);
    }
  }
  if (a.turned) write_turned(a, tile, epilogue, out, begin, end, waiting);
  return has_nan(seen);
}

bool any_tile(const SparseConv& a, const SparseTile& tile, int64_t begin, int64_t end, const float* x, const Output& out,
              float* panel, float* waiting) {
  switch (tile.vectors) {
    case 1: return tile_rows<1>(a, tile, begin, end, x, out, panel, waiting);
    case 2: return tile_rows<2>(a, tile, begin, end, x, out, panel, waiting);
    case 3: return tile_rows<3>(a, tile, begin, end, x, out, panel, waiting);
    case 4: return tile_rows<4>(a, tile, begin, end, x, out, panel, waiting);
    case 5: return tile_rows<5>(a, tile, begin, end, x, out, panel, waiting);
    case 6: return tile_rows<6>(a, tile, begin, end, x, out, panel, waiting);
    case 7: return tile_rows<7>(a, tile, begin, end, x, out, panel, waiting);
    default: return tile_rows<8>(a, tile, begin, end, x, out, panel, waiting);
  }
}

// Everything by the definition, with a row of the weight at a time. dense: a row for each thread.
void by_definition(const SparseConv& a, const SparseConvCall& c, float* dense) {
  const ConvShape& s = a.shape;
  const int64_t columns = s.in_channels * volume(s.kernel);
  const ConvCall call = {c.x, nullptr, a.bias, c.residual, c.y, nullptr, 1, nullptr};
  for (int64_t row = 0; row < a.rows; row++) {
    memset(dense, 0, sizeof(float) * columns);
    for (int64_t k = a.offsets[row]; k < a.offsets[row + 1]; k++) dense[a.columns[k]] += a.values[k];
    for (int64_t image = 0; image < s.batch; image++)
      for (int64_t d = 0; d < s.output[0]; d++)
        for (int64_t h = 0; h < s.output[1]; h++)
          for (int64_t w = 0; w < s.output[2]; w++)
            write_by_taps_of(s, call, dense, image, row / s.out_channels, row % s.out_channels, d, h, w);
  }
}

size_t aligned_bytes(int64_t floats) { return size_t(divide_up(floats, 16)) * 64; }

size_t laid_out(const SparseConv& a) { return a.direct ? 0 : aligned_bytes(a.channels * a.channel_pitch + MOST_PLACES); }

int64_t panel_floats(const SparseConv& a) { return a.panel_channels * MOST_PLACES; }

int64_t waiting_floats(const SparseConv& a) {
  return a.blocks > 1 || a.turned ? divide_up(a.rows, a.row_chunks) * MOST_PLACES : 0;
}

}  // namespace

// A row of the dense weight has room, too.
extern "C" size_t QF_EXPORT(sparse_conv_shared_f32)(const SparseConv* a) {
  const size_t row = aligned_bytes(a->shape.in_channels * volume(a->shape.kernel)), whole = laid_out(*a);
  return whole > row ? whole : row;
}

extern "C" size_t QF_EXPORT(sparse_conv_own_f32)(const SparseConv* a) { 
  return aligned_bytes(panel_floats(*a) + waiting_floats(*a));
}

extern "C" void QF_EXPORT(sparse_conv_places_f32)(const SparseConv* conv, const SparseConvCall* call) {
  const SparseConv& a = *conv;
  const SparseConvCall& c = *call;
  const ConvShape& s = a.shape;
  float* const padded = (float*)c.workspace;
  float* const own = (float*)(c.workspace + QF_EXPORT(sparse_conv_shared_f32)(conv));
  const int64_t own_floats = int64_t(QF_EXPORT(sparse_conv_own_f32)(conv) / sizeof(float));
  const int64_t plane = volume(s.input), y_image = a.rows * volume(s.output);
  const int64_t chunk = divide_up(a.rows, a.row_chunks), items = a.tile_count * a.row_chunks;
  int refused = !a.finite;
  for (int64_t first = 0; first < s.batch && !refused; first += a.images) {
    const float* x = c.x + first * a.channels * plane;
    const int64_t images = smaller(a.images, s.batch - first);
    const Output out = {c.residual ? c.residual + first * y_image : nullptr, c.y + first * y_image, images};
#pragma omp parallel num_threads(c.threads) if (c.threads > 1) reduction(| : refused)
    {
#pragma omp for schedule(static)
      for (int64_t channel = 0; channel < a.channels; channel++) {
        if (a.turned && channel % LANES == 0) lay_turned(a, x, images, channel, padded + channel * a.channel_pitch);
        if (!a.direct && !a.turned) lay_channel(a, x, images, channel, padded + channel * a.channel_pitch);
        if (a.unmet[channel])
          for (int64_t image = 0; image < images; image++)
            refused |= not_finite(x + (image * a.channels + channel) * plane, plane);
      }
#pragma omp single
      if (!a.direct) memset(padded + a.channels * a.channel_pitch, 0, sizeof(float) * MOST_PLACES);
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < items; item++) {
        const int64_t begin = item % a.row_chunks * chunk, end = smaller(begin + chunk, a.rows);
        float* panel = own + own_floats * omp_get_thread_num();
        refused |= any_tile(a, a.tiles[item / a.row_chunks], begin, end, a.direct ? x : padded, out, panel,
                            panel + panel_floats(a));
      }
    }
  }
  if (refused) by_definition(a, c, padded);
}

namespace {

// The sum of values[k] * x[columns[k]]. Four vectors, so that an addition need not wait; columns may be read beyond count.
QF_INLINE float row_sum(const float* values, const uint16_t* columns, int64_t count, const float* x) {
  vfloat sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * LANES <= count; k += 4 * LANES)
    QF_UNROLL for (int i = 0; i < 4; i++)
      sums[i] += load(values + k + i * LANES) * looked_up(x, columns + k + i * LANES);
  for (; k + LANES <= count; k += LANES) sums[0] += load(values + k) * looked_up(x, columns + k);
  if (k < count) sums[1] += load_first(values + k, int(count - k)) * looked_up(x, columns + k);
  const vfloat all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = 0;
  QF_UNROLL for (int lane = 0; lane < LANES; lane++) sum += all[lane];
  return sum;
}

}  // namespace

extern "C" void QF_EXPORT(sparse_conv_row_f32)(const SparseConv* conv, const SparseConvCall* call) {
  const SparseConv& a = *conv;
  const SparseConvCall& c = *call;
  const ConvShape& s = a.shape;
  int refused = !a.finite;
  for (int64_t channel = 0; channel < a.channels && !refused; channel++)
    if (a.unmet[channel])
      for (int64_t image = 0; image < s.batch; image++) refused |= not_finite(c.x + image * a.channels + channel, 1);
  if (!refused) {
#pragma omp parallel for schedule(static) num_threads(c.threads) if (c.threads > 1) reduction(| : refused)
    for (int64_t first = 0; first < a.rows; first += LANES) {
      const Epilogue epilogue(s);
      const int count = clamped(a.rows - first, LANES);
      for (int64_t image = 0; image < s.batch; image++) {
        vfloat sums = {};
        for (int i = 0; i < count; i++) {
          const int64_t start = a.offsets[first + i];
          sums[i] = row_sum(a.values + start, a.narrow + start, a.offsets[first + i + 1] - start, c.x + image * a.channels);
        }
        refused |= has_nan(sums * 0.0f);
        const int64_t at = image * a.rows + first;
        if (a.bias) sums += load_first(a.bias + first, count);
        if (c.residual) sums += load_first(c.residual + at, count);
        store_first(c.y + at, epilogue.apply(sums), count);
      }
    }
  }
  if (refused) by_definition(a, c, (float*)c.workspace);
}
