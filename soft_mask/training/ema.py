"""The moving average of the weights that is evaluated and published (decay 0.9999 in the paper; not for the gate)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """An exponential moving average of a module's trainable parameters, in their own dtype (or as their shards).

    The decay of update n is ``min(decay, (1 + n) / (10 + n))``, as in MDLM's and the paper's code.

    Raises:
        ValueError: ``decay`` is not in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie in (0, 1), got {decay}")
        self.decay = decay
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after ``updates`` optimizer steps (1 for the first)."""
        weight = 1.0 - min(self.decay, (1 + updates) / (10 + updates))
        for name, p in self.parameters.items():
            self.average[name].lerp_(p.detach(), weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the module has the averaged weights; afterwards its own again, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.parameters.items():
            own: Tensor = p.detach().clone()
            p.copy_(self.average[name])
            self.average[name] = own

    @torch.no_grad()
    def take(self) -> None:
        """Start (again) from the weights that the module has now."""
        for name, p in self.parameters.items():
            self.average[name].copy_(p)
