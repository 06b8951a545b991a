/* How the weights of a stage lie in the memories, where that is not one after the other in weight_bytes each.
 * asic_sim/compression.py decides it from their numbers.
 *
 * With an index, zeros are left out. A strip of the array's columns then takes only so many rows of it as `before` has, and
 * so many of the depth's activations enter them; what the array does with the others is skipped. */
#ifndef QUATREFOIL_ASIC_STORED_H
#define QUATREFOIL_ASIC_STORED_H

#include <algorithm>
#include <vector>

#include "geometry.h"

namespace asic {

struct Stored {
  int64_t bits = 8;         /* of each weight that is stored */
  int64_t table_bytes = 0;  /* of the codebook, which comes with the first of them; 0: they are no codes */
  int64_t decoded = 0;      /* how many of them the decoder hands on in a cycle; 0: there is none in their way */
  int64_t multiplied = -1;  /* weights of all groups that are not zero, where products with a zero are gated; else -1 */
  /* With an index, for each group strip by strip: */
  std::vector<int64_t> first;  /* where the strip begins in `before`, and the end of the last one */
  std::vector<int64_t> before; /* stored weights before each of its rows, and all of them: one number more than rows */
  std::vector<int64_t> taken;  /* rows of the depth whose activations it takes */

  bool indexed() const { return !taken.empty(); }
  int64_t strips() const { return static_cast<int64_t>(taken.size()); }
  int64_t rows(int64_t strip) const {
    return first[static_cast<size_t>(strip) + 1] - first[static_cast<size_t>(strip)] - 1;
  }
  const int64_t* strip(int64_t strip) const { return before.data() + first[static_cast<size_t>(strip)]; }
  int64_t bytes(int64_t weights) const { return ceil_div(times(weights, bits), 8); }
  int64_t strip_bytes(int64_t number) const { return bytes(strip(number)[rows(number)]); }
  int64_t weights() const {
    int64_t all = 0;
    for (int64_t number = 0; number < strips(); number++) all += strip(number)[rows(number)];
    return all;
  }

  /* Whether the lists belong together, and to so many strips of no more rows than `depth`. */
  bool fits(int64_t count, int64_t depth) const {
    if (bits < 1 || table_bytes < 0 || decoded < 0 || multiplied < -1) return false;
    if (!indexed()) return first.empty() && before.empty();
    if (strips() != count || static_cast<int64_t>(first.size()) != count + 1 || first.front() != 0 ||
        first.back() != static_cast<int64_t>(before.size())) {
      return false;
    }
    for (int64_t number = 0; number < count; number++) {
      const int64_t own = taken[static_cast<size_t>(number)];
      if (rows(number) < 1 || rows(number) > depth || own < 1 || own > depth || strip(number)[0] != 0) return false;
      if (!std::is_sorted(strip(number), strip(number) + rows(number) + 1)) return false;
    }
    return true;
  }
};

}  // namespace asic

#endif
