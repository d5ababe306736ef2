"""Tokenizers of the models, from their own files: GPT-2's with the mask as ``[PAD]``, and Qwen2's with Dream's tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soft_mask.data.tokenizer import ByteTokenizer, load_tokenizer
from soft_mask.models.checkpoint import read_json

__all__ = ["agreed_mask_id", "dream_tokenizer", "load_tokenizer", "mdlm_tokenizer", "model_tokenizer"]

#: What Dream adds to Qwen2.5's tokens, in this order: ids 151665 and 151666.
DREAM_TOKENS = ("<|beginoftext|>", "<|mask|>")
MASK_NAMES = ("<|mask|>", "<|mdm_mask|>")  # Dream's, LLaDA's


def mdlm_tokenizer(path_or_hub_id: str | os.PathLike[str], mask_token_id: int) -> Any:
    """A tokenizer in which ``[PAD]`` is the mask token: id 50257 after GPT-2's 50,257.

    A mask that is left over is decoded as ``[PAD]``. BOS and EOS are GPT-2's ``<|endoftext|>``. "bytes" is
    ``soft_mask.data.ByteTokenizer``, as in recipes.

    Raises:
        ValueError: the tokenizer's next free id is not the model's mask: it is not the tokenizer of this model.
    """
    tokenizer: Any = ByteTokenizer() if path_or_hub_id == "bytes" else load_tokenizer(path_or_hub_id)
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


def dream_tokenizer(path_or_hub_id: str | os.PathLike[str], mask_token_id: int = 151_666) -> Any:
    """Dream's tokenizer as ``transformers``' own Qwen2 tokenizer, left-padding; Dream's remote class is not imported.

    From a Dream folder (``vocab.json`` and ``merges.txt``, or ``tokenizer.json``), or from Qwen2.5's files, to which
    Dream's two tokens are added. EOS and padding are ``<|endoftext|>``, BOS ``<|beginoftext|>``, as Dream has them.

    Raises:
        ValueError: ``<|mask|>`` would not be the model's mask: it is not the tokenizer of this model.
        OSError: there are no such files.
    """
    from transformers import Qwen2Tokenizer

    name = os.fspath(path_or_hub_id)
    tokenizer = Qwen2Tokenizer.from_pretrained(name)
    known = tokenizer.get_vocab()
    if missing := [token for token in DREAM_TOKENS if token not in known]:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    found = tokenizer.convert_tokens_to_ids(DREAM_TOKENS[1])
    if found != mask_token_id:
        raise ValueError(
            f"<|mask|> is id {found} in the tokenizer {name!r}, and the model's mask is id {mask_token_id}: "
            "it is not the tokenizer of this model"
        )
    tokenizer.mask_token = DREAM_TOKENS[1]
    tokenizer.bos_token = DREAM_TOKENS[0]
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.padding_side = "left"
    return tokenizer


def model_tokenizer(path_or_hub_id: str | os.PathLike[str], model: Any) -> Any:
    """The tokenizer of a hosted model: Dream's by :func:`dream_tokenizer`, another's by ``AutoTokenizer``, left-padding.

    Raises:
        ValueError: its mask is not the model's. OSError: there are no such files.
    """
    if model.shift:
        return dream_tokenizer(path_or_hub_id, model.mask_token_id)
    tokenizer = load_tokenizer(path_or_hub_id)
    name = tokenizer.convert_ids_to_tokens(model.mask_token_id)
    if name not in MASK_NAMES and tokenizer.mask_token_id != model.mask_token_id:
        raise ValueError(
            f"id {model.mask_token_id}, the model's mask, is {name!r} in the tokenizer {os.fspath(path_or_hub_id)!r}: "
            "it is not the tokenizer of this model"
        )
    tokenizer.mask_token = name
    tokenizer.padding_side = "left"
    return tokenizer


def agreed_mask_id(
    folder: str | os.PathLike[str], config: Mapping[str, Any], generation: Mapping[str, Any], given: int | None = None
) -> int:
    """The mask's id, on which the argument, ``config.json``, ``generation_config.json`` and the tokenizer's files agree.

    Those that do not tell it are passed over.

    Raises:
        ValueError: two differ, or none tells it.
    """
    told = {
        "the argument mask_token_id": given,
        "config.json": config.get("mask_token_id"),
        "generation_config.json": generation.get("mask_token_id"),
        "the tokenizer's files": _mask_of_files(Path(folder)),
    }
    values = {name: value for name, value in told.items() if value is not None}
    if not values:
        raise ValueError(f"mask_token_id must be given: no file in {os.fspath(folder)!r} tells it")
    if len(set(values.values())) > 1:
        said = ", ".join(f"{value} by {name}" for name, value in values.items())
        raise ValueError(f"mask_token_id of {os.fspath(folder)!r} is not agreed on: {said}")
    return next(iter(values.values()))


def _mask_of_files(folder: Path) -> int | None:
    """The id of the mask token by the tokenizer's small files, else by ``tokenizer.json``; None where they have none."""
    settings = _object(folder / "tokenizer_config.json")
    mask = settings.get("mask_token")
    if isinstance(mask, dict):
        mask = mask.get("content")
    names = (mask,) if isinstance(mask, str) else MASK_NAMES
    tables = [
        {entry.get("content"): int(key) for key, entry in dict(settings.get("added_tokens_decoder") or {}).items()},
        _object(folder / "added_tokens.json"),
    ]
    for table in tables:
        for name in names:
            if name in table:
                return int(table[name])
    for entry in _object(folder / "tokenizer.json").get("added_tokens") or ():
        if entry.get("content") in names:
            return int(entry["id"])
    return None


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values = read_json(path)
    return values if isinstance(values, dict) else {}
