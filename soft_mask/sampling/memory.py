"""What soft masking remembers from step to step, and what it says at a position that was masked again."""

from __future__ import annotations

import torch
from torch import Tensor

from soft_mask.diffusion.denoiser import read_feedback
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.state import Feedback

__all__ = ["REMASK_FEEDBACK", "Memory"]

REMASK_FEEDBACK = ("erased", "last", "none")


class Memory:
    """The feedback store ``[B, L]`` that the next forward mixes in.

    A store once shown is never written to: a step that changes something makes a new one.

    Args:
        remask_feedback: what a token that became a mask again feeds back. "erased", the reference's: the model predicted
            the erased token with certainty (entropy 0), as SUBS says of a token that is there. "last": what was predicted
            for the position when it was last masked. "none": a plain mask, as at the beginning.
    """

    def __init__(self, model: MaskedDiffusionModel, soft_mask: SoftMask, shape: torch.Size, remask_feedback: str) -> None:
        self.model = model
        self.soft_mask = soft_mask
        self.shape = shape  # (B, L)
        self.remask_feedback = remask_feedback
        self.store: Feedback | None = None

    def read(self, hidden_rows: Tensor, rows: Tensor) -> None:  # [M, d], [M]
        """Take in what a forward predicts at these flat positions, all that were masked then or those that stay so."""
        fresh = read_feedback(self.model, self.soft_mask, hidden_rows, rows, self.shape)
        if self.remask_feedback != "last" or self.store is None:
            self.store = fresh
            return
        flat = Feedback(*(part.flatten(0, 1) for part in fresh))
        self._write(rows, flat.select(rows))

    def erase(self, rows: Tensor, tokens: Tensor) -> None:  # [R] flat positions that are masks again, [R] what stood there
        if not rows.numel() or self.remask_feedback == "last":
            return
        k = self.soft_mask.config.k
        new = Feedback.empty((rows.numel(),), k, rows.device)
        if self.remask_feedback == "erased":
            new.ids[:, 0] = tokens.to(new.ids.dtype)
            new.probs[:, 0] = 1.0
            new.neg_entropy.zero_()
            new.logsumexp.zero_()
        self._write(rows, new)

    def _write(self, rows: Tensor, values: Feedback) -> None:
        old = self.store or Feedback.empty(self.shape, self.soft_mask.config.k, rows.device)
        flat = Feedback(*(part.clone().flatten(0, 1) for part in old)).put_(rows, values)
        self.store = Feedback(*(part.view(*self.shape, *part.shape[1:]) for part in flat))
