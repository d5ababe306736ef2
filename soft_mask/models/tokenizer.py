"""Tokenizers: GPT-2's with the mask as ``[PAD]``, as the public MDLM uses it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["load_tokenizer", "mdlm_tokenizer"]


def mdlm_tokenizer(path_or_hub_id: str | os.PathLike[str], mask_token_id: int) -> Any:
    """A tokenizer in which ``[PAD]`` is the mask token: id 50257 after GPT-2's 50,257.

    A mask that is left over is decoded as ``[PAD]``. BOS and EOS are GPT-2's ``<|endoftext|>``.

    Raises:
        ValueError: the tokenizer's next free id is not the model's mask: it is not the tokenizer of this model.
    """
    tokenizer = load_tokenizer(path_or_hub_id)
    if tokenizer.pad_token_id != mask_token_id:
        before = len(tokenizer)
        if before == mask_token_id:
            tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if tokenizer.pad_token_id != mask_token_id:
        raise ValueError(
            f"the tokenizer {os.fspath(path_or_hub_id)!r} has {before} tokens, and the model's mask is id {mask_token_id}: "
            f"[PAD] would not be the mask"
        )
    return tokenizer


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
    table = json.loads(vocab.read_text(encoding="utf-8"))
    lines = [line for line in merges.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")]
    return kind(vocab=table, merges=[tuple(line.split(" ")) for line in lines])
