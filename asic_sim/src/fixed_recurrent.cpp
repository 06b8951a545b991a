/* See fixed_recurrent.h. */
#include "fixed_recurrent.h"

namespace asic {
namespace {

/* One direction of one layer. */
class Direction {
 public:
  Direction(const FixedRecurrent& layer, size_t index, const int32_t* w, const int32_t* r, const int64_t* bias)
      : layer_(layer),
        functions_(layer.functions[index]),
        accumulator_(layer.input_sums.accumulator),
        hidden_(layer.hidden),
        width_(layer.gates() * layer.hidden),
        w_(w + static_cast<int64_t>(index) * layer.inputs * width_),
        r_(r + static_cast<int64_t>(index) * hidden_ * width_),
        bias_(bias ? bias + static_cast<int64_t>(index) * 2 * width_ : nullptr),
        recurrent_(static_cast<size_t>(layer.batch * width_)),
        reset_(static_cast<size_t>(layer.batch * hidden_)) {}

  /* h, c: (N, H), of this direction; y: (T, D, N, H) from this direction on, its steps y_stride apart. */
  void run(bool reverse, const int32_t* x, const int32_t* lengths, int32_t* h, int32_t* c, int32_t* y,
           int64_t y_stride) {
    std::vector<int64_t> input(static_cast<size_t>(layer_.steps * layer_.batch * width_));
    layer_.input_sums.multiply(x, nullptr, layer_.steps * layer_.batch, layer_.inputs, w_, width_, width_, bias_,
                               input.data(), width_);
    const bool resets = layer_.cell == Cell::gru && !layer_.linear_before_reset;
    for (int64_t step = 0; step < layer_.steps; step++) {
      const auto from_input = [&](int64_t n) {
        const int64_t t = layer_.time(step, n, lengths, reverse);
        return t < 0 ? nullptr : input.data() + (t * layer_.batch + n) * width_;
      };
      multiply(h, 0, resets ? 2 * hidden_ : width_);
      if (layer_.cell == Cell::gru) open_gates(h, from_input);
      for (int64_t n = 0; n < layer_.batch; n++) {
        const int64_t* from = from_input(n);
        if (!from) continue;
        int32_t* out = y + layer_.time(step, n, lengths, reverse) * y_stride + n * hidden_;
        for (int64_t j = 0; j < hidden_; j++) {
          const int64_t at = n * hidden_ + j;
          out[j] = h[at] = layer_.cell == Cell::lstm  ? lstm(from, n, j, c[at])
                           : layer_.cell == Cell::gru ? gru(from, n, j, h[at])
                                                      : rnn(from, n, j);
        }
      }
    }
  }

 private:
  /* recurrent_[:, first : first + count] = state R[:, first : first + count] and its bias */
  void multiply(const int32_t* state, int64_t first, int64_t count) {
    layer_.state_sums.multiply(state, nullptr, layer_.batch, hidden_, r_ + first, width_, count,
                               bias_ ? bias_ + width_ + first : nullptr, recurrent_.data() + first, width_);
  }

  int64_t evaluate(int function, int64_t value, int fraction) const {
    return functions_[static_cast<size_t>(function)](accumulator_, value, fraction);
  }
  /* The function of a gate. */
  int64_t gate(int function, int64_t sum) const {
    return evaluate(function, accumulator_.cast(sum, accumulator_.fraction), accumulator_.fraction);
  }
  int32_t state_of(int64_t value, int fraction) const {
    return static_cast<int32_t>(layer_.state.cast(value, fraction));
  }
  /* a b + state gate, exact, as a new state; a, b and gate are the accumulator's */
  int32_t blend(int64_t a, int64_t b, int64_t state, int64_t gate) const {
    const int wide = std::max(accumulator_.fraction, layer_.state.fraction);
    return state_of(qf_shifted(a * b, wide - accumulator_.fraction) +
                        qf_shifted(state * gate, wide - layer_.state.fraction),
                    wide + accumulator_.fraction);
  }

  int32_t rnn(const int64_t* from, int64_t n, int64_t j) const {
    return state_of(gate(0, from[j] + recurrent_[at(n, j)]), accumulator_.fraction);
  }

  int32_t lstm(const int64_t* from, int64_t n, int64_t j, int32_t& c) const {
    const auto open = [&](int function, int64_t index) {
      return gate(function, from[index * hidden_ + j] + recurrent_[at(n, index * hidden_ + j)]);
    };
    c = blend(open(1, 3), open(0, 0), c, open(0, 2));
    return state_of(open(0, 1) * evaluate(2, c, layer_.state.fraction), 2 * accumulator_.fraction);
  }

  /* z into recurrent_'s first third, r into its second; with a reset before the product also r h and its product. */
  template <typename From>
  void open_gates(const int32_t* h, const From& from_input) {
    std::fill(reset_.begin(), reset_.end(), 0);
    for (int64_t n = 0; n < layer_.batch; n++) {
      const int64_t* from = from_input(n);
      if (!from) continue;
      for (int64_t index = 0; index < 2 * hidden_; index++) {
        recurrent_[at(n, index)] = gate(0, from[index] + recurrent_[at(n, index)]);
      }
      for (int64_t j = 0; j < hidden_; j++) {
        reset_[static_cast<size_t>(n * hidden_ + j)] = state_of(
            recurrent_[at(n, hidden_ + j)] * h[n * hidden_ + j], accumulator_.fraction + layer_.state.fraction);
      }
    }
    if (!layer_.linear_before_reset) multiply(reset_.data(), 2 * hidden_, hidden_);
  }

  int32_t gru(const int64_t* from, int64_t n, int64_t j, int32_t h) const {
    const int64_t z = recurrent_[at(n, j)], r = recurrent_[at(n, hidden_ + j)];
    const int64_t own = recurrent_[at(n, 2 * hidden_ + j)];
    const int64_t t = layer_.linear_before_reset ? accumulator_.cast(r * own, 2 * accumulator_.fraction) : own;
    return blend(gate(1, from[2 * hidden_ + j] + t), (int64_t{1} << accumulator_.fraction) - z, h, z);
  }

  size_t at(int64_t n, int64_t gate) const { return static_cast<size_t>(n * width_ + gate); }

  const FixedRecurrent& layer_;
  const std::array<FixedFunction, 3>& functions_;
  const Fixed& accumulator_;
  const int64_t hidden_, width_;
  const int32_t *w_, *r_;
  const int64_t* bias_;
  std::vector<int64_t> recurrent_;
  std::vector<int32_t> reset_;
};

}  // namespace

void run_fixed_recurrent(const FixedRecurrent& layer, const int32_t* x, const int32_t* w, const int32_t* r,
                         const int64_t* bias, const int32_t* lengths, int32_t* h, int32_t* c, int32_t* y) {
  const int64_t state = layer.batch * layer.hidden;
  if (state == 0) return; /* however many steps there would be */
  const auto directions = static_cast<int64_t>(layer.reverse.size());
  for (int64_t d = 0; d < directions; d++) {
    Direction direction(layer, static_cast<size_t>(d), w, r, bias);
    direction.run(layer.reverse[static_cast<size_t>(d)], x, lengths, h + d * state, c ? c + d * state : nullptr,
                  y + d * state, directions * state);
  }
}

}  // namespace asic
