// lambda = scale * sigmoid(steepness * (neg_entropy - centre)) and its derivatives (arXiv 2510.17206, section 3).
#pragma once

#include <cmath>
#include <limits>

#include "inline.h"

namespace soft_mask {

template <class Real>
struct Gate {
  Real scale, steepness, centre;

  // A row of neg_entropy = -inf has no feedback: its lambda and all its gradients are 0.
  static SOFT_MASK_INLINE bool open(Real neg_entropy) {
    return neg_entropy != -std::numeric_limits<Real>::infinity();
  }

  SOFT_MASK_INLINE Real sigmoid(Real neg_entropy) const {
    const Real u = steepness * (neg_entropy - centre);
    return Real(1) / (Real(1) + std::exp(-u));
  }

  SOFT_MASK_INLINE Real lambda(Real neg_entropy) const { return open(neg_entropy) ? scale * sigmoid(neg_entropy) : Real(0); }

  struct Slopes {
    Real scale, steepness, centre, neg_entropy;  // d lambda / d each
  };

  SOFT_MASK_INLINE Slopes slopes(Real neg_entropy) const {
    if (!open(neg_entropy)) return {0, 0, 0, 0};
    const Real s = sigmoid(neg_entropy);
    const Real bend = scale * s * (Real(1) - s);
    return {s, bend * (neg_entropy - centre), -bend * steepness, bend * steepness};
  }
};

}  // namespace soft_mask
