// One read of a row of logits: logsumexp, negative entropy and the k best.
//
// The row goes by in blocks that stay in the first cache. Pass one over a block finds the maxima of its lanes, pass two sums
// exponentials against the row's running maximum; memory is read once. Sums are float within a block and double across
// blocks. A block is searched for the k best only if its maximum beats the k-th best so far, and then only from the k-th
// largest of its lanes' maxima on, so that a sorted row costs little more than a shuffled one. A NaN, or the +inf - +inf that
// an infinite maximum makes, ends up in the sum: that is how either is noticed, at no cost.
#pragma once

#include <cmath>
#include <limits>

#include "../common/row_state.h"
#include "../common/top_list.h"
#include "kernels.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

constexpr int kBlock = 1024;  // elements: 4 KiB as float
constexpr int kPad = 64;      // a block's length is rounded up to this with -inf
constexpr int kGroup = 256;   // elements that share a set of lane maxima
constexpr int kMaxima = kBlock / kGroup * kPad;
constexpr double kLn2 = 0.69314718055994530942;
template <class Real>
constexpr Real kNone = -std::numeric_limits<Real>::infinity();

// What pass one learns of a block. NaN counts for nothing here.
template <class Real>
struct BlockMaxima {
  Real top;
  Real lanes[kMaxima];  // maxima of disjoint parts of the block
  int count;
};

// z [n], n a multiple of kPad.
inline void find_maxima(const float* z, int n, BlockMaxima<float>& found) {
  VectorF top = splat(kNone<float>);
  found.count = 0;
  for (int start = 0; start < n; start += kGroup) {
    const int end = start + kGroup < n ? start + kGroup : n;
    VectorF best[kUnroll];
    for (int u = 0; u < kUnroll; ++u) best[u] = splat(kNone<float>);
    for (int i = start; i < end; i += kStep) {
      for (int u = 0; u < kUnroll; ++u) best[u] = greater_of(load(z + i + u * kLanes), best[u]);
    }
    for (int u = 0; u < kUnroll; ++u) {
      std::memcpy(found.lanes + found.count, &best[u], sizeof best[u]);
      found.count += kLanes;
      top = greater_of(best[u], top);
    }
  }
  found.top = kNone<float>;
  for (int lane = 0; lane < kLanes; ++lane) found.top = top[lane] > found.top ? top[lane] : found.top;
}

inline void find_maxima(const double* z, int n, BlockMaxima<double>& found) {
  found.count = kPad;
  for (int i = 0; i < kPad; ++i) found.lanes[i] = kNone<double>;
  for (int i = 0; i < n; ++i) {
    double& lane = found.lanes[i % kPad];
    lane = z[i] > lane ? z[i] : lane;
  }
  found.top = kNone<double>;
  for (int i = 0; i < kPad; ++i) found.top = found.lanes[i] > found.top ? found.lanes[i] : found.top;
}

// sum and weighted sum of a block against `max` (both in units of the logits over temperature). Arithmetic is what takes
// time here and memory in pass one, so the next block (at `ahead`, `ahead_step` bytes a trip) is called for meanwhile.
inline RowState<double> sum_block(const float* z, int n, float max, double inverse_temperature, const char* ahead, int ahead_step) {
  const VectorF m = splat(max), bits = splat(float(inverse_temperature / kLn2)), floor = splat(-126.0f);
  VectorF sum[kUnroll] = {}, weighted[kUnroll] = {};
  for (int i = 0; i < n; i += kStep) {
    for (int byte = 0; byte < ahead_step; byte += 64) __builtin_prefetch(ahead + byte);
    ahead += ahead_step;
    for (int u = 0; u < kUnroll; ++u) {
      // -inf, and whatever 2^-126 cannot tell from it, adds 1e-38 to a sum of at least 1: nothing. A NaN stays one.
      const VectorF y = greater_of(floor, (load(z + i + u * kLanes) - m) * bits);
      const VectorF e = exp2_nonpositive(y);
      sum[u] += e;
      weighted[u] += y * e;
    }
  }
  for (int u = 1; u < kUnroll; ++u) {
    sum[0] += sum[u];
    weighted[0] += weighted[u];
  }
  RowState<double> state;
  double in_bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    state.sum += sum[0][lane];
    in_bits += weighted[0][lane];
  }
  state.weighted = in_bits * kLn2;
  state.max = double(max) * inverse_temperature;
  return state;
}

inline RowState<double> sum_block(const double* z, int n, double max, double inverse_temperature, const char*, int) {
  RowState<double> state;
  state.max = max * inverse_temperature;
  for (int i = 0; i < n; ++i) {
    if (z[i] == kNone<double>) continue;
    const double y = (z[i] - max) * inverse_temperature;
    const double e = std::exp(y);
    state.sum += e;
    state.weighted += y * e;
  }
  return state;
}

