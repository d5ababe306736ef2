"""The texts of the small-scale study, from a data folder or from CPython itself, as characters and as GPT-2 tokens."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soft_mask.evaluation import NGram, byte_count, unigram_entropy

from ..demo.text import SEGMENT, CharTokenizer, TextLanguage, load_text

SHAKESPEARE, WIKITEXT = Path("tinyshakespeare/input.txt"), Path("wikitext2/valid.txt")
GPT2 = Path("gpt2")
JUDGE_ORDER = 5
DEV, TEST = 7, 5  # of every ten segments: one to choose settings on, one to report, eight to learn from


@dataclass(frozen=True)
class Source:
    """Where a study's text and tokenizer are; ``tokenizer`` None is characters, ``text`` None CPython's help texts."""

    text: Path | None = None
    tokenizer: Path | None = None

    def fingerprint(self) -> str:
        """Of the text and the tokenizer's files: another one makes finished stages stale."""
        content = hashlib.sha256(load_text(self.text).encode())
        if self.tokenizer is not None:
            for file in sorted(path for path in self.tokenizer.iterdir() if path.is_file()):
                content.update(file.read_bytes())
        return content.hexdigest()[:16]


def find_sources(folder: Path | None) -> tuple[dict[str, Source], list[str]]:
    """Sources by study ("characters", "tokens"), and what is to be said about them.

    Raises:
        ValueError: ``folder`` is none, or holds neither text.
    """
    if folder is None:
        what = "no --data folder: characters of the help texts that CPython carries; GPT-2 tokens need its tokenizer"
        return {"characters": Source()}, [f"{what} and are left out"]
    if not folder.is_dir():
        raise ValueError(f"--data: {folder} is not a folder")
    shakespeare, wikitext = ((folder / name).is_file() for name in (SHAKESPEARE, WIKITEXT))
    if not shakespeare and not wikitext:
        raise ValueError(f"--data: {folder} must hold {SHAKESPEARE} or {WIKITEXT} (plain text, UTF-8); it holds neither")
    for name, there in ((SHAKESPEARE, shakespeare), (WIKITEXT, wikitext)):
        if there:
            load_text(folder / name)  # one that cannot be read is told before any work
    found = {"characters": Source(folder / (SHAKESPEARE if shakespeare else WIKITEXT))}
    said = [] if shakespeare else [f"no {SHAKESPEARE} in {folder}: characters of {WIKITEXT}"]
    if not (folder / GPT2).is_dir():
        return found, [*said, f"no folder {GPT2} with GPT-2's tokenizer in {folder}: GPT-2 tokens are left out"]
    load_tokenizer_or_say(folder / GPT2)
    found["tokens"] = Source(folder / (WIKITEXT if wikitext else SHAKESPEARE), folder / GPT2)
    return found, said if wikitext else [*said, f"no {WIKITEXT} in {folder}: GPT-2 tokens of {SHAKESPEARE}"]


def load_tokenizer_or_say(folder: Path) -> Any:
    """Raises ValueError in words for a folder whose tokenizer cannot be read."""
    from soft_mask.data import load_tokenizer

    try:
        return load_tokenizer(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"--data: {folder} holds no tokenizer that can be read: {error}") from None


@dataclass(frozen=True)
class HeldOut:
    """Blocks for a bound, int64 ``[N, L]``, and what turns it into bits per byte."""

    blocks: Tensor
    bytes: int  # of UTF-8
    hidden_nats: float  # what saying which token of the class "other" it is costs, all blocks together

    def bits_per_byte(self, nats_per_token: float) -> float:
        return (nats_per_token * self.blocks.numel() + self.hidden_nats) / math.log(2) / self.bytes


