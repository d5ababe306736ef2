"""Times and masks of a batch, drawn by a sequence's place in the update, so that it does not matter how that is spread."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from soft_mask.diffusion import Objective, antithetic_times, mask_tokens

__all__ = ["Place", "corrupt_batch", "counter_seed", "even_times", "update_times"]

GOLDEN = 0.6180339887498949  # its multiples modulo 1 lie evenly, however many there are


def counter_seed(*parts: int | str) -> int:
    """A 63-bit seed out of counters and names: the same on every machine, unrelated for any two lists of parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Place:
    """Where a batch stands.

    Attributes:
        seed: of the run.
        update: number of the update, or "evaluation".
        first: place of the batch's first sequence among the update's, or in the validation set.
        whole: sequences of the update, over all ranks and micro-batches.
    """

    seed: int
    update: int | str
    first: int
    whole: int = 1


def corrupt_batch(
    clean: Tensor,  # [B, L] int64
    objective: Objective,
    mask_token_id: int,
    place: Place,
    times: tuple[float, float],
    answer: Tensor | None = None,  # [B, L] bool: what may be masked
    t: Tensor | None = None,  # [B]: times that are given
) -> tuple[Tensor, Tensor]:  # [B, L] int64, [B] float32
    """The tokens with masks, and the times.

    Times are spread antithetically over ``times``, or one is drawn for the whole batch where the loss is for one (then
    given ones count by their mean). Where there are answers, each gets at least one mask. Each sequence's masks are drawn
    from its own seed, on the CPU.
    """
    if objective.one_time:
        t = (_one_time(place, times) if t is None else t.float().mean().cpu()).expand(len(clean))
    elif t is None:
        t = even_times(place, len(clean), times) if place.update == "evaluation" else update_times(place, len(clean), times)
    ids, t = clean.cpu(), t.cpu().float()
    noisy = torch.empty_like(ids)
    for row in range(len(ids)):
        generator = torch.Generator().manual_seed(counter_seed("masks", place.seed, place.update, place.first + row))
        one = slice(row, row + 1)
        may = None if answer is None else answer[one].cpu()
        noisy[one] = mask_tokens(ids[one], t[one], mask_token_id, generator, may, objective.noise, at_least_one=may is not None)
    return noisy.to(clean.device, non_blocking=True), t.to(clean.device, non_blocking=True)


def update_times(place: Place, count: int, times: tuple[float, float]) -> Tensor:  # [count] float32
    """Times of an update's sequences from ``place.first`` on.

    As in the paper's code one antithetic draw spreads them over the whole batch. They are dealt out in random order (there
    in rising order), so that no rank has all the late times, whose many masks are the most work.
    """
    generator = torch.Generator().manual_seed(counter_seed("times", place.seed, place.update))
    drawn = antithetic_times(max(place.whole, place.first + count), generator, eps=times[0], end=times[1])
    return drawn[torch.randperm(len(drawn), generator=generator)][place.first : place.first + count]


def even_times(place: Place, count: int, times: tuple[float, float]) -> Tensor:  # [count] float32
    """Times of sequences of a validation set by their places in it: even over any stretch, whatever the batch size."""
    start = torch.rand((), generator=torch.Generator().manual_seed(counter_seed("evaluation", place.seed)), dtype=torch.float64)
    u = (start + GOLDEN * torch.arange(place.first, place.first + count, dtype=torch.float64)) % 1
    return (times[0] + (times[1] - times[0]) * u).float()


def _one_time(place: Place, times: tuple[float, float]) -> Tensor:  # 0-dim float32
    generator = torch.Generator().manual_seed(counter_seed("time", place.seed, place.update, place.first))
    return times[0] + (times[1] - times[0]) * torch.rand((), generator=generator)
