"""``algorithm="expectation"``: the mean embedding under the whole predicted distribution, in blocks of rows.

out = (1 - lambda) E[token] + lambda sum_i p_i E[i] (arXiv 2510.17206, the full-vocabulary variant). Its cost is that of the
matrix product p E, forward and backward; a block's ``[rows, V]`` is all that is held at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checks
from .reference import gate as gate_of

BLOCK_BYTES = 16 * 2**20  # of one [rows, V]: enough rows for the matrix product to be worth its reading of the embedding


class Rows(NamedTuple):
    """Which rows are mixed and what is done to their logits."""

    positions: Tensor  # [n], into [N] = the flattened [.., L]
    sources: Tensor  # [n], the rows of logits they read
    ban: tuple[int, ...]

    def blocks(self, vocab: int, itemsize: int) -> list[slice]:
        size = max(1, BLOCK_BYTES // max(1, vocab * itemsize))
        return [slice(i, i + size) for i in range(0, len(self.positions), size)]


def soft_mask_embed(
    logits: Tensor,  # [.., L, V]
    input_ids: Tensor,  # [.., L] int64
    embedding: Tensor,  # [V_e, d], V_e >= V
    *,
    gate: Tensor,  # [3] = scale, steepness, centre, in the dtype to compute in
    mask_token_id: int,
    temperature: float | Tensor,
    ban: tuple[int, ...],
    shift: int,
    where: Tensor | None,  # [.., L] bool
    check: bool,
) -> Tensor:  # [.., L, d], dtype of embedding
    """See :func:`soft_mask.soft_mask_embed`, which checks the arguments.

    Raises:
        ValueError: the embedding has fewer rows than the logits have columns. RuntimeError: bad values.
    """
    if embedding.shape[0] < logits.shape[-1]:
        raise ValueError(
            f"embedding must have a row for each of the {logits.shape[-1]} logits of a row, got {embedding.shape[0]} rows"
        )
    checks.refuse_ids(input_ids, embedding, "input_ids")
    checks.refuse_temperature(temperature)
    mixed = (input_ids == mask_token_id if where is None else where).reshape(-1)
    positions = mixed.nonzero().squeeze(1)
    length = max(1, input_ids.shape[-1] if input_ids.dim() else 1)
    sources = torch.where(positions % length > 0, positions - 1, positions) if shift else positions
    flat = logits.reshape(-1, logits.shape[-1])
    if check:
        for part in Rows(positions, sources, ban).blocks(flat.shape[1], 8):
            checks.refuse_rows(_logits_of(flat, sources[part], ban, gate.dtype), names=sources[part])
    heat = torch.as_tensor(temperature, dtype=gate.dtype, device=logits.device)
    out = _Mix.apply(flat, input_ids.reshape(-1), embedding, gate, heat, Rows(positions, sources, ban))
    return out.reshape(*input_ids.shape, embedding.shape[1])


def _logits_of(flat: Tensor, sources: Tensor, ban: tuple[int, ...], compute: torch.dtype) -> Tensor:
    """The logits of some rows, a copy; ``[b, V]``."""
    z = flat[sources].to(compute)
    return z.index_fill_(1, torch.tensor(ban, device=z.device), float("-inf")) if ban else z


class Distribution(NamedTuple):
    """Of some rows, ``[b, V]`` each. Where p is 0, x and log_p are too, for there they only ever meet it as factors."""

    x: Tensor  # logits / temperature
    log_p: Tensor
    p: Tensor

    @classmethod
    def of(cls, flat: Tensor, sources: Tensor, ban: tuple[int, ...], heat: Tensor) -> Distribution:
        x = _logits_of(flat, sources, ban, heat.dtype).div_(heat)
        log_p = torch.log_softmax(x, -1)
        log_p.masked_fill_(x.amax(-1, keepdim=True) == float("-inf"), float("-inf"))  # no feedback, not NaN
        p = log_p.exp()
        nothing = p == 0
        return cls(x.masked_fill_(nothing, 0.0), log_p.masked_fill_(nothing, 0.0), p)

    @property
    def neg_entropy(self) -> Tensor:
        """``[b]``, -inf where there is no distribution."""
        return (self.p * self.log_p).sum(-1).masked_fill_(self.p.amax(-1) == 0, float("-inf"))


def _times(p: Tensor, table: Tensor) -> Tensor:
    """p ``[b, V]`` times table ``[V, d]`` in p's dtype; a narrower table is widened in pieces, never whole."""
    if table.dtype == p.dtype:
        return p @ table
    out = p.new_zeros(p.shape[0], table.shape[1])
    for piece in range(0, table.shape[0], 4096):
        out.addmm_(p[:, piece : piece + 4096], table[piece : piece + 4096].to(p.dtype))
    return out


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        flat: Tensor,  # [N, V]
        tokens: Tensor,  # [N]
        embedding: Tensor,  # [V_e, d]
        gate: Tensor,  # [3]
        heat: Tensor,  # []
        rows: Rows,
    ) -> Tensor:  # [N, d]
        vocab, compute = flat.shape[1], gate.dtype
        out = embedding[tokens]
        neg_entropy = torch.empty(len(rows.positions), dtype=compute, device=flat.device)
        toward = torch.empty(len(rows.positions), embedding.shape[1], dtype=compute, device=flat.device)
        for part in rows.blocks(vocab, gate.element_size()):
            beliefs = Distribution.of(flat, rows.sources[part], rows.ban, heat)
            neg_entropy[part] = beliefs.neg_entropy
            plain = embedding[tokens[rows.positions[part]]].to(compute)
            toward[part] = _times(beliefs.p, embedding[:vocab]) - plain
            lam = gate_of(neg_entropy[part], *gate)
            out[rows.positions[part]] = (plain + lam.unsqueeze(-1) * toward[part]).to(out.dtype)
        ctx.save_for_backward(flat, tokens, embedding, gate, heat, neg_entropy, toward)
        ctx.rows = rows
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, tokens, embedding, gate, heat, neg_entropy, toward = ctx.saved_tensors
        rows, vocab, compute = ctx.rows, flat.shape[1], gate.dtype
        to_logits, _, to_embedding, to_gate, to_heat, _ = ctx.needs_input_grad
        g = grad[rows.positions].to(compute)
        with torch.enable_grad():
            h, omega = neg_entropy.detach().requires_grad_(), gate.detach().requires_grad_()
            lam = gate_of(h, *omega)
            grad_h, grad_gate = torch.autograd.grad(lam, (h, omega), (g * toward).sum(-1))
        pull = lam.detach().unsqueeze(-1) * g  # to the mean embedding
        grad_embedding = grad_logits = grad_heat = None
        if to_embedding:
            grad_embedding = torch.zeros(embedding.shape, dtype=compute, device=embedding.device)
            each = grad.to(compute).index_put((rows.positions,), g - pull)
            grad_embedding.index_add_(0, tokens, each)
        if to_logits:
            grad_logits = torch.zeros_like(flat)
        if to_heat:
            grad_heat = torch.zeros_like(heat)
        known = neg_entropy.masked_fill(neg_entropy == float("-inf"), 0.0).unsqueeze(-1)
        for part in rows.blocks(vocab, gate.element_size()) if to_embedding or to_logits or to_heat else []:
            x, log_p, p = Distribution.of(flat, rows.sources[part], rows.ban, heat)
            if grad_embedding is not None:
                grad_embedding[:vocab].addmm_(p.T, pull[part])
            if not (to_logits or to_heat):
                continue
            grad_x = _times_transposed(pull[part], embedding[:vocab])
            grad_x -= (p * grad_x).sum(-1, keepdim=True)
            grad_x += grad_h[part, None] * (log_p - known[part])
            grad_x *= p
            if grad_heat is not None:
                grad_heat -= (grad_x * x).sum() / heat
            if grad_logits is not None:
                grad_logits.index_add_(0, rows.sources[part], grad_x.div_(heat).to(flat.dtype))
        return (
            grad_logits,
            None,
            None if grad_embedding is None else grad_embedding.to(embedding.dtype),
            grad_gate if to_gate else None,
            grad_heat,
            None,
        )


def _times_transposed(g: Tensor, table: Tensor) -> Tensor:
    """g ``[b, d]`` times table ``[V, d]`` transposed, in g's dtype; ``[b, V]``."""
    if table.dtype == g.dtype:
        return g @ table.T
    out = g.new_empty(g.shape[0], table.shape[0])
    for piece in range(0, table.shape[0], 4096):
        torch.mm(g, table[piece : piece + 4096].to(g.dtype).T, out=out[:, piece : piece + 4096])
    return out
