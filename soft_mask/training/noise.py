"""What is masked: drawn by a sequence's place in the update's batch, so that it does not matter how that is spread."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from soft_mask.diffusion import LogLinearNoise, antithetic_times

__all__ = ["counter_seed", "even_times", "mask_rows", "update_times"]

GOLDEN = 0.6180339887498949  # its multiples modulo 1 lie evenly, however many there are


def counter_seed(*parts: int | str) -> int:
    """A 63-bit seed out of counters and names: the same on every machine, unrelated for any two lists of parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def update_times(seed: int, update: int, whole: int, first: int, count: int, min_time: float) -> Tensor:  # [count] float32
    """Times of sequences ``first .. first + count - 1`` of an update's ``whole``, in ``[min_time, 1]``.

    As in the paper's code one antithetic draw spreads them over the whole batch. They are dealt out in random order (there
    in rising order), so that no rank has all the late times, whose many masks are the most work.
    """
    generator = torch.Generator().manual_seed(counter_seed("times", seed, update))
    times = antithetic_times(max(whole, first + count), generator, eps=min_time)
    return times[torch.randperm(len(times), generator=generator)][first : first + count]


def even_times(seed: int, first: int, count: int, min_time: float) -> Tensor:  # [count] float32
    """Times of sequences of a validation set by their places in it: even over any stretch, whatever the batch size."""
    start = torch.rand((), generator=torch.Generator().manual_seed(counter_seed("evaluation", seed)), dtype=torch.float64)
    u = (start + GOLDEN * torch.arange(first, first + count, dtype=torch.float64)) % 1
    return (min_time + (1 - min_time) * u).float()


def mask_rows(clean: Tensor, t: Tensor, mask: int, first: int, *seed: int | str) -> Tensor:  # [B, L] int64, [B] -> [B, L]
    """``clean`` with masks at times ``t``; each sequence draws from its own seed, ``seed`` and its place, on the CPU."""
    length = clean.shape[1]
    draws = torch.empty(len(clean), length)
    for row in range(len(clean)):
        generator = torch.Generator().manual_seed(counter_seed("masks", *seed, first + row))
        torch.rand(length, generator=generator, out=draws[row])
    return clean.masked_fill(draws < LogLinearNoise().mask_probability(t)[:, None], mask)
