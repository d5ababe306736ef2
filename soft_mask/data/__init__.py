"""From texts to tokens: files and hub data sets, tokenizers, MDLM's blocks, instructions and answers, packed files."""

from __future__ import annotations

from .blocks import DOCUMENTS_TOGETHER, iterate_blocks, wrap
from .documents import HubDocuments, read_documents
from .instruction_rows import InstructionCollator, InstructionRows, pack_instructions
from .instructions import Encoded, Filters, InstructionSource, encode_instructions
from .packed import PackedBlocks, pack
from .streamed import StreamedBlocks
from .tokenizer import ByteTokenizer, load_tokenizer

__all__ = [
    "DOCUMENTS_TOGETHER",
    "ByteTokenizer",
    "Encoded",
    "Filters",
    "HubDocuments",
    "InstructionCollator",
    "InstructionRows",
    "InstructionSource",
    "PackedBlocks",
    "StreamedBlocks",
    "encode_instructions",
    "iterate_blocks",
    "load_tokenizer",
    "pack",
    "pack_instructions",
    "read_documents",
    "wrap",
]
