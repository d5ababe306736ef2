"""MDLM's ancestral sampler, the reverse of the masking process (arXiv 2406.07524)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from soft_mask.sampling.loop import Prediction

__all__ = ["Ancestral", "choose_tokens", "gumbel"]


@dataclass(frozen=True)
class Ancestral:
    """From time t to s a masked token stays with probability s/t and otherwise becomes a draw from the prediction p.

    That is the posterior of the reverse process, ``q = p (t - s), q[mask] = s``, over t: drawn as a coin and a token
    instead of one race over V + 1 ids, so that the head and the V random numbers are spent on revealed rows only.
    Tokens once revealed stay. Times are ``steps + 1`` points evenly from 1 to ``eps`` (alpha is 1 - t here, as in the
    original's ``ddpm_cache``).

    Args:
        steps: denoising steps.
        temperature: divides the logits of the token's choice; 0 takes the likeliest. The coin does not depend on it.
        eps: time at which the closing pass takes over.
    """

    steps: int
    temperature: float = 1.0
    eps: float = 1e-5

    def time(self, step: int) -> float:
        return 1.0 + (self.eps - 1.0) * step / self.steps

    def reveal(
        self,
        step: int,
        rows: Tensor,  # [M]
        size: int,
        prediction: Prediction,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        chance = 1.0 - self.time(step + 1) / self.time(step)
        # One coin for every position, so that a position's coins do not depend on which others are still masked.
        coins = uniform((size,), generator, rows.device)
        revealed = rows[coins[rows] < chance]
        return revealed, prediction.tokens(revealed, lambda z: choose_tokens(z, self.temperature, generator))


def choose_tokens(
    logits: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:  # [r, V] -> [r] int64
    """One token a row from softmax(logits / temperature), by the Gumbel trick in float64; the likeliest at 0.

    Lower precision would cut the tail of the noise and with it the entropy of the samples (arXiv 2409.02908).
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    return gumbel(logits.shape, generator, logits.device).add_(logits.double() / temperature).argmax(-1)


def gumbel(shape: torch.Size, generator: torch.Generator | None, device: torch.device) -> Tensor:  # float64
    """Standard Gumbel noise, -ln(-ln u)."""
    return uniform(shape, generator, device).log_().neg_().log_().neg_()


def uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:  # float64
    """Uniform numbers in [0, 1), drawn where the generator lives."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)
