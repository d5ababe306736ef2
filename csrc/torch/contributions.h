// Who adds what to which row of the embedding's gradient: sorted by row, so that each row is summed once, in one fixed order,
// and written once. No two threads meet, and a bfloat16 gradient is rounded once.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../cpu/kernels.h"
#include "parallel.h"

namespace soft_mask {

class Contributions {
 public:
  explicit Contributions(int64_t rows) : start_(rows + 1, 0) {}

  // `each` calls its argument with (row, position, weight) for every contribution, twice in the same order.
  template <class Each>
  void sort(const Each& each) {
    each([&](int64_t row, int64_t, double) { ++start_[row + 1]; });
    for (size_t row = 0; row + 1 < start_.size(); ++row) {
      if (start_[row + 1] > 0) rows_.push_back(int64_t(row));
      start_[row + 1] += start_[row];
    }
    positions_.resize(start_.back());
    weights_.resize(start_.back());
    std::vector<int64_t> next(start_.begin(), start_.end() - 1);
    each([&](int64_t row, int64_t position, double weight) {
      positions_[next[row]] = position;
      weights_[next[row]++] = weight;
    });
  }

  const std::vector<int64_t>& rows() const { return rows_; }  // that receive anything, ascending

  // Gradients `grads` [.., width], summed into row i of `out` [rows().size(), width], or into row rows()[i] of the whole
  // gradient, whose other rows then become zero.
  void sum(const char* grads, Dtype dtype, int64_t width, char* out, bool whole) const {
    const int64_t row_bytes = width * kDtypeBytes[int(dtype)];
    const int64_t total = int64_t(start_.size()) - 1, n = int64_t(rows_.size());
    const int64_t pieces = (width + kGatherColumns - 1) / kGatherColumns;
    std::vector<int64_t> heavy;  // such as the mask's row, which every mixed position feeds: in pieces, over the threads
    for (int64_t i = 0; i < n; ++i) {
      if (entries(i) > kHeavy) heavy.push_back(i);
    }
    const auto write = [&](int64_t i, int64_t piece) {
      const int64_t row = rows_[i], column = piece * kGatherColumns;
      const GatherTask task{grads, width, positions_.data() + start_[row], weights_.data() + start_[row], entries(i), column,
                            std::min(kGatherColumns, width - column), out + (whole ? row : i) * row_bytes};
      kernels().gather[int(dtype)](task);
    };
    const auto write_light = [&](int64_t i) {
      for (int64_t piece = 0; piece < pieces && entries(i) <= kHeavy; ++piece) write(i, piece);
    };
    const int64_t heavy_units = int64_t(heavy.size()) * pieces, light_units = ((whole ? total : n) + kRowsARun - 1) / kRowsARun;
    parallel_runs(heavy_units + light_units, 1, [&](int64_t unit, int64_t) {
      if (unit < heavy_units) return write(heavy[unit / pieces], unit % pieces);
      const int64_t first = (unit - heavy_units) * kRowsARun;
      if (!whole) {
        for (int64_t i = first; i < std::min(first + kRowsARun, n); ++i) write_light(i);
        return;
      }
      // Zeros and sums alternate, so that memory is gone through once.
      int64_t done = first;
      const int64_t last = std::min(first + kRowsARun, total);
      const auto zero_up_to = [&](int64_t row) { std::memset(out + done * row_bytes, 0, size_t((row - done) * row_bytes)); };
      auto next = std::lower_bound(rows_.begin(), rows_.end(), first);
      for (; next != rows_.end() && *next < last; ++next) {
        zero_up_to(*next);
        write_light(next - rows_.begin());
        done = *next + 1;
      }
      zero_up_to(last);
    });
  }

 private:
  static constexpr int64_t kRowsARun = 256;
  static constexpr int64_t kHeavy = 32;  // contributions
  int64_t entries(int64_t i) const { return start_[rows_[i] + 1] - start_[rows_[i]]; }

  std::vector<int64_t> start_;      // [rows + 1], into the two below
  std::vector<int64_t> positions_;  // in the order of positions within a row
  std::vector<double> weights_;
  std::vector<int64_t> rows_;
};

}  // namespace soft_mask
