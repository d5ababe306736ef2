"""MDLM's semi-autoregressive sampling: text of any length from a model of a fixed window (arXiv 2406.07524, section 5.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.sampling.arguments import check_int
from soft_mask.sampling.generation import GenerateOutput, generate
from soft_mask.sampling.noise import uniform

__all__ = ["generate_semi_autoregressive"]


def generate_semi_autoregressive(
    model: MaskedDiffusionModel,
    batch_size: int,
    length: int,
    *,
    stride: int,
    num_strides: int,
    steps: int = 1000,
    prefix: Tensor | None = None,  # [B, P] int64, P <= length - 1: stands at the beginning of the first window
    soft_mask: SoftMask | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> GenerateOutput:
    """Sample ``length + stride * num_strides`` tokens, a window of ``length`` after the other.

    The first window is filled from masks; then ``num_strides`` times the last ``length - stride`` tokens become the fixed
    beginning of a new window whose ``stride`` last positions are masks. The feedback of soft masking starts anew in every
    window. As in the original the times of a window run from 1 down to 0 (eps = 0) in ``steps`` steps.

    Args:
        stride: new tokens a window, 1 .. ``length - 1``.
        steps: denoising steps a window; the original's 1 / dt.
        options: of :func:`soft_mask.generate` (``alg``, ``temperature``, ``top_p``, ``eta`` ...), the callback among them.

    Returns:
        ``sequences`` ``[B, length + stride * num_strides]``, and ``nfe`` summed over the windows.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("length", length, 2),
        ("stride", stride, 1),
        ("num_strides", num_strides, 0),
    ):
        check_int(name, value, least)
    if stride >= length:
        raise ValueError(f"stride must be below length={length}, or nothing joins the windows; got {stride}")
    if options.pop("history", False):
        raise ValueError("history must be False: the windows' histories do not join; use callback")
    device = model.embedding.device
    window = torch.full((batch_size, length), model.mask_token_id, device=device)
    if prefix is not None:
        if not isinstance(prefix, Tensor) or prefix.dtype != torch.int64:
            raise TypeError("prefix must be an int64 tensor or None")
        if prefix.dim() != 2 or prefix.shape[0] != batch_size or prefix.shape[1] >= length:
            raise ValueError(f"prefix must be [{batch_size}, at most {length - 1}], got shape {list(prefix.shape)}")
        window[:, : prefix.shape[1]] = prefix
    options.setdefault("eps", 0.0)
    parts: list[Tensor] = []
    nfe = 0
    for number in range(num_strides + 1):
        out = generate(model, window, steps=steps, soft_mask=soft_mask, generator=generator, **options)
        nfe += out.nfe
        if options.get("noise") == "race":
            # The original takes one more step, at t = 0: nothing is masked by then, but its numbers are drawn.
            dtype = options.get("noise_dtype") or torch.float64
            uniform((window.numel(), model.vocab_size), generator, device, dtype)
        last = number == num_strides
        parts.append(out.sequences if last else out.sequences[:, :stride])
        window = torch.full_like(window, model.mask_token_id)
        window[:, :-stride] = out.sequences[:, stride:]
    return GenerateOutput(torch.cat(parts, dim=1), nfe)
