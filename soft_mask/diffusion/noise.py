"""Noise schedules: how likely a token is masked at time t, and what a masked token's loss weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["FlooredNoise", "LogLinearNoise", "Noise", "antithetic_times"]


class Noise(Protocol):
    """What the corruption asks of a schedule."""

    def mask_probability(self, t: Tensor) -> Tensor:
        """The share of tokens that are masked at time t; of t's shape and dtype."""
        ...


@dataclass(frozen=True)
class LogLinearNoise:
    """The log-linear schedule (MDLM, arXiv 2406.07524): alpha_t = 1 - (1 - eps) t.

    ``t`` is a float tensor of any shape in [0, 1]; results have its shape and dtype.
    """

    eps: float = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is still there at time t."""
        return 1 - (1 - self.eps) * t

    def mask_probability(self, t: Tensor) -> Tensor:
        """1 - alpha_t: the share of tokens that are masked at time t."""
        return (1 - self.eps) * t

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise, -ln alpha_t."""
        return -torch.log1p(-(1 - self.eps) * t)

    def loss_weight(self, t: Tensor) -> Tensor:
        """-alpha'_t / (1 - alpha_t), which is exactly 1/t: the weight of a masked token in the NELBO."""
        return 1 / t


@dataclass(frozen=True)
class FlooredNoise:
    """LLaDA's and Dream's corruption (arXiv 2502.09992): masked with probability (1 - eps) t + eps, never below eps."""

    eps: float = 1e-3

    def mask_probability(self, t: Tensor) -> Tensor:
        """The share of tokens that are masked at time t; LLaDA's loss divides by it."""
        return (1 - self.eps) * t + self.eps


def antithetic_times(
    n: int,
    generator: torch.Generator | None = None,
    eps: float = 1e-3,
    device: torch.device | str | None = None,
    end: float = 1.0,
) -> Tensor:  # [n] float32
    """``n`` times in [eps, end], one in each n-th of the interval: ``((u_i / n + i / n) mod 1) (end - eps) + eps``.

    Draw them for a whole global batch and hand the parts out: only together are they spread evenly.

    Raises:
        ValueError: ``n`` is negative, ``eps`` outside (0, 1) or ``end`` outside (eps, 1].
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    if not 0.0 < eps < 1.0:
        raise ValueError(f"eps must lie in (0, 1), got {eps}")
    if not eps < end <= 1.0:
        raise ValueError(f"end must lie in ({eps}, 1], got {end}")
    if n == 0:
        return torch.empty(0, device=device)
    draw = torch.rand(n, generator=generator, device=generator.device if generator is not None else device)
    even = (draw / n + torch.arange(n, device=draw.device) / n) % 1
    return (even * (end - eps) + eps).to(device)
