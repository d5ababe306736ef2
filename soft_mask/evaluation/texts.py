"""Texts to measure perplexity on: the zero-shot sets of MDLM and the paper, local files, and the blocks made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from soft_mask.data import HubDocuments, read_documents

from .detokenize import DETOKENIZERS

__all__ = ["ZERO_SHOT", "ZeroShot", "byte_count", "read_texts", "zero_shot_texts"]


@dataclass(frozen=True)
class ZeroShot:
    """Where a text set is: arguments of ``datasets.load_dataset``, the split that the originals validate on, the field.

    ``revision``: sets that were scripts are read from the hub's own conversion to parquet.
    """

    path: str
    name: str | None
    split: str
    field: str = "text"
    detokenizer: str | None = None
    revision: str | None = None


PARQUET = "refs/convert/parquet"
ZERO_SHOT: dict[str, ZeroShot] = {
    # not zero-shot for models of OpenWebText: the last 100,000 documents are their validation set
    "openwebtext": ZeroShot("Skylion007/openwebtext", None, "train[-100000:]"),
    "ptb": ZeroShot("ptb-text-only/ptb_text_only", None, "validation", "sentence", "ptb", PARQUET),
    "wikitext2": ZeroShot("Salesforce/wikitext", "wikitext-2-raw-v1", "validation", "text", "wikitext"),
    "wikitext103": ZeroShot("Salesforce/wikitext", "wikitext-103-raw-v1", "validation", "text", "wikitext"),
    "lm1b": ZeroShot("billion-word-benchmark/lm1b", None, "test", "text", "lm1b", PARQUET),
    "lambada": ZeroShot("EleutherAI/lambada_openai", "default", "test", "text", "lambada"),
    "ag_news": ZeroShot("fancyzhx/ag_news", None, "test", "text", None),
    "arxiv": ZeroShot("armanc/scientific_papers", "arxiv", "validation", "article", "scientific_papers", PARQUET),
    "pubmed": ZeroShot("armanc/scientific_papers", "pubmed", "validation", "article", "scientific_papers", PARQUET),
}


def zero_shot_texts(name: str) -> Iterator[str]:
    """Documents of a set of :data:`ZERO_SHOT`, detokenised as the originals do; streamed from the hub or its cache.

    "openwebtext" is a slice, which cannot be streamed: the whole set is fetched and prepared once.

    Raises:
        ValueError: no such set. ImportError: ``datasets`` is missing. What ``datasets`` raises when it cannot be had.
    """
    if name not in ZERO_SHOT:
        raise ValueError(f"dataset must be one of {', '.join(ZERO_SHOT)}, got {name!r}")
    where = ZERO_SHOT[name]
    clean = DETOKENIZERS[where.detokenizer] if where.detokenizer else str
    for text in HubDocuments(where.path, where.split, where.name, where.field, where.revision):
        yield clean(text)


def read_texts(path: Path, field: str = "text", detokenizer: str | None = None) -> Iterator[str]:
    """Documents of a local file, as :func:`soft_mask.data.read_documents` reads them, detokenised.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or a line is not what it must be.
    """
    clean = DETOKENIZERS[detokenizer] if detokenizer else str
    for text in read_documents(path, field):
        yield clean(text)


def byte_count(blocks: Tensor, tokenizer: Any) -> int:
    """UTF-8 bytes of the text in the blocks, special tokens left out; exact for byte-level BPE such as GPT-2's.

    There every character of a token's spelling is a byte. Other tokenizers' blocks are decoded, where a character cut
    at a block's border counts as the three bytes of its replacement.
    """
    special = set(tokenizer.all_special_ids)
    ids, counts = blocks.unique(return_counts=True)
    kept = [(i, n) for i, n in zip(ids.tolist(), counts.tolist(), strict=True) if i not in special]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(backend.decoder).__name__ == "ByteLevel":
        return sum(len(tokenizer.convert_ids_to_tokens(i)) * n for i, n in kept)
    texts = tokenizer.batch_decode(blocks.tolist(), skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)
