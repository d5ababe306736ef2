"""Tokenizers: GPT-2's with the mask as ``[PAD]``, as the public MDLM uses it."""

from __future__ import annotations

import os
from typing import Any

from soft_mask.data.tokenizer import load_tokenizer

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
