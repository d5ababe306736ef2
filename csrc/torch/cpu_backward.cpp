// The embedding's backward on the CPU. The same bits for any number of threads: every sum has one fixed order.
//
// With g the gradient of a mixed row and d = sum_j probs_j E[ids_j] - E[base]: d lambda = g . d. The embedding's gradient is
// gathered, not scattered (contributions.h).
#include <cstring>
#include <tuple>

#include "../common/gate.h"
#include "../cpu/kernels.h"
#include "contributions.h"
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
  int k;
  const int32_t* ids;  // [B, L, k], one a row of feedback
  Reals probs, neg_entropy;
  Gate<double> curve;
  const char* grads;
  int64_t shift;

  MixedRows(const Tensor& grad, const Tensor& input_ids, const Tensor& ids_, const Tensor& probs_, const Tensor& neg_entropy_,
            const Tensor& embedding, const Tensor& gate, int64_t mask_token_id, int64_t shift_, const std::optional<Tensor>& where)
      : table(embedding), tokens(input_ids, where, mask_token_id, table.rows), probs(Reals::of(probs_, "probs")),
        neg_entropy(Reals::of(neg_entropy_, "neg_entropy")), shift(shift_) {
    need(dtype_of(grad, "grad") == table.dtype && grad.is_contiguous() && grad.numel() == tokens.count * table.width,
         "grad must be contiguous [B, L, d] of embedding's dtype");
    need_dim(ids_, 3, "ids");
    need_type(ids_, ScalarType::Int, "ids", "int32");
    need(ids_.is_contiguous() && ids_.numel() == tokens.count * ids_.size(2), "ids must be contiguous [B, L, k]");
    need(probs_.numel() == ids_.numel() && neg_entropy_.numel() == tokens.count, "probs and neg_entropy must match ids");
    need(gate.numel() == 3, "gate must hold scale, steepness, centre");
    k = int(ids_.size(2));
    ids = static_cast<const int32_t*>(ids_.const_data_ptr());
    const auto values = Reals::of(gate, "gate");
    curve = {values[0], values[1], values[2]};
    grads = static_cast<const char*>(grad.const_data_ptr());
    for (const int64_t position : tokens.mixed) {
      const int64_t source = tokens.source(position, shift);
      if (!Gate<double>::open(neg_entropy[source])) continue;
      bool fit = true;
      for (int j = 0; j < k; ++j) fit &= 0 <= ids[source * k + j] && ids[source * k + j] < table.rows;
      need(fit, "fb.ids: an id of row ", position, " (flattened) has no row in the embedding of ", table.rows, " rows");
    }
  }

  Contributions contributions() const {
    Contributions all(table.rows);
    all.sort([&](auto&& add) {
      for (const int64_t position : tokens.plain) add(tokens.ids[position], position, 1.0);
      for (const int64_t position : tokens.mixed) {
        const int64_t source = tokens.source(position, shift);
        const double lambda = curve.lambda(neg_entropy[source]);
        add(tokens.ids[position], position, 1.0 - lambda);
        if (lambda == 0) continue;
        for (int j = 0; j < k; ++j) {
          const double weight = lambda * probs[source * k + j];
          if (weight != 0) add(ids[source * k + j], position, weight);
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
  const int k = rows.k;
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
      const double entropy = rows.neg_entropy[source];
      if (!Gate<double>::open(entropy)) continue;
      const DotTask task{rows.grads + position * table.row_bytes, table.data, table.stride, table.width,
                         tokens.ids[position], rows.ids + source * k, k, dots.data()};
      kernels().dot[int(table.dtype)](task);
      const double lambda = rows.curve.lambda(entropy);
      double along = -dots[0];
      for (int j = 0; j < k; ++j) {
        along += rows.probs[source * k + j] * dots[1 + j];
        out_probs.set(position * k + j, lambda * dots[1 + j]);
      }
      grad_lambda[i] = along;
      out_entropy.set(position, along * rows.curve.slopes(entropy).neg_entropy);
    }
  });
  double total[3] = {0, 0, 0};
  for (int64_t i = 0; i < mixed; ++i) {
    const auto slopes = rows.curve.slopes(rows.neg_entropy[tokens.source(tokens.mixed[i], shift)]);
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
