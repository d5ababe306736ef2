"""Losses on the masked rows alone, with the widest tensor of training, the logits, never whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["ban_logits", "default_chunk_rows", "mdlm_nelbo", "row_cross_entropy"]

CHUNK_NUMBERS = 2**25  # logits alive at once, 128 MiB in float32


def default_chunk_rows(vocab_size: int) -> int:
    """Rows of logits to hold at once: a fixed number of bytes whatever the vocabulary."""
    return max(64, CHUNK_NUMBERS // vocab_size)


def ban_logits(logits: Tensor, ban: Sequence[int]) -> Tensor:  # [.., V]
    """Take ids out of the distribution; MDLM's SUBS takes the mask token (arXiv 2406.07524, section 3)."""
    if not ban:
        return logits
    return logits.index_fill(-1, torch.tensor(ban, device=logits.device), float("-inf"))


def row_cross_entropy(
    hidden_rows: Tensor,  # [M, d]
    head: Callable[[Tensor], Tensor],  # [m, d] -> [m, V] raw logits
    targets: Tensor,  # [M] int64
    ban: Sequence[int] = (),
    chunk_rows: int | None = None,
) -> Tensor:  # [M] float32
    """-ln p(target) of each row, in nats.

    More rows than ``chunk_rows`` are done in chunks, so that ``[M, V]`` is never held. Under grad each chunk's logits are
    computed once more in the backward pass; not so where the head is frozen (an adapter is trained, or the gate alone):
    there a chunk leaves nothing but the gradient of its hidden rows.

    Args:
        hidden_rows: rows of the model's hidden state, any floating dtype.
        head: the model's head; rows must not see each other.
        targets: ids in [0, V), none of them banned.
        ban: ids that leave the softmax.
        chunk_rows: None does all rows at once.

    Raises:
        ValueError: shapes do not fit, or a target is outside the vocabulary or banned.
    """
    count = hidden_rows.shape[0]
    if hidden_rows.dim() != 2 or targets.shape != (count,):
        raise ValueError(f"hidden_rows must be [M, d] and targets [M], got {list(hidden_rows.shape)} and {list(targets.shape)}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")

    def nll(rows: Tensor, target: Tensor) -> Tensor:
        logits = head(rows)
        check_targets(target, logits.shape[-1], ban)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(ban_logits(logits, ban), target, reduction="none")

    if chunk_rows is None or count <= chunk_rows:
        return nll(hidden_rows, targets)
    parts = zip(hidden_rows.split(chunk_rows), targets.split(chunk_rows), strict=True)
    if torch.is_grad_enabled():
        if hidden_rows.requires_grad and not head(hidden_rows[:0].detach()).requires_grad:
            return _FrozenHead.apply(hidden_rows, head, targets, ban, chunk_rows)
        return torch.cat([checkpoint(nll, rows, target, use_reentrant=False) for rows, target in parts])
    return torch.cat([nll(rows, target) for rows, target in parts])


class _FrozenHead(torch.autograd.Function):
    """-ln p(target) by a head that has nothing to learn: the gradient of each row is known as soon as its logits are.

    Rows do not see each other, so that the gradient of row m's loss is a row, and the weight it gets in the whole loss
    can be multiplied on in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_rows: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, ban: Sequence[int], chunk_rows: int
    ) -> Tensor:
        losses, gradients = [], torch.empty_like(hidden_rows)
        parts = (hidden_rows.split(chunk_rows), targets.split(chunk_rows), gradients.split(chunk_rows))
        for rows, target, gradient in zip(*parts, strict=True):
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                logits = head(rows)
            check_targets(target, logits.shape[-1], ban)
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            log_p = torch.log_softmax(ban_logits(logits.detach(), ban), -1, dtype=wide)
            losses.append(-log_p.gather(1, target[:, None]).squeeze(1))
            slope = log_p.exp_()  # d loss / d logits = p - onehot(target)
            slope.scatter_add_(1, target[:, None], torch.full_like(target[:, None], -1, dtype=wide))
            gradient.copy_(torch.autograd.grad(logits, rows, slope.to(logits.dtype))[0])
        ctx.save_for_backward(gradients)
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (gradients * upstream[:, None]).to(gradients.dtype), None, None, None, None


def check_targets(targets: Tensor, vocab_size: int, ban: Sequence[int]) -> None:
    if not targets.numel():
        return
    low, high = (int(value) for value in targets.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"targets must lie in [0, {vocab_size}), got ids from {low} to {high}")
    for banned in ban:
        if bool((targets == banned).any()):
            raise ValueError(f"targets hold id {banned}, which can not be predicted (the mask token in clean text?)")


def mdlm_nelbo(row_nll: Tensor, t_rows: Tensor, n_tokens: int | Tensor) -> Tensor:  # [M], [M] -> 0-dim
    """MDLM's bound, nats per token: sum over masked tokens of -ln p / t, over all tokens (arXiv 2406.07524).

    Args:
        row_nll: -ln p of each masked row.
        t_rows: the time of each row's sequence.
        n_tokens: all tokens of the batch, masked or not.
    """
    return (row_nll / t_rows).sum() / n_tokens
