"""Instructions and answers: where they are, as messages, as tokens with the length of the prompt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from .documents import read_lines

__all__ = ["Encoded", "Filters", "InstructionSource", "encode_instructions"]

ROLES = {"human": "user", "gpt": "assistant"}  # Ling-Coder-SFT says HUMAN and ASSISTANT
TOGETHER = 1000  # conversations that go through the tokenizer at once

Message = dict[str, str]


@dataclass
class InstructionSource:
    """A hub data set (``hub``, ``name``, ``split``) or a JSON-lines ``file``, plain or compressed.

    A row holds its conversation under ``messages`` (``[{"role", "content"}, ...]``, the last one is the answer), or in two
    fields, ``prompt`` and ``response``.

    Raises:
        ValueError: neither or both of hub and file, or of messages and the two fields, are given.
    """

    hub: str | None = None
    name: str | None = None
    split: str = "train"
    file: str | None = None
    messages: str | None = None
    prompt: str | None = None
    response: str | None = None

    def __post_init__(self) -> None:
        if (self.hub is None) == (self.file is None):
            raise ValueError("instructions: give each source either hub or file")
        if (self.prompt is None) != (self.response is None) or (self.messages and self.prompt):
            raise ValueError("instructions: give each source either messages or both of prompt and response")
        if self.messages is None and self.prompt is None:
            self.messages = "messages"

    def rows(self) -> Sequence[dict[str, Any]]:
        """All rows: a memory-mapped data set of the hub, or a list.

        Raises:
            ValueError: the file cannot be read or holds something else. ImportError: ``datasets`` is missing.
        """
        if self.file is not None:
            return _read_rows(Path(self.file))
        try:
            from datasets import load_dataset
        except ImportError:
            raise ImportError(f"the data set {self.hub!r} needs the package datasets: pip install datasets") from None
        found: Any = load_dataset(self.hub, self.name, split=self.split)
        fields = [self.messages] if self.messages else [self.prompt, self.response]
        if missing := [field for field in fields if field not in found.column_names]:
            raise ValueError(f"{self.hub}: no field {missing[0]!r}; there are {', '.join(found.column_names)}")
        return found.select_columns(fields)

    def conversation(self, row: dict[str, Any]) -> list[Message] | None:
        """The messages of a row, the answer last; None where there is no answer.

        Raises:
            ValueError: the row is not of this kind.
        """
        where = self.file or self.hub
        if self.messages is None:
            asked, said = row.get(str(self.prompt)), row.get(str(self.response))
            if not (isinstance(asked, str) and isinstance(said, str)):
                raise ValueError(f"{where}: a row's fields {self.prompt!r} and {self.response!r} must be texts")
            found = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        else:
            said = row.get(self.messages)
            if not isinstance(said, list) or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in said):
                raise ValueError(f"{where}: a row's field {self.messages!r} must be a list of messages with role and content")
            roles = [str(message["role"]).lower() for message in said]
            found = [
                {"role": ROLES.get(role, role), "content": m["content"] or ""} for role, m in zip(roles, said, strict=True)
            ]
        answered = len(found) > 1 and found[-1]["role"] == "assistant" and bool(found[-1]["content"])
        return found if answered else None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


class Encoded(NamedTuple):
    """Token ids of a conversation, and how many of them are the prompt."""

    ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class Filters:
    """What is left out, as in the paper's fine-tuning: long conversations, short answers, and those with certain ids.

    Tokens are counted as the chat template makes them, the end-of-turn mark included.
    """

    max_length: int = 2048
    min_answer: int = 5
    drop_ids: tuple[int, ...] = ()

    def reason(self, row: Encoded) -> str | None:
        """Why a row is left out, or None."""
        if len(row.ids) > self.max_length:
            return "too long"
        if len(row.ids) - row.prompt_length < self.min_answer:
            return "answer too short"
        if self.drop_ids and not set(self.drop_ids).isdisjoint(row.ids):
            return "dropped ids"
        return None


def encode_instructions(
    conversations: Iterable[list[Message] | None], tokenizer: Any, filters: Filters, left_out: Counter[str] | None = None
) -> Iterator[Encoded]:
    """Conversations as tokens by the tokenizer's chat template, without those that the filters leave out.

    The prompt is what the template makes of everything but the answer, up to where the answer's turn opens. Where the
    tokenizer joins the end of it with the answer's beginning (an answer that starts with a line break), the joint token
    counts as answer.

    Args:
        conversations: None for one without an answer.
        left_out: counts what is left out, by reason.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("tokenizer: it has no chat template, which instructions need")
    source, counts = iter(conversations), Counter[str]() if left_out is None else left_out
    while batch := list(islice(source, TOGETHER)):
        talks = [talk for talk in batch if talk is not None]
        if len(talks) < len(batch):
            counts["no answer"] += len(batch) - len(talks)
        if not talks:
            continue
        whole = _tokens(tokenizer, talks, False)
        prompts = _tokens(tokenizer, [talk[:-1] for talk in talks], True)
        for ids, prompt in zip(whole, prompts, strict=True):
            row = Encoded(ids, _common(ids, prompt))
            if reason := filters.reason(row):
                counts[reason] += 1
            else:
                yield row


def _tokens(tokenizer: Any, talks: list[list[Message]], opened: bool) -> list[list[int]]:
    return tokenizer.apply_chat_template(
        talks, tokenize=True, add_generation_prompt=opened, return_dict=True, padding=False, truncation=False
    )["input_ids"]


def _common(ids: list[int], prompt: list[int]) -> int:
    same = 0
    for a, b in zip(ids, prompt, strict=False):
        if a != b:
            break
        same += 1
    return same
