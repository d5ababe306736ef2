"""One module whose ``forward`` is a whole training step's mathematics: first pass, feedback, second pass, loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soft_mask import functional
from soft_mask.diffusion.losses import default_chunk_rows, row_cross_entropy
from soft_mask.diffusion.objectives import MaskedRows, find_objective
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.state import Feedback

__all__ = ["Denoiser", "DenoiserOutput", "check_soft_mask", "encode", "masked_rows", "predicting_rows", "read_feedback"]


def masked_rows(noisy_ids: Tensor, mask_token_id: int, within: Tensor | None = None) -> Tensor:  # [B, L] -> [M] int64
    """Flat positions b L + l that hold the mask token (and lie ``within``, ``[B, L]``, where that is given)."""
    masked = noisy_ids == mask_token_id
    if within is not None:
        masked &= within.bool()
    return masked.flatten().nonzero().squeeze(1)


def predicting_rows(
    hidden: Tensor,  # [B, L, d]
    rows: Tensor,  # [M] flat positions
    shift: int,
    attention_mask: Tensor | None = None,  # [B, L] bool
) -> Tensor:  # [M, d]
    """The hidden rows that predict these flat positions: their own, or with ``shift`` the one before (Dream).

    Where a sequence begins, padding before it or not, a position keeps its own row.
    """
    if shift:
        first = rows % hidden.shape[1] == 0
        before = torch.where(first, rows, rows - 1)
        if attention_mask is not None:
            before = torch.where(attention_mask.flatten()[before].bool(), before, rows)
        rows = before
    return hidden.flatten(0, 1).index_select(0, rows)


def encode(
    model: MaskedDiffusionModel,
    soft_mask: SoftMask | None,
    noisy_ids: Tensor,  # [B, L] int64
    feedback: Feedback | None,  # a store with leading shape [B, L]: one a position
    attention_mask: Tensor | None = None,  # [B, L] bool
) -> Tensor:  # [B, L, d]
    """Embed and run the blocks: plain without feedback, masks mixed with what was predicted for them with it."""
    if soft_mask is None or feedback is None:
        embeds = F.embedding(noisy_ids, model.embedding)
    else:  # the store is per position, so the model's shift has been applied already
        embeds = functional.mix_embed(
            noisy_ids,
            feedback,
            model.embedding,
            mask_token_id=model.mask_token_id,
            scale=soft_mask.scale,
            steepness=soft_mask.steepness,
            centre=soft_mask.centre,
        )
    return model.hidden(embeds, attention_mask)


@torch.no_grad()
def read_feedback(
    model: MaskedDiffusionModel,
    soft_mask: SoftMask,
    hidden_rows: Tensor,  # [M, d]: the rows that predict
    rows: Tensor,  # [M] int64: the flat positions they predict
    shape: torch.Size,  # (B, L)
    chunk_rows: int | None = None,
) -> Feedback:
    """What the model predicts at ``rows``, as a store of leading shape ``[B, L]``; other positions hold "none yet".

    The head runs on these rows only, in chunks. The distribution is the model's own (SUBS for MDLM), at the soft mask's
    temperature, before any temperature or nucleus of a sampler.
    """
    config = soft_mask.config
    ban = sorted({*(config.ban or ()), *((model.mask_token_id,) if model.bans_mask else ())})
    store = Feedback.empty((shape.numel(),), config.k, hidden_rows.device)
    size = chunk_rows or default_chunk_rows(model.vocab_size)
    for part, hidden in zip(rows.split(size), hidden_rows.split(size), strict=True):
        store.put_(part, functional.feedback(model.head(hidden), config.k, config.temperature, ban))
    return Feedback(*(part.view(*shape, *part.shape[1:]) for part in store))


def check_soft_mask(model: MaskedDiffusionModel, soft_mask: SoftMask | None) -> None:
    """A soft mask must mix the rows that the model masks.

    Raises:
        TypeError: not a ``SoftMask``.
        ValueError: its mask id is not the model's.
    """
    if soft_mask is None:
        return
    if not isinstance(soft_mask, SoftMask):
        raise TypeError(f"soft_mask must be a SoftMask or None, got {type(soft_mask).__name__}")
    if soft_mask.config.mask_token_id != model.mask_token_id:
        raise ValueError(
            f"soft_mask.config.mask_token_id is {soft_mask.config.mask_token_id}, the model's is {model.mask_token_id}"
        )


class DenoiserOutput(NamedTuple):
    """Result of :class:`Denoiser`.

    Attributes:
        loss: 0-dim, in nats; with the loss "mdlm" the NELBO per token over all tokens of the batch.
        sequence_nll: ``[B]``, detached: -ln p / t, the bound in nats, summed over each sequence.
        mean_lambda: 0-dim, detached: mean gate over the masked rows; NaN without feedback.
        masked_rows: how many rows were masked.
    """

    loss: Tensor
    sequence_nll: Tensor
    mean_lambda: Tensor
    masked_rows: int


class Denoiser(nn.Module):
    """A model and its soft mask as the one module that is trained (soft masking: arXiv 2510.17206, section 3).

    Both passes, the mixing and the loss happen inside ``forward``, where DDP, FSDP and autocast hook in.

    Args:
        model: meets ``MaskedDiffusionModel`` (and is an ``nn.Module``).
        soft_mask: None for plain binary masking.
        chunk_rows: rows of logits held at once; 128 MiB of float32 when None.
        loss: its name in :data:`soft_mask.diffusion.OBJECTIVES`: "mdlm", "per_token", "dream" or "llada".
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        soft_mask: SoftMask | None = None,
        chunk_rows: int | None = None,
        loss: str = "mdlm",
    ) -> None:
        super().__init__()
        self.objective = find_objective(loss)
        check_soft_mask(model, soft_mask)
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")
        self.model = model
        self.soft_mask = soft_mask
        self.chunk_rows = chunk_rows or default_chunk_rows(model.vocab_size)

    def forward(
        self,
        input_ids: Tensor,  # [B, L] int64, clean
        noisy_ids: Tensor,  # [B, L] int64, the same with masks
        t: Tensor,  # [B] float, in (0, 1]
        soft: bool = True,
        attention_mask: Tensor | None = None,  # [B, L] bool: padding is neither seen nor counted
        answer: Tensor | None = None,  # [B, L] bool: what may be masked and is learned; everything when None
    ) -> DenoiserOutput:
        """The loss of one batch.

        Args:
            soft: two passes, the first without gradient, when there is a soft mask; False makes it one binary pass, in
                which the soft mask's parameters take part with a gradient of zero (so that DDP finds them).

        Raises:
            ValueError: shapes do not fit, or clean tokens are outside the vocabulary.
        """
        self._check(input_ids, noisy_ids, t, attention_mask, answer)
        model, length = self.model, input_ids.shape[1]
        learned = attention_mask
        if answer is not None:  # a mask token that stands in a prompt is an ordinary token
            learned = answer.bool() if attention_mask is None else answer.bool() & attention_mask.bool()
        rows = masked_rows(noisy_ids, model.mask_token_id, learned)
        feedback = None
        mean_lambda = t.new_full((), float("nan"))
        if soft and self.soft_mask is not None:
            with torch.no_grad():
                first = encode(model, None, noisy_ids, None, attention_mask)
                hidden_rows = predicting_rows(first, rows, model.shift, attention_mask)
                feedback = read_feedback(model, self.soft_mask, hidden_rows, rows, noisy_ids.shape, self.chunk_rows)
                mean_lambda = self.soft_mask.gate(feedback.neg_entropy.flatten()[rows]).mean()
        hidden = encode(model, self.soft_mask, noisy_ids, feedback, attention_mask)
        row_nll = row_cross_entropy(
            predicting_rows(hidden, rows, model.shift, attention_mask),
            model.head,
            input_ids.flatten()[rows],
            (model.mask_token_id,) if model.bans_mask else (),
            self.chunk_rows,
        )
        sequence = rows // length
        t = t.to(row_nll.dtype)
        n_tokens = input_ids.numel() if attention_mask is None else attention_mask.sum()
        answers = torch.full_like(t, length, dtype=torch.int64) if learned is None else learned.sum(dim=1)
        loss = self.objective.loss(MaskedRows(row_nll, sequence, t, answers, n_tokens))
        if self.soft_mask is not None and feedback is None:
            for parameter in self.soft_mask.parameters():  # nothing is added but a place in the graph
                loss = loss + parameter.flatten()[:0].sum()
        nll = row_nll.new_zeros(t.shape).index_add(0, sequence, row_nll.detach() / t[sequence])
        return DenoiserOutput(loss, nll, mean_lambda, rows.numel())

    def _check(
        self, input_ids: Tensor, noisy_ids: Tensor, t: Tensor, attention_mask: Tensor | None, answer: Tensor | None
    ) -> None:
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [B, L], got shape {list(input_ids.shape)}")
        if input_ids.numel() == 0:
            raise ValueError(f"input_ids must hold at least one token, got shape {list(input_ids.shape)}")
        for name, value in (("noisy_ids", noisy_ids), ("attention_mask", attention_mask), ("answer", answer)):
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(f"{name} must have shape {list(input_ids.shape)}, got {list(value.shape)}")
        if t.shape != input_ids.shape[:1]:
            raise ValueError(f"t must have shape {list(input_ids.shape[:1])}, got {list(t.shape)}")
