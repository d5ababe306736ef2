"""Checks that the configurations of hosted models share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["need_fields"]


def need_fields(config: Any, sizes: Iterable[str]) -> None:
    """Sizes are positive integers, and the mask is a token of the vocabulary.

    Raises:
        TypeError, ValueError: naming the field.
    """
    for name in (*sizes, "mask_token_id"):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < (0 if name == "mask_token_id" else 1):
            raise ValueError(f"{name} must be positive, got {value}")
    if config.mask_token_id >= config.vocab_size:
        raise ValueError(f"mask_token_id must lie in [0, vocab_size={config.vocab_size}), got {config.mask_token_id}")
