// Element-wise steps of a sequence: arithmetic on up to three float arrays, then an activation; also copies into
// another order or into a part of an array (transposing, slicing, padding, joining), since copying is a function too.
//
// Rows (sequence_walk.h) are taken LANES elements at a time. Limited by memory, hence no unrolling; rows that an operand
// walks with a stride above 1 are gathered element by element.
#include "sequence_walk.h"

namespace {

struct Source {
  const float* at;
  int64_t stride;
  QF_INLINE vfloat load_lanes(int64_t i, int count) const {
    if (stride == 0) return broadcast(*at);
    if (stride == 1) return count == LANES ? load(at + i) : load_first(at + i, count);
    if (stride == SAME_BLOCK) return load(at);
    vfloat v = {};
    for (int lane = 0; lane < count; lane++) v[lane] = at[(i + lane) * stride];
    return v;
  }
};

template <int FUNCTION>
QF_INLINE vfloat apply(const Source (&in)[3], int64_t i, int n) {
  const vfloat a = in[0].load_lanes(i, n);
  if constexpr (FUNCTION == ELEMENTWISE_COPY) return a;
  else if constexpr (FUNCTION == ELEMENTWISE_SQUARE_ROOT) {
    vfloat y;
    QF_UNROLL for (int lane = 0; lane < LANES; lane++) y[lane] = __builtin_sqrtf(a[lane]);
    return y;
  } else if constexpr (FUNCTION == ELEMENTWISE_EXPONENTIAL) return exponential_to_zero(a);
  else if constexpr (FUNCTION == ELEMENTWISE_MAGNITUDE) return (vfloat)((vint)a & 0x7FFFFFFF);
  else {
    const vfloat b = in[1].load_lanes(i, n);
    if constexpr (FUNCTION == ELEMENTWISE_ADD) return a + b;
    else if constexpr (FUNCTION == ELEMENTWISE_SUBTRACT) return a - b;
    else if constexpr (FUNCTION == ELEMENTWISE_MULTIPLY) return a * b;
    else if constexpr (FUNCTION == ELEMENTWISE_DIVIDE) return a / b;
    else if constexpr (FUNCTION == ELEMENTWISE_MAXIMUM) return b != b ? b : at_least(a, b);
    else if constexpr (FUNCTION == ELEMENTWISE_MINIMUM) return b != b ? b : at_most(a, b);
    else if constexpr (FUNCTION == ELEMENTWISE_PRELU) return a < (vfloat){} ? a * b : a;
    else return a * b + in[2].load_lanes(i, n);
  }
}

template <int FUNCTION>
void row(const ElementwiseContext& s, const Source (&in)[3], float* y, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += LANES) {
    const int n = int(smaller(LANES, end - i));
    const vfloat v = activate(s.activation, s.alpha, s.beta, apply<FUNCTION>(in, i, n));
    if (n == LANES) store(y + i, v);
    else store_first(y + i, v, n);
  }
}

using Row = void (*)(const ElementwiseContext&, const Source (&)[3], float*, int64_t, int64_t);
constexpr Row ROWS[] = {row<0>, row<1>, row<2>, row<3>, row<4>,  row<5>,
                        row<6>, row<7>, row<8>, row<9>, row<10>, row<11>};

}  // namespace

extern "C" void QF_EXPORT(sequence_elementwise)(const void* context, const void* const* inputs, void* const* outputs,
                                                char*, int threads) {
  const ElementwiseContext& s = *static_cast<const ElementwiseContext*>(context);
  const Row walk = ROWS[s.function];
  walk_rows<4>(s, threads, [&](const int64_t (&offsets)[4], int64_t begin, int64_t end) {
    Source in[3];
    for (int operand = 0; operand < 3; operand++)
      in[operand] = {static_cast<const float*>(inputs[operand]) + offsets[operand + 1],
                     s.strides[operand + 1][s.rank - 1]};
    walk(s, in, static_cast<float*>(outputs[0]) + offsets[0], begin, end);
  });
}
