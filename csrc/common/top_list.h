// The k best (value, id) of a row, best first; equal values keep the order in which they came, so the lower id wins.
#pragma once

#include <cstdint>
#include <limits>

#include "inline.h"

namespace soft_mask {

struct TopList {
  double* values;  // [k], filled up to `count`
  int32_t* ids;    // [k]
  int k;
  int count = 0;

  SOFT_MASK_INLINE bool full() const { return count == k; }

  // What a later id must exceed to enter.
  SOFT_MASK_INLINE double threshold() const { return full() ? values[k - 1] : -std::numeric_limits<double>::infinity(); }

  // Precondition: value > threshold().
  SOFT_MASK_INLINE void insert(double value, int32_t id) {
    int slot = full() ? k - 1 : count++;
    for (; slot > 0 && values[slot - 1] < value; --slot) {
      values[slot] = values[slot - 1];
      ids[slot] = ids[slot - 1];
    }
    values[slot] = value;
    ids[slot] = id;
  }
};

}  // namespace soft_mask
