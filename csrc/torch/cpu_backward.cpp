// The embedding's backward on the CPU. The same bits for any number of threads: every sum has one fixed order.
//
// With g the gradient of a mixed row and d = sum_j probs_j E[ids_j] - E[base]: d lambda = g . d. The embedding's gradient is
// gathered, not scattered (contributions.h).
#include <tuple>

#include "../cpu/kernels.h"
#include "contributions.h"
#include "feedback_view.h"
#include "large.h"
#include "parallel.h"
#include "tensors.h"
#include "tokens.h"

namespace soft_mask {
namespace {

constexpr int64_t kRowsARun = 32;

// What both operators take, checked.
struct MixedRows {
  Table table;
  Tokens tokens;
  FeedbackView fb;  // one a row
  Gate<double> curve;
  const char* grads;
  int64_t shift;

  MixedRows(const Tensor& grad, const Tensor& input_ids, const Tensor& ids, const Tensor& probs, const Tensor& neg_entropy,
            const Tensor& embedding, const Tensor& gate, int64_t mask_token_id, int64_t shift_, const std::optional<Tensor>& where)
      : table(embedding), tokens(input_ids, where, mask_token_id, table.rows), fb(ids, probs, neg_entropy, tokens.count),
        curve(gate_of(gate)), grads(static_cast<const char*>(grad.const_data_ptr())), shift(shift_) {
    need(dtype_of(grad, "grad") == table.dtype && grad.is_contiguous() && grad.numel() == tokens.count * table.width,
         "grad must be contiguous [B, L, d] of embedding's dtype");
    FirstFault fault;
    for (const int64_t position : tokens.mixed) {
      const int64_t source = tokens.source(position, shift);
      if (Gate<double>::open(fb.neg_entropy[source]) && !ids_fit(fb.ids + source * fb.k, fb.k, table.rows)) fault.report(position);
    }
    need_ids(fault, "fb.ids", table.rows);
  }

  Contributions contributions() const {
    Contributions all(table.rows);
    all.sort([&](auto&& add) {
      for (const int64_t position : tokens.plain) add(tokens.ids[position], position, 1.0);
      for (const int64_t position : tokens.mixed) {
        const int64_t source = tokens.source(position, shift);
        const double lambda = curve.lambda(fb.neg_entropy[source]);
        add(tokens.ids[position], position, 1.0 - lambda);
        if (lambda == 0) continue;
        for (int j = 0; j < fb.k; ++j) {
          const double weight = lambda * fb.probs[source * fb.k + j];
          if (weight != 0) add(fb.ids[source * fb.k + j], position, weight);
        }
      }
    });
    return all;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> mix_embed_backward_cpu(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs,
                                                                  Tensor neg_entropy, Tensor embedding, Tensor gate,
                                                                  int64_t mask_token_id, int64_t shift,
                                                                  std::optional<Tensor> where, bool want_embedding, bool) {
  const MixedRows rows(grad, input_ids, ids, probs, neg_entropy, embedding, gate, mask_token_id, shift, where);
  const Table& table = rows.table;
  const Tokens& tokens = rows.tokens;
  const FeedbackView& fb = rows.fb;
  const int k = fb.k;
  Tensor grad_probs = torch::stable::new_zeros(probs, {tokens.batch, tokens.length, k});
  Tensor grad_neg_entropy = torch::stable::new_zeros(neg_entropy, {tokens.batch, tokens.length});
  Tensor grad_gate = torch::stable::new_zeros(gate, {3});
  const auto out_probs = MutableReals::of(grad_probs), out_entropy = MutableReals::of(grad_neg_entropy), out_gate = MutableReals::of(grad_gate);

  const int64_t mixed = int64_t(tokens.mixed.size());
  std::vector<double> grad_lambda(mixed, 0.0);
  parallel_runs(mixed, kRowsARun, [&](int64_t first, int64_t last) {
    std::vector<double> dots(k + 1);
    for (int64_t i = first; i < last; ++i) {
      const int64_t position = tokens.mixed[i], source = tokens.source(position, shift);
      const double entropy = fb.neg_entropy[source];
      if (!Gate<double>::open(entropy)) continue;
      const DotTask task{rows.grads + position * table.row_bytes, table.data, table.stride, table.width,
                         tokens.ids[position], fb.ids + source * k, k, dots.data()};
      kernels().dot[int(table.dtype)](task);
      const double lambda = rows.curve.lambda(entropy);
      double along = -dots[0];
      for (int j = 0; j < k; ++j) {
        along += fb.probs[source * k + j] * dots[1 + j];
        out_probs.set(position * k + j, lambda * dots[1 + j]);
      }
      grad_lambda[i] = along;
      out_entropy.set(position, along * rows.curve.slopes(entropy).neg_entropy);
    }
  });
  double total[3] = {0, 0, 0};
  for (int64_t i = 0; i < mixed; ++i) {
    const auto slopes = rows.curve.slopes(fb.neg_entropy[tokens.source(tokens.mixed[i], shift)]);
    total[0] += grad_lambda[i] * slopes.scale;
    total[1] += grad_lambda[i] * slopes.steepness;
    total[2] += grad_lambda[i] * slopes.centre;
  }
  for (int i = 0; i < 3; ++i) out_gate.set(i, total[i]);

  if (!want_embedding) {
    return {torch::stable::new_empty(embedding, {0, table.width}), grad_probs, grad_neg_entropy, grad_gate};
  }
  Tensor grad_embedding = new_large(embedding, {table.rows, table.width});
  rows.contributions().sum(rows.grads, table.dtype, table.width, static_cast<char*>(grad_embedding.mutable_data_ptr()), true);
  return {grad_embedding, grad_probs, grad_neg_entropy, grad_gate};
}

std::tuple<Tensor, Tensor> mix_embed_backward_rows_cpu(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs,
                                                       Tensor neg_entropy, Tensor embedding, Tensor gate,
                                                       int64_t mask_token_id, int64_t shift, std::optional<Tensor> where) {
  const MixedRows rows(grad, input_ids, ids, probs, neg_entropy, embedding, gate, mask_token_id, shift, where);
  const Contributions all = rows.contributions();
  const auto n = int64_t(all.rows().size());
  Tensor indices = torch::stable::new_empty(input_ids, {n});
  std::copy(all.rows().begin(), all.rows().end(), static_cast<int64_t*>(indices.mutable_data_ptr()));
  Tensor values = torch::stable::new_empty(embedding, {n, rows.table.width});
  all.sum(rows.grads, rows.table.dtype, rows.table.width, static_cast<char*>(values.mutable_data_ptr()), false);
  return {indices, values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, CPU, m) {
  m.impl("mix_embed_backward", TORCH_BOX(&mix_embed_backward_cpu));
  m.impl("mix_embed_backward_rows", TORCH_BOX(&mix_embed_backward_rows_cpu));
}

}  // namespace soft_mask
