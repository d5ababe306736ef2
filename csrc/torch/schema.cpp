// Every operator's schema. B rows of length L; V logits a row; V_e embedding rows of width d.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(soft_mask, m) {
  // logits [B, L, V] -> ids [B, L, k] int32, probs [B, L, k], neg_entropy [B, L], logsumexp [B, L]
  m.def(
      "feedback(Tensor logits, int k, Tensor? temperature, int[] ban, bool check) "
      "-> (Tensor ids, Tensor probs, Tensor neg_entropy, Tensor logsumexp)");

  // The gradients of feedback's outputs, those outputs, and what they came from -> grad_logits [B, L, V] of logits' type
  // ([0, 0, V] if not wanted), grad_temperature [] float64
  m.def(
      "feedback_backward(Tensor grad_probs, Tensor grad_neg_entropy, Tensor grad_logsumexp, Tensor logits, Tensor ids, "
      "Tensor probs, Tensor neg_entropy, Tensor logsumexp, Tensor? temperature, int[] ban, bool want_logits) "
      "-> (Tensor grad_logits, Tensor grad_temperature)");

  // input_ids [B, L], ids and probs [B, L, k], neg_entropy [B, L], embedding [V_e, d], gate [3] = scale, steepness, centre
  // -> [B, L, d]. sparse_grad and deterministic are for backward.
  m.def(
      "mix_embed(Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, Tensor gate, "
      "int mask_token_id, int shift, Tensor? where, bool sparse_grad, bool deterministic) -> Tensor");

  // grad [B, L, d] -> grad_embedding [V_e, d] ([0, d] if not wanted), grad_probs [B, L, k] and grad_neg_entropy [B, L] (one a
  // position, before any shift is undone), grad_gate [3]
  m.def(
      "mix_embed_backward(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, "
      "Tensor gate, int mask_token_id, int shift, Tensor? where, bool want_embedding, bool deterministic) "
      "-> (Tensor grad_embedding, Tensor grad_probs, Tensor grad_neg_entropy, Tensor grad_gate)");

  // The same grad_embedding as its n rows that are not zero: rows [n] int64, ascending; values [n, d]
  m.def(
      "mix_embed_backward_rows(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, "
      "Tensor gate, int mask_token_id, int shift, Tensor? where) -> (Tensor rows, Tensor values)");

  // feedback and mix_embed in one, masked rows only: out [B, L, d], and the feedback of each position, which backward needs.
  m.def(
      "soft_mask_embed(Tensor logits, Tensor input_ids, Tensor embedding, Tensor gate, int mask_token_id, int k, "
      "Tensor? temperature, int[] ban, int shift, Tensor? where, bool check, bool sparse_grad, bool deterministic) "
      "-> (Tensor out, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor logsumexp)");

  m.def("build_info() -> str");
}
