"""Tokenizers: those of ``transformers``, and one of bytes for runs that need no file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["ByteTokenizer", "load_tokenizer"]


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 .. 255, and 256 as BOS and EOS; 257, the padding, is left for the mask."""

    bos_token_id = eos_token_id = 256
    pad_token_id = 257
    all_special_ids = [256]

    def __len__(self) -> int:
        return 257

    def __call__(self, texts: str | list[str], **_: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": list(texts.encode())}
        return {"input_ids": [list(text.encode()) for text in texts]}

    def batch_decode(self, rows: list[list[int]], **_: Any) -> list[str]:
        return [bytes(i for i in row if i < 256).decode(errors="replace") for row in rows]


def load_tokenizer(path_or_hub_id: str | os.PathLike[str]) -> Any:
    """A tokenizer of ``transformers``; also from a folder that has only GPT-2's two files, under either name.

    Raises:
        ValueError: the folder holds no tokenizer. OSError: no such hub id.
    """
    from transformers import AutoTokenizer
    from transformers.models.gpt2 import GPT2Tokenizer

    name = os.fspath(path_or_hub_id)
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
            if (folder / vocab).is_file() and (folder / merges).is_file():
                return _gpt2(folder / vocab, folder / merges, GPT2Tokenizer)
        raise ValueError(f"{name} holds no tokenizer: no tokenizer.json, and no vocab.json with merges.txt")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _gpt2(vocab: Path, merges: Path, kind: Any) -> Any:
    import json

    table = json.loads(vocab.read_text(encoding="utf-8"))
    lines = [line for line in merges.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
    return kind(vocab=table, merges=[tuple(line.split(" ")) for line in lines])
