"""What a forward predicts, read in chunks: hidden rows of the masked positions, or whole logits where hooks want them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from soft_mask.diffusion.denoiser import predicting_rows
from soft_mask.diffusion.losses import ban_logits, default_chunk_rows
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.state import Feedback

__all__ = ["Prediction"]


class Prediction:
    """What the last executed forward predicts: hidden rows ``[M, d]`` of the positions masked then, not ``[M, V]``.

    Attributes:
        rows: ``[M]`` flat positions, ascending.
        feedback: of all rows, where :meth:`scan` has read them; else None.
        whole: ``[B, L, V]`` logits of every position, shifted, where a hook asked for them; else None.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        hidden: Tensor,  # [B, L, d]
        rows: Tensor,  # [M] ascending
        attention_mask: Tensor | None = None,  # [B, L] bool
        whole: Tensor | None = None,
    ) -> None:
        self.model = model
        self.rows = rows
        self.feedback: Feedback | None = None
        self.whole = whole
        self.hidden_rows = None if whole is not None else predicting_rows(hidden, rows, model.shift, attention_mask)

    def at(self, rows: Tensor) -> Tensor:  # [R] -> [R, d]
        """Hidden rows for flat positions, all of which were masked at that forward."""
        assert self.hidden_rows is not None
        return self.hidden_rows[torch.searchsorted(self.rows, rows)]

    def logits(self, rows: Tensor) -> Iterator[Tensor]:  # [R] -> chunks [r, V]
        """The logits of flat positions in chunks, in order, without what the model bans.

        Raises:
            ValueError: the model gave NaN.
        """
        ban = (self.model.mask_token_id,) if self.model.bans_mask else ()
        size = max(16, default_chunk_rows(self.model.vocab_size) // 4)  # the choice of tokens works in float64
        source = self.at(rows) if self.whole is None else rows
        for part in source.split(size):
            logits = self.model.head(part) if self.whole is None else self.whole.flatten(0, 1)[part]
            if bool(torch.isnan(logits).any()):
                raise ValueError("the model's logits hold NaN: its weights are broken, or its dtype overflows")
            yield ban_logits(logits, ban)

    def tokens(self, rows: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:  # [R] -> [R]
        """``choose`` applied to the logits of each chunk, joined."""
        return torch.cat([choose(logits) for logits in self.logits(rows)] or [rows])

    def scan(
        self, choose: Callable[[Tensor, Feedback | None], tuple[Tensor, Tensor]], read: Callable[[Tensor], Feedback] | None
    ) -> tuple[Tensor, Tensor]:  # [M], [M]
        """``choose`` applied to the logits of all rows, chunk by chunk, and what is to be remembered of each read with it.

        Args:
            choose: of a chunk's logits and, with ``read``, their feedback.
            read: makes the feedback, kept in ``feedback``; None where no later forward mixes.
        """
        first, second, feedback = [], [], []
        for logits in self.logits(self.rows):
            fb = None if read is None else read(logits)
            if fb is not None:
                feedback.append(fb)
            one, two = choose(logits, fb)
            first.append(one)
            second.append(two)
        if feedback:
            self.feedback = Feedback(*(torch.cat(part) for part in zip(*feedback, strict=True)))
        return torch.cat(first), torch.cat(second)

    def feedback_at(self, rows: Tensor) -> Feedback | None:  # [R] -> leading shape [R]
        """What :meth:`scan` read at flat positions; None where it did not."""
        return None if self.feedback is None else self.feedback.select(torch.searchsorted(self.rows, rows))
