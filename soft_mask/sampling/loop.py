"""The denoising loop: forward, let a policy reveal tokens, remember what was predicted for the rest, again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from soft_mask.diffusion.denoiser import masked_rows, predicting_rows
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.sampling.memory import Memory
from soft_mask.sampling.prediction import Prediction
from soft_mask.state import Feedback

__all__ = ["Callback", "Hooks", "LogitsHook", "Policy", "Prediction", "State", "StepInfo", "TokensHook", "denoise"]


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


#: ``hook(step, x [B, L], logits [B, L, V])``, as upstream's Dream has them; logits are shifted, and None before step 0.
TokensHook = Callable[[int | None, Tensor, Tensor | None], Tensor]
LogitsHook = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Hooks:
    """What a caller may do in each step: change the logits before anything is made of them, and the tokens at its end."""

    tokens: TokensHook | None = None
    logits: LogitsHook | None = None

    def __bool__(self) -> bool:
        return self.tokens is not None or self.logits is not None


NO_HOOKS = Hooks()


@dataclass
class State:
    """Where the denoising stands; one object for all steps.

    Attributes:
        x: ``[B, L]``, never written to.
        rows: ``[M]`` flat positions that are masked, ascending.
        free: ``[B L]`` bool: what was masked at the beginning, and may be written.
        prediction: of the last executed forward; None where no position was masked.
        confidence: ``[B, L]``, for a policy to keep between steps.
        memory: what will remember this step's prediction; None where nothing will. A policy that reads all logits anyway
            lets them be summarised with it (``Prediction.scan``), so that the head runs once.
    """

    x: Tensor
    rows: Tensor
    free: Tensor
    mask_token_id: int
    vocab_size: int
    prediction: Prediction | None = None
    confidence: Tensor | None = None
    memory: Memory | None = None

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
    def refines(self) -> bool:
        """With feedback it does not hold: what was predicted is mixed in although no token changed."""
        ...

    @property
    def goes_on(self) -> bool:
        """Steps go on where nothing is masked."""
        ...

    @property
    def closes(self) -> bool:
        """A closing forward after the last step fills what is left."""
        ...

    @property
    def whole(self) -> bool:
        """It may write to any position, and wants the logits of all of them."""
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
    hooks: Hooks = NO_HOOKS,
) -> tuple[Tensor, int]:  # [B, L], NFE
    """Fill the masks of ``input_ids``; arguments are taken as checked (see :func:`soft_mask.generate`).

    Each step: a forward with the feedback mixed in, the logits hook, the policy's transfers, the tokens hook, and the
    feedback of what is masked then, read from the logits before any temperature or nucleus.

    A step in which no token of the batch changed leaves the next forward's input as it was, so a policy that holds takes
    the prediction again and no forward is spent; one that refines does so without feedback only. No forward is spent
    either on a batch without masks. With hooks every step runs, as they may change anything, and the whole logits are
    there; without, the head runs on masked rows alone.
    """
    mask, shape = model.mask_token_id, input_ids.shape
    x = input_ids if hooks.tokens is None else _hooked(hooks.tokens(None, input_ids.clone(), None), input_ids, model)
    rows = masked_rows(x, mask, attention_mask)
    if not rows.numel() and not hooks:
        return x, 0
    if soft_mask is not None and soft_mask.scale.item() == 0.0:  # off, to the bit
        soft_mask = None
    whole = policy.whole or bool(hooks)
    free = torch.zeros(x.numel(), dtype=torch.bool, device=x.device).index_fill_(0, rows, True)
    memory = None
    if soft_mask is not None:
        memory = Memory(model, soft_mask, free.view(shape), remask_feedback, joint=policy.whole)
    state = State(x, rows, free, mask, model.vocab_size)
    nfe = 0
    for step in range(policy.steps + policy.closes):
        final = step == policy.steps
        feeds = memory is not None and step < policy.steps - (not policy.closes)  # a later forward mixes
        rows = state.rows
        if not rows.numel() and not hooks and (final or not policy.goes_on):
            break
        unread = False  # a forward of this step that has not been read for feedback yet
        if (rows.numel() or hooks) and (state.prediction is None or final):
            embeds = memory.embed(x) if memory else F.embedding(x, model.embedding)
            hidden = model.hidden(embeds, attention_mask)
            logits = _whole_logits(model, hidden, attention_mask, hooks, step, x) if whole else None
            state.prediction = Prediction(model, hidden, rows, attention_mask, logits)
            del hidden
            nfe += 1
            unread = feeds
        state.memory = memory if unread else None
        revealed, tokens = policy.close(state, generator) if final else policy.update(step, state, generator)
        before = x.flatten()[revealed]
        after = x.flatten().index_copy(0, revealed, tokens).view(shape) if bool((tokens != before).any()) else x
        if hooks.tokens is not None:
            assert state.prediction is not None
            after = _hooked(hooks.tokens(step, after.clone(), state.prediction.whole), x, model)
        changed = int((after != x).sum())
        x = after
        left = masked_rows(x, mask, attention_mask) if changed else rows
        if memory is not None and feeds:
            if unread and state.prediction is not None:  # read once a forward, where a later one may mix
                kept = left if whole else rows if remask_feedback == "last" else rows[x.flatten()[rows] == mask]
                memory.read(state.prediction, kept)
            if not whole:
                erased = (tokens == mask) & (before != mask)
                memory.erase(revealed[erased], before[erased])
        state.x, state.rows = x, left
        if changed or hooks or not policy.holds or (memory is not None and policy.refines):
            state.prediction = None
        if history is not None:
            history.append(x)
        if callback is not None:
            store = memory.store if memory else None
            info = StepInfo(min(step + 1, policy.steps), policy.steps, policy.time(step), x, nfe, changed, store, final)
            if callback(info) is False:
                break
    return x, nfe


def _whole_logits(
    model: MaskedDiffusionModel, hidden: Tensor, attention_mask: Tensor | None, hooks: Hooks, step: int, x: Tensor
) -> Tensor:  # [B, L, V]
    """The logits of every position, shifted to it, after the logits hook."""
    everywhere = torch.arange(x.numel(), device=x.device)
    logits = model.head(predicting_rows(hidden, everywhere, model.shift, attention_mask)).view(*x.shape, -1)
    if hooks.logits is None:
        return logits
    given = hooks.logits(step, x.clone(), logits)
    if not isinstance(given, Tensor) or given.shape != logits.shape:
        what = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"generation_logits_hook_func must return logits {list(logits.shape)}, got {what}")
    return given


def _hooked(given: object, x: Tensor, model: MaskedDiffusionModel) -> Tensor:
    """What a tokens hook returned, if it is such a thing as it was given."""
    if not isinstance(given, Tensor) or given.shape != x.shape or given.dtype != x.dtype or given.device != x.device:
        what = f"{given.dtype} {list(given.shape)} on {given.device}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"generation_tokens_hook_func must return int64 {list(x.shape)} on {x.device}, got {what}")
    if given.numel() and not bool(((given >= 0) & (given < model.embedding.shape[0])).all()):
        raise ValueError(f"generation_tokens_hook_func returned ids outside [0, {model.embedding.shape[0]})")
    return given.clone()
