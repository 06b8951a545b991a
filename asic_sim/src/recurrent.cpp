/* See recurrent.h. */
#include "recurrent.h"

#include <cmath>

#include "array.h"
#include "quatrefoil/activation.h"

namespace asic {
namespace {

/* One direction of one layer. */
class Direction {
 public:
  Direction(const Recurrent& layer, size_t index, int64_t array_rows, const float* w, const float* r, const float* bias,
            const float* peepholes)
      : layer_(layer),
        functions_(layer.functions[index]),
        rows_(array_rows),
        hidden_(layer.hidden),
        width_(layer.gates() * layer.hidden),
        w_(w + static_cast<int64_t>(index) * layer.inputs * width_),
        r_(r + static_cast<int64_t>(index) * hidden_ * width_),
        bias_(bias ? bias + static_cast<int64_t>(index) * 2 * width_ : nullptr),
        peepholes_(peepholes ? peepholes + static_cast<int64_t>(index) * 3 * hidden_ : nullptr),
        present_(static_cast<size_t>(std::max(layer.steps * layer.batch * layer.inputs, layer.batch * hidden_)), 1),
        recurrent_(static_cast<size_t>(layer.batch * width_)),
        reset_(static_cast<size_t>(layer.batch * hidden_)) {}

  /* h, c: (N, H), of this direction; y: (T, D, N, H) from this direction on, its steps y_stride apart. */
  void run(bool reverse, const float* x, const int32_t* lengths, float* h, float* c, float* y, int64_t y_stride) {
    std::vector<float> input(static_cast<size_t>(layer_.steps * layer_.batch * width_));
    multiply_on_array(x, present_.data(), layer_.steps * layer_.batch, layer_.inputs, rows_, w_, width_, width_,
                      input.data());
    for (int64_t step = 0; step < layer_.steps; step++) {
      multiply(h, 0, layer_.cell == Cell::gru && !layer_.linear_before_reset ? 2 * hidden_ : width_);
      const auto time = [&](int64_t n) { return layer_.time(step, n, lengths, reverse); };
      if (layer_.cell == Cell::gru) open_gates(input.data(), h, time);
      for (int64_t n = 0; n < layer_.batch; n++) {
        const int64_t t = time(n);
        if (t < 0) continue;
        const float* from_input = input.data() + (t * layer_.batch + n) * width_;
        float* out = y + t * y_stride + n * hidden_;
        for (int64_t j = 0; j < hidden_; j++) {
          const int64_t at = n * hidden_ + j;
          out[j] = h[at] = layer_.cell == Cell::lstm  ? lstm(from_input, n, j, c[at])
                           : layer_.cell == Cell::gru ? gru(from_input, n, j, h[at])
                                                      : evaluate(0, clipped(argument(from_input, n, j)));
        }
      }
    }
  }

 private:
  /* recurrent_[:, first : first + count] = state R[:, first : first + count] */
  void multiply(const float* state, int64_t first, int64_t count) {
    columns_.assign(static_cast<size_t>(layer_.batch * count), 0.0f);
    multiply_on_array(state, present_.data(), layer_.batch, hidden_, rows_, r_ + first, width_, count, columns_.data());
    for (int64_t n = 0; n < layer_.batch; n++) {
      std::copy_n(columns_.data() + n * count, count, recurrent_.data() + n * width_ + first);
    }
  }

  float clipped(float value) const { return qf_clip(value, -layer_.clip, layer_.clip); }
  float evaluate(int function, float value) const {
    return qf_activation(functions_[function].code, functions_[function].alpha, functions_[function].beta, value);
  }
  float input_bias(int64_t gate) const { return bias_ ? bias_[gate] : 0.0f; }
  float recurrent_bias(int64_t gate) const { return bias_ ? bias_[width_ + gate] : 0.0f; }
  float argument(const float* from_input, int64_t n, int64_t gate) const {
    return from_input[gate] + recurrent_[n * width_ + gate] + input_bias(gate) + recurrent_bias(gate);
  }

  float lstm(const float* from_input, int64_t n, int64_t j, float& c) const {
    const auto peep = [&](int64_t gate, float cell) {
      return peepholes_ ? peepholes_[gate * hidden_ + j] * cell : 0.0f;
    };
    const auto gate = [&](int64_t index, float more) {
      return clipped(argument(from_input, n, index * hidden_ + j) + more);
    };
    const float i = evaluate(0, gate(0, peep(0, c)));
    const float f = layer_.input_forget ? 1.0f - i : evaluate(0, gate(2, peep(2, c)));
    c = f * c + i * evaluate(1, gate(3, 0.0f));
    const float o = evaluate(0, gate(1, peep(1, c)));
    return o * evaluate(2, c);
  }

  /* z into recurrent_'s first third, r into its second; with a reset before the product also r h and its product. */
  template <typename Time>
  void open_gates(const float* input, const float* h, const Time& time) {
    std::fill(reset_.begin(), reset_.end(), 0.0f);
    for (int64_t n = 0; n < layer_.batch; n++) {
      const int64_t t = time(n);
      if (t < 0) continue;
      const float* from_input = input + (t * layer_.batch + n) * width_;
      for (int64_t gate = 0; gate < 2 * hidden_; gate++) {
        recurrent_[n * width_ + gate] = evaluate(0, clipped(argument(from_input, n, gate)));
      }
      for (int64_t j = 0; j < hidden_; j++) {
        reset_[n * hidden_ + j] = recurrent_[n * width_ + hidden_ + j] * h[n * hidden_ + j];
      }
    }
    if (!layer_.linear_before_reset) multiply(reset_.data(), 2 * hidden_, hidden_);
  }

  float gru(const float* from_input, int64_t n, int64_t j, float h) const {
    const int64_t gate = 2 * hidden_ + j;
    const float z = recurrent_[n * width_ + j], r = recurrent_[n * width_ + hidden_ + j];
    const float own = recurrent_[n * width_ + gate] + recurrent_bias(gate);
    const float candidate = from_input[gate] + input_bias(gate) + (layer_.linear_before_reset ? r * own : own);
    return (1.0f - z) * evaluate(1, clipped(candidate)) + z * h;
  }

  const Recurrent& layer_;
  const std::array<Function, 3>& functions_;
  const int64_t rows_, hidden_, width_;
  const float *w_, *r_, *bias_, *peepholes_;
  const std::vector<uint8_t> present_; /* no padding anywhere */
  std::vector<float> recurrent_, reset_, columns_;
};

}  // namespace

void run_recurrent(const Recurrent& layer, int64_t array_rows, const float* x, const float* w, const float* r,
                   const float* bias, const int32_t* lengths, const float* peepholes, float* h, float* c, float* y) {
  const int64_t state = layer.batch * layer.hidden;
  if (state == 0) return; /* however many steps there would be */
  const auto directions = static_cast<int64_t>(layer.reverse.size());
  for (int64_t d = 0; d < directions; d++) {
    Direction direction(layer, static_cast<size_t>(d), array_rows, w, r, bias, peepholes);
    direction.run(layer.reverse[static_cast<size_t>(d)], x, lengths, h + d * state, c ? c + d * state : nullptr,
                  y + d * state, directions * state);
  }
}

}  // namespace asic
