"""The likelihood bound of a masked diffusion model on a fixed set of masks: two models can be compared in pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from soft_mask.diffusion.denoiser import Denoiser

# Masks are drawn for this many sequences at a time, whatever the batch size: it must not change the numbers.
_DRAWN_TOGETHER = 1024


def stratified_times(n: int, generator: torch.Generator, eps: float = 1e-3) -> Tensor:
    """``n`` times, one from each of n equal parts of [eps, 1], in random order: float32 ``[n]`` on the CPU."""
    u = (torch.rand((), generator=generator, dtype=torch.float64) + torch.arange(n, dtype=torch.float64)) / n
    return (eps + (1 - eps) * u[torch.randperm(n, generator=generator)]).float()


@torch.no_grad()
def nelbo(
    denoiser: Denoiser,
    blocks: Tensor,
    seed: int = 0,
    draws: int = 1,
    soft: bool = True,
    batch_size: int = 128,
    eps: float = 1e-3,
    times: str = "stratified",
) -> Tensor:
    """Upper bound on -log p of every sequence (the MDLM bound, 1/t weighted), by ``draws`` Monte-Carlo draws.

    The times are stratified over all N sequences and, like the masks, follow from ``seed`` alone: any two models, and
    one model with and without feedback, see the same corrupted tokens whatever the batch size.

    Parameters
    ----------
    denoiser: model and soft mask; put in eval mode for the call.
    blocks: int64 ``[N, L]`` clean tokens.
    seed: of times and masks.
    draws: how many (time, mask) pairs per sequence.
    soft: two passes with feedback; False scores the same weights with one pass and plain masks. The two-pass bound is a
        valid one too: its predictor is a function of the corrupted tokens alone.
    batch_size: sequences per forward pass.
    eps: smallest time.
    times: "stratified" over all sequences, or "antithetic" within each batch of ``batch_size`` as in MDLM's own
        validation, whose numbers then depend on the batch size.

    Returns float64 ``[N]`` nats per sequence on the CPU, the mean over draws. Divide by L for nats per token.
    """
    # The diffusion package is a sibling: import it late, so that statistics alone cost nothing.
    from soft_mask.diffusion.corruption import mask_tokens
    from soft_mask.diffusion.noise import antithetic_times

    if not isinstance(blocks, Tensor) or blocks.dtype != torch.int64 or blocks.dim() != 2:
        given = f"{blocks.dtype} {tuple(blocks.shape)}" if isinstance(blocks, Tensor) else type(blocks).__name__
        raise ValueError(f"blocks: expected int64 [N, L], got {given}")
    if blocks.numel() == 0:
        raise ValueError(f"blocks: expected at least one token, got shape {tuple(blocks.shape)}")
    if draws < 1 or batch_size < 1:
        raise ValueError(f"draws and batch_size: expected at least 1, got {draws} and {batch_size}")
    if not 0.0 < eps < 1.0:
        raise ValueError(f"eps: expected a smallest time inside (0, 1), got {eps}")

    if times not in ("stratified", "antithetic"):
        raise ValueError(f"times: expected 'stratified' or 'antithetic', got {times!r}")

    n = blocks.shape[0]
    device = next(denoiser.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(n, dtype=torch.float64)
    was_training = denoiser.training
    denoiser.eval()
    try:
        for _ in range(draws):
            if times == "stratified":
                all_times = stratified_times(n, generator, eps)
            else:
                sizes = [min(batch_size, n - at) for at in range(0, n, batch_size)]
                all_times = torch.cat([antithetic_times(size, generator, eps) for size in sizes])
            for first in range(0, n, _DRAWN_TOGETHER):
                clean = blocks[first : first + _DRAWN_TOGETHER].cpu()
                t = all_times[first : first + _DRAWN_TOGETHER]
                noisy = mask_tokens(clean, t, denoiser.model.mask_token_id, generator)
                for at in range(0, len(clean), batch_size):
                    part = slice(at, at + batch_size)
                    output = denoiser(clean[part].to(device), noisy[part].to(device), t[part].to(device), soft=soft)
                    total[first + at : first + at + batch_size] += output.sequence_nll.double().cpu()
    finally:
        denoiser.train(was_training)
    return total / draws
