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
feedback_backward = _ops.feedback_backward.default
mix_embed = _ops.mix_embed.default
mix_embed_backward = _ops.mix_embed_backward.default
mix_embed_backward_rows = _ops.mix_embed_backward_rows.default


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


@torch.library.register_fake("soft_mask::feedback_backward")
def _(
    grad_probs: Tensor, grad_neg_entropy: Tensor, grad_logsumexp: Tensor, logits: Tensor, ids: Tensor, probs: Tensor,
    neg_entropy: Tensor, logsumexp: Tensor, temperature: Tensor | None, ban: list[int], want_logits: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = logits.shape if want_logits else (0, 0, logits.shape[2])
    return logits.new_empty(shape), logits.new_empty((), dtype=torch.float64)


@torch.library.register_fake("soft_mask::mix_embed")
def _(
    input_ids: Tensor, ids: Tensor, probs: Tensor, neg_entropy: Tensor, embedding: Tensor, gate: Tensor,
    mask_token_id: int, shift: int, where: Tensor | None, sparse_grad: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    return embedding.new_empty(*input_ids.shape, embedding.shape[1])


@torch.library.register_fake("soft_mask::mix_embed_backward")
def _(
    grad: Tensor, input_ids: Tensor, ids: Tensor, probs: Tensor, neg_entropy: Tensor, embedding: Tensor, gate: Tensor,
    mask_token_id: int, shift: int, where: Tensor | None, want_embedding: bool, deterministic: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return (
        embedding.new_empty(embedding.shape[0] if want_embedding else 0, embedding.shape[1]),
        probs.new_empty(probs.shape),
        neg_entropy.new_empty(neg_entropy.shape),
        probs.new_empty(3, dtype=gate.dtype),
    )


@torch.library.register_fake("soft_mask::mix_embed_backward_rows")
def _(
    grad: Tensor, input_ids: Tensor, ids: Tensor, probs: Tensor, neg_entropy: Tensor, embedding: Tensor, gate: Tensor,
    mask_token_id: int, shift: int, where: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n = torch.library.get_ctx().new_dynamic_size()  # how many rows are in use is known only from the data
    return input_ids.new_empty(n), embedding.new_empty(n, embedding.shape[1])


@torch.library.register_fake("soft_mask::soft_mask_embed")
def _(
    logits: Tensor, input_ids: Tensor, embedding: Tensor, gate: Tensor, mask_token_id: int, k: int,
    temperature: Tensor | None, ban: list[int], shift: int, where: Tensor | None, check: bool, sparse_grad: bool,
    deterministic: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    lead, real = input_ids.shape, _real(logits, embedding)
    return (
        embedding.new_empty(*lead, embedding.shape[1]),
        embedding.new_empty(*lead, k, dtype=torch.int32),
        embedding.new_empty(*lead, k, dtype=real),
        embedding.new_empty(lead, dtype=real),
        embedding.new_empty(lead, dtype=real),
    )


# --- Autograd ---------------------------------------------------------------------------------------------------------


def _save_feedback(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, temperature, ctx.ban, _ = inputs
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(logits, *output, temperature)


def _feedback_backward(ctx: Any, _: Tensor, to_probs: Tensor, to_entropy: Tensor, to_lse: Tensor) -> tuple[Tensor | None, ...]:
    logits, *found, temperature = ctx.saved_tensors
    need = ctx.needs_input_grad
    grads = (x.contiguous() for x in (to_probs, to_entropy, to_lse))
    to_logits, to_temperature = feedback_backward(*grads, logits, *found, temperature, ctx.ban, need[0])
    return to_logits if need[0] else None, None, to_temperature if need[2] else None, None, None


def _save_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.mask_token_id, ctx.shift, where, ctx.sparse, ctx.deterministic = inputs
    ctx.save_for_backward(*tensors, where)


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, where = ctx.saved_tensors
    need = ctx.needs_input_grad
    to_embedding, to_probs, to_entropy, to_gate = _embedding_backward(ctx, grad, tensors, ctx.shift, where, need[4])
    return (
        None,
        None,
        _unshift(to_probs, ctx.shift) if need[2] else None,
        _unshift(to_entropy, ctx.shift) if need[3] else None,
        to_embedding,
        to_gate if need[5] else None,
        *[None] * 5,
    )


def _embedding_backward(
    ctx: Any, grad: Tensor, tensors: list[Tensor], shift: int, where: Tensor | None, want: bool
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The gradient of the embedding, dense, sparse or None; those of probs and neg_entropy, one a position; the gate's."""
    args = (grad.contiguous(), *tensors, ctx.mask_token_id, shift, where)
    deterministic = ctx.deterministic or torch.are_deterministic_algorithms_enabled()
    dense, *others = mix_embed_backward(*args, want and not ctx.sparse, deterministic)
    if want and ctx.sparse:
        rows, values = mix_embed_backward_rows(*args)
        shape = tensors[4].shape
        dense = torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)
    return dense if want else None, *others


def _unshift(grad: Tensor, shift: int) -> Tensor:  # [B, L, ..], one a position
    """To the rows that the positions read: position t read row max(t - 1, 0)."""
    if not shift or grad.shape[1] < 2:
        return grad
    first = grad[:, :1] + grad[:, 1:2]
    return torch.cat([first, grad[:, 2:], torch.zeros_like(first)], 1)


def _save_soft_mask(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, input_ids, embedding, gate, ctx.mask_token_id, _, temperature, ctx.ban, ctx.shift, where, _, *flags = inputs
    ctx.sparse, ctx.deterministic = flags
    _, *found = output
    ctx.mark_non_differentiable(*found)
    need = ctx.needs_input_grad
    kept = logits if need[0] or need[6] else None  # the logits outlive the call only where their gradient is wanted
    ctx.save_for_backward(kept, input_ids, embedding, gate, temperature, where, *found)


def _soft_mask_backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, input_ids, embedding, gate, temperature, where, *found = ctx.saved_tensors
    need = ctx.needs_input_grad
    # The feedback that was saved is one a position: nothing is shifted any more.
    tensors = [input_ids, *found[:3], embedding, gate]
    to_embedding, to_probs, to_entropy, to_gate = _embedding_backward(ctx, grad, tensors, 0, where, need[2])
    to_logits = to_temperature = None
    if logits is not None:
        read = found[2] != float("-inf")
        rows = [
            _row_of_position(part, read, ctx.shift, fill) for part, fill in zip(found, (0, 0, float("-inf"), 0), strict=True)
        ]
        grads = _unshift(to_probs, ctx.shift), _unshift(to_entropy, ctx.shift), torch.zeros_like(to_entropy)
        to_logits, to_temperature = feedback_backward(*grads, logits, *rows, temperature, ctx.ban, need[0])
    return (
        to_logits if need[0] else None,
        None,
        to_embedding,
        to_gate if need[3] else None,
        None,
        None,
        to_temperature if need[6] else None,
        *[None] * 6,
    )


def _row_of_position(x: Tensor, read: Tensor, shift: int, fill: float) -> Tensor:  # x [B, L, ..], read [B, L]
    """What the positions hold of the rows they read, by row; ``fill`` for the last row, which none reads."""
    if not shift or x.shape[1] < 2:
        return x
    second = read[:, 1:2].reshape(-1, 1, *[1] * (x.dim() - 2))
    first = torch.where(second, x[:, 1:2], x[:, :1])  # row 0 is read by two positions, of which one may be unmixed
    return torch.cat([first, x[:, 2:], torch.full_like(first, fill)], 1)


torch.library.register_autograd("soft_mask::feedback", _feedback_backward, setup_context=_save_feedback)
torch.library.register_autograd("soft_mask::mix_embed", _mix_backward, setup_context=_save_mix)
torch.library.register_autograd("soft_mask::soft_mask_embed", _soft_mask_backward, setup_context=_save_soft_mask)
