// A row in blocks: where they lie, or a copy, filled up to whole steps with -inf and without the banned ids.
#pragma once

#include <cstring>
#include <limits>

#include "kernels.h"
#include "simd.h"

namespace soft_mask::SOFT_MASK_ISA {

constexpr int kBlock = 1024;  // elements; sums within one are float
constexpr float kNone = -std::numeric_limits<float>::infinity();

template <class T>
struct Blocks {
  const T* row;
  int64_t vocab;
  const int64_t* bans;
  int64_t n_bans;
  int64_t ban = 0;
  int size = 0;  // of the block asked for last, a multiple of kStep; `filled` of it are the row's
  int filled = 0;
  alignas(64) T buffer[kBlock];

  template <class Task>
  explicit Blocks(const Task& task)
      : row(static_cast<const T*>(task.logits)), vocab(task.vocab), bans(task.bans), n_bans(task.n_bans) {}

  // The block from `first` on; to be asked for in ascending order.
  inline const T* at(int64_t first) {
    filled = int(vocab - first < kBlock ? vocab - first : kBlock);
    size = (filled + kStep - 1) / kStep * kStep;
    while (ban < n_bans && bans[ban] < first) ++ban;
    const bool banned = ban < n_bans && bans[ban] < first + filled;
    if (!banned && filled == size) return row + first;
    std::memcpy(buffer, row + first, size_t(filled) * sizeof(T));
    for (int i = filled; i < size; ++i) narrow(kNone, buffer[i]);
    for (; ban < n_bans && bans[ban] < first + filled; ++ban) narrow(kNone, buffer[bans[ban] - first]);
    return buffer;
  }
};

}  // namespace soft_mask::SOFT_MASK_ISA
