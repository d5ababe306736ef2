"""The compact summary of a predicted distribution that is carried from one denoising step to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Feedback(NamedTuple):
    """What soft masking remembers of a row of logits: 28 to 36 bytes at k=3 instead of the whole row.

    Attributes:
        ids: ``[.., k]`` int32, the k most probable ids, best first, ties to the lower id.
        probs: ``[.., k]`` float32 (float64 from float64 logits), softmax over the k kept logits: sums to 1.
        neg_entropy: ``[..]`` like ``probs``, sum p ln p over the whole vocabulary, in nats.
            ``-inf`` means "no feedback yet" and gives exactly the plain embedding.
        logsumexp: ``[..]`` like ``probs``, of the logits after temperature and ban.
    """

    ids: Tensor
    probs: Tensor
    neg_entropy: Tensor
    logsumexp: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...] | torch.Size, k: int, device: torch.device | str | None = None) -> Feedback:
        """A store of the given leading shape in which no row has feedback yet."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        shape = tuple(shape)
        return cls(
            ids=torch.zeros(*shape, k, dtype=torch.int32, device=device),
            probs=torch.zeros(*shape, k, dtype=torch.float32, device=device),
            neg_entropy=torch.full(shape, float("-inf"), device=device),
            logsumexp=torch.full(shape, float("-inf"), device=device),
        )

    @property
    def k(self) -> int:
        return self.ids.shape[-1]

    def select(self, index: Any) -> Feedback:
        """The rows that ``index`` names on the leading axes (a mask, indices, slices)."""
        return Feedback(*(part[index] for part in self))

    def first(self, k: int) -> Feedback:
        """The ``k`` best of each row alone, their probabilities summing to 1 again; self where there are no more."""
        if k >= self.k:
            return self
        probs = self.probs[..., :k]
        return self._replace(ids=self.ids[..., :k], probs=probs / probs.sum(-1, keepdim=True).clamp_min(1e-30))

    def put_(self, index: Any, rows: Feedback) -> Feedback:
        """Write ``rows`` at ``index`` of the leading axes, in place; returns self."""
        for part, new in zip(self, rows, strict=True):
            part[index] = new.to(part.dtype)
        return self
