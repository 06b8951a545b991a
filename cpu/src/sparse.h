// What the Cython door and the kernels of sparse layers share. Sizes as in ops/sparse.py and ops/compressed.py.
#pragma once

#include <cstdint>

#include "conv_arguments.h"
#include "instruction_sets.h"

struct SparseArguments {
  int64_t steps, batch, hidden;
  const float* x;
  const float* values;
  const int32_t *columns, *offsets;
  const float* initial_h;  // or null
  float* y;
  float* workspace;  // sparse_workspace_f32's floats
  float leak, alpha, beta;
  int32_t function;
};

QF_DECLARE(int64_t, sparse_workspace_f32, (const SparseArguments*))
QF_DECLARE(void, sparse_recurrent_f32, (const SparseArguments*))

// A convolution whose weight is stored by compressed rows; made ready by cpu/sparse_conv.py.

// A stored value, and where in the laid-out x it meets output place 0.
struct SparseEntry {
  float value;
  int32_t place;
};

// What a tile of places writes of an image: places of the tile from ``at`` on, to y of channel 0 from ``y`` on.
struct SparseSegment {
  int32_t image, at, length, unused;
  int64_t y;
};

struct SparseTile {
  int64_t first;    // place
  int32_t vectors;  // at most SPARSE_VECTORS
  int32_t whole;    // all of it is one segment
  int64_t begin, end;  // of its segments
};

enum { SPARSE_VECTORS = 8 };

struct SparseConv {
  ConvShape shape;
  int64_t rows, channels;  // over all groups
  // The weight as it came, for sums that are not finite.
  const float* values;
  const int32_t *columns, *offsets;
  const float* bias;  // or null
  // The entries of block b and row order[b * rows + i]: starts[b * rows + i] to the next start. A block's channels stay in
  // the cache. Within a chunk of rows those with more entries come first, so that loops are mostly as long as the one before.
  const SparseEntry* entries;
  const int32_t *starts, *order;
  int64_t blocks;
  // x laid out channel by channel, each as planes, one for each phase of the strides and each column of the window, each
  // plane image after image: lengths[0] x lengths[1] x lengths[2] of every stride-th place, padding included. Where
  // ``direct``, x itself.
  int64_t lengths[3], phases;
  const int64_t* phase_places;  // of each plane the padded place of its first element along each axis
  int64_t channel_pitch, phase_pitch, image_pitch, images;  // images: that are laid out at once
  int64_t panel_channels;  // of a block, brought together for each tile; 0: read where they are
  int32_t direct, turned, finite;  // turned: images of one place follow each other; finite: of values
  const uint16_t* narrow;          // the columns once more, and LANES beyond, for sparse_conv_row_f32
  const uint8_t* unmet;    // channels with a place that no stored value meets: x is looked at there
  const SparseTile* tiles;
  const SparseSegment* segments;
  int64_t tile_count, row_chunks;
};

struct SparseConvCall {
  const float *x, *residual;  // residual: or null
  float* y;
  char* workspace;  // sparse_conv_shared_f32's bytes, then sparse_conv_own_f32's for each thread
  int threads;
};

typedef void (*SparseConvFunction)(const SparseConv*, const SparseConvCall*);
typedef size_t (*SparseConvBytes)(const SparseConv*);

QF_DECLARE(size_t, sparse_conv_shared_f32, (const SparseConv*))
QF_DECLARE(size_t, sparse_conv_own_f32, (const SparseConv*))
QF_DECLARE(void, sparse_conv_places_f32, (const SparseConv*, const SparseConvCall*))
// Of one place: rows of x are (channels) floats, up to 65536.
QF_DECLARE(void, sparse_conv_row_f32, (const SparseConv*, const SparseConvCall*))

struct SparseConvStep {
  SparseConvFunction run;
  const SparseConv* conv;
  int most_threads;
};

inline void run_sparse_conv_step(const void* context, const void* const* inputs, void* const* outputs, char* workspace,
                                 int threads) {
  const SparseConvStep& step = *static_cast<const SparseConvStep*>(context);
  const SparseConvCall call = {(const float*)inputs[0], (const float*)inputs[5], (float*)outputs[0], workspace,
                               threads < step.most_threads ? threads : step.most_threads};
  step.run(step.conv, &call);
}
