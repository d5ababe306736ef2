// The state that one pass over a row of logits carries, and how two such states merge (design: x = logit / temperature).
//   max = max x,   sum = sum e^(x - max),   weighted = sum (x - max) e^(x - max)
// A row may be cut anywhere and its parts merged in any order; what is empty leaves the other as it is.
#pragma once

#include <cmath>
#include <limits>

#include "inline.h"

namespace soft_mask {

template <class Real>
struct RowState {
  Real max = -std::numeric_limits<Real>::infinity();
  Real sum = 0;
  Real weighted = 0;

  SOFT_MASK_INLINE bool empty() const { return sum == Real(0); }

  // Re-express the state against a maximum that is at least its own. 0 * -inf is never computed: an empty state only moves.
  SOFT_MASK_INLINE void raise_to(Real new_max) {
    if (!empty() && new_max > max) {
      const Real gap = max - new_max;
      const Real shrink = std::exp(gap);
      weighted = shrink * (weighted + sum * gap);
      sum *= shrink;
    }
    max = new_max;
  }

  SOFT_MASK_INLINE void merge(RowState other) {
    if (other.empty()) return;
    if (empty()) {
      *this = other;
      return;
    }
    const Real top = max > other.max ? max : other.max;
    raise_to(top);
    other.raise_to(top);
    sum += other.sum;
    weighted += other.weighted;
  }

  // ln sum e^x; -inf for an empty row.
  SOFT_MASK_INLINE Real logsumexp() const { return empty() ? -std::numeric_limits<Real>::infinity() : max + std::log(sum); }

  // sum p ln p, in nats; -inf ("no feedback") for an empty row. Rounding may not lift it above 0.
  SOFT_MASK_INLINE Real neg_entropy() const {
    if (empty()) return -std::numeric_limits<Real>::infinity();
    const Real value = weighted / sum - std::log(sum);
    return value < Real(0) ? value : Real(0);
  }
};

}  // namespace soft_mask
