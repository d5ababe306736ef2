"""The denoising loop: forward, let a policy reveal tokens, remember what was predicted for the rest, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from soft_mask.diffusion.denoiser import encode, masked_rows, predicting_rows
from soft_mask.diffusion.losses import ban_logits, default_chunk_rows
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.sampling.memory import Memory
from soft_mask.state import Feedback

__all__ = ["Callback", "Policy", "Prediction", "State", "StepInfo", "denoise"]


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
        final: this is the closing pass, which fills every mask that is left.
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


@dataclass
class State:
    """Where the denoising stands; one object for all steps.

    Attributes:
        x: ``[B, L]``, never written to.
        rows: ``[M]`` flat positions that are masked, ascending.
        free: ``[B L]`` bool: what was masked at the beginning, and may be written.
        prediction: of the last executed forward; None where no position was masked.
        confidence: ``[B, L]``, for a policy to keep between steps.
    """

    x: Tensor
    rows: Tensor
    free: Tensor
    mask_token_id: int
    vocab_size: int
    prediction: Prediction | None = None
    confidence: Tensor | None = None

    def written(self) -> Tensor:  # [W]
        """Flat positions of the tokens that were written here and may be masked again."""
        return (self.free & (self.x.flatten() != self.mask_token_id)).nonzero().squeeze(1)


class Policy(Protocol):
    """What changes in a step; the only thing that samplers differ in."""

    @property
    def steps(self) -> int: ...

    @property
    def holds(self) -> bool:
        """A step that changed nothing lets the next one take the same prediction, without a forward."""
        ...

    @property
    def goes_on(self) -> bool:
        """Steps go on where nothing is masked."""
        ...

    def time(self, step: int) -> float:
        """The time at which step 0 .. steps begins."""
        ...

    def update(
        self, step: int, state: State, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:  # [R] flat positions, [R] what they become: tokens, or the mask
        ...

    def close(self, state: State, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Tokens for every mask that is left after the last step."""
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
    remask_feedback: str = "erased",
) -> tuple[Tensor, int]:  # [B, L], NFE
    """Fill the masks of ``input_ids``; arguments are taken as checked (see :func:`soft_mask.generate`).

    A step in which no token of the batch changed leaves the next forward's input as it was, so a policy that holds takes
    the prediction and the feedback again and no forward is spent ("skip = hold": the feedback does not refine itself
    while nothing is revealed). No forward is spent either on a batch without masks. What is left masked after the last
    step is filled by one closing forward.
    """
    mask, shape = model.mask_token_id, input_ids.shape
    x, rows = input_ids, masked_rows(input_ids, mask, attention_mask)
    if not rows.numel():
        return x, 0
    free = torch.zeros(x.numel(), dtype=torch.bool, device=x.device).index_fill_(0, rows, True)
    state = State(x, rows, free, mask, model.vocab_size)
    memory = None if soft_mask is None else Memory(model, soft_mask, shape, remask_feedback)
    nfe = 0
    for step in range(policy.steps + 1):
        final = step == policy.steps
        rows = state.rows
        if not rows.numel() and (final or not policy.goes_on):
            break
        unread = False  # a forward of this step that has not been read for feedback yet
        if rows.numel() and (state.prediction is None or final):
            hidden = encode(model, soft_mask, x, memory.store if memory else None, attention_mask)
            state.prediction = Prediction(model, hidden, rows)
            del hidden
            nfe += 1
            unread = memory is not None and not final  # what the closing pass predicts feeds nothing
        revealed, tokens = policy.close(state, generator) if final else policy.update(step, state, generator)
        before = x.flatten()[revealed]
        changed = int((tokens != before).sum())
        if changed:
            x = x.flatten().index_copy(0, revealed, tokens).view(shape)
        left = masked_rows(x, mask, attention_mask) if changed else rows
        if memory is not None and not final:
            if unread and state.prediction is not None:  # read once a forward, where a later one may mix
                kept = rows if remask_feedback == "last" else rows[x.flatten()[rows] == mask]
                memory.read(state.prediction.at(kept), kept)
            erased = (tokens == mask) & (before != mask)
            memory.erase(revealed[erased], before[erased])
        state.x, state.rows = x, left
        if changed or not policy.holds:
            state.prediction = None
        if history is not None:
            history.append(x)
        if callback is not None:
            store = memory.store if memory else None
            info = StepInfo(min(step + 1, policy.steps), policy.steps, policy.time(step), x, nfe, changed, store, final)
            if callback(info) is False:
                break
    return x, nfe
