"""Act 2's language: English that every CPython carries (the help topics of ``pydoc``), or a file of the user's."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

UNKNOWN = "\ufffd"
MASK = "·"
SEGMENT = 4096  # characters; every tenth segment is held out


def load_text(path: Path | None = None, minimum: int = 20_000) -> str:
    """The text to learn: ``path`` (UTF-8) or, without one, CPython's help topics with repeated paragraphs left out.

    Raises ValueError in words when the file cannot be read, is empty, not UTF-8, or shorter than ``minimum`` characters.
    """
    if path is None:
        return _help_topics()
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--text: cannot read {path}: {error.strerror or error}") from None
    if not raw:
        raise ValueError(f"--text: {path} is empty")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text: {path} is not UTF-8 text (byte {error.start} cannot be decoded)") from None
    text = text.replace("\r\n", "\n")
    if len(text) < minimum:
        raise ValueError(f"--text: {path} has {len(text):,} characters; at least {minimum:,} are needed")
    return text


def _help_topics() -> str:
    """``pydoc_data.topics`` in alphabetical order.

    Topics quote one another: a paragraph is kept where it stands first, or held-out text would be read in training.
    """
    from pydoc_data.topics import topics

    kept: list[str] = []
    seen: set[str] = set()
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) >= 40 and words in seen:
                continue
            seen.add(words)
            kept.append(paragraph)
    return "\n\n".join(kept)


class CharTokenizer:
    """Characters as tokens: the ``most`` frequent ones of the text, then "unknown" for the rest, then the mask."""

    def __init__(self, text: str, most: int = 255) -> None:
        ranked = sorted(Counter(text).items(), key=lambda item: (-item[1], item[0]))
        self.characters = [character for character, _ in ranked[:most]]
        self._ids = {character: i for i, character in enumerate(self.characters)}

    @property
    def unknown_id(self) -> int:
        return len(self.characters)

    @property
    def mask_id(self) -> int:
        return len(self.characters) + 1

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 2

    def encode(self, text: str) -> Tensor:
        """int64 ``[T]``."""
        return torch.tensor([self._ids.get(character, self.unknown_id) for character in text], dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """One row of ids as text, with a middle dot for a mask."""
        alphabet = [*self.characters, UNKNOWN, MASK]
        return "".join(alphabet[i] for i in ids.tolist())


@dataclass
class TextLanguage:
    """A text cut into segments, nine of ten to learn from and one held out; windows never reach over a border."""

    tokenizer: CharTokenizer
    training: list[Tensor]  # int64, one per segment
    held_out: list[Tensor]
    facts: dict[str, int | str]

    @classmethod
    def from_text(cls, text: str, segment: int = SEGMENT) -> TextLanguage:
        segment = min(segment, max(len(text) // 20, 1))
        segments = [text[i : i + segment] for i in range(0, len(text), segment)]
        training = [part for i, part in enumerate(segments) if i % 10 != 5]
        held_out = [part for i, part in enumerate(segments) if i % 10 == 5]
        # the vocabulary is that of the training text: what only the held-out text has is unknown to the model
        tokenizer = CharTokenizer("".join(training))
        facts: dict[str, int | str] = {
            "characters": len(text),
            "training_characters": sum(map(len, training)),
            "held_out_characters": sum(map(len, held_out)),
            "vocabulary": tokenizer.vocab_size,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        return cls(tokenizer, [tokenizer.encode(t) for t in training], [tokenizer.encode(t) for t in held_out], facts)

    def windows(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int64 ``[count, length]``: windows at random places of the training segments."""
        whole = torch.cat(self.training)
        starts, at = [], 0
        for part in self.training:
            starts.append(torch.arange(at, at + max(len(part) - length + 1, 0)))
            at += len(part)
        allowed = torch.cat(starts)
        first = allowed[torch.randint(len(allowed), (count,), generator=generator)]
        return whole[first[:, None] + torch.arange(length)]

    def held_out_blocks(self, length: int, most: int | None = None) -> Tensor:
        """int64 ``[N, length]``: the held-out segments cut side by side; ``most`` keeps that many, evenly spread."""
        blocks = torch.cat([part[: len(part) // length * length].reshape(-1, length) for part in self.held_out])
        if most is not None and len(blocks) > most:
            blocks = blocks[torch.linspace(0, len(blocks) - 1, most).round().long()]
        return blocks
