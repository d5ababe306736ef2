// Tensors as the CUDA kernels take them: shapes and dtypes checked on the host, values by the kernels.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>

#include "cuda_call.h"

namespace soft_mask {

inline void need_gpu_dtype(Dtype dtype, const char* name) {
  need(dtype != Dtype::f64, name, ": the CUDA kernels take float32, bfloat16 and float16; float64 runs on the CPU");
}

inline void need_best(int64_t k) {
  need(1 <= k && k <= cuda::kMaxBest, "k must lie between 1 and ", cuda::kMaxBest, " for the CUDA kernels, got ", k);
}

// Numbers that the caller knew are handed over with the launch: copying them to the device would make the host wait.
inline bool on_host(const Tensor& x) {
#if defined(SOFT_MASK_EMULATION)
  return emulation::Machine::get().numbers_on_host() && x.numel() <= 3;
#else
  return x.is_cpu();
#endif
}

inline cuda::LogitsParams logits_params(GpuCall& call, const Tensor& logits, int64_t k, const std::optional<Tensor>& temperature,
                                        std::vector<int64_t> ban) {
  need_dim(logits, 3, "logits");
  const int64_t vocab = logits.size(2);
  need(vocab <= 1 || logits.stride(2) == 1, "logits must have neighbouring columns");
  need(vocab <= std::numeric_limits<int32_t>::max(), "logits: rows of ", vocab, " do not fit 32-bit ids");
  std::sort(ban.begin(), ban.end());
  ban.erase(std::unique(ban.begin(), ban.end()), ban.end());
  need(ban.empty() || (ban.front() >= 0 && ban.back() < vocab), "ban: ids must lie within the ", vocab, " logits of a row");
  need(int64_t(ban.size()) <= cuda::kMaxBans, "ban: at most ", cuda::kMaxBans, " ids for the CUDA kernels, got ", ban.size());
  need(1 <= k && k <= vocab - int64_t(ban.size()), "k must lie between 1 and the ", vocab, " logits of a row less ", ban.size(),
       " banned, got ", k);
  need_best(k);
  cuda::LogitsParams p{};
  p.dtype = dtype_of(logits, "logits");
  need_gpu_dtype(p.dtype, "logits");
  p.data = call.reads(logits, "logits");
  p.batch_stride = logits.stride(0);
  p.row_stride = logits.stride(1);
  p.length = logits.size(1);
  p.vocab = int32_t(vocab);
  p.inverse_temperature = 1.0;
  if (temperature.has_value()) {
    need(temperature->numel() == 1 && temperature->scalar_type() == ScalarType::Double, "temperature must be a single float64 number");
    if (on_host(*temperature)) {
      const double value = *static_cast<const double*>(temperature->const_data_ptr());
      need(value >= 1e-30 && value < std::numeric_limits<double>::infinity(),
           "temperature must be positive and finite, and not below 1e-30, got ", value);
      p.inverse_temperature = 1.0 / value;
    } else {
      p.temperature = call.reads<double>(*temperature, "temperature");
    }
  }
  p.n_bans = int32_t(ban.size());
  std::copy(ban.begin(), ban.end(), p.bans);
  return p;
}

inline cuda::TokenParams token_params(GpuCall& call, const Tensor& input_ids, const std::optional<Tensor>& where,
                                      int64_t mask_token_id, int64_t shift) {
  need_dim(input_ids, 2, "input_ids");
  need_type(input_ids, ScalarType::Long, "input_ids", "int64");
  need(input_ids.is_contiguous(), "input_ids must be contiguous");
  cuda::TokenParams p{};
  p.ids = call.reads_input_ids(input_ids);
  p.count = input_ids.numel();
  p.length = input_ids.size(1);
  p.mask_token_id = mask_token_id;
  p.shift = int(shift);
  if (where.has_value()) {
    need_type(*where, ScalarType::Bool, "where", "bool");
    need(where->is_contiguous() && where->numel() == p.count, "where must be contiguous and shaped like input_ids");
    p.where = call.reads<uint8_t>(*where, "where");
  }
  return p;
}

inline cuda::TableParams table_params(GpuCall& call, const Tensor& embedding) {
  need_dim(embedding, 2, "embedding");
  need(embedding.size(1) <= 1 || embedding.stride(1) == 1, "embedding must have neighbouring columns");
  cuda::TableParams p{};
  p.dtype = dtype_of(embedding, "embedding");
  need_gpu_dtype(p.dtype, "embedding");
  p.data = call.reads(embedding, "embedding");
  p.rows = embedding.size(0);
  p.width = embedding.size(1);
  p.stride = embedding.stride(0);
  return p;
}

inline const float* floats(GpuCall& call, const Tensor& x, int64_t count, const char* name) {
  need_type(x, ScalarType::Float, name, "float32 for the CUDA kernels");
  need(x.is_contiguous() && x.numel() == count, name, " must be contiguous and of ", count, " numbers");
  return call.reads<float>(x, name);
}

inline cuda::GateParams gate_params(GpuCall& call, const Tensor& gate) {
  const float* data = floats(call, gate, 3, "gate");
  if (!on_host(gate)) return {data, {}};
  return {nullptr, {data[0], data[1], data[2]}};
}

inline cuda::FeedbackParams feedback_params(GpuCall& call, const Tensor& ids, const Tensor& probs, const Tensor& neg_entropy,
                                            const Tensor& gate, int64_t count) {
  need_dim(ids, 3, "ids");
  need_type(ids, ScalarType::Int, "ids", "int32");
  need_best(ids.size(2));
  need(ids.is_contiguous() && ids.numel() == count * ids.size(2), "ids must be contiguous [B, L, k]");
  cuda::FeedbackParams p{};
  p.k = int(ids.size(2));
  p.ids = call.reads<int32_t>(ids, "ids");
  p.probs = floats(call, probs, count * p.k, "probs");
  p.neg_entropy = floats(call, neg_entropy, count, "neg_entropy");
  p.gate = gate_params(call, gate);
  return p;
}

}  // namespace soft_mask
