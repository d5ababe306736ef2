"""MAUVE between samples and real text (arXiv 2102.01454), computed by the package ``mauve-text``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["mauve_score"]


def mauve_score(
    reference: Tensor,  # [N, d] features of real text
    samples: Tensor,  # [M, d]
    *,
    num_buckets: int | str = "auto",
    seed: int = 25,
    scaling_factor: float = 5.0,
) -> dict[str, Any]:
    """MAUVE and its smoothed form from features (see ``Scorer.features``); higher is closer, at most 1.

    The defaults are the package's. With few texts it is coarse: the papers use 5,000 of 1,024 tokens on each side, and
    numbers of other sizes do not compare.

    Raises:
        ImportError: ``mauve-text`` (GPL-3.0; an extra) is not installed.
        ValueError: shapes do not fit, or there are fewer than 2 texts on a side.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ImportError("MAUVE needs the package mauve-text: pip install mauve-text") from error
    for name, value in (("reference", reference), ("samples", samples)):
        if not isinstance(value, Tensor) or value.dim() != 2 or value.shape[0] < 2:
            raise ValueError(f"{name} must be features [N, d] of at least 2 texts")
    if reference.shape[1] != samples.shape[1]:
        raise ValueError(f"reference and samples must have features of one size, got {reference.shape[1]}, {samples.shape[1]}")
    out = compute_mauve(
        p_features=reference.float().cpu().numpy(),
        q_features=samples.float().cpu().numpy(),
        num_buckets=num_buckets,
        seed=seed,
        mauve_scaling_factor=scaling_factor,
        verbose=False,
    )
    return {
        "mauve": float(out.mauve),
        "mauve_star": float(out.mauve_star),
        "frontier_integral": float(out.frontier_integral),
        "num_buckets": int(out.num_buckets),
        "reference_texts": int(reference.shape[0]),
        "sample_texts": int(samples.shape[0]),
        "seed": seed,
        "scaling_factor": scaling_factor,
        "torch_threads": torch.get_num_threads(),
    }
