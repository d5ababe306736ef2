// One call of an operator on a GPU: its device, its stream, the memory its kernels touch, and what they found wrong. Compiled
// with SOFT_MASK_EMULATION the same calls serve CPU tensors through the emulated GPU.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "../cuda/params.h"
#include "tensors.h"

#if defined(SOFT_MASK_EMULATION)
#include "../emulation/machine.h"
#define SOFT_MASK_GPU_KEY CPU
#else
#define SOFT_MASK_GPU_KEY CUDA
// Only a torch built with CUDA has it; the same library loads under one that is not.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);
#endif

namespace soft_mask {

#if defined(SOFT_MASK_EMULATION)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

class GpuCall {
 public:
  explicit GpuCall(const Tensor& like) : like_(like), guard_(like) {}
  GpuCall(const GpuCall&) = delete;
  GpuCall& operator=(const GpuCall&) = delete;

  const cuda::Launch& where() const { return guard_.where; }

  // A tensor's data, which the call's kernels may read, or write too.
  template <class T = void>
  const T* reads(const Tensor& x, const char* name) {
    allow(x, name, false);
    return static_cast<const T*>(x.const_data_ptr());
  }
  template <class T = void>
  T* writes(Tensor& x, const char* name, bool zero_again = false) {
    allow(x, name, true, zero_again);
    return static_cast<T*>(x.mutable_data_ptr());
  }

  Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) const { return torch::stable::new_empty(like_, sizes, type); }
  Tensor zeros(const std::vector<int64_t>& sizes, ScalarType type) const { return torch::stable::new_zeros(like_, sizes, type); }

  const int64_t* reads_input_ids(const Tensor& x) { return input_ids_ = reads<int64_t>(x, "input_ids"); }

  // Scratch that lives as long as the call.
  template <class T>
  T* scratch(const std::vector<int64_t>& sizes, ScalarType type, const char* name, bool zero = false) {
    kept_.push_back(zero ? zeros(sizes, type) : empty(sizes, type));
    return writes<T>(kept_.back(), name);
  }

  // Counters that are zero, and that kernels leave at zero: one set for each stream, kept for the process. A CUDA graph may
  // be replayed on any stream, so what is captured gets its own.
  int32_t* tickets(int64_t n) {
    if (cuda::capturing(where())) return scratch<int32_t>({n}, ScalarType::Int, "tickets", true);
    static std::mutex mutex;
    static auto* all = new std::map<std::pair<int, void*>, Tensor>;  // never freed: the device may be gone at exit
    const std::lock_guard<std::mutex> lock(mutex);
    auto& entry = *all;
    const std::pair<int, void*> key{where().device, where().stream};
    auto found = entry.find(key);
    if (found == entry.end() || found->second.numel() < n) {
      found = entry.insert_or_assign(key, zeros({n < kTickets ? kTickets : n}, ScalarType::Int)).first;
    }
    return writes<int32_t>(found->second, "tickets", true);
  }

  // Where kernels note what is wrong with the data; null where no one will look, for looking makes the host wait.
  uint64_t* faults(bool check) {
    static const bool debug = [] {
      const char* value = std::getenv("SOFT_MASK_CHECK");
      return value != nullptr && value[0] != '\0' && value[0] != '0';
    }();
    check_ = check || debug;
    if (!check_ && !kEmulated) return nullptr;
    faults_ = scratch<uint64_t>({cuda::kFaults}, ScalarType::Long, "faults", true);
    return faults_;
  }

  // After the launches: the first fault in words. `rows` are the embedding's.
  void raise(int64_t rows = 0) const {
    if (faults_ == nullptr) return;
    std::array<uint64_t, cuda::kFaults> found;
    cuda::read_back(found.data(), faults_, sizeof found, where());
    const auto row = [&](cuda::Fault fault) { return int64_t(~found[size_t(fault)]); };
    const auto any = [&](cuda::Fault fault) { return found[size_t(fault)] != 0; };
    if (any(cuda::Fault::temperature)) fail("temperature must be positive and finite, and not below 1e-30");
    if (any(cuda::Fault::input_ids)) {
      int64_t id = 0;
      cuda::read_back(&id, input_ids_ + row(cuda::Fault::input_ids), sizeof id, where());
      fail("input_ids: id ", id, " at row ", row(cuda::Fault::input_ids), " (flattened) has no row in the embedding of ", rows, " rows");
    }
    if (check_ && any(cuda::Fault::not_finite)) {
      fail("logits: row ", row(cuda::Fault::not_finite), " (flattened) holds NaN or +inf; check=False turns this check off");
    }
    if (check_ && any(cuda::Fault::all_banned)) {
      fail("logits: row ", row(cuda::Fault::all_banned),
           " (flattened) is -inf throughout, which is no distribution; check=False turns this check off");
    }
    for (const auto& [fault, name] : {std::pair{cuda::Fault::feedback_ids, "fb.ids"}, {cuda::Fault::predicted_ids, "logits: among the k best,"}}) {
      if (any(fault)) fail(name, ": an id of row ", row(fault), " (flattened) has no row in the embedding of ", rows, " rows");
    }
  }

 private:
  static constexpr int64_t kTickets = 8192;

  void allow(const Tensor& x, const char* name, bool writable, bool zero_again = false) {
#if defined(SOFT_MASK_EMULATION)
    int64_t elements = x.numel() > 0 ? 1 : 0;
    for (int64_t i = 0; elements > 0 && i < x.dim(); ++i) elements += (x.size(i) - 1) * x.stride(i);
    const int64_t bytes = elements * int64_t(x.element_size());
    emulation::Machine::get().memory().add({name, static_cast<const char*>(x.const_data_ptr()), bytes, writable, zero_again, {}});
#else
    (void)x, (void)name, (void)writable, (void)zero_again;
#endif
  }

#if defined(SOFT_MASK_EMULATION)
  // One call at a time: autograd has threads of its own.
  struct Guard {
    std::unique_lock<std::mutex> lock;
    cuda::Launch where;
    explicit Guard(const Tensor&) : lock(mutex()), where(cuda::launch_on(0, nullptr)) {}
    ~Guard() { emulation::Machine::get().memory().clear(); }
    static std::mutex& mutex() {
      static std::mutex one;
      return one;
    }
  };
#else
  struct Guard {
    torch::stable::accelerator::DeviceGuard device;
    cuda::Launch where;
    explicit Guard(const Tensor& x) : device(x.get_device_index()), where(cuda::launch_on(x.get_device_index(), stream(x))) {}
    static void* stream(const Tensor& x) {
      void* current = nullptr;
      need(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
      need(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current) == 0, "no current CUDA stream");
      return current;
    }
  };
#endif

  const Tensor& like_;
  Guard guard_;
  std::vector<Tensor> kept_;
  uint64_t* faults_ = nullptr;
  bool check_ = false;
  const int64_t* input_ids_ = nullptr;
};

}  // namespace soft_mask
