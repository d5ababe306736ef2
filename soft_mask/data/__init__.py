"""From texts to blocks of tokens: files and hub data sets, tokenizers, MDLM's wrapping, packed files; for all that reads."""

from __future__ import annotations

from .blocks import DOCUMENTS_TOGETHER, iterate_blocks, wrap
from .documents import HubDocuments, read_documents
from .packed import PackedBlocks, pack
from .streamed import StreamedBlocks
from .tokenizer import ByteTokenizer, load_tokenizer

__all__ = [
    "DOCUMENTS_TOGETHER",
    "ByteTokenizer",
    "HubDocuments",
    "PackedBlocks",
    "StreamedBlocks",
    "iterate_blocks",
    "load_tokenizer",
    "pack",
    "read_documents",
    "wrap",
]
