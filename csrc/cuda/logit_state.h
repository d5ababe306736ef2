// csrc/common/row_state.h in float and in powers of two: what one pass over logits z carries, with bits = log2(e) / T.
//   max = max z,   sum = sum 2^y,   weighted = sum y 2^y,   y = (z - max) bits
// The maximum stays a logit, so that differences from it are exact where logits are large.
#pragma once

#include "elements.h"

namespace soft_mask::cuda {

struct LogitState {
  static constexpr float kFloor = -150.0f;  // 2^kFloor is 0

  float max = -kInfinity;
  float sum = 0;  // NaN where a logit was NaN or +inf
  float weighted = 0;

  SOFT_MASK_DEVICE void raise_to(float new_max, float bits) {
    if (sum != 0) {
      const float gap = fmaxf((max - new_max) * bits, kFloor);
      const float shrink = exp2_fast(gap);
      weighted = shrink * (weighted + sum * gap);
      sum *= shrink;
    }
    max = new_max;
  }

  SOFT_MASK_DEVICE void merge(LogitState other, float bits) {
    if (other.sum == 0) return;
    if (sum == 0) {
      *this = other;
      return;
    }
    const float top = fmaxf(max, other.max);
    raise_to(top, bits);
    other.raise_to(top, bits);
    sum += other.sum;
    weighted += other.weighted;
  }

  // A lane's elements; returns the largest. NaN and +inf set `bad`.
  template <int n>
  SOFT_MASK_DEVICE float take(const float (&z)[n], float bits, bool& bad) {
    float top = z[0];
#pragma unroll
    for (int i = 1; i < n; ++i) top = max_or_nan(top, z[i]);
    if (!(top <= max)) {
      if (top < kInfinity) {
        raise_to(top, bits);
      } else {
        bad = true;
      }
    }
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float y = fmaxf((z[i] - max) * bits, kFloor);  // -inf less -inf is NaN, and becomes kFloor too
      const float e = exp2_fast(y);
      sum += e;
      weighted += e * y;
    }
    return top;
  }

  // The states of a warp's lanes as one, in every lane; always in the same order.
  SOFT_MASK_DEVICE void merge_lanes(float bits) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      merge({shuffle_xor(max, mask), shuffle_xor(sum, mask), shuffle_xor(weighted, mask)}, bits);
    }
  }

  SOFT_MASK_DEVICE bool empty() const { return sum == 0; }
  SOFT_MASK_DEVICE bool bad() const { return !(sum == sum); }
  SOFT_MASK_DEVICE float logsumexp(double inverse_temperature) const {
    return empty() ? -kInfinity : float(double(max) * inverse_temperature + log(double(sum)));
  }
  // Rounding may not lift it above 0.
  SOFT_MASK_DEVICE float neg_entropy() const {
    if (empty()) return -kInfinity;
    const double value = double(weighted) * kLn2 / double(sum) - log(double(sum));
    return value > 0 ? 0.0f : float(value);
  }
};

}  // namespace soft_mask::cuda
