"""Gradient checkpointing and compiling, block by block: what lies between is short, and its shapes change every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["block_class", "checkpoint_blocks", "compile_blocks"]


def _blocks(model: nn.Module) -> list[nn.Module]:
    host: Any = getattr(model, "host", None)  # of transformers, whose decoders call them layers
    blocks = getattr(model, "blocks", None) if host is None else getattr(host.get_decoder(), "layers", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(f"model: {type(model).__name__} has no list of blocks to work on")
    return list(blocks)


def block_class(model: nn.Module) -> str:
    """Name of the class of the model's blocks, the unit of sharding.

    Raises:
        ValueError: the model has no blocks.
    """
    return type(_blocks(model)[0]).__name__


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep only the input of each block; the rest is computed once more in the backward pass.

    Raises:
        ValueError: the model has no blocks.
    """
    for block in _blocks(model):
        inner = block.forward

        def forward(*args: Any, _inner: Any = inner, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return _inner(*args, **kwargs)
            return checkpoint(_inner, *args, use_reentrant=False, **kwargs)

        block.forward = forward  # type: ignore[method-assign, assignment]


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """``torch.compile`` each block in place; names of parameters stay. ``options`` are torch.compile's.

    Raises:
        ValueError: the model has no blocks.
    """
    for block in _blocks(model):
        block.compile(**options)
