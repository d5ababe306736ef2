// The forward operators on the CPU: checks, allocation, rows over threads. The arithmetic is in csrc/cpu.
#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "../cpu/kernels.h"
#include "feedback_view.h"
#include "logits_view.h"
#include "parallel.h"
#include "tensors.h"
#include "tokens.h"

namespace soft_mask {
namespace {

constexpr int64_t kRowsARun = 2;       // rows of logits: long
constexpr int64_t kMixedRowsARun = 4;  // the same, at most, where each is mixed too
constexpr int64_t kEmbedsARun = 64;    // rows of the embedding: short

// Scratch of one thread.
struct Scratch {
  std::vector<double> probs;
  std::vector<float> maxima;
  double neg_entropy[2];
  explicit Scratch(int k, int64_t vocab = 0) : probs(k), maxima(maxima_of(vocab)) {}
};

Fault summarise(const LogitsView& view, int64_t row, SummaryTask& task) {
  view.describe(row, task);
  kernels().summarise[int(view.dtype)](task);
  return task.fault;
}

struct Faults {
  FirstFault not_finite, all_banned;

  void note(Fault fault, int64_t row) {
    if (fault == Fault::not_finite) not_finite.report(row);
    if (fault == Fault::all_banned) all_banned.report(row);
  }
  void raise() const {
    if (not_finite.any()) {
      fail("logits: row ", not_finite.row(), " (flattened) holds NaN or +inf; check=False turns this check off");
    }
    if (all_banned.any()) {
      fail("logits: row ", all_banned.row(), " (flattened) is -inf throughout, which is no distribution; check=False turns this check off");
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> feedback_cpu(Tensor logits, int64_t k, std::optional<Tensor> temperature,
                                                        std::vector<int64_t> ban, bool check) {
  const LogitsView view(logits, k, temperature, std::move(ban));
  const int64_t batch = logits.size(0), length = logits.size(1), count = batch * length;
  const auto real = view.dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  Tensor ids = torch::stable::new_empty(logits, {batch, length, k}, ScalarType::Int);
  Tensor probs = torch::stable::new_empty(logits, {batch, length, k}, real);
  Tensor neg_entropy = torch::stable::new_empty(logits, {batch, length}, real);
  Tensor logsumexp = torch::stable::new_empty(logits, {batch, length}, real);
  auto* out_ids = static_cast<int32_t*>(ids.mutable_data_ptr());
  const auto out_probs = MutableReals::of(probs), out_entropy = MutableReals::of(neg_entropy), out_lse = MutableReals::of(logsumexp);
  Faults faults;
  parallel_runs(count, kRowsARun, [&](int64_t first, int64_t last) {
    Scratch scratch(view.k, view.vocab);
    for (int64_t row = first; row < last; ++row) {
      SummaryTask task{};
      task.ids = out_ids + row * k;
      task.probs = scratch.probs.data();
      task.maxima = scratch.maxima.data();
      faults.note(summarise(view, row, task), row);
      for (int64_t j = 0; j < k; ++j) out_probs.set(row * k + j, task.probs[j]);
      out_entropy.set(row, task.neg_entropy);
      out_lse.set(row, task.logsumexp);
    }
  });
  if (check) faults.raise();
  return {ids, probs, neg_entropy, logsumexp};
}

// Over the threads, once: mix(first, last) for runs of the mixed positions, and the others' rows copied.
template <class Mix>
void embed_rows(const Tokens& tokens, const Table& table, char* out, int64_t run, const Mix& mix) {
  const int64_t mixed = int64_t(tokens.mixed.size()), plain = int64_t(tokens.plain.size());
  const int64_t mixed_runs = (mixed + run - 1) / run, plain_runs = (plain + kEmbedsARun - 1) / kEmbedsARun;
  parallel_runs(mixed_runs + plain_runs, 1, [&](int64_t unit, int64_t) {
    if (unit < mixed_runs) return mix(unit * run, std::min((unit + 1) * run, mixed));
    const int64_t first = (unit - mixed_runs) * kEmbedsARun;
    for (int64_t i = first; i < std::min(first + kEmbedsARun, plain); ++i) {
      const int64_t position = tokens.plain[i];
      std::memcpy(out + position * table.row_bytes, table.row(tokens.ids[position]), table.row_bytes);
    }
  });
}

// The row of one mixed position. `probs` is turned into weights.
void mix_position(const Table& table, int64_t base, double lambda, int k, const int32_t* ids, double* probs, char* out) {
  if (lambda == 0) {
    std::memcpy(out, table.row(base), table.row_bytes);
    return;
  }
  for (int j = 0; j < k; ++j) probs[j] *= lambda;
  const MixTask task{table.data, table.stride, table.width, base, ids, probs, k, 1.0 - lambda, out};
  kernels().mix[int(table.dtype)](task);
}

Tensor mix_embed_cpu(Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, Tensor gate,
                     int64_t mask_token_id, int64_t shift, std::optional<Tensor> where, bool, bool) {
  const Table table(embedding);
  const Tokens tokens(input_ids, where, mask_token_id, table.rows);
  const FeedbackView fb(ids, probs, neg_entropy, tokens.count);
  const auto curve = gate_of(gate);
  Tensor out = torch::stable::new_empty(embedding, {tokens.batch, tokens.length, table.width});
  auto* rows = static_cast<char*>(out.mutable_data_ptr());
  FirstFault fault;
  embed_rows(tokens, table, rows, kEmbedsARun, [&](int64_t first, int64_t last) {
    Scratch scratch(fb.k);
    for (int64_t i = first; i < last; ++i) {
      const int64_t position = tokens.mixed[i], source = tokens.source(position, shift);
      const int32_t* row_ids = fb.ids + source * fb.k;
      const double lambda = curve.lambda(fb.neg_entropy[source]);
      if (lambda != 0 && !ids_fit(row_ids, fb.k, table.rows)) {
        fault.report(position);
        continue;
      }
      for (int j = 0; j < fb.k; ++j) scratch.probs[j] = fb.probs[source * fb.k + j];
      mix_position(table, tokens.ids[position], lambda, fb.k, row_ids, scratch.probs.data(), rows + position * table.row_bytes);
    }
  });
  need_ids(fault, "fb.ids", table.rows);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> soft_mask_embed_cpu(Tensor logits, Tensor input_ids, Tensor embedding,
                                                                       Tensor gate, int64_t mask_token_id, int64_t k,
                                                                       std::optional<Tensor> temperature,
                                                                       std::vector<int64_t> ban, int64_t shift,
                                                                       std::optional<Tensor> where, bool check, bool,
                                                                       bool) {
  const Table table(embedding);
  const Tokens tokens(input_ids, where, mask_token_id, table.rows);
  const LogitsView view(logits, k, temperature, std::move(ban));
  need(logits.size(0) == tokens.batch && logits.size(1) == tokens.length, "logits must be [B, L, V] with input_ids [B, L]");
  const auto curve = gate_of(gate);
  const auto real = view.dtype == Dtype::f64 || table.dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  Tensor out = torch::stable::new_empty(embedding, {tokens.batch, tokens.length, table.width});
  Tensor ids = torch::stable::new_zeros(embedding, {tokens.batch, tokens.length, k}, ScalarType::Int);
  Tensor probs = torch::stable::new_zeros(embedding, {tokens.batch, tokens.length, k}, real);
  Tensor neg_entropy = torch::stable::new_empty(embedding, {tokens.batch, tokens.length}, real);
  Tensor logsumexp = torch::stable::new_empty(embedding, {tokens.batch, tokens.length}, real);
  auto* rows = static_cast<char*>(out.mutable_data_ptr());
  auto* out_ids = static_cast<int32_t*>(ids.mutable_data_ptr());
  const auto out_probs = MutableReals::of(probs), out_entropy = MutableReals::of(neg_entropy), out_lse = MutableReals::of(logsumexp);
  Faults faults;
  FirstFault unknown_id;
  for (const int64_t position : tokens.plain) {
    out_entropy.set(position, -std::numeric_limits<double>::infinity());
    out_lse.set(position, -std::numeric_limits<double>::infinity());
  }
  // Long runs where there are rows enough for all threads, for what is called for ahead within a run.
  const int64_t run = std::clamp<int64_t>(int64_t(tokens.mixed.size()) / (8 * torch::stable::get_num_threads()), 1, kMixedRowsARun);
  embed_rows(tokens, table, rows, run, [&](int64_t first, int64_t last) {
    Scratch scratch(2 * view.k, view.vocab);
    // A row is mixed after the next one has been read: the embeddings it needs are on their way meanwhile.
    std::optional<int64_t> waiting;
    const auto mix = [&](int64_t i) {
      const int64_t position = tokens.mixed[i];
      mix_position(table, tokens.ids[position], curve.lambda(scratch.neg_entropy[i % 2]), view.k, out_ids + position * k,
                   scratch.probs.data() + i % 2 * view.k, rows + position * table.row_bytes);
    };
    for (int64_t i = first; i < last; ++i) {
      const int64_t position = tokens.mixed[i], source = tokens.source(position, shift);
      SummaryTask task{};
      task.ids = out_ids + position * k;
      task.probs = scratch.probs.data() + i % 2 * view.k;
      task.maxima = scratch.maxima.data();
      faults.note(summarise(view, source, task), source);
      for (int64_t j = 0; j < k; ++j) out_probs.set(position * k + j, task.probs[j]);
      out_entropy.set(position, task.neg_entropy);
      out_lse.set(position, task.logsumexp);
      scratch.neg_entropy[i % 2] = task.neg_entropy;
      const bool fit = ids_fit(task.ids, view.k, table.rows);
      if (fit && i + 1 < last) table.call_for(task.ids, view.k);
      if (waiting.has_value()) mix(*waiting);
      waiting.reset();
      if (fit) {
        waiting = i;
      } else {
        unknown_id.report(source);
      }
    }
    if (waiting.has_value()) mix(*waiting);
  });
  if (check) faults.raise();
  need_ids(unknown_id, "logits: among the k best,", table.rows);
  return {out, ids, probs, neg_entropy, logsumexp};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(soft_mask, CPU, m) {
  m.impl("feedback", TORCH_BOX(&feedback_cpu));
  m.impl("mix_embed", TORCH_BOX(&mix_embed_cpu));
  m.impl("soft_mask_embed", TORCH_BOX(&soft_mask_embed_cpu));
}

}  // namespace soft_mask
