// One read of a row of logits: logsumexp, negative entropy and the k best.
//
// The row streams by once. Sums of exponentials are taken against the largest logit of the first block, which is as good as
// the true maximum unless a block towers above it; such a block is done again, and its largest logit serves from then on.
// Sums are float in the lanes of a block and double across blocks. Beside them the maxima of small groups are kept (1/16 of
// the row, in the first caches), from which find_best.h finds the k best. A NaN, or the +inf - +inf that an infinite
// maximum makes, ends up in the sum: that is how either is noticed, at no cost.
#pragma once

#include "blocks.h"
#include "find_best.h"
#include "finish_summary.h"

namespace soft_mask::SOFT_MASK_ISA {

static_assert(kBlock % kGroup == 0 && kBlock / kPerMaximum == kFold);
static_assert(maxima_of(kBlock) == kFold && maxima_of(kBlock + 1) == 2 * kFold);
constexpr float kTower = 8.0f;  // bits by which a logit may exceed what is taken for the maximum

struct Sums {
  VectorF sum, weighted, top;
};

// Whether 2^y may be asked of -inf: it is 0 then, and only y 2^y goes wrong (0 * -inf), which shows in the sum.
constexpr bool kTakesInfinity = kVectorBytes == 64;

// One block: z [n], n a multiple of kStep, its maxima to maxima [kFold]. Exponents are (z - max) * bits; clamped, a logit of
// -inf, and whatever 2^-126 cannot tell from it, adds 1e-38 to a sum of at least 1: nothing.
template <bool clamped, class T>
inline Sums sum_block(const T* z, int n, float max, float bits, float* maxima) {
  const VectorF m = splat(max), to_bits = splat(bits), floor = splat(-126.0f);
  VectorF sum[kUnroll] = {}, weighted[kUnroll] = {};
  VectorF top = splat(kNone);
  for (int start = 0; start < n; start += kGroup) {
    const int end = start + kGroup < n ? start + kGroup : n;
    VectorF best[kUnroll];
    for (int u = 0; u < kUnroll; ++u) best[u] = splat(kNone);
    for (int i = start; i < end; i += kStep) {
      for (int u = 0; u < kUnroll; u += 2) {
        const Pair pair = load_pair(z + i + u * kLanes);
        for (int half = 0; half < 2; ++half) {
          const VectorF v = half == 0 ? pair.first : pair.second;
          best[u + half] = greater_of(v, best[u + half]);
          VectorF y = (v - m) * to_bits;
          if constexpr (clamped) y = greater_of(floor, y);  // NaN stays NaN
          const VectorF e = exp2_of(y);
          sum[u + half] += e;
          weighted[u + half] += y * e;
        }
      }
    }
    for (int u = 0; u < kUnroll; ++u) {
      std::memcpy(maxima, &best[u], sizeof best[u]);
      maxima += kLanes;
      top = greater_of(best[u], top);
    }
  }
  for (int u = 1; u < kUnroll; ++u) {
    sum[0] += sum[u];
    weighted[0] += weighted[u];
  }
  return {sum[0], weighted[0], top};
}

inline float largest_lane(VectorF v) {
  float largest = kNone;
  for (int lane = 0; lane < kLanes; ++lane) largest = v[lane] > largest ? v[lane] : largest;
  return largest;
}

template <class T>
inline void range_of(const T* z, int n, float& least, float& largest) {
  VectorF top = splat(kNone), bottom = splat(kNone);  // of z and -z
  for (int i = 0; i < n; i += kLanes) {
    top = greater_of(load(z + i), top);
    bottom = greater_of(-load(z + i), bottom);
  }
  largest = largest_lane(top);
  least = -largest_lane(bottom);
}

// The sums of the blocks so far against one maximum, lane by lane in double.
struct LaneSums {
  double sum[kLanes] = {}, weighted[kLanes] = {};

  inline void add(const Sums& block) {
    float narrow_sum[kLanes], narrow_weighted[kLanes];  // as arrays, for compilers to see the loops
    store(block.sum, narrow_sum);
    store(block.weighted, narrow_weighted);
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] += double(narrow_sum[lane]);
    for (int lane = 0; lane < kLanes; ++lane) weighted[lane] += double(narrow_weighted[lane]);
  }
  // Hands over and starts again.
  inline RowState<double> take(double max) {
    RowState<double> state;
    for (int lane = 0; lane < kLanes; ++lane) {
      state.sum += sum[lane];
      state.weighted += weighted[lane] * kLn2;
      sum[lane] = weighted[lane] = 0;
    }
    state.max = max;
    return state;
  }
};

// The state of a row, and the maxima of its groups to task.maxima. Unclamped, a -inf that was not foreseen makes
// `weighted`, and only that, NaN.
template <class T>
RowState<double> stream(const SummaryTask& task, bool clamped, bool& bad) {
  const float bits = float(task.inverse_temperature / kLn2);
  Blocks<T> blocks(task);
  RowState<double> state;
  LaneSums lanes;
  float max = kNone;
  float* maxima = task.maxima;
  for (int64_t first = 0; first < task.vocab; first += kBlock, maxima += kFold) {
    const T* z = blocks.at(first);
    for (int i = (blocks.size + kGroup - 1) / kGroup * kStep; i < kFold; ++i) maxima[i] = kNone;
    if (max == kNone) {
      float least;
      range_of(z, blocks.size, least, max);
      clamped |= least == kNone;  // where there is one -inf, more are to be expected
      if (max == kNone) {         // nothing to sum, so no sum would tell of a NaN
        for (int i = 0; i < blocks.size; ++i) bad |= widen(z[i]) != widen(z[i]);
        for (int i = 0; i < kFold; ++i) maxima[i] = kNone;
        continue;
      }
    }
    const auto sums = [&] {
      return clamped || z == blocks.buffer ? sum_block<true>(z, blocks.size, max, bits, maxima)
                                           : sum_block<!kTakesInfinity>(z, blocks.size, max, bits, maxima);
    };
    Sums block = sums();
    if (any_lane((block.top - splat(max)) * splat(bits) > splat(kTower))) {
      state.merge(lanes.take(double(max) * task.inverse_temperature));
      max = largest_lane(block.top);
      block = sums();
    }
    lanes.add(block);
  }
  if (max != kNone) state.merge(lanes.take(double(max) * task.inverse_temperature));
  return state;
}

template <class T>
void summarise_row(SummaryTask& task) {
  static_assert(sizeof(T) <= 4);
  bool bad = false;
  RowState<double> state = stream<T>(task, false, bad);
  if (state.weighted != state.weighted && state.sum == state.sum) state = stream<T>(task, true, bad);
  bad |= state.sum != state.sum;

  TopList list{task.probs, task.ids, task.k};
  const int64_t count = maxima_of(task.vocab);
  const float bound = bound_of(task.maxima, count, task.k);
  Blocks<T> again(task);
  for (int64_t i = 0, first = 0; i < count; i += kFold, first += kBlock) {
    // Once k are found a later one must beat them: an equal has the higher id.
    const VectorF at_least = splat(bound), beat = splat(float(list.threshold()));
    bool any = false;
    for (int lane = 0; lane < kFold; lane += kLanes) {
      const VectorF v = load(task.maxima + i + lane);
      any |= any_lane((v >= at_least) & (v > beat));
    }
    if (!any) continue;
    const T* z = again.at(first);
    search_group(z, again.size, int32_t(first), bound, list);
  }
  finish(task, state, list.count, bad);
}

}  // namespace soft_mask::SOFT_MASK_ISA
