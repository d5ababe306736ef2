// The k best of a row, found from the maxima that the one pass over it left behind.
//
// Each maximum stands for kPerMaximum elements. The k-th largest maximum is a bound that at least k elements reach, so only
// groups with a maximum of at least that are looked at again: about k of them, from the cache, whatever the order of the
// row. A bound that is a little low is still right, and cheaper to find.
#pragma once

#include <cstring>

#include "../common/top_list.h"
#include "blocks.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

constexpr int kPerMaximum = 16;
constexpr int kGroup = kPerMaximum * kStep;  // elements that share kStep maxima: lane i's is of elements i, i + kStep, ..
constexpr int kFold = 64;                    // maxima come in multiples of this, filled up with -inf
static_assert(kFold % kStep == 0);

// The k-th largest of `values` [count], 1 <= k <= count.
inline float kth_largest(const float* values, int count, int k) {
  float best[kFold];  // descending
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (kept == k && !(values[i] > best[k - 1])) continue;
    int slot = kept < k ? kept++ : k - 1;
    for (; slot > 0 && best[slot - 1] < values[i]; --slot) best[slot] = best[slot - 1];
    best[slot] = values[i];
  }
  return best[k - 1];
}

inline int count_at_least(const float* values, int64_t count, float bound) {
  VectorI hits = {};
  for (int64_t i = 0; i < count; i += kLanes) hits -= load(values + i) >= splat(bound);
  int total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += hits[lane];
  return total;
}

// Floats as integers of the same order, so that halving an interval of them takes at most 32 steps.
inline int32_t order_of(float x) {
  const int32_t bits = detail::same_bits<int32_t>(x);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
inline float of_order(int32_t order) { return detail::same_bits<float>(order >= 0 ? order : order ^ 0x7fffffff); }

// A bound that at least k elements of the row reach and few others do; -inf where fewer than k maxima are finite.
inline float bound_of(const float* maxima, int64_t count, int k) {
  float folded[kFold];
  std::memcpy(folded, maxima, sizeof folded);
  for (int64_t start = kFold; start < count; start += kFold) {
    for (int i = 0; i < kFold; ++i) folded[i] = maxima[start + i] > folded[i] ? maxima[start + i] : folded[i];
  }
  float bound = k <= kFold ? kth_largest(folded, kFold, k) : kNone;
  const int enough = 2 * k + 32;
  if (count <= enough || count_at_least(maxima, count, bound) <= enough) return bound;
  // Too many reach it (a k near kFold, or large values in few lanes): halve between it and the largest.
  int32_t low = order_of(bound), high = order_of(kth_largest(folded, kFold, 1)) + 1;  // fewer than k reach `high`
  while (int64_t(high) - low > 1) {
    const int32_t middle = int32_t((int64_t(low) + high) / 2);
    const int found = count_at_least(maxima, count, of_order(middle));
    if (found < k) {
      high = middle;
    } else {
      low = middle;
      if (found <= enough) break;
    }
  }
  return of_order(low);
}

// Enter what z [n] has at `bound` or more, in the order of ids; `first` is the id of z[0].
template <class T>
inline void search_group(const T* z, int n, int32_t first, float bound, TopList& list) {
  for (int i = 0; i < n; i += kLanes) {
    const VectorF v = load(z + i);
    const float at_least = float(list.threshold()) > bound ? float(list.threshold()) : bound;
    if (!any_lane(v >= splat(at_least))) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (v[lane] >= bound && double(v[lane]) > list.threshold()) list.insert(double(v[lane]), first + i + lane);
    }
  }
}

}  // namespace soft_mask::SOFT_MASK_ISA
