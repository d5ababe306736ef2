// From the gradients of a feedback to those of the logits and of the temperature, on the CPU.
#include <cstring>
#include <tuple>

#include "../cpu/kernels.h"
#include "feedback_view.h"
#include "large.h"
#include "logits_view.h"
#include "parallel.h"

namespace soft_mask {
namespace {

constexpr int64_t kRowsARun = 2;

std::tuple<Tensor, Tensor> feedback_backward_cpu(Tensor grad_probs, Tensor grad_neg_entropy, Tensor grad_logsumexp,
                                                 Tensor logits, Tensor ids, Tensor probs, Tensor neg_entropy,
                                                 Tensor logsumexp, std::optional<Tensor> temperature,
                                                 std::vector<int64_t> ban, bool want_logits) {
  need_dim(ids, 3, "ids");
  const LogitsView view(logits, ids.size(2), temperature, std::move(ban));
  const int64_t batch = logits.size(0), length = logits.size(1), count = batch * length;
  const int k = view.k;
  const FeedbackView fb(ids, probs, neg_entropy, count);
  need(grad_probs.numel() == count * k, "grad_probs must be shaped like ids");
  need(logsumexp.numel() == count && grad_neg_entropy.numel() == count && grad_logsumexp.numel() == count,
       "logsumexp and the gradients of it and of neg_entropy must be [B, L]");
  const auto p = fb.probs, h = fb.neg_entropy, lse = Reals::of(logsumexp, "logsumexp");
  const auto dp = Reals::of(grad_probs, "grad_probs"), dh = Reals::of(grad_neg_entropy, "grad_neg_entropy"),
             dlse = Reals::of(grad_logsumexp, "grad_logsumexp");
  for (int64_t row = 0; row < count; ++row) need(ids_fit(fb.ids + row * k, k, view.vocab), "ids: an id lies outside the logits");

  Tensor out = want_logits ? new_large(logits, {batch, length, view.vocab}) : torch::stable::new_empty(logits, {0, 0, view.vocab});
  auto* to = want_logits ? static_cast<char*>(out.mutable_data_ptr()) : nullptr;
  const int64_t row_bytes = view.vocab * kDtypeBytes[int(view.dtype)];
  std::vector<double> along(count, 0.0);
  parallel_runs(count, kRowsARun, [&](int64_t first, int64_t last) {
    std::vector<double> grad_best(k);
    for (int64_t row = first; row < last; ++row) {
      char* row_out = to == nullptr ? nullptr : to + row * row_bytes;
      bool any = dh[row] != 0 || dlse[row] != 0;
      double mean = 0;
      for (int j = 0; j < k; ++j) mean += p[row * k + j] * dp[row * k + j];
      for (int j = 0; j < k; ++j) {
        grad_best[j] = p[row * k + j] * (dp[row * k + j] - mean);
        any |= grad_best[j] != 0;
      }
      if (!any || h[row] == -std::numeric_limits<double>::infinity()) {
        if (row_out != nullptr) std::memset(row_out, 0, size_t(row_bytes));
        continue;
      }
      LogitsGradTask task{};
      view.describe(row, task);
      task.logsumexp = lse[row];
      task.neg_entropy = h[row];
      task.grad_logsumexp = dlse[row];
      task.grad_neg_entropy = dh[row];
      task.ids = fb.ids + row * k;
      task.grad_best = grad_best.data();
      task.out = row_out;
      kernels().logits_grad[int(view.dtype)](task);
      along[row] = task.along;
    }
  });
  double total = 0;
  for (int64_t row = 0; row < count; ++row) total -= along[row];
  Tensor grad_temperature = torch::stable::new_empty(logits, {}, ScalarType::Double);
  static_cast<double*>(grad_temperature.mutable_data_ptr())[0] = total;
  return {out, grad_temperature};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, CPU, m) { m.impl("feedback_backward", TORCH_BOX(&feedback_backward_cpu)); }

}  // namespace soft_mask
