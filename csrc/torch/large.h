// Results of a hundred megabytes: what such memory costs is the operating system handing it over page by page.
#pragma once

#include <cstdint>

#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace soft_mask {

constexpr int64_t kHugePage = int64_t(2) << 20;

// A new tensor, not yet written to, whose memory comes in pages of 2 MiB where the system allows it: zeroing 154 MB then
// takes a quarter of the time. Only asked for, only inside this tensor's own memory; a refusal changes nothing.
inline Tensor new_large(const Tensor& like, const std::vector<int64_t>& sizes, std::optional<ScalarType> type = std::nullopt) {
  Tensor x = torch::stable::new_empty(like, sizes, type);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto start = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (start + uintptr_t(x.numel()) * kDtypeBytes[int(dtype_of(x, "result"))]) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return x;
}

}  // namespace soft_mask
