// The backward operator on the CPU. The same bits for any number of threads: every sum has one fixed order.
//
// With g the gradient of a mixed row and d = sum_j probs_j E[ids_j] - E[base]: d lambda = g . d. The embedding's gradient is
// gathered, not scattered: the contributions (target row, position, weight) are sorted by target, and each target is summed
// over its positions in order and written once, so no two threads meet and a bfloat16 gradient is rounded once.
#include <tuple>

#include "../common/gate.h"
#include "../cpu/kernels.h"
#include "parallel.h"
#include "tensors.h"
#include "tokens.h"

namespace soft_mask {
namespace {

constexpr int64_t kRowsARun = 32;

// Contributions to the embedding's gradient, grouped by the row they go to, in the order of positions within a group.
struct Contributions {
  std::vector<int64_t> start;      // [V_e + 1], into the two below
  std::vector<int64_t> positions;  // [entries]
  std::vector<double> weights;     // [entries]
  std::vector<int64_t> targets;    // rows that receive anything, ascending

  explicit Contributions(int64_t rows) : start(rows + 1, 0) {}

  // `each` calls its argument with (target, position, weight) for every contribution, twice in the same order.
  template <class Each>
  void sort(const Each& each) {
    each([&](int64_t target, int64_t, double) { ++start[target + 1]; });
    for (size_t target = 0; target + 1 < start.size(); ++target) {
      if (start[target + 1] > 0) targets.push_back(int64_t(target));
      start[target + 1] += start[target];
    }
    positions.resize(start.back());
    weights.resize(start.back());
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    each([&](int64_t target, int64_t position, double weight) {
      positions[next[target]] = position;
      weights[next[target]++] = weight;
    });
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> mix_embed_backward_cpu(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs,
                                                                  Tensor neg_entropy, Tensor embedding, Tensor gate,
                                                                  int64_t mask_token_id, int64_t shift,
                                                                  std::optional<Tensor> where, bool want_embedding) {
  const Table table(embedding);
  const Tokens tokens(input_ids, where, mask_token_id, table.rows);
  need(dtype_of(grad, "grad") == table.dtype && grad.is_contiguous() && grad.numel() == tokens.count * table.width,
       "grad must be contiguous [B, L, d] of embedding's dtype");
  need_dim(ids, 3, "ids");
  need_type(ids, ScalarType::Int, "ids", "int32");
  need(ids.is_contiguous() && ids.numel() == tokens.count * ids.size(2), "ids must be contiguous [B, L, k]");
  need(probs.numel() == ids.numel() && neg_entropy.numel() == tokens.count, "probs and neg_entropy must match ids");
  const int k = int(ids.size(2));
  const auto* believed = static_cast<const int32_t*>(ids.const_data_ptr());
  const auto weights = Reals::of(probs, "probs"), entropies = Reals::of(neg_entropy, "neg_entropy"), curve_values = Reals::of(gate, "gate");
  const Gate<double> curve{curve_values[0], curve_values[1], curve_values[2]};
  const auto* grads = static_cast<const char*>(grad.const_data_ptr());

  Tensor grad_probs = torch::stable::new_zeros(probs, {tokens.batch, tokens.length, k});
  Tensor grad_neg_entropy = torch::stable::new_zeros(neg_entropy, {tokens.batch, tokens.length});
  Tensor grad_gate = torch::stable::new_zeros(gate, {3});
  const auto out_probs = MutableReals::of(grad_probs), out_entropy = MutableReals::of(grad_neg_entropy), out_gate = MutableReals::of(grad_gate);

  const int64_t mixed = int64_t(tokens.mixed.size());
  std::vector<double> grad_lambda(mixed, 0.0);
  FirstFault fault;
  parallel_runs(mixed, kRowsARun, [&](int64_t first, int64_t last) {
    std::vector<double> dots(k + 1);
    for (int64_t i = first; i < last; ++i) {
      const int64_t position = tokens.mixed[i], source = tokens.source(position, shift);
      if (!Gate<double>::open(entropies[source])) continue;
      const int32_t* row_ids = believed + source * k;
      bool fit = true;
      for (int j = 0; j < k; ++j) fit &= 0 <= row_ids[j] && row_ids[j] < table.rows;
      if (!fit) {
        fault.report(position);
        continue;
      }
      const DotTask task{grads + position * table.row_bytes, table.data, table.stride, table.width, tokens.ids[position], row_ids, k, dots.data()};
      kernels().dot[int(table.dtype)](task);
      const double lambda = curve.lambda(entropies[source]);
      double along = -dots[0];
      for (int j = 0; j < k; ++j) {
        along += weights[source * k + j] * dots[1 + j];
        out_probs.set(position * k + j, lambda * dots[1 + j]);
      }
      grad_lambda[i] = along;
      out_entropy.set(position, along * curve.slopes(entropies[source]).neg_entropy);
    }
  });
  if (fault.any()) fail("fb.ids: an id of row ", fault.row(), " (flattened) has no row in the embedding of ", table.rows, " rows");

  double total[3] = {0, 0, 0};
  for (int64_t i = 0; i < mixed; ++i) {
    const auto slopes = curve.slopes(entropies[tokens.source(tokens.mixed[i], shift)]);
    total[0] += grad_lambda[i] * slopes.scale;
    total[1] += grad_lambda[i] * slopes.steepness;
    total[2] += grad_lambda[i] * slopes.centre;
  }
  for (int i = 0; i < 3; ++i) out_gate.set(i, total[i]);

  if (!want_embedding) {
    return {torch::stable::new_empty(embedding, {0, table.width}), grad_probs, grad_neg_entropy, grad_gate};
  }
  Tensor grad_embedding = torch::stable::new_zeros(embedding, {table.rows, table.width});
  auto* out = static_cast<char*>(grad_embedding.mutable_data_ptr());
  Contributions all(table.rows);
  all.sort([&](auto&& add) {
    for (const int64_t position : tokens.plain) add(tokens.ids[position], position, 1.0);
    for (const int64_t position : tokens.mixed) {
      const int64_t source = tokens.source(position, shift);
      const double lambda = curve.lambda(entropies[source]);
      add(tokens.ids[position], position, 1.0 - lambda);
      if (lambda == 0) continue;
      for (int j = 0; j < k; ++j) {
        const double weight = lambda * weights[source * k + j];
        if (weight != 0) add(believed[source * k + j], position, weight);
      }
    }
  });
  // One unit is one target's run of columns: the mask row, which every mixed position feeds, is shared among threads too.
  const int64_t column_runs = (table.width + kGatherColumns - 1) / kGatherColumns;
  parallel_runs(int64_t(all.targets.size()) * column_runs, 8, [&](int64_t first, int64_t last) {
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t target = all.targets[unit / column_runs], begin = all.start[target];
      const int64_t column = unit % column_runs * kGatherColumns;
      const GatherTask task{grads, table.width, all.positions.data() + begin, all.weights.data() + begin,
                            all.start[target + 1] - begin, column, std::min(kGatherColumns, table.width - column),
                            out + target * table.row_bytes};
      kernels().gather[int(table.dtype)](task);
    }
  });
  return {grad_embedding, grad_probs, grad_neg_entropy, grad_gate};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, CPU, m) { m.impl("mix_embed_backward", TORCH_BOX(&mix_embed_backward_cpu)); }

}  // namespace soft_mask
