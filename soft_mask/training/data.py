"""Blocks of tokens of one length: what a masked diffusion model is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """N blocks of L token ids held in memory (or memory-mapped): item i is ``{"input_ids": int64 [L]}``.

    Batches are cut by one index operation (``__getitems__``) and need no collating: use :func:`collate_blocks`.

    Raises TypeError unless ``blocks`` is an int64 tensor, ValueError unless it is ``[N, L]`` with N, L ≥ 1.
    """

    def __init__(self, blocks: Tensor) -> None:
        if not isinstance(blocks, Tensor) or blocks.dtype != torch.int64:
            given = blocks.dtype if isinstance(blocks, Tensor) else type(blocks).__name__
            raise TypeError(f"blocks: expected an int64 tensor [N, L], got {given}")
        if blocks.dim() != 2 or blocks.numel() == 0:
            raise ValueError(f"blocks: expected [N, L] with at least one token, got shape {tuple(blocks.shape)}")
        self.blocks = blocks

    @classmethod
    def from_tokens(cls, tokens: Tensor, length: int) -> TokenBlocks:
        """Cut one row of tokens (int64 ``[T]``) into blocks of ``length``; what is left over at the end is dropped."""
        if length < 1 or tokens.numel() < length:
            raise ValueError(f"tokens: {tokens.numel()} tokens do not fill one block of length {length}")
        count = tokens.numel() // length
        return cls(tokens[: count * length].reshape(count, length))

    def __len__(self) -> int:
        return self.blocks.shape[0]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[torch.as_tensor(indices)]}


def collate_blocks(features: Any) -> dict[str, Tensor]:
    """Batch of :class:`TokenBlocks` (already one tensor), or a list of ``{"input_ids"}`` items from another dataset."""
    if isinstance(features, dict):
        return features
    rows = [torch.as_tensor(feature["input_ids"], dtype=torch.int64) for feature in features]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise ValueError(f"input_ids: every block of a batch must have the same length, got lengths {lengths}")
    return {"input_ids": torch.stack(rows)}
