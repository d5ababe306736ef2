"""Random numbers of the samplers, and the choice of a token from a row of logits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["choose_tokens", "draw_tokens", "exponential", "gumbel", "keep_top_k", "keep_top_p", "nucleus", "race", "uniform"]

RACE_EPS = 1e-10  # twice in the originals' draw, so that it neither divides by 0 nor takes the logarithm of 0


def nucleus(logits: Tensor, p: float) -> Tensor:  # [r, V] -> [r, V]
    """-inf outside the nucleus, by the reference's rule: from the likeliest on while the sum, including the token's own
    probability, is at most ``p``; the likeliest always.

    Stricter than the usual rule, which also takes the token that crosses ``p``. At ``p`` = 1 nothing is cut.
    """
    if p >= 1.0:
        return logits
    probs, order = logits.softmax(-1).sort(-1, descending=True)
    inside = probs.cumsum(-1) <= p
    inside[..., 0] = True
    return logits.masked_fill(~torch.zeros_like(inside).scatter_(-1, order, inside), float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:  # [r, V] -> [r, V]
    """-inf outside the nucleus, by Dream's rule, the usual one: the token that crosses ``p`` belongs to it."""
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    outside = ordered.softmax(-1).cumsum(-1) > p
    outside = torch.cat([torch.zeros_like(outside[..., :1]), outside[..., :-1]], dim=-1)
    return logits.masked_fill(torch.zeros_like(outside).scatter_(-1, order, outside), float("-inf"))


def keep_top_k(logits: Tensor, k: int) -> Tensor:  # [r, V] -> [r, V]
    """-inf below the k-th largest of each row; what equals it stays, as in Dream."""
    least = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def draw_tokens(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:  # [r, V] -> [r] int64
    """One token a row from its probabilities: ``torch.multinomial``, and its race where the generator lives elsewhere."""
    if generator is None or generator.device == probs.device:
        return torch.multinomial(probs, 1, generator=generator)[:, 0]
    return (probs / exponential(tuple(probs.shape), generator, probs.device)).argmax(-1)


def exponential(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Exponential waiting times of mean 1, drawn where the generator lives."""
    source = generator.device if generator is not None else device
    return torch.empty(shape, device=source, dtype=dtype).exponential_(generator=generator).to(device)


def choose_tokens(
    logits: Tensor, temperature: float, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:  # [r, V] -> [r] int64
    """One token a row from softmax(logits / temperature), by the Gumbel trick in ``dtype``; the likeliest at 0.

    Less than float64 cuts the tail of the noise and with it the entropy of the samples (arXiv 2409.02908).
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    return gumbel(logits.shape, generator, logits.device, dtype).add_(logits.to(dtype) / temperature).argmax(-1)


def race(weights: Tensor, draws: Tensor) -> Tensor:  # [r, V], [r, V] uniform -> [r] int64
    """The originals' draw: weights over exponential waiting times, the largest wins; in the dtype of ``draws``.

    The same uniform numbers give the same tokens as their ``_sample_categorical``; ``weights`` need not sum to 1.
    """
    waiting = RACE_EPS - (draws + RACE_EPS).log()
    return (weights.to(draws.dtype) / waiting).argmax(-1)


def gumbel(
    shape: torch.Size, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Standard Gumbel noise, -ln(-ln u)."""
    return uniform(shape, generator, device, dtype).log_().neg_().log_().neg_()


def uniform(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Uniform numbers in [0, 1), drawn where the generator lives."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source, dtype=dtype).to(device)
