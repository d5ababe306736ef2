// The embedding's backward on a GPU. Its gradient is gathered by row (csrc/cuda/contributions.cu): in the order that atomics
// give, or, where the same bits are asked for, in the order of positions, by torch's stable sort.
#include <array>
#include <limits>
#include <optional>
#include <tuple>

#include "cuda_arguments.h"

namespace soft_mask {
namespace {

// Entries to a chunk: many chunks for the GPU, few parts for a row that is in all of them.
constexpr int64_t kChunk = 64, kMostChunks = 2048;

using torch::stable::detail::from;
using torch::stable::detail::to;

// ascending keys [n] int32 -> where each came from [n] int64, equal keys in their order
Tensor sorted_places(const Tensor& keys) {
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t(0)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  const Tensor values = to<Tensor>(stack[0]);
  return to<Tensor>(stack[1]);
}

// start [rows + 1] -> the rows that have entries, ascending [n] int64; the host waits for their number
Tensor rows_in_use(const Tensor& start) {
  std::array<StableIValue, 5> difference{from(start), from(int64_t(1)), from(int64_t(0)), from(std::optional<Tensor>()), from(std::optional<Tensor>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::diff", "", difference.data(), TORCH_ABI_VERSION));
  std::array<StableIValue, 1> stack{difference[0]};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::nonzero", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor found = to<Tensor>(stack[0]);  // [n, 1]
  return torch::stable::view(found, {found.size(0)});
}

// What both operators take, checked.
struct MixedRows {
  cuda::TableParams table;
  cuda::TokenParams tokens;
  cuda::FeedbackParams feedback;
  const void* grad;
  int64_t entries;

  MixedRows(GpuCall& call, const Tensor& grad_, const Tensor& input_ids, const Tensor& ids, const Tensor& probs,
            const Tensor& neg_entropy, const Tensor& embedding, const Tensor& gate, int64_t mask_token_id, int64_t shift,
            const std::optional<Tensor>& where)
      : table(table_params(call, embedding)), tokens(token_params(call, input_ids, where, mask_token_id, shift)),
        feedback(feedback_params(call, ids, probs, neg_entropy, gate, tokens.count)) {
    need(dtype_of(grad_, "grad") == table.dtype && grad_.is_contiguous() && grad_.numel() == tokens.count * table.width,
         "grad must be contiguous [B, L, d] of embedding's dtype");
    grad = call.reads(grad_, "grad");
    entries = tokens.count * (feedback.k + 1);
    need(entries < std::numeric_limits<int32_t>::max() && table.rows < std::numeric_limits<int32_t>::max(),
         "too many positions or embedding rows for one call: ", entries, ", ", table.rows);
  }
};

// The gradient's rows: all of them, or those in use, whose ids are returned beside.
std::tuple<Tensor, Tensor> gather(GpuCall& call, const MixedRows& rows, const Tensor& embedding, bool all, bool deterministic,
                                  uint64_t* faults) {
  cuda::EntriesParams p{};
  p.tokens = rows.tokens;
  p.feedback = rows.feedback;
  p.rows = rows.table.rows;
  Tensor start = call.zeros({p.rows + 1}, ScalarType::Int);
  p.start = call.writes<int32_t>(start, "start");
  p.next = call.scratch<int32_t>({p.rows}, ScalarType::Int, "next");
  p.weights = call.scratch<float>({rows.entries}, ScalarType::Float, "weights");
  p.faults = faults;
  Tensor keys = call.empty({deterministic ? rows.entries : 0}, ScalarType::Int);
  if (deterministic) p.keys = call.writes<int32_t>(keys, "keys");
  Tensor order = call.empty({deterministic ? 0 : rows.entries}, ScalarType::Int);
  cuda::count_entries(p, call.where());
  call.raise(p.rows);
  if (deterministic) order = torch::stable::to(sorted_places(keys), ScalarType::Int);
  p.order = call.writes<int32_t>(order, "order");
  if (!deterministic) cuda::order_entries(p, call.where());

  Tensor chosen = all ? call.empty({0}, ScalarType::Long) : rows_in_use(start);
  const int64_t n = all ? p.rows : chosen.size(0);
  Tensor out = torch::stable::new_empty(embedding, {n, rows.table.width});
  cuda::GatherParams g{};
  g.entries = p;
  g.grad = rows.grad;
  g.dtype = rows.table.dtype;
  g.width = rows.table.width;
  g.chunk = std::max(kChunk, (rows.entries + kMostChunks - 1) / kMostChunks);
  g.chunks = (rows.entries + g.chunk - 1) / g.chunk;
  g.partials = call.scratch<float>({g.chunks, 2, g.width}, ScalarType::Float, "sums of chunks");
  g.chosen = all ? nullptr : call.reads<int64_t>(chosen, "rows");
  g.n = n;
  g.out = call.writes(out, "grad_embedding");
  cuda::gather_entries(g, call.where());
  return {chosen, out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mix_embed_backward_gpu(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs,
                                                                  Tensor neg_entropy, Tensor embedding, Tensor gate,
                                                                  int64_t mask_token_id, int64_t shift,
                                                                  std::optional<Tensor> where, bool want_embedding,
                                                                  bool deterministic) {
  GpuCall call(input_ids);
  const MixedRows rows(call, grad, input_ids, ids, probs, neg_entropy, embedding, gate, mask_token_id, shift, where);
  Tensor grad_probs = torch::stable::new_empty(probs, {input_ids.size(0), input_ids.size(1), rows.feedback.k});
  Tensor grad_neg_entropy = torch::stable::new_empty(neg_entropy, {input_ids.size(0), input_ids.size(1)});
  Tensor grad_gate = call.empty({3}, ScalarType::Float);
  uint64_t* faults = call.faults(false);
  cuda::DotsParams p{};
  p.tokens = rows.tokens;
  p.feedback = rows.feedback;
  p.table = rows.table;
  p.grad = rows.grad;
  p.grad_probs = call.writes<float>(grad_probs, "grad_probs");
  p.grad_neg_entropy = call.writes<float>(grad_neg_entropy, "grad_neg_entropy");
  p.grad_lambda = call.scratch<float>({p.tokens.count}, ScalarType::Float, "grad_lambda");
  p.grad_gate = call.writes<float>(grad_gate, "grad_gate");
  p.faults = faults;
  cuda::dots(p, call.where());
  if (!want_embedding) {
    call.raise(rows.table.rows);
    return {torch::stable::new_empty(embedding, {0, rows.table.width}), grad_probs, grad_neg_entropy, grad_gate};
  }
  const auto [chosen, grad_embedding] = gather(call, rows, embedding, true, deterministic, faults);
  return {grad_embedding, grad_probs, grad_neg_entropy, grad_gate};
}

std::tuple<Tensor, Tensor> mix_embed_backward_rows_gpu(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs,
                                                       Tensor neg_entropy, Tensor embedding, Tensor gate,
                                                       int64_t mask_token_id, int64_t shift, std::optional<Tensor> where) {
  GpuCall call(input_ids);
  const MixedRows rows(call, grad, input_ids, ids, probs, neg_entropy, embedding, gate, mask_token_id, shift, where);
  return gather(call, rows, embedding, false, true, call.faults(false));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, SOFT_MASK_GPU_KEY, m) {
  m.impl("mix_embed_backward", TORCH_BOX(&mix_embed_backward_gpu));
  m.impl("mix_embed_backward_rows", TORCH_BOX(&mix_embed_backward_rows_gpu));
}

}  // namespace soft_mask
