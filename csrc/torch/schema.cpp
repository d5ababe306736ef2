// Every operator's schema. B rows of length L; V logits a row; V_e embedding rows of width d.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(soft_mask, m) {
  // logits [B, L, V] -> ids [B, L, k] int32, probs [B, L, k], neg_entropy [B, L], logsumexp [B, L]
  m.def(
      "feedback(Tensor logits, int k, Tensor? temperature, int[] ban, bool check) "
      "-> (Tensor ids, Tensor probs, Tensor neg_entropy, Tensor logsumexp)");

  // input_ids [B, L], ids and probs [B, L, k], neg_entropy [B, L], embedding [V_e, d], gate [3] = scale, steepness, centre
  // -> [B, L, d]
  m.def(
      "mix_embed(Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, Tensor gate, "
      "int mask_token_id, int shift, Tensor? where) -> Tensor");

  // grad [B, L, d] -> grad_embedding [V_e, d] ([0, d] if not wanted), grad_probs [B, L, k] and grad_neg_entropy [B, L] (one a
  // position, before any shift is undone), grad_gate [3]
  m.def(
      "mix_embed_backward(Tensor grad, Tensor input_ids, Tensor ids, Tensor probs, Tensor neg_entropy, Tensor embedding, "
      "Tensor gate, int mask_token_id, int shift, Tensor? where, bool want_embedding) "
      "-> (Tensor grad_embedding, Tensor grad_probs, Tensor grad_neg_entropy, Tensor grad_gate)");

  // The two in one, masked rows only: out [B, L, d], and the feedback of each position, which backward needs.
  m.def(
      "soft_mask_embed(Tensor logits, Tensor input_ids, Tensor embedding, Tensor gate, int mask_token_id, int k, "
      "Tensor? temperature, int[] ban, int shift, Tensor? where, bool check) "
      "-> (Tensor out, Tensor ids, Tensor probs, Tensor neg_entropy)");

  m.def("build_info() -> str");
}
