/* The arithmetic of recurrent.cl in float32, with peepholes, clipping and any activation function. */
#include "quatrefoil/activation.h"

typedef float X_T, W_T, R_T, Y_T, BIAS_T, SUM_T, PRODUCT_T, VALUE_T;
#define OPTIONS \
  __global const float *restrict peephole, __constant const float *restrict parameters, float clip,
#define ON_CHIP
#define ONE 1.0f
#define ADDED_X(sum, a, b) ((sum) + (a) * (b))
#define ADDED_H(sum, a, b) ((sum) + (a) * (b))
#define SETTLED(sum) (sum)
#define GATE_SUM(a, b) ((a) + (b))
#define APPLY(place, value) \
  qf_activation(codes[d * 3 + place], parameters[(d * 3 + place) * 2], parameters[(d * 3 + place) * 2 + 1], value)
#define FUNCTION(place, value) APPLY(place, qf_clip(value, -clip, clip))
#define OF_CELL(out, cell) ((out) * APPLY(2, cell))
#define AS_STATE(value) (value)
#define BLEND(a, b, state, gate) ((b) * (a) + (gate) * (state))
#define RESET_STATE(reset, state) ((reset) * (state))
#define RESET_SUM(reset, sum) ((reset) * (sum))
#define PEEPHOLE(gate, cell) (peephole ? peephole[(d * 3 + (gate)) * hidden + j] * (cell) : 0.0f)
