"""Rows of instruction data: in memory or memory-mapped, of different lengths; and the batches made of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .instructions import Encoded

__all__ = ["InstructionCollator", "InstructionRows", "pack_instructions"]


class InstructionRows(Dataset[dict[str, Any]]):
    """N conversations: item i is ``{"input_ids": int64 [n_i], "prompt_length": int, "index": i}``, and ``"t"`` where set.

    Args:
        ids: all tokens, one row after the other, any integer dtype.
        starts: ``[N + 1]``, where each row begins, and the end.
        prompts: ``[N]``, tokens of each row's prompt.
        times: ``[N]``, a diffusion time for each row (evaluation), or None.

    Raises:
        ValueError: there is no row, or a row has no answer.
    """

    def __init__(self, ids: np.ndarray, starts: np.ndarray, prompts: np.ndarray, times: np.ndarray | None = None) -> None:
        if not len(prompts):
            raise ValueError("instructions: there is no row")
        bad = np.flatnonzero((np.diff(starts) <= prompts) | (prompts < 0))
        if len(bad):
            raise ValueError(f"instructions: row {bad[0]} has no answer after its prompt of {prompts[bad[0]]} tokens")
        self.ids, self.starts, self.prompts, self.times = ids, starts, prompts, times

    @classmethod
    def from_encoded(cls, rows: Sequence[Encoded]) -> InstructionRows:
        """Rows held in memory."""
        lengths = [len(row.ids) for row in rows]
        ids = np.fromiter((i for row in rows for i in row.ids), np.int64, sum(lengths))
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), np.array([r.prompt_length for r in rows]))

    @classmethod
    def open(cls, path: Path) -> tuple[InstructionRows, InstructionRows | None]:
        """The training rows and the held-out ones of a file of :func:`pack_instructions`, memory-mapped.

        Raises:
            ValueError: the file is not there, is cut off, or holds something else.
        """
        header_file = _beside(path, ".json")
        try:
            header = json.loads(header_file.read_text(encoding="utf-8"))
            count, tokens, held_out = (int(header[name]) for name in ("rows", "tokens", "held_out"))
            sizes = path.stat().st_size, _beside(path, ".rows").stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no file of instructions, or not whole: {error!r}") from None
        if sizes != (4 * tokens, 16 * count):
            raise ValueError(f"{path} is cut off: {sizes} bytes, expected {(4 * tokens, 16 * count)}")
        ids = np.memmap(path, np.dtype("<u4"), mode="r", shape=(tokens,))
        table = np.fromfile(_beside(path, ".rows"), np.dtype("<i8")).reshape(count, 2)  # length, prompt
        starts = np.concatenate([[0], np.cumsum(table[:, 0])])
        rest = None
        if held_out:
            rest = cls(ids, starts[: held_out + 1], table[:held_out, 1])
        return cls(ids, starts[held_out:], table[held_out:, 1]), rest

    def with_times(self, first: float, last: float) -> InstructionRows:
        """The same rows with times spread evenly over [first, last]."""
        return InstructionRows(self.ids, self.starts, self.prompts, np.linspace(first, last, len(self), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.ids[self.starts[index] : self.starts[index + 1]]
        item: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids.astype(np.int64)), "prompt_length": int(self.prompts[index]), "index": int(index)
        }  # fmt: skip
        if self.times is not None:
            item["t"] = float(self.times[index])
        return item


def pack_instructions(path: Path, rows: Iterable[Encoded], held_out: Iterable[Encoded] = (), about: Any = None) -> None:
    """Write rows, the held-out ones first, into ``path`` (uint32 ids), ``path.rows`` and, last, ``path.json``.

    Raises:
        ValueError: there is no training row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tokens = path.with_name(f"{path.name}.{os.getpid()}.part"), 0
    table: list[tuple[int, int]] = []
    try:
        with open(part, "wb") as file:
            held = 0
            for number, some in enumerate((held_out, rows)):
                for row in some:
                    file.write(np.asarray(row.ids, "<u4").tobytes())
                    table.append((len(row.ids), row.prompt_length))
                    tokens += len(row.ids)
                held = len(table) if number == 0 else held
        if len(table) == held:
            raise ValueError("instructions: the filters leave no row to train on")
        os.replace(part, path)
        np.asarray(table, "<i8").tofile(part)
        os.replace(part, _beside(path, ".rows"))
        header = {"rows": len(table), "tokens": tokens, "held_out": held, "about": about}
        part.write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        os.replace(part, _beside(path, ".json"))
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


class InstructionCollator:
    """Rows of different lengths as one batch, padded on the right.

    ``{"input_ids": int64 [B, L], "answer": bool [B, L]}``; ``answer`` is what may be masked and is learned: everything
    after a row's prompt, its padding included, so that the model learns to end (arXiv 2510.17206's fine-tuning). The
    padding is ordinary text there and is attended to. L is the longest row plus 0 .. ``extra`` - 1, rounded up to a
    ``multiple``. With ``pad_in_loss=False`` padding is neither seen nor learned: there is an ``attention_mask`` and no extra.

    The extra follows from ``seed`` and the rows of the batch, so that a resumed run pads alike.

    Raises:
        ValueError: a number is negative, or the multiple below 1.
    """

    def __init__(self, pad_token_id: int, extra: int = 50, multiple: int = 8, pad_in_loss: bool = True, seed: int = 0) -> None:
        for name, value, least in (("pad_token_id", pad_token_id, 0), ("extra", extra, 0), ("multiple", multiple, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
        self.pad_token_id, self.extra, self.multiple = pad_token_id, extra if pad_in_loss else 0, multiple
        self.pad_in_loss, self.seed = pad_in_loss, seed

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [feature["input_ids"] for feature in features]
        longest = max(len(row) for row in rows)
        if self.extra:
            text = repr(("padding", self.seed, [feature.get("index", 0) for feature in features])).encode()
            longest += int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") % self.extra
        length = -(-longest // self.multiple) * self.multiple
        ids = torch.full((len(rows), length), self.pad_token_id)
        for out, row in zip(ids, rows, strict=True):
            out[: len(row)] = row
        at = torch.arange(length)
        answer = at >= torch.tensor([feature["prompt_length"] for feature in features])[:, None]
        batch = {"input_ids": ids, "answer": answer}
        if not self.pad_in_loss:
            batch["attention_mask"] = at < torch.tensor([len(row) for row in rows])[:, None]
            batch["answer"] = answer & batch["attention_mask"]
        if "t" in features[0]:
            batch["t"] = torch.tensor([feature["t"] for feature in features])
        return batch
