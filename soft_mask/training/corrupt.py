"""Times and masks of a batch out of counters: nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from soft_mask.diffusion import Objective, antithetic_times, mask_tokens

__all__ = ["corrupt_batch", "counter_seed"]


def counter_seed(*parts: int | str) -> int:
    """A 63-bit seed out of counters and names: the same on every machine, unrelated for any two lists of parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def corrupt_batch(
    clean: Tensor,  # [B, L] int64
    objective: Objective,
    mask_token_id: int,
    seed: int,
    times: tuple[float, float],
    answer: Tensor | None = None,  # [B, L] bool: what may be masked
    t: Tensor | None = None,  # [B]: times that are given
) -> tuple[Tensor, Tensor]:  # [B, L] int64, [B] float32
    """The tokens with masks, and the times.

    Times are spread antithetically over ``times``, or one is drawn for the whole batch where the loss is for one (then
    given ones count by their mean). Where there are answers, each gets at least one mask.
    """
    generator = torch.Generator().manual_seed(seed)
    first, last = times
    if objective.one_time:
        one = first + (last - first) * torch.rand((), generator=generator) if t is None else t.float().mean().cpu()
        t = one.expand(len(clean))
    elif t is None:
        t = antithetic_times(len(clean), generator, eps=first, end=last)
    may = None if answer is None else answer.cpu()
    noisy = mask_tokens(clean.cpu(), t.cpu(), mask_token_id, generator, may, objective.noise, at_least_one=answer is not None)
    return noisy.to(clean.device, non_blocking=True), t.to(clean.device, torch.float32, non_blocking=True)
