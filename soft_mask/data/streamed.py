"""Blocks that are tokenised as they are needed, and where that stands, so that a run resumes without reading all again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from .blocks import DOCUMENTS_TOGETHER, join_and_cut
from .documents import Reading

__all__ = ["StreamedBlocks"]

KEPT = 100_000  # blocks: how far behind the newest one a state can be asked for; loaders read ahead by a few batches


class StreamedBlocks(IterableDataset[dict[str, Tensor]]):
    """Blocks made as they are read, again from the start whenever the documents end; nothing is written to disk.

    Their order is that of the documents. ``state_dict(n)`` says where the block n lies; a new object that was given it with
    ``load_state_dict`` begins there, after tokenising at most the thousand documents that are joined with that block's.

    Args:
        documents: what can be read again from its beginning, or a ``HubDocuments``.
        key: tells these documents from others; a state of others is refused.
    """

    def __init__(self, documents: Iterable[str], tokenizer: Any, length: int, key: str = "") -> None:
        self.documents, self.tokenizer, self.length, self.key = documents, tokenizer, length, key
        self._from = self._begin = 0  # the first block that is given out; the first one of its thousand documents
        self._reading: dict[str, Any] | None = None  # where those documents begin
        self._marks: deque[tuple[int, dict[str, Any]]] = deque()

    def state_dict(self, blocks: int) -> dict[str, Any]:
        """For JSON: how to go on after ``blocks`` blocks, counted from the very first one of the run.

        Raises:
            ValueError: they have not been read here, or too long ago.
        """
        found = [(first, reading) for first, reading in self._marks if first <= blocks]
        if not found:
            raise ValueError(f"blocks: the place of block {blocks} is not known here")
        first, reading = found[-1]
        return {"blocks": blocks, "first": first, "reading": reading, "key": self.key}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin where ``state`` says.

        Raises:
            ValueError: it is that of other documents.
        """
        if state["key"] != self.key:
            raise ValueError("data: the checkpoint was written while other texts were streamed (files changed, or a setting)")
        self._from, self._begin, self._reading = state["blocks"], state["first"], state["reading"]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number, reading = self._begin, Reading(self.documents, self._reading)
        self._marks.clear()
        before = -1  # blocks there were when the documents last ended
        while True:
            where = reading.state()
            texts = list(islice(reading, DOCUMENTS_TOGETHER))
            if not texts:
                if number == before:
                    raise ValueError(f"the texts do not fill one block of {self.length} tokens")
                before, reading = number, Reading(self.documents)
                continue
            self._marks.append((number, where))
            while len(self._marks) > 1 and self._marks[1][0] <= number - KEPT:
                self._marks.popleft()
            for block in join_and_cut(texts, self.tokenizer, self.length):
                number += 1
                if number > self._from:
                    yield {"input_ids": torch.tensor(block)}
