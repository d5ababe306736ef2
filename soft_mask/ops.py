"""The compiled operators as torch sees them: fake kernels and autograd. The only file that touches ``torch.ops``.

Imported only where the library is loaded (``soft_mask._native``). Shapes here are exact, as in csrc/torch/schema.cpp:
``logits [B, L, V]``, ``input_ids [B, L]``, ``embedding [V_e, d]``, ``gate [3]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ops = torch.ops.soft_mask

feedback = _ops.feedback.default
mix_embed = _ops.mix_embed.default
mix_embed_backward = _ops.mix_embed_backward.default


def soft_mask_embed(*args: Any) -> Tensor:
    """``out`` alone: the feedback that the operator also returns is for its backward."""
    return _ops.soft_mask_embed.default(*args)[0]


# --- Fake kernels -----------------------------------------------------------------------------------------------------


def _real(*like: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in like) else torch.float32


@torch.library.register_fake("soft_mask::feedback")
def _(logits: Tensor, k: int, temperature: Tensor | None, ban: list[int], check: bool) -> tuple[Tensor, ...]:
    lead, real = logits.shape[:2], _real(logits)
    return (
        logits.new_empty(*lead, k, dtype=torch.int32),
        logits.new_empty(*lead, k, dtype=real),
        logits.new_empty(lead, dtype=real),
        logits.new_empty(lead, dtype=real),
    )


@torch.library.register_fake("soft_mask::mix_embed")
def _(
    input_ids: Tensor, ids: Tensor, probs: Tensor, neg_entropy: Tensor, embedding: Tensor, gate: Tensor,
    mask_token_id: int, shift: int, where: Tensor | None,
) -> Tensor:  # fmt: skip
    return embedding.new_empty(*input_ids.shape, embedding.shape[1])


@torch.library.register_fake("soft_mask::mix_embed_backward")
def _(
    grad: Tensor, input_ids: Tensor, ids: Tensor, probs: Tensor, neg_entropy: Tensor, embedding: Tensor, gate: Tensor,
    mask_token_id: int, shift: int, where: Tensor | None, want_embedding: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return (
        embedding.new_empty(embedding.shape[0] if want_embedding else 0, embedding.shape[1]),
        probs.new_empty(probs.shape),
        neg_entropy.new_empty(neg_entropy.shape),
        gate.new_empty(3),
    )


@torch.library.register_fake("soft_mask::soft_mask_embed")
def _(
    logits: Tensor, input_ids: Tensor, embedding: Tensor, gate: Tensor, mask_token_id: int, k: int,
    temperature: Tensor | None, ban: list[int], shift: int, where: Tensor | None, check: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    lead, real = input_ids.shape, _real(logits, embedding)
    return (
        embedding.new_empty(*lead, embedding.shape[1]),
        embedding.new_empty(*lead, k, dtype=torch.int32),
        embedding.new_empty(*lead, k, dtype=real),
        embedding.new_empty(lead, dtype=real),
    )


# --- Autograd ---------------------------------------------------------------------------------------------------------


def _save_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input_ids, ids, probs, neg_entropy, embedding, gate, ctx.mask_token_id, ctx.shift, where = inputs
    ctx.save_for_backward(input_ids, ids, probs, neg_entropy, embedding, gate, where)


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input_ids, ids, probs, neg_entropy, embedding, gate, where = ctx.saved_tensors
    need = ctx.needs_input_grad
    to_embedding, to_probs, to_neg_entropy, to_gate = mix_embed_backward(
        grad.contiguous(), input_ids, ids, probs, neg_entropy, embedding, gate, ctx.mask_token_id, ctx.shift, where, need[4]
    )  # fmt: skip
    return (
        None,
        None,
        _unshift(to_probs, ctx.shift) if need[2] else None,
        _unshift(to_neg_entropy, ctx.shift) if need[3] else None,
        to_embedding if need[4] else None,
        to_gate if need[5] else None,
        None,
        None,
        None,
    )


def _unshift(grad: Tensor, shift: int) -> Tensor:  # [B, L, ..], one a position
    """To the rows that the positions read: position t read row max(t - 1, 0)."""
    if not shift or grad.shape[1] < 2:
        return grad
    first = grad[:, :1] + grad[:, 1:2]
    return torch.cat([first, grad[:, 2:], torch.zeros_like(first)], 1)


def _save_soft_mask(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, input_ids, embedding, gate, ctx.mask_token_id, _, _, _, _, where, _ = inputs
    _, ids, probs, neg_entropy = output
    ctx.mark_non_differentiable(ids, probs, neg_entropy)
    ctx.save_for_backward(input_ids, ids, probs, neg_entropy, embedding, gate, where)


def _soft_mask_backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    input_ids, ids, probs, neg_entropy, embedding, gate, where = ctx.saved_tensors
    need = ctx.needs_input_grad
    # The feedback that was saved is one a position: nothing is shifted any more.
    to_embedding, _, _, to_gate = mix_embed_backward(
        grad.contiguous(), input_ids, ids, probs, neg_entropy, embedding, gate, ctx.mask_token_id, 0, where, need[2]
    )  # fmt: skip
    return (None, None, to_embedding if need[2] else None, to_gate if need[3] else None, *[None] * 7)


torch.library.register_autograd("soft_mask::mix_embed", _mix_backward, setup_context=_save_mix)
torch.library.register_autograd("soft_mask::soft_mask_embed", _soft_mask_backward, setup_context=_save_soft_mask)
