// A cast of fixed-point integers as steps of the CPU hold it; what it does is said in quatrefoil/fixed.h.
#pragma once

#include <cstdint>

#include "quatrefoil/fixed.h"

// Of integers with `drop` more fraction bits than the format has.
struct FixedCast {
  int32_t drop;
  qf_format format;
};
