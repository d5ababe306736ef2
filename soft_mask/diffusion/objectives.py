"""The losses by name: how the masked rows' cross-entropies become one number, and what goes with that.

Every one is a weighted sum of -ln p over masked rows. They differ in the weight of a row (1/t or 1/p_mask), in what the
sum is divided by, and so in what a micro-batch weighs when several make one update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from soft_mask.diffusion.losses import mdlm_nelbo
from soft_mask.diffusion.noise import FlooredNoise, LogLinearNoise, Noise

__all__ = ["OBJECTIVES", "MaskedRows", "Objective", "count_weight", "find_objective"]


class MaskedRows(NamedTuple):
    """What a loss is made of.

    Attributes:
        nll: ``[M]`` -ln p of each masked row.
        sequence: ``[M]`` int64, which of the B sequences a row is of.
        t: ``[B]`` times, in nll's dtype.
        answers: ``[B]`` int64, how many positions of a sequence may be masked (its answer, or all of it).
        tokens: all tokens of the batch, prompts included.
    """

    nll: Tensor
    sequence: Tensor
    t: Tensor
    answers: Tensor
    tokens: int | Tensor


@dataclass(frozen=True)
class Objective:
    """A loss and what belongs to it.

    Attributes:
        loss: of a batch, 0-dim, in nats.
        weighed_by: what a micro-batch weighs in its update: its "tokens", "answers" (positions that may be masked) or
            "sequences".
        noise: the corruption it was derived for.
        one_time: one t for a whole batch, not one a sequence.
    """

    loss: Callable[[MaskedRows], Tensor]
    weighed_by: str
    noise: Noise
    one_time: bool = False


def _bound(rows: MaskedRows) -> Tensor:
    return (rows.nll / rows.t[rows.sequence]).sum()


def _mdlm(rows: MaskedRows) -> Tensor:
    """Sum of -ln p / t over all tokens, masked or not: the NELBO a token (MDLM, arXiv 2406.07524)."""
    return mdlm_nelbo(rows.nll, rows.t[rows.sequence], rows.tokens)


def _per_token(rows: MaskedRows) -> Tensor:
    """Sum of -ln p / t over the tokens that may be masked: the NELBO of an answer's token, long answers weighing more."""
    return _bound(rows) / rows.answers.sum()


def _dream(rows: MaskedRows) -> Tensor:
    """1/t times the mean over the masked rows, one t a batch (arXiv 2510.17206's fine-tuning of Dream)."""
    return _bound(rows) / max(len(rows.nll), 1)


def _llada(rows: MaskedRows) -> Tensor:
    """-ln p / p_mask summed over a sequence, by the length of its answer, mean over sequences (arXiv 2502.09992, SFT)."""
    p_mask = FlooredNoise().mask_probability(rows.t)
    weight = 1 / (p_mask * rows.answers.clamp(min=1).to(rows.nll.dtype))
    return (rows.nll * weight[rows.sequence]).sum() / len(rows.t)


OBJECTIVES = {
    "mdlm": Objective(_mdlm, "tokens", LogLinearNoise()),
    "per_token": Objective(_per_token, "answers", LogLinearNoise()),
    "dream": Objective(_dream, "sequences", FlooredNoise(), one_time=True),
    "llada": Objective(_llada, "sequences", FlooredNoise()),
}


def find_objective(name: str) -> Objective:
    """The loss of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"loss must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def count_weight(objective: Objective, input_ids: Tensor, answer: Tensor | None) -> Tensor | int:
    """What a micro-batch weighs in its update: see :attr:`Objective.weighed_by`."""
    if objective.weighed_by == "sequences":
        return len(input_ids)
    if objective.weighed_by == "answers" and answer is not None:
        return torch.count_nonzero(answer)
    return input_ids.numel()
