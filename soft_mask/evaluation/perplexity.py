"""Perplexity of a masked diffusion model: the likelihood bound with its two errors, per token and per byte."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .nelbo import nelbo

if TYPE_CHECKING:
    from soft_mask.diffusion.denoiser import Denoiser

__all__ = ["Perplexity", "perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """Result of :func:`perplexity`. All bounds are upper bounds; errors are standard errors of ``nats_per_token``.

    Attributes:
        nats_per_token: mean over all tokens and draws.
        perplexity: its exponential.
        bits_per_token: in bits.
        bits_per_byte: total bits over total bytes; None when the bytes are not known.
        error_draws: of the Monte-Carlo draws of times and masks, for these very sequences; None with one draw.
        error_sequences: of the choice of sequences (it contains what is left of the draws' noise): what a fresh sample of
            text of this size would differ by. Neither knows of the noise of training.
        per_draw: the mean of every draw.
        tokens, bytes, sequences, draws: how many were counted.
        passes: forward passes a sequence and draw, 2 with feedback.
    """

    nats_per_token: float
    perplexity: float
    bits_per_token: float
    bits_per_byte: float | None
    error_draws: float | None
    error_sequences: float | None
    per_draw: tuple[float, ...]
    tokens: int
    bytes: int | None
    sequences: int
    draws: int
    passes: int

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "per_draw": list(self.per_draw)}


def perplexity(
    denoiser: Denoiser,
    blocks: Tensor,  # [N, L] int64
    *,
    seed: int = 0,
    draws: int = 1,
    soft: bool = True,
    batch_size: int = 32,
    times: str = "stratified",
    n_bytes: int | None = None,
) -> Perplexity:
    """Validation perplexity: exp of the NELBO per token, all tokens of the blocks counted (BOS and EOS too).

    The originals draw one time and one mask a sequence, times spread evenly over each batch: ``draws=1,
    times="antithetic"`` is that protocol, in which the figure moves by ``error_draws`` from seed to seed. "stratified"
    spreads the times over all sequences, which is less noisy and does not depend on the batch size. With a soft mask and
    ``soft`` two passes are made for every sequence, as in arXiv 2510.17206: the bound is that of the two-pass predictor.

    Args:
        denoiser: the model and its soft mask, on the device where it shall run.
        seed: of times and masks: the same for two models that are compared.
        draws: times and masks drawn for every sequence, at least 2 for an error of the draws.
        n_bytes: UTF-8 bytes of the text in the blocks, for bits per byte.

    Raises:
        ValueError: naming the argument.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if n_bytes is not None and n_bytes < 1:
        raise ValueError(f"n_bytes must be at least 1, or None, got {n_bytes}")
    each = torch.stack(
        [
            nelbo(denoiser, blocks, seed=seed + 7919 * draw, soft=soft, batch_size=batch_size, times=times)
            for draw in range(draws)
        ]
    )  # [D, N] nats
    sequences, length = blocks.shape
    per_draw = each.mean(1) / length
    mean = float(per_draw.mean())
    bits = mean / math.log(2)
    by_sequence = each.mean(0) / length
    return Perplexity(
        nats_per_token=mean,
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_token=bits,
        bits_per_byte=None if n_bytes is None else bits * sequences * length / n_bytes,
        error_draws=float(per_draw.std()) / math.sqrt(draws) if draws > 1 else None,
        error_sequences=float(by_sequence.std()) / math.sqrt(sequences) if sequences > 1 else None,
        per_draw=tuple(per_draw.tolist()),
        tokens=sequences * length,
        bytes=n_bytes,
        sequences=sequences,
        draws=draws,
        passes=2 if soft and denoiser.soft_mask is not None else 1,
    )
