"""What soft masking remembers from step to step, and what it says at a position that was masked again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from soft_mask import functional
from soft_mask.diffusion.denoiser import read_feedback
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.sampling.prediction import Prediction
from soft_mask.state import Feedback

__all__ = ["REMASK_FEEDBACK", "Memory"]

REMASK_FEEDBACK = ("erased", "last", "none")


class Memory:
    """The feedback store ``[B, L]`` that the next forward mixes in.

    A store once shown is never written to: a step that changes something makes a new one.

    Args:
        masked: ``[B, L]`` bool, what is masked at the beginning; the soft mask's schedule goes by what is left of it.
        remask_feedback: what a token that became a mask again feeds back. "erased", the reference's: the model predicted
            the erased token with certainty (entropy 0), as SUBS says of a token that is there. "last": what was predicted
            for the position when it was last masked. "none": a plain mask, as at the beginning.
        joint: one schedule for the batch, as the reference has it, instead of one for each sequence.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        soft_mask: SoftMask,
        masked: Tensor,
        remask_feedback: str = "erased",
        joint: bool = False,
    ) -> None:
        self.model = model
        self.soft_mask = soft_mask
        self.shape = masked.shape  # (B, L)
        self.remask_feedback = remask_feedback
        self.joint = joint
        self.begin = self._counts(masked)
        self.store: Feedback | None = None

    def embed(self, x: Tensor) -> Tensor:  # [B, L] -> [B, L, d]
        """Masks mixed with what is remembered of them; plain before there is anything."""
        if self.store is None:
            return F.embedding(x, self.model.embedding)
        factors = self._factors(x)
        if len(set(factors)) == 1:
            return self._mixed(x, self.store, factors[0])
        each = [self._mixed(x[b : b + 1], self.store.select(slice(b, b + 1)), f) for b, f in enumerate(factors)]
        return torch.cat(each)

    def _mixed(self, x: Tensor, store: Feedback, factor: float) -> Tensor:
        if factor == 0.0:
            return F.embedding(x, self.model.embedding)
        gate = self.soft_mask  # the store is per position, so the model's shift has been applied already
        return functional.mix_embed(
            x,
            store,
            self.model.embedding,
            mask_token_id=self.model.mask_token_id,
            scale=gate.scale if factor == 1.0 else gate.scale * factor,
            steepness=gate.steepness,
            centre=gate.centre,
        )

    def _factors(self, x: Tensor) -> list[float]:  # a sequence each
        """What the schedule multiplies the scale by: 1, or by tau, the share of the masks that are left (the paper's
        ablation): "linear" tau itself, "stepwise" 1 above one half and 0 below."""
        schedule = self.soft_mask.config.schedule
        if schedule == "none":
            return [1.0] * x.shape[0]
        left = self._counts(x == self.model.mask_token_id)
        shares = [now / begin if begin else 1.0 for now, begin in zip(left, self.begin, strict=True)]
        return shares if schedule == "linear" else [float(share > 0.5) for share in shares]

    def _counts(self, masked: Tensor) -> list[int]:
        counts = [int(count) for count in masked.sum(1).tolist()]
        return [sum(counts)] * len(counts) if self.joint else counts

    def summarise(self, logits: Tensor, least: int = 1) -> Feedback:  # [r, V]
        """Feedback of rows of logits (bans applied), with ``least`` predictions at least, so that a policy can share it."""
        c = self.soft_mask.config
        k = min(max(c.k, least), logits.shape[-1] - len(c.ban or ()))
        return functional.feedback(logits, k, c.temperature, c.ban)

    def shares(self) -> bool:
        """Feedback is of the model's own distribution, so a policy may take its numbers."""
        c = self.soft_mask.config
        return c.temperature == 1.0 and set(c.ban or ()) <= ({self.model.mask_token_id} if self.model.bans_mask else set())

    def read(self, prediction: Prediction, rows: Tensor) -> None:  # [M] flat positions
        """Take in what a forward predicts at these positions, all that were masked then or those that stay so."""
        k = self.soft_mask.config.k
        if prediction.whole is not None:
            fresh = [self.summarise(logits) for logits in prediction.logits(rows)]
            found = Feedback(*(torch.cat(part) for part in zip(*fresh, strict=True))) if fresh else None
        elif (found := prediction.feedback_at(rows)) is None and rows.numel():
            store = read_feedback(self.model, self.soft_mask, prediction.at(rows), rows, self.shape)
            if self.remask_feedback != "last" or self.store is None:
                self.store = store
                return
            found = Feedback(*(part.flatten(0, 1) for part in store)).select(rows)
        if self.remask_feedback != "last":
            self.store = None
        if found is not None:
            self._write(rows, found.first(k))
        elif self.store is None:
            self.store = Feedback.empty(self.shape, k, rows.device)

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
