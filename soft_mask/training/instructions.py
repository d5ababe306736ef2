"""The instruction data of a recipe: read, shuffled, tokenised once into the cache folder, and split."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from soft_mask.data import (
    Encoded,
    Filters,
    InstructionCollator,
    InstructionRows,
    encode_instructions,
    load_tokenizer,
    pack_instructions,
)
from soft_mask.models.tokenizer import model_tokenizer

from .recipe import InstructionSettings, Recipe

__all__ = ["make_instructions"]


def make_instructions(recipe: Recipe, model: Any, args: Any) -> tuple[Any, Any, InstructionCollator, Any]:
    """Training rows, validation rows with their times (or None), what makes batches of them, and the tokenizer.

    Raises:
        ValueError: the tokenizer is not the model's, and what reading the data raises.
    """
    settings = recipe.instructions
    assert settings is not None
    tokenizer = make_tokenizer(settings.tokenizer or recipe.model.load, model)
    filters = Filters(settings.length, settings.min_answer, (*(settings.drop_ids or ()), model.mask_token_id))
    path = Path(settings.cache) / f"{_key(settings, tokenizer, filters)}.instructions"
    with args.main_process_first(desc="tokenising"):
        if not path.with_name(path.name + ".json").is_file():
            _pack(path, settings, tokenizer, filters)
    train, held_out = InstructionRows.open(path)
    if held_out is not None:
        held_out = held_out.with_times(recipe.training.min_time, recipe.training.max_time)
    collator = InstructionCollator(
        tokenizer.pad_token_id, settings.pad_extra, settings.pad_multiple, settings.pad_in_loss, recipe.training.seed
    )
    return train, held_out, collator, tokenizer


def make_tokenizer(name: str | None, model: Any) -> Any:
    """The tokenizer of a folder or hub id, of which it is known that it is the model's.

    Raises:
        ValueError: it is not, or has no padding token.
    """
    if name is None:
        raise ValueError("instructions.tokenizer: a model made anew has no tokenizer, name one")
    tokenizer = model_tokenizer(name, model) if hasattr(model, "host") else load_tokenizer(name)
    if len(tokenizer) > model.vocab_size:
        raise ValueError(f"instructions.tokenizer: {name!r} has {len(tokenizer)} tokens, the model {model.vocab_size}")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"instructions.tokenizer: {name!r} has no padding token")
    return tokenizer


def _key(settings: InstructionSettings, tokenizer: Any, filters: Filters) -> str:
    parts: list[Any] = [filters, settings.rows, settings.validation_rows, settings.seed]
    for source in settings.sources:
        parts.append(source)
        if source.file is not None:
            if not Path(source.file).is_file():
                raise ValueError(f"instructions.sources: there is no file {source.file}")
            status = Path(source.file).stat()
            parts += [str(Path(source.file).resolve()), status.st_size, status.st_mtime_ns]
    parts += [type(tokenizer).__name__, len(tokenizer), tokenizer.chat_template, tokenizer.name_or_path]
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _pack(path: Path, settings: InstructionSettings, tokenizer: Any, filters: Filters) -> None:
    tables = [source.rows() for source in settings.sources]
    places = [(number, row) for number, table in enumerate(tables) for row in range(len(table))]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    held = settings.validation_rows or 0
    if held >= len(order):
        raise ValueError(f"instructions.validation_rows: {held} of {len(order)} rows leave none to train on")
    last = len(order) if settings.rows is None else min(held + settings.rows, len(order))
    left_out: Counter[str] = Counter()

    def rows(begin: int, end: int, what: str) -> Iterator[Encoded]:
        def talks() -> Iterator[Any]:
            for place in _told(order[begin:end], what):
                number, row = places[place]
                yield settings.sources[number].conversation(tables[number][row])

        return encode_instructions(talks(), tokenizer, filters, left_out)

    pack_instructions(path, rows(held, last, "training rows"), rows(0, held, "validation rows"), left_out)
    print(f"instructions: {len(order)} rows, of these {last} taken; left out: {dict(left_out) or 'none'}", flush=True)


def _told(items: Sequence[int], what: str, every_s: float = 5.0) -> Iterable[int]:
    """The items, with a line about the pace every few seconds."""
    began = said = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if now - said > every_s:
            said = now
            left = timedelta(seconds=round((now - began) / number * (len(items) - number)))
            print(f"tokenising {what}: {number:,} of {len(items):,}, ETA {left}", flush=True)
        yield item
