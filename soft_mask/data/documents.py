"""Documents one after the other: of a local file, plain or compressed, or of a data set of the hub."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

__all__ = ["HubDocuments", "Reading", "read_documents", "read_lines"]

COMPRESSED = (".gz", ".xz", ".bz2", ".zst")


def read_documents(path: Path, field: str = "text", whole: bool = False) -> Iterator[str]:
    """Documents of a local file: each ``field`` of a ``.jsonl``, or each line of any other file; also compressed.

    Compressed is what ends in ``.gz``, ``.xz``, ``.bz2``, or ``.zst`` (which needs the package zstandard before Python
    3.14). Lines keep their newline.

    Args:
        whole: a text file is one document, not one a line.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or a line is not what it must be. ImportError: zstandard is
            needed and missing.
    """
    name = path.name
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    is_json = name.endswith((".jsonl", ".json"))
    try:
        with _open(path) as lines:
            if whole and not is_json:
                yield lines.read()
                return
            for number, line in enumerate(lines, 1):
                if not is_json:
                    yield line
                    continue
                try:
                    text = json.loads(line)[field]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}, line {number}: no JSON object with the field {field!r}") from error
                if not isinstance(text, str):
                    raise ValueError(f"{path}, line {number}: field {field!r} must be text, got {type(text).__name__}")
                yield text
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, compressed or not, without those that are blank.

    Raises:
        ValueError: it cannot be read. ImportError: zstandard is needed and missing.
    """
    try:
        with _open(path) as lines:
            yield from (line for line in lines if line.strip())
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".bz2":
        return bz2.open(path, "rt", encoding="utf-8")
    if path.suffix == ".zst":
        return _open_zstd(path)
    return open(path, encoding="utf-8")


def _open_zstd(path: Path) -> IO[str]:
    zstd: Any
    try:
        from compression import zstd  # type: ignore[import-not-found, no-redef]  # Python 3.14
    except ImportError:
        try:
            import zstandard as zstd  # type: ignore[no-redef]
        except ImportError:
            raise ImportError(f"{path.name} needs the package zstandard: pip install zstandard") from None
    return zstd.open(path, "rt", encoding="utf-8")


@dataclass(frozen=True)
class HubDocuments:
    """Where the documents of a hub data set are: arguments of ``datasets.load_dataset``; iterating streams them.

    Raises (when read): ImportError without ``datasets``; what ``datasets`` raises when the set cannot be had.
    """

    path: str
    split: str = "train"
    name: str | None = None
    field: str = "text"
    revision: str | None = None

    def rows(self) -> Any:
        """A ``datasets.IterableDataset``; of a slice such as ``train[:-100000]``, which streaming has not, a prepared set's."""
        try:
            from datasets import load_dataset
        except ImportError:
            raise ImportError(f"the data set {self.path!r} needs the package datasets: pip install datasets") from None
        if "[" in self.split:
            return load_dataset(self.path, self.name, split=self.split, revision=self.revision).to_iterable_dataset()
        return load_dataset(self.path, self.name, split=self.split, revision=self.revision, streaming=True)

    def text(self, row: Any) -> str:
        """ValueError: the row has no such field, or it holds no text."""
        text = row.get(self.field)
        if not isinstance(text, str):
            raise ValueError(f"{self.path}: no text in the field {self.field!r}; the fields are {', '.join(row)}")
        return text

    def __iter__(self) -> Iterator[str]:
        for row in self.rows():
            yield self.text(row)


class Reading:
    """Documents one after the other, and where the reading stands.

    Args:
        documents: what can be read again from its beginning.
        state: of another reading of the same documents, where this one shall go on. A hub set goes there; other documents
            are read up to there and passed over.
    """

    def __init__(self, documents: Iterable[str], state: dict[str, Any] | None = None) -> None:
        self._count = 0 if state is None else int(state["documents"])
        self._given = state  # until a row is read `datasets` says "at the beginning", whatever state it was given
        self._rows = None
        if isinstance(documents, HubDocuments):
            self._rows = documents.rows()
            if state is not None:
                self._rows.load_state_dict(state["rows"])
            self._texts: Iterator[str] = map(documents.text, self._rows)
        else:
            self._texts = islice(documents, self._count, None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self._count += 1
        self._given = None
        return text

    def state(self) -> dict[str, Any]:
        """For JSON: how many documents were read, and of a hub set where its rows stand."""
        if self._given is not None:
            return self._given
        return {"documents": self._count, "rows": None if self._rows is None else self._rows.state_dict()}
