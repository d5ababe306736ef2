"""Documents one after the other: of a local file, plain or compressed, or of a data set of the hub."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["HubDocuments", "read_documents", "read_lines"]

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

    def __iter__(self) -> Iterator[str]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise ImportError(f"the data set {self.path!r} needs the package datasets: pip install datasets") from None
        if "[" in self.split:  # slices such as train[:-100000] are not to be had by streaming
            rows = load_dataset(self.path, self.name, split=self.split, revision=self.revision)
        else:
            rows = load_dataset(self.path, self.name, split=self.split, revision=self.revision, streaming=True)
        for row in rows:
            yield row[self.field]
