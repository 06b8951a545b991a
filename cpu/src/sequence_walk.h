// How element-wise steps of a sequence walk arrays: row by row over y's last axis, every operand with a stride for each
// axis, 0 where it is broadcast (cpu/sequence.py merges axes that all operands walk alike, so that rows are long).
// Threads share rows, and parts of long ones.
#pragma once

#include <omp.h>

#include "sequence.h"
#include "simd.h"

namespace {

constexpr int64_t PART = 1 << 14;           // elements of a row that one thread takes at once
constexpr int64_t WORTH_THREADS = 1 << 16;  // elements from which on a second thread pays

// An even share of the rows' parts, begun by division and continued by counting. row(offsets of y and the operands in
// elements, begin, end) does a part of a row.
template <int OPERANDS, class Context, class Row>
QF_INLINE void walk_share(const Context& s, int64_t tasks, int thread, int team, const Row& row) {
  const int64_t last = s.rank - 1, length = s.extents[last], parts = divide_up(length, PART);
  const int64_t first = tasks * thread / team;
  int64_t place[MOST_AXES], rest = first / parts, part = first % parts;
  for (int64_t axis = last - 1; axis >= 0; axis--) place[axis] = rest % s.extents[axis], rest /= s.extents[axis];
  for (int64_t count = tasks * (thread + 1) / team - first; count > 0; count--) {
    int64_t offsets[OPERANDS] = {};
    for (int64_t axis = 0; axis < last; axis++)
      for (int operand = 0; operand < OPERANDS; operand++) offsets[operand] += place[axis] * s.strides[operand][axis];
    row(offsets, part * PART, smaller(length, (part + 1) * PART));
    if (++part < parts) continue;
    part = 0;
    for (int64_t axis = last - 1; axis >= 0 && ++place[axis] == s.extents[axis]; axis--) place[axis] = 0;
  }
}

template <int OPERANDS, class Context, class Row>
QF_INLINE void walk_rows(const Context& s, int threads, const Row& row) {
  int64_t elements = 1;
  for (int64_t axis = 0; axis < s.rank; axis++) elements *= s.extents[axis];
  const int64_t length = s.extents[s.rank - 1], tasks = elements / length * divide_up(length, PART);
  const int team = elements < WORTH_THREADS ? 1 : int(smaller(threads, tasks));
  if (team == 1) return walk_share<OPERANDS>(s, tasks, 0, 1, row);  // without the cost of a parallel region
#pragma omp parallel num_threads(team)
  walk_share<OPERANDS>(s, tasks, omp_get_thread_num(), omp_get_num_threads(), row);
}

}  // namespace