// The k-th largest of `lanes` [count] (k >= 1): at least k elements of the block reach it. -inf where there are fewer.
template <class Real>
inline Real kth_largest(const Real* lanes, int count, int k) {
  constexpr int kMost = 64;
  if (k > count || k > kMost) return kNone<Real>;
  Real best[kMost];  // descending
  int kept = 0;
  for (int i = 0; i < count; ++i) {
    if (kept == k && !(lanes[i] > best[k - 1])) continue;
    int slot = kept < k ? kept++ : k - 1;
    for (; slot > 0 && best[slot - 1] < lanes[i]; --slot) best[slot] = best[slot - 1];
    best[slot] = lanes[i];
  }
  return best[k - 1];
}

// Enter what z [n] has at `at_least` or more and above the list's threshold; `first` is the id of z[0].
template <class Real>
inline void search_each(const Real* z, int n, int32_t first, Real at_least, TopList& list) {
  for (int i = 0; i < n; ++i) {
    if (z[i] >= at_least && double(z[i]) > list.threshold()) list.insert(double(z[i]), first + i);
  }
}

inline void search_block(const double* z, int n, int32_t first, double at_least, TopList& list) {
  search_each(z, n, first, at_least, list);
}

inline void search_block(const float* z, int n, int32_t first, float at_least, TopList& list) {
  for (int i = 0; i < n; i += kLanes) {
    // Below both bounds is by far the usual case; >= lets an equal of the k-th through, which search_each turns away.
    const float bound = at_least > float(list.threshold()) ? at_least : float(list.threshold());
    if (any_lane(load(z + i) >= splat(bound))) search_each(z + i, kLanes, first + i, at_least, list);
  }
}

// Elements [first, first + n) as Real, in `buffer` unless the row itself will do.
template <class T, class Real>
inline const Real* stage(const T* row, int64_t first, int n, bool copy, Real* buffer, int padded) {
  if constexpr (sizeof(T) == sizeof(Real)) {
    if (!copy && n == padded) return row + first;
  }
  for (int i = 0; i < n; ++i) buffer[i] = widen(row[first + i]);
  for (int i = n; i < padded; ++i) buffer[i] = kNone<Real>;
  return buffer;
}

template <class T>
void summarise_row(SummaryTask& task) {
  using Real = typename Accumulator<T>::type;
  const T* row = static_cast<const T*>(task.logits);
  alignas(64) Real buffer[kBlock];
  BlockMaxima<Real> found;
  TopList list{task.probs, task.ids, task.k};
  RowState<double> state;
  Real max = kNone<Real>;
  bool bad = false;
  int64_t ban = 0;
  for (int64_t first = 0; first < task.vocab; first += kBlock) {
    const int n = int(task.vocab - first < kBlock ? task.vocab - first : kBlock);
    const int padded = (n + kPad - 1) / kPad * kPad;
    const bool banned = ban < task.n_bans && task.bans[ban] < first + n;
    const Real* z = stage<T, Real>(row, first, n, banned, buffer, padded);
    for (; ban < task.n_bans && task.bans[ban] < first + n; ++ban) buffer[task.bans[ban] - first] = kNone<Real>;
    find_maxima(z, padded, found);
    if (found.top == kNone<Real>) {
      for (int i = 0; i < n; ++i) bad |= z[i] != z[i];  // nothing to sum, so no sum would tell
      continue;
    }
    if (double(found.top) > list.threshold()) {
      search_block(z, padded, int32_t(first), kth_largest(found.lanes, found.count, task.k), list);
    }
    if (found.top > max) {
      max = found.top;
      state.raise_to(double(max) * task.inverse_temperature);
    }
    const char* ahead = reinterpret_cast<const char*>(row + first + kBlock);
    state.merge(sum_block(z, padded, max, task.inverse_temperature, ahead, kStep * int(sizeof(T))));
  }
  bad |= state.sum != state.sum;
  task.neg_entropy = state.neg_entropy();
  task.logsumexp = state.logsumexp();
  task.fault = bad ? Fault::not_finite : state.empty() ? Fault::all_banned : Fault::none;

  // Softmax of what was kept; list.values is task.probs.
  const double best = list.count > 0 ? list.values[0] : 0.0;
  double total = 0;
  for (int j = 0; j < task.k; ++j) {
    const bool kept = j < list.count;
    task.probs[j] = kept ? std::exp((list.values[j] - best) * task.inverse_temperature) : 0.0;
    if (!kept) task.ids[j] = 0;
    total += task.probs[j];
  }
  for (int j = 0; j < list.count; ++j) task.probs[j] /= total;
  if (bad) {
    task.neg_entropy = task.logsumexp = std::numeric_limits<double>::quiet_NaN();
    for (int j = 0; j < task.k; ++j) task.probs[j] = std::numeric_limits<double>::quiet_NaN();
  }
}

}  // namespace soft_mask::SOFT_MASK_ISA
