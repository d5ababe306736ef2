"""The denoising loop: forward, let a policy reveal tokens, remember what was predicted for the rest, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from soft_mask.diffusion.denoiser import encode, masked_rows, predicting_rows, read_feedback
from soft_mask.diffusion.losses import ban_logits, default_chunk_rows
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.state import Feedback

__all__ = ["Callback", "Policy", "Prediction", "StepInfo", "denoise"]


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees after a step. The tensors are of this step alone: later steps do not write into them.

    Attributes:
        step: 1 .. steps; the closing pass repeats ``steps``.
        steps: number of steps asked for.
        t: time at which the step began, from 1 down to the sampler's eps.
        input_ids: ``[B, L]``, after the step.
        nfe: forward passes spent so far.
        changed: tokens that changed in this step.
        feedback: store of leading shape ``[B, L]`` that the next forward will mix in, or None without soft masking.
        final: this is the closing pass, which takes the likeliest token at every mask that is left.
    """

    step: int
    steps: int
    t: float
    input_ids: Tensor
    nfe: int
    changed: int
    feedback: Feedback | None
    final: bool = False


Callback = Callable[[StepInfo], object]


class Prediction:
    """What the last executed forward predicts: hidden rows ``[M, d]`` of the positions masked then, not ``[M, V]``."""

    def __init__(self, model: MaskedDiffusionModel, hidden: Tensor, rows: Tensor) -> None:  # [B, L, d], [M] ascending
        self.model = model
        self.rows = rows
        self.hidden_rows = predicting_rows(hidden, rows, model.shift)

    def at(self, rows: Tensor) -> Tensor:  # [R] -> [R, d]
        """Hidden rows for flat positions, all of which were masked at that forward."""
        return self.hidden_rows[torch.searchsorted(self.rows, rows)]

    def logits(self, rows: Tensor) -> Iterator[Tensor]:  # [R] -> chunks [r, V]
        """The logits of flat positions in chunks, in order, without what the model bans.

        Raises:
            ValueError: the model gave NaN.
        """
        ban = (self.model.mask_token_id,) if self.model.bans_mask else ()
        size = max(16, default_chunk_rows(self.model.vocab_size) // 4)  # the choice of tokens works in float64
        for part in self.at(rows).split(size):
            logits = self.model.head(part)
            if bool(torch.isnan(logits).any()):
                raise ValueError("the model's logits hold NaN: its weights are broken, or its dtype overflows")
            yield ban_logits(logits, ban)

    def tokens(self, rows: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:  # [R] -> [R]
        """``choose`` applied to the logits of each chunk, joined."""
        return torch.cat([choose(logits) for logits in self.logits(rows)] or [rows])


class Policy(Protocol):
    """Which masked positions get which tokens in a step; the only thing that samplers differ in."""

    @property
    def steps(self) -> int: ...

    def time(self, step: int) -> float:
        """The time at which step 0 .. steps begins."""
        ...

    def reveal(
        self,
        step: int,
        rows: Tensor,  # [M] int64: flat positions that are masked, ascending
        size: int,  # B L
        prediction: Prediction,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:  # [R] flat positions, [R] tokens
        ...


def denoise(
    model: MaskedDiffusionModel,
    input_ids: Tensor,  # [B, L] int64
    policy: Policy,
    *,
    attention_mask: Tensor | None = None,  # [B, L] bool
    soft_mask: SoftMask | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    history: list[Tensor] | None = None,
) -> tuple[Tensor, int]:  # [B, L], NFE
    """Fill the masks of ``input_ids``; arguments are taken as checked (see :func:`soft_mask.generate`).

    A step in which no token of the batch changed leaves the next forward's input as it was, so the next step takes the
    prediction and the feedback again and no forward is spent ("skip = hold": the feedback does not refine itself while
    nothing is revealed). What is left masked after the last step is filled by one closing forward.
    """
    x = input_ids
    feedback: Feedback | None = None
    prediction: Prediction | None = None
    nfe = 0
    unread = False  # the last forward has not been read for feedback yet
    for step in range(policy.steps + 1):
        final = step == policy.steps
        rows = masked_rows(x, model.mask_token_id, attention_mask)
        if not rows.numel():
            break
        if prediction is None or final:
            hidden = encode(model, soft_mask, x, feedback, attention_mask)
            prediction = Prediction(model, hidden, rows)
            del hidden
            nfe += 1
            unread = not final  # what the closing pass predicts feeds nothing
        if final:
            revealed, tokens = rows, prediction.tokens(rows, lambda logits: logits.argmax(-1))
        else:
            revealed, tokens = policy.reveal(step, rows, x.numel(), prediction, generator)
        changed = int((tokens != model.mask_token_id).sum())
        if changed:
            x = x.flatten().index_copy(0, revealed, tokens).view(x.shape)
        if soft_mask is not None and unread:  # read once a forward, where the next one will mix
            left = masked_rows(x, model.mask_token_id, attention_mask) if changed else rows
            feedback = read_feedback(model, soft_mask, prediction.at(left), left, x.shape)
            unread = False
        if changed:
            prediction = None
        if history is not None:
            history.append(x)
        if callback is not None:
            info = StepInfo(min(step + 1, policy.steps), policy.steps, policy.time(step), x, nfe, changed, feedback, final)
            if callback(info) is False:
                break
    return x, nfe
