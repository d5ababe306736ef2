// From the gradients of a feedback to those of the logits and of the temperature, on a GPU.
#include <optional>
#include <tuple>

#include "cuda_arguments.h"

namespace soft_mask {
namespace {

std::tuple<Tensor, Tensor> feedback_backward_gpu(Tensor grad_probs, Tensor grad_neg_entropy, Tensor grad_logsumexp,
                                                 Tensor logits, Tensor ids, Tensor probs, Tensor neg_entropy,
                                                 Tensor logsumexp, std::optional<Tensor> temperature,
                                                 std::vector<int64_t> ban, bool want_logits) {
  need_dim(ids, 3, "ids");
  need_type(ids, ScalarType::Int, "ids", "int32");
  GpuCall call(logits);
  cuda::LogitsGradParams p{};
  p.logits = logits_params(call, logits, ids.size(2), temperature, std::move(ban));
  p.k = int(ids.size(2));
  const int64_t batch = logits.size(0), length = logits.size(1);
  p.rows = batch * length;
  need(ids.is_contiguous() && ids.numel() == p.rows * p.k, "ids must be contiguous [B, L, k]");
  p.ids = call.reads<int32_t>(ids, "ids");
  p.probs = floats(call, probs, p.rows * p.k, "probs");
  p.neg_entropy = floats(call, neg_entropy, p.rows, "neg_entropy");
  p.logsumexp = floats(call, logsumexp, p.rows, "logsumexp");
  p.grad_probs = floats(call, grad_probs, p.rows * p.k, "grad_probs");
  p.grad_neg_entropy = floats(call, grad_neg_entropy, p.rows, "grad_neg_entropy");
  p.grad_logsumexp = floats(call, grad_logsumexp, p.rows, "grad_logsumexp");
  Tensor out = torch::stable::new_empty(logits, {want_logits ? batch : 0, want_logits ? length : 0, logits.size(2)});
  if (want_logits) p.out = call.writes(out, "grad_logits");
  p.along = call.scratch<double>({p.rows}, ScalarType::Double, "along");
  Tensor grad_temperature = call.empty({}, ScalarType::Double);
  p.grad_temperature = call.writes<double>(grad_temperature, "grad_temperature");
  cuda::logits_grad(p, call.where());
  return {out, grad_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, SOFT_MASK_GPU_KEY, m) { m.impl("feedback_backward", TORCH_BOX(&feedback_backward_gpu)); }

}  // namespace soft_mask
