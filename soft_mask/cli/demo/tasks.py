"""The two acts behind one face: where training and test tokens come from, and who judges what a model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from soft_mask.evaluation import NGram, unigram_entropy

from .markov import MarkovLanguage
from .settings import Act
from .text import TextLanguage, load_text


class Task(Protocol):
    vocab_size: int  # the mask included, as the last id
    floor: float | None  # the lowest possible NELBO in nats per token, where it is known

    def training_blocks(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 ``[count, L]``, fresh."""
        ...

    def test_blocks(self, count: int) -> Tensor:
        """int64 ``[≤ count, L]``, never trained on and the same for every branch."""
        ...

    def judge(self, ids: Tensor) -> dict[str, float]:
        """Scores of samples, int64 ``[N, L]``."""
        ...

    def spell(self, ids: Tensor) -> str:
        """One row of ids for people, one character a token."""
        ...


class MarkovTask:
    """Everything follows from the seed: another seed is another language."""

    def __init__(self, act: Act, seed: int) -> None:
        self.length = act.length
        self.seed = seed
        self.language = MarkovLanguage(seed)
        self.vocab_size = self.language.vocab_size + 1
        self.floor: float | None = self.language.floor(act.length)

    def training_blocks(self, count: int, generator: torch.Generator) -> Tensor:
        return self.language.sample(count, self.length, generator)

    def test_blocks(self, count: int) -> Tensor:
        return self.language.sample(count, self.length, torch.Generator().manual_seed(10**9 + self.seed))

    def judge(self, ids: Tensor) -> dict[str, float]:
        return {
            "legal": float(self.language.legal(ids).double().mean()),
            "nll": float(self.language.nll(ids).mean()) / self.length,
            "entropy": unigram_entropy(ids, pooled=True),
        }

    def spell(self, ids: Tensor) -> str:
        return self.language.spell(ids)


class TextTask:
    """One text for all seeds; the seed draws the windows, the weights and the masks."""

    def __init__(self, act: Act, text: Path | None) -> None:
        self.length = act.length
        self.language = TextLanguage.from_text(load_text(text))
        self.vocab_size = self.language.tokenizer.vocab_size
        self.floor: float | None = None
        self.reader = NGram(self.vocab_size, order=6).fit(*self.language.training)

    def training_blocks(self, count: int, generator: torch.Generator) -> Tensor:
        return self.language.windows(count, self.length, generator)

    def test_blocks(self, count: int) -> Tensor:
        return self.language.held_out_blocks(self.length, count)

    def judge(self, ids: Tensor) -> dict[str, float]:
        return {
            "nll": float(self.reader.nll(ids).mean()),
            "entropy": unigram_entropy(ids, pooled=True),
            "entropy_per_sample": unigram_entropy(ids),
        }

    def spell(self, ids: Tensor) -> str:
        return self.language.tokenizer.decode(ids)


def make_task(act: Act, seed: int, text: Path | None = None) -> Task:
    return MarkovTask(act, seed) if act.name == "markov" else TextTask(act, text)
