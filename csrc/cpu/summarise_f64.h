// The same as summarise_row.h for float64 logits, which are for gradient checks: one element at a time, all in double.
#pragma once

#include "../common/top_list.h"
#include "finish_summary.h"
#include "summarise_row.h"

namespace soft_mask::SOFT_MASK_ISA {

template <>
inline void summarise_row<double>(SummaryTask& task) {
  const double* row = static_cast<const double*>(task.logits);
  TopList list{task.probs, task.ids, task.k};
  RowState<double> state;
  bool bad = false;
  int64_t ban = 0;
  for (int64_t i = 0; i < task.vocab; ++i) {
    if (ban < task.n_bans && task.bans[ban] == i) {
      ++ban;
      continue;
    }
    const double z = row[i];
    bad |= !(z < std::numeric_limits<double>::infinity());
    if (!(z > -std::numeric_limits<double>::infinity())) continue;
    if (z > list.threshold()) list.insert(z, int32_t(i));
    state.merge({z * task.inverse_temperature, 1.0, 0.0});
  }
  finish(task, state, list.count, bad);
}

}  // namespace soft_mask::SOFT_MASK_ISA
