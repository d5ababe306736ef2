"""Forward corruption: tokens become masks, each on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from soft_mask.diffusion.noise import LogLinearNoise, Noise

__all__ = ["mask_tokens"]


def mask_tokens(
    input_ids: Tensor,  # [B, L] int64
    t: Tensor,  # [B] float, in [0, 1]
    mask_token_id: int,
    generator: torch.Generator | None = None,
    maskable: Tensor | None = None,  # [B, L] bool: where a mask may fall (everywhere when None)
    noise: Noise | None = None,
    at_least_one: bool = False,
) -> Tensor:  # [B, L] int64
    """Mask every token of sequence b with the noise's probability at ``t[b]`` (MDLM's by default, arXiv 2406.07524).

    One uniform number is drawn for every position, whatever ``t`` and ``maskable`` are.

    Args:
        at_least_one: a sequence in which no mask fell gets one, at the maskable position whose number was the smallest
            (each is that with the same probability).

    Raises:
        ValueError: a shape does not fit; with ``at_least_one`` a sequence has nothing to mask.
    """
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [B, L], got shape {list(input_ids.shape)}")
    if t.shape != input_ids.shape[:1]:
        raise ValueError(f"t must have shape {list(input_ids.shape[:1])}, got {list(t.shape)}")
    if maskable is not None and maskable.shape != input_ids.shape:
        raise ValueError(f"maskable must have shape {list(input_ids.shape)}, got {list(maskable.shape)}")
    draw = torch.rand(
        input_ids.shape, generator=generator, device=generator.device if generator is not None else input_ids.device
    ).to(input_ids.device)
    hit = draw < (noise or LogLinearNoise()).mask_probability(t.to(input_ids.device))[:, None]
    if maskable is not None:
        hit &= maskable.bool()
    if at_least_one:
        if maskable is not None:
            draw = draw.masked_fill(~maskable.bool(), 2.0)  # beyond any number that is drawn
        smallest, where = draw.min(dim=1)
        if bool((smallest > 1.0).any()):
            raise ValueError(f"maskable: sequence {int((smallest > 1.0).nonzero()[0])} has no position that may be masked")
        hit[torch.arange(len(hit), device=hit.device), where] |= ~hit.any(dim=1)
    return input_ids.masked_fill(hit, mask_token_id)