class Corpus:
    """One text, cut into segments: of every ten, eight to learn from, one to choose settings on, one to report.

    Args:
        source: the text, and GPT-2's tokenizer or None for characters.
        length: tokens a block.

    With GPT-2's tokens the model's vocabulary is the ids that the training text has, one class for all others, and the
    mask: a softmax over all 50,258 would cost four times as much and train nothing more. A token of that class costs the
    class under the model, and an equal share of the ids in it beyond: bits per byte stay a code length of the whole text.
    """

    def __init__(self, source: Source, length: int) -> None:
        self.length = length
        parts = split(load_text(source.text))
        self.characters = CharTokenizer("".join(parts["training"]))
        self.gpt2 = None if source.tokenizer is None else load_tokenizer_or_say(source.tokenizer)
        ids = {name: [self._encode(text) for text in texts] for name, texts in parts.items()}
        self.texts = {name: TextLanguage(self.characters, ids["training"], ids[name], {}) for name in ("dev", "test")}
        self.reader = NGram(self.characters.vocab_size - 1, JUDGE_ORDER)
        self.reader.fit(*(self.characters.encode(text) for text in parts["training"]))
        if self.gpt2 is None:
            self.vocab_size = self.characters.vocab_size
        else:
            self.kept = torch.cat(ids["training"]).unique()  # ascending GPT-2 ids
            self.vocab_size = len(self.kept) + 2
        self.facts: dict[str, Any] = {
            "text": "/".join(source.text.parts[-2:]) if source.text else "pydoc_data.topics",
            "fingerprint": source.fingerprint(),
            "unit": "character" if self.gpt2 is None else "GPT-2 token",
            "vocabulary": self.vocab_size,
            **{f"{name}_characters": sum(map(len, texts)) for name, texts in parts.items()},
            **{f"{name}_tokens": sum(map(len, rows)) for name, rows in ids.items()},
        }

    def _encode(self, text: str) -> Tensor:
        if self.gpt2 is None:
            return self.characters.encode(text)
        return torch.tensor(self.gpt2(text)["input_ids"], dtype=torch.int64)

    def _own(self, ids: Tensor) -> Tensor:
        """Ids as the model has them."""
        if self.gpt2 is None:
            return ids
        at = torch.searchsorted(self.kept, ids).clamp(max=len(self.kept) - 1)
        return torch.where(self.kept[at] == ids, at, len(self.kept))

    def training_blocks(self, count: int, generator: torch.Generator) -> Tensor:  # int64 [count, L]
        return self._own(self.texts["test"].windows(count, self.length, generator))

    def held_out(self, name: str, most: int) -> HeldOut:
        """The blocks of "dev" or "test", at most so many, evenly spread."""
        ids = self.texts[name].held_out_blocks(self.length, most)
        if self.gpt2 is None:
            spelt = "".join(self.characters.decode(row) for row in ids)
            # a character that the training text does not have is one of 1,114,112 others
            unknown = int((ids == self.characters.unknown_id).sum())
            return HeldOut(ids, len(spelt.encode()), unknown * math.log(0x110000))
        own = self._own(ids)
        others = int((own == len(self.kept)).sum())
        return HeldOut(own, byte_count(ids, self.gpt2), others * math.log(len(self.gpt2) - len(self.kept)))

    def spell(self, row: Tensor) -> str:
        """One row of the model's ids as text."""
        if self.gpt2 is None:
            return self.characters.decode(row)
        known = row[row < len(self.kept)]
        return str(self.gpt2.decode(self.kept[known].tolist()))

    def judge(self, ids: Tensor) -> dict[str, float]:
        """Samples int64 ``[N, L]``: nats a character for a reader of the training text, and how varied the tokens are.

        ``entropy``: unigram entropy in nats, mean over samples, as in the papers; ``pooled_entropy`` of all together.
        """
        spelt = [self.characters.encode(self.spell(row)) for row in ids]
        costs = [self.reader.nll(row[None]).sum() for row in spelt if len(row)]
        read = sum(len(row) for row in spelt)
        return {
            "ngram_nats": float(torch.stack(costs).sum()) / read if read else math.inf,
            "entropy": unigram_entropy(ids),
            "pooled_entropy": unigram_entropy(ids, pooled=True),
        }


def split(text: str, segment: int = SEGMENT) -> dict[str, list[str]]:
    """ "training", "dev" and "test" segments; with a short text they are shorter, so that there is one of each."""
    segment = min(segment, max(len(text) // 20, 1))
    segments = [text[i : i + segment] for i in range(0, len(text), segment)]
    held = {"dev": [part for i, part in enumerate(segments) if i % 10 == DEV]}
    held["test"] = [part for i, part in enumerate(segments) if i % 10 == TEST]
    return {"training": [part for i, part in enumerate(segments) if i % 10 not in (DEV, TEST)], **held}
