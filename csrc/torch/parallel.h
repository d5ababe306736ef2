// Rows over torch's own threads, and faults that threads meet brought back to the caller.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

namespace soft_mask {

// work(first, last, make-your-own-scratch) over [0, count) in runs of `run`, handed out as threads come free: rows cost
// the same, but cores are not always equally free. Which thread takes a run never changes its numbers.
template <class Work>
void parallel_runs(int64_t count, int64_t run, const Work& work) {
  if (count <= 0) return;
  const int64_t runs = (count + run - 1) / run;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), runs);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      for (int64_t i = next++; i < runs; i = next++) work(i * run, std::min((i + 1) * run, count));
    }
  });
}

// The first row at which something was wrong; the same one whatever the threads did.
class FirstFault {
 public:
  void report(int64_t row) {
    int64_t seen = row_.load(std::memory_order_relaxed);
    while (row < seen && !row_.compare_exchange_weak(seen, row)) {
    }
  }
  bool any() const { return row_.load() != kNone; }
  int64_t row() const { return row_.load(); }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> row_{kNone};
};

}  // namespace soft_mask
