// Which table of kernels runs on this machine: asked of the processor once, at the first call.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace soft_mask {
namespace {

const KernelTable* const kNarrowToWide[] = {
    &kPortableKernels,
#if defined(__x86_64__)
    &kAvx2Kernels,
    &kAvx512Kernels,
#endif
};

bool machine_runs(const KernelTable& table) {
#if defined(__x86_64__)
  if (&table == &kAvx512Kernels) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && machine_runs(kAvx2Kernels);
  }
  if (&table == &kAvx2Kernels) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  }
#endif
  return &table == &kPortableKernels;
}

const KernelTable& choose() {
  const char* wanted = std::getenv("SOFT_MASK_CPU");
  const KernelTable* best = nullptr;
  for (const KernelTable* table : kNarrowToWide) {
    if (wanted != nullptr && *wanted != '\0' && std::string(wanted) != table->name) continue;
    if (machine_runs(*table)) best = table;
  }
  if (best == nullptr) {
    throw std::runtime_error("soft_mask: SOFT_MASK_CPU=" + std::string(wanted) +
                             " is not to be had: this machine or this build lacks it (portable, avx2, avx512)");
  }
  return *best;
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

}  // namespace soft_mask
