// What a row's state and its k best become: the numbers of a SummaryTask.
#pragma once

#include <cmath>
#include <limits>

#include "../common/row_state.h"
#include "kernels.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

// task.probs and task.ids hold `count` logits and ids; the logits become the softmax of what was kept.
inline void finish(SummaryTask& task, const RowState<double>& state, int count, bool bad) {
  task.neg_entropy = state.neg_entropy();
  task.logsumexp = state.logsumexp();
  task.fault = bad ? Fault::not_finite : state.empty() ? Fault::all_banned : Fault::none;
  const double best = count > 0 ? task.probs[0] : 0.0;
  double total = 0;
  for (int j = 0; j < task.k; ++j) {
    const bool kept = j < count;
    task.probs[j] = kept ? std::exp((task.probs[j] - best) * task.inverse_temperature) : 0.0;
    if (!kept) task.ids[j] = 0;
    total += task.probs[j];
  }
  for (int j = 0; j < count; ++j) task.probs[j] /= total;
  if (bad) {
    task.neg_entropy = task.logsumexp = std::numeric_limits<double>::quiet_NaN();
    for (int j = 0; j < task.k; ++j) task.probs[j] = std::numeric_limits<double>::quiet_NaN();
  }
}

}  // namespace soft_mask::SOFT_MASK_ISA
