// Changes of layout in a sequence: plain planes (N, C, P) into blocks of channels (N, ceil(C / LANES), P, LANES), the
// channels that the last block lacks being zero, and back.
//
// LANES pixels of LANES channels are loaded, transposed in registers and stored. Limited by memory; threads share
// blocks.
#include <omp.h>

#include "sequence.h"
#include "simd.h"

namespace {

void into_block(const float* x, int64_t plane, int channels, float* y) {
  for (int64_t p = 0; p < plane; p += LANES) {
    const int pixels = int(smaller(LANES, plane - p));
    vfloat rows[LANES];
    for (int c = 0; c < LANES; c++) {
      const float* from = x + c * plane + p;
      rows[c] = c >= channels ? (vfloat){} : pixels == LANES ? load(from) : load_first(from, pixels);
    }
    transpose(rows);
    for (int i = 0; i < pixels; i++) store(y + (p + i) * LANES, rows[i]);
  }
}

void out_of_block(const float* x, int64_t plane, int channels, float* y) {
  for (int64_t p = 0; p < plane; p += LANES) {
    const int pixels = int(smaller(LANES, plane - p));
    vfloat rows[LANES];
    for (int i = 0; i < LANES; i++) rows[i] = i < pixels ? load(x + (p + i) * LANES) : (vfloat){};
    transpose(rows);
    for (int c = 0; c < channels; c++)
      if (pixels == LANES) store(y + c * plane + p, rows[c]);
      else store_first(y + c * plane + p, rows[c], pixels);
  }
}

}  // namespace

extern "C" void QF_EXPORT(sequence_reorder)(const void* context, const void* const* inputs, void* const* outputs, char*,
                                            int threads) {
  const ReorderContext& s = *static_cast<const ReorderContext*>(context);
  const int64_t blocks = divide_up(s.channels, LANES), tasks = s.batch * blocks;
  const int team = tasks * s.plane * LANES < (1 << 16) ? 1 : int(smaller(threads, tasks));
#pragma omp parallel for num_threads(team) if (team > 1)
  for (int64_t task = 0; task < tasks; task++) {
    const int64_t block = task % blocks, image = task / blocks;
    const int channels = int(smaller(LANES, s.channels - block * LANES));
    const int64_t plain = (image * s.channels + block * LANES) * s.plane, blocked = task * s.plane * LANES;
    const float* x = static_cast<const float*>(inputs[0]);
    float* y = static_cast<float*>(outputs[0]);
    if (s.into_blocks) into_block(x + plain, s.plane, channels, y + blocked);
    else out_of_block(x + blocked, s.plane, channels, y + plain);
  }
}
