// A feedback and the gate it passes through, as the kernels take them: checked once for every operator that is given one.
#pragma once

#include "../common/gate.h"
#include "parallel.h"
#include "tensors.h"

namespace soft_mask {

// `count` rows of feedback.
struct FeedbackView {
  const int32_t* ids;  // [count, k]
  int k;
  Reals probs;        // [count, k]
  Reals neg_entropy;  // [count]

  FeedbackView(const Tensor& ids_, const Tensor& probs_, const Tensor& neg_entropy_, int64_t count)
      : probs(Reals::of(probs_, "probs")), neg_entropy(Reals::of(neg_entropy_, "neg_entropy")) {
    need_dim(ids_, 3, "ids");
    need_type(ids_, ScalarType::Int, "ids", "int32");
    need(ids_.is_contiguous() && ids_.numel() == count * ids_.size(2) && ids_.size(2) >= 1, "ids must be contiguous [B, L, k]");
    need(probs_.numel() == ids_.numel(), "probs must be shaped like ids");
    need(neg_entropy_.numel() == count, "neg_entropy must be [B, L]");
    ids = static_cast<const int32_t*>(ids_.const_data_ptr());
    k = int(ids_.size(2));
  }
};

inline Gate<double> gate_of(const Tensor& gate) {
  need(gate.numel() == 3, "gate must hold scale, steepness, centre");
  const auto values = Reals::of(gate, "gate");
  return {values[0], values[1], values[2]};
}

// Whether each of ids [k] has a row among `rows`.
inline bool ids_fit(const int32_t* ids, int k, int64_t rows) {
  bool fit = true;
  for (int j = 0; j < k; ++j) fit &= 0 <= ids[j] && ids[j] < rows;
  return fit;
}

inline void need_ids(const FirstFault& fault, const char* name, int64_t rows) {
  if (fault.any()) {
    fail(name, ": an id of row ", fault.row(), " (flattened) has no row in the embedding of ", rows, " rows");
  }
}

}  // namespace soft_mask
