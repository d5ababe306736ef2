// The forward operators on a GPU: checks, allocation, launches. The kernels are in csrc/cuda.
#include <optional>
#include <tuple>

#include "cuda_arguments.h"

namespace soft_mask {
namespace {

struct Found {
  Tensor ids, probs, neg_entropy, logsumexp;

  Found(const GpuCall& call, int64_t batch, int64_t length, int64_t k)
      : ids(call.empty({batch, length, k}, ScalarType::Int)), probs(call.empty({batch, length, k}, ScalarType::Float)),
        neg_entropy(call.empty({batch, length}, ScalarType::Float)), logsumexp(call.empty({batch, length}, ScalarType::Float)) {}

  void results(GpuCall& call, cuda::SummariseParams& p) {
    p.ids = call.writes<int32_t>(ids, "ids");
    p.probs = call.writes<float>(probs, "probs");
    p.neg_entropy = call.writes<float>(neg_entropy, "neg_entropy");
    p.logsumexp = call.writes<float>(logsumexp, "logsumexp");
  }
};

void run(GpuCall& call, cuda::SummariseParams& p, bool check) {
  p.splits = cuda::splits_for(p.rows, int64_t(p.logits.vocab) * kDtypeBytes[int(p.logits.dtype)], call.where());
  if (p.splits > 1) {
    p.partials = call.scratch<float>({p.rows, p.splits, cuda::partial_floats(p.k)}, ScalarType::Float, "partials");
    p.tickets = call.tickets(p.rows);
  }
  p.faults = call.faults(check);
  cuda::summarise(p, call.where());
  call.raise(p.table.rows);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> feedback_gpu(Tensor logits, int64_t k, std::optional<Tensor> temperature,
                                                        std::vector<int64_t> ban, bool check) {
  GpuCall call(logits);
  cuda::SummariseParams p{};
  p.logits = logits_params(call, logits, k, temperature, std::move(ban));
  p.k = int(k);
  p.rows = logits.size(0) * logits.size(1);
  Found found(call, logits.size(0), logits.size(1), k);
  found.results(call, p);
  run(call, p, check);
  return {found.ids, found.probs, found.neg_entropy, found.logsumexp};
}

Tensor mix_embed_gpu(Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, Tensor gate,
                     int64_t mask_token_id, int64_t shift, std::optional<Tensor> where, bool, bool) {
  GpuCall call(input_ids);
  cuda::MixParams p{};
  p.table = table_params(call, embedding);
  p.tokens = token_params(call, input_ids, where, mask_token_id, shift);
  p.feedback = feedback_params(call, ids, probs, neg_entropy, gate, p.tokens.count);
  Tensor out = torch::stable::new_empty(embedding, {input_ids.size(0), input_ids.size(1), p.table.width});
  p.out = call.writes(out, "out");
  p.faults = call.faults(false);
  cuda::mix(p, call.where());
  call.raise(p.table.rows);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> soft_mask_embed_gpu(Tensor logits, Tensor input_ids, Tensor embedding,
                                                                       Tensor gate, int64_t mask_token_id, int64_t k,
                                                                       std::optional<Tensor> temperature,
                                                                       std::vector<int64_t> ban, int64_t shift,
                                                                       std::optional<Tensor> where, bool check, bool, bool) {
  GpuCall call(input_ids);
  cuda::SummariseParams p{};
  p.table = table_params(call, embedding);
  p.tokens = token_params(call, input_ids, where, mask_token_id, shift);
  p.logits = logits_params(call, logits, k, temperature, std::move(ban));
  need(logits.size(0) == input_ids.size(0) && logits.size(1) == p.tokens.length, "logits must be [B, L, V] with input_ids [B, L]");
  p.k = int(k);
  p.rows = p.tokens.count;
  p.gate = gate_params(call, gate);
  Tensor out = torch::stable::new_empty(embedding, {input_ids.size(0), input_ids.size(1), p.table.width});
  p.out = call.writes(out, "out");
  Found found(call, input_ids.size(0), input_ids.size(1), k);
  found.results(call, p);
  run(call, p, check);
  return {out, found.ids, found.probs, found.neg_entropy, found.logsumexp};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, SOFT_MASK_GPU_KEY, m) {
  m.impl("feedback", TORCH_BOX(&feedback_gpu));
  m.impl("mix_embed", TORCH_BOX(&mix_embed_gpu));
  m.impl("soft_mask_embed", TORCH_BOX(&soft_mask_embed_gpu));
}

}  // namespace soft_mask
