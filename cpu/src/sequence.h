// A sequence: native steps over buffers, run one after the other without Python. The buffers are the arena, in which
// the planner (cpu/sequence.py) has given every intermediate value its place, the arrays that go in and come out, and
// constants. Also the steps that are not kernels of an operator: what stands between convolutions.
#pragma once

#include <chrono>
#include <cstdint>

#include "fixed_cast.h"
#include "instruction_sets.h"
#include "native_step.h"

// Where an operand is: base[base] + offset bytes. Base 0 is null, so that there the offset is the address itself; 1 is the
// arena, 2 an int32 that a step sets to 1 where a value is none that it takes, and the caller's arrays follow.
struct Operand {
  int64_t offset;
  int32_t base;
};

struct SequenceStep {
  NativeStep native;
  const Operand *inputs, *outputs;
  int32_t input_count, output_count;
};

enum { MOST_OPERANDS = STEP_INPUTS };

// Runs all the steps. nanoseconds: null, or what each of them took.
inline void run_sequence(const SequenceStep* steps, int64_t count, char* const* bases, char* workspace, int threads,
                         int64_t* nanoseconds) {
  using Clock = std::chrono::steady_clock;
  auto before = nanoseconds ? Clock::now() : Clock::time_point();
  for (int64_t at = 0; at < count; at++) {
    const SequenceStep& step = steps[at];
    const void* inputs[MOST_OPERANDS];
    void* outputs[MOST_OPERANDS];
    for (int i = 0; i < step.input_count; i++) inputs[i] = bases[step.inputs[i].base] + step.inputs[i].offset;
    for (int i = 0; i < step.output_count; i++) outputs[i] = bases[step.outputs[i].base] + step.outputs[i].offset;
    step.native.run(step.native.context, inputs, outputs, workspace, threads);
    if (nanoseconds) {
      const auto now = Clock::now();
      nanoseconds[at] = std::chrono::duration_cast<std::chrono::nanoseconds>(now - before).count();
      before = now;
    }
  }
}

// ---- steps that are not kernels of an operator; each context serves the function of the same name

// y = activation(function(a, b, c)) over arrays that are seen through strides, which are 0 where an operand is broadcast.
enum ElementwiseFunction {
  ELEMENTWISE_COPY = 0,  // a
  ELEMENTWISE_ADD = 1,
  ELEMENTWISE_SUBTRACT = 2,
  ELEMENTWISE_MULTIPLY = 3,
  ELEMENTWISE_DIVIDE = 4,
  ELEMENTWISE_MAXIMUM = 5,
  ELEMENTWISE_MINIMUM = 6,
  ELEMENTWISE_PRELU = 7,   // a where it is not below 0, else a * b
  ELEMENTWISE_AFFINE = 8,  // a * b + c
  ELEMENTWISE_SQUARE_ROOT = 9,
  ELEMENTWISE_EXPONENTIAL = 10,
  ELEMENTWISE_MAGNITUDE = 11
};

enum { MOST_AXES = 8 };

// As an operand's last stride: the same LANES elements again and again, which are those of a block of channels.
constexpr int64_t SAME_BLOCK = -(int64_t(1) << 62);

struct ElementwiseContext {
  int32_t function, activation;
  float alpha, beta;
  int64_t rank;  // at least 1; y's last stride is 1
  int64_t extents[MOST_AXES];
  int64_t strides[4][MOST_AXES];  // in elements, of y, a, b and c
};

// Fixed-point integers to others (sequences.FixedElementwise says what each function is), or 2-byte elements as they are.
enum FixedElementsFunction {
  FIXED_COPY = 0,
  FIXED_QUANTIZE = 1,
  FIXED_DEQUANTIZE = 2,
  FIXED_SUM = 3,
  FIXED_PRODUCT = 4,
  FIXED_AFFINE = 5,
  FIXED_TABLE = 6,
  FIXED_SLOPE_BELOW = 7,
  FIXED_TABLE_BELOW = 8,
  FIXED_CHECK = 9
};

struct FixedElementsContext {
  int32_t function, y_bytes;
  int32_t x_bytes[2];  // of a and b; integers of 2 or 4 bytes
  int64_t rank;        // as in ElementwiseContext
  int64_t extents[MOST_AXES];
  int64_t strides[3][MOST_AXES];
  int32_t shifts[2];
  int64_t factor, offset, low, high;
  double scale;          // of real numbers
  FixedCast cast, below;  // of the exact result to y; below: of one that has been multiplied by the slope
  const int32_t* table;   // of integers of y
  int32_t table_bits, table_size;
};

// What stands around operators on bytes (sequences.ByteForm says what each function is), and bytes as they are.
enum BytesFunction {
  BYTES_COPY = 0,
  BYTES_TABLE = 1,         // of each byte
  BYTES_PAIR_TABLE = 2,    // of each two
  BYTES_QUANTIZE = 3,      // float32 to bytes
  BYTES_ROUND_TRIP = 4,    // float32 to float32
  BYTES_DEQUANTIZE = 5,    // bytes to float32
  BYTES_SUMS = 6,          // int32 to float32
  BYTES_ADD = 7,           // of what two bytes stand for, quantised again
  BYTES_SUBTRACT = 8,
  BYTES_MULTIPLY = 9,
  BYTES_COMBINE = 10,      // scales[0] * a + (scales[1] * b + offset)
  BYTES_RESCALE = 11       // scales[0] * a + offset
};

struct BytesContext {
  int32_t function;
  int64_t rank;  // as in ElementwiseContext
  int64_t extents[MOST_AXES];
  int64_t strides[3][MOST_AXES];  // of y, a and b
  int32_t is_signed[3], zeros[3];  // of a, b and y
  float scales[3], offset;
  float low, high;       // BYTES_ROUND_TRIP: in steps of the scale
  int32_t least, most;   // bytes of y (unsigned: signed ones 128 higher) that functions of two are kept between
  const uint8_t* table;
};

// Softmax of fixed-point integers along rows (models/fixed/elements.py: FixedSoftmax).
struct FixedSoftmaxContext {
  int64_t rows, length;
  int32_t x_bytes, y_bytes;
  FixedCast difference, accumulator, sum, y;
  const int64_t *powers, *inverses;
  int32_t difference_shift, sum_shift;  // from an integer to its place in a table
};

// Softmax along the middle axis of (outer, length, inner), or its logarithm.
struct SoftmaxContext {
  int64_t outer, length, inner;
  int32_t logarithm;
};

// y = x / (bias + scale * sum of squares over the channels from `before` below to `behind` above) ^ beta on
// (batch, channels, plane).
struct LrnContext {
  int64_t batch, channels, plane, before, behind;
  float scale, beta, bias;
};

// Planes of (batch, channels, plane) into blocks of channels, or out of them; bytes with their channels last.
struct ReorderContext {
  int64_t batch, channels, plane;
  int32_t into_blocks;
};

#define QF_DECLARE_STEP(name) QF_DECLARE(void, name, (const void*, const void* const*, void* const*, char*, int))
QF_DECLARE_STEP(sequence_elementwise)
QF_DECLARE_STEP(sequence_softmax)
QF_DECLARE_STEP(sequence_lrn)
QF_DECLARE_STEP(sequence_reorder)
QF_DECLARE_STEP(sequence_reorder_bytes)
QF_DECLARE_STEP(sequence_fixed_elements)
QF_DECLARE_STEP(sequence_fixed_softmax)
QF_DECLARE_AMX(void, sequence_bytes, (const void*, const void* const*, void* const*, char*, int))
