// Logits as the kernels take them, with what is to be done to each row.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "tensors.h"

namespace soft_mask {

// Logits [B, L, V]; a temperature of null is 1.
struct LogitsView {
  const char* data;
  int64_t batch_bytes, row_bytes, length, vocab;
  Dtype dtype;
  int k;
  double inverse_temperature;
  std::vector<int64_t> bans;

  LogitsView(const Tensor& logits, int64_t k_, const std::optional<Tensor>& temperature, std::vector<int64_t> ban)
      : k(int(k_)), inverse_temperature(1.0), bans(std::move(ban)) {
    need_dim(logits, 3, "logits");
    dtype = dtype_of(logits, "logits");
    vocab = logits.size(2);
    need(vocab <= 1 || logits.stride(2) == 1, "logits must have neighbouring columns");
    need(vocab <= std::numeric_limits<int32_t>::max(), "logits: rows of ", vocab, " do not fit 32-bit ids");
    const int64_t bytes = kDtypeBytes[int(dtype)];
    data = static_cast<const char*>(logits.const_data_ptr());
    length = logits.size(1);
    batch_bytes = logits.stride(0) * bytes;
    row_bytes = logits.stride(1) * bytes;
    if (temperature.has_value()) {
      need(temperature->numel() == 1, "temperature must be a single number");
      const double value = Reals::of(*temperature, "temperature")[0];
      need(value > 0 && value < std::numeric_limits<double>::infinity(), "temperature must be positive and finite, got ", value);
      inverse_temperature = 1.0 / value;
    }
    std::sort(bans.begin(), bans.end());
    bans.erase(std::unique(bans.begin(), bans.end()), bans.end());
    need(bans.empty() || (bans.front() >= 0 && bans.back() < vocab), "ban: ids must lie within the ", vocab, " logits of a row");
    need(1 <= k_ && k_ <= vocab - int64_t(bans.size()), "k must lie between 1 and the ", vocab, " logits of a row less ",
         bans.size(), " banned, got ", k_);
  }

  const void* row(int64_t i) const { return data + i / length * batch_bytes + i % length * row_bytes; }

  // Fills what SummaryTask and LogitsGradTask have in common.
  template <class Task>
  void describe(int64_t i, Task& task) const {
    task.logits = row(i);
    task.vocab = vocab;
    task.k = k;
    task.inverse_temperature = inverse_temperature;
    task.bans = bans.data();
    task.n_bans = int64_t(bans.size());
  }
};

}  // namespace soft_mask
