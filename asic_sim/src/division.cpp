/* See division.h. */
#include "division.h"

namespace asic {
namespace {

void divide(Axis& axis, const Share& share, int64_t each = 1) {
  const int64_t first = share.first(axis.outputs / each) * each;
  axis.offset += first * axis.stride;
  axis.out_start += first * axis.out_step;
  axis.outputs = share.count(axis.outputs / each) * each;
}

Axis& divided_axis(std::array<Axis, 4>& axes, Division division) {
  for (size_t axis = 1; axis < axes.size() && division == Division::rows; axis++) {
    if (axes[axis].outputs > 1) return axes[axis];
  }
  return axes[0];
}

void divide_channels(const Design& design, Stage& stage, const Share& share) {
  if (stage.groups >= share.cores && stage.groups > 1) {
    stage.groups = share.count(stage.groups);
    return;
  }
  stage.columns = share.count(stage.columns);
  const int64_t bytes = stage.stored_bytes(times(stage.depth(), stage.columns));
  stage.weights_kept = stage.weights_kept || bytes <= design.weight_sram_bytes;
}

/* Of a batch, of which axis 0 has as many places for each. */
void divide_steps(Stage& stage, int64_t batch, const Share& share) {
  const int64_t mine = share.count(batch), places = stage.axes[0].outputs;
  divide(stage.axes[0], share, places % batch || !places ? 1 : places / batch);
  for (int64_t* part : {&stage.closing_elements, &stage.closing_bytes, &stage.opening_bytes, &stage.closing_kept_bytes}) {
    *part = *part / batch * mine;
  }
}

}  // namespace

Sections share_of(const Design& design, const Sections& sections, const Share& share) {
  int64_t batch = 0; /* of steps */
  for (const auto& stages : sections.stages) {
    for (const Stage& stage : stages) {
      if (stage.dependent) batch = stage.axes[0].outputs;
    }
  }
  Sections shared = sections;
  for (auto& stages : shared.stages) {
    for (Stage& stage : stages) {
      if (batch > 0) {
        divide_steps(stage, batch, share);
      } else if (share.division == Division::channels) {
        divide_channels(design, stage, share);
      } else {
        divide(divided_axis(stage.axes, share.division), share);
      }
    }
  }
  return shared;
}

VectorStage share_of(const VectorStage& stage, const Share& share) {
  VectorStage shared = stage;
  divide(divided_axis(shared.axes, share.division), share);
  return shared;
}

}  // namespace asic
