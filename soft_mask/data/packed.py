"""Blocks of tokens in a file that is memory-mapped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["PackedBlocks", "pack"]


def pack(path: Path, blocks: Iterable[list[int]], length: int, vocab_size: int, about: dict[str, Any] | None = None) -> int:
    """Write blocks of ``length`` ids into ``path`` (raw little-endian uint16 or uint32) and what they are into ``path.json``.

    Both appear whole or not at all. Returns the number of blocks.

    Raises:
        ValueError: there is no block, one has another length, or an id is outside the vocabulary.
    """
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
    path.parent.mkdir(parents=True, exist_ok=True)
    part, count = path.with_name(f"{path.name}.{os.getpid()}.part"), 0
    source = iter(blocks)
    try:
        with open(part, "wb") as file:
            while some := list(islice(source, 1024)):
                if wrong := next((block for block in some if len(block) != length), None):
                    raise ValueError(f"blocks: expected {length} ids in each, got one of {len(wrong)}")
                ids = np.asarray(some, dtype=np.int64)
                if ids.min() < 0 or ids.max() >= vocab_size:
                    raise ValueError(f"blocks: ids must lie in [0, {vocab_size}), got from {ids.min()} to {ids.max()}")
                file.write(ids.astype(dtype).tobytes())
                count += len(some)
        if not count:
            raise ValueError(f"the texts do not fill one block of {length} tokens")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    header = {"length": length, "blocks": count, "dtype": dtype.name, "vocab_size": vocab_size, **(about or {})}
    part.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    os.replace(part, header_path(path))
    return count


def header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


class PackedBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of a token file, memory-mapped: item i is ``{"input_ids": int64 [L]}``.

    The file holds raw little-endian ids; ``path.json`` beside it, as :func:`pack` writes, says their type and length.
    For a file of others' making, say both.

    Args:
        length: L. dtype: "uint16" or "uint32". vocab_size: ids at or above it are an error when a block that has one is
            read (a file may be too long to be searched beforehand).

    Raises:
        ValueError: the file is not there, is cut off, or its header says otherwise.
    """

    def __init__(self, path: Path, length: int | None = None, dtype: str | None = None, vocab_size: int | None = None) -> None:
        header: dict[str, Any] = {}
        if header_path(path).is_file():
            try:
                header = json.loads(header_path(path).read_text(encoding="utf-8"))
                header["length"], header["dtype"], header["blocks"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{header_path(path)} is not the header of a token file: {error!r}") from None
        for name, given in (("length", length), ("dtype", dtype)):
            if given is not None and header.get(name, given) != given:
                raise ValueError(f"{path} was packed with {name} {header[name]}, not {given}")
        length, dtype = header.get("length", length), header.get("dtype", dtype)
        if length is None or dtype is None:
            raise ValueError(f"{path} has no header {header_path(path).name}: say its length and dtype (uint16 or uint32)")
        if dtype not in ("uint16", "uint32"):
            raise ValueError(f"dtype: expected uint16 or uint32, got {dtype!r}")
        if not path.is_file():
            raise ValueError(f"cannot read {path}: there is no such file")
        row = length * np.dtype(dtype).itemsize
        size = path.stat().st_size
        count = header.get("blocks", size // row)
        if count < 1 or size < count * row or (header and size != count * row):
            raise ValueError(f"{path} is cut off or not of this kind: {size} bytes, expected {count} blocks of {row} bytes")
        self.path, self.length, self.vocab_size = path, length, vocab_size
        self.ids = np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r", shape=(count, length))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._checked(self.ids[index])}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return {"input_ids": self._checked(self.ids[np.asarray(indices)])}

    def _checked(self, ids: Any) -> Tensor:
        if self.vocab_size is not None and ids.max() >= self.vocab_size:
            raise ValueError(f"{self.path} holds id {ids.max()}, outside the model's vocabulary of {self.vocab_size}")
        return torch.from_numpy(ids.astype(np.int64))
