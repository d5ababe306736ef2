"""The noise schedule of MDLM: how likely a token is masked at time t, and what a masked token's loss weighs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LogLinearNoise", "antithetic_times"]


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


def antithetic_times(
    n: int,
    generator: torch.Generator | None = None,
    eps: float = 1e-3,
    device: torch.device | str | None = None,
) -> Tensor:  # [n] float32
    """``n`` times in [eps, 1], one in each n-th of the interval: ``((u_i / n + i / n) mod 1) (1 - eps) + eps``.

    Draw them for a whole global batch and hand the parts out: only together are they spread evenly.

    Raises:
        ValueError: ``n`` is negative or ``eps`` outside (0, 1).
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    if not 0.0 < eps < 1.0:
        raise ValueError(f"eps must lie in (0, 1), got {eps}")
    if n == 0:
        return torch.empty(0, device=device)
    draw = torch.rand(n, generator=generator, device=generator.device if generator is not None else device)
    even = (draw / n + torch.arange(n, device=draw.device) / n) % 1
    return (even * (1 - eps) + eps).to(device)
