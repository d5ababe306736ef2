"""MDLM's wrapping of documents into blocks: BOS, tokens, EOS (arXiv 2406.07524)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

__all__ = ["DOCUMENTS_TOGETHER", "iterate_blocks", "join_and_cut", "wrap"]

DOCUMENTS_TOGETHER = 1000  # the default batch of `datasets.map`: blocks never reach over it in the originals


def special_ids(tokenizer: Any) -> tuple[int, int]:
    """(BOS, EOS); BOS is EOS where there is none.

    Raises:
        ValueError: no EOS.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("tokenizer must have an EOS token")
    return (tokenizer.bos_token_id if tokenizer.bos_token_id is not None else eos), eos


def iterate_blocks(texts: Iterable[str], tokenizer: Any, length: int) -> Iterator[list[int]]:  # of length ids
    """Blocks of BOS + ``length - 2`` tokens + EOS, one after the other.

    Every document ends with EOS; a thousand documents are joined and cut, and what does not fill a block is dropped.
    (The originals split the documents over processes first, so that their block borders depend on the CPU count.)

    Args:
        tokenizer: of ``transformers``, with EOS; BOS is EOS where it has none.

    Raises:
        ValueError: ``length`` below 3, or no EOS.
    """
    source = iter(texts)
    while batch := list(islice(source, DOCUMENTS_TOGETHER)):
        yield from join_and_cut(batch, tokenizer, length)


def join_and_cut(texts: list[str], tokenizer: Any, length: int) -> Iterator[list[int]]:
    """The blocks of documents that are joined, as :func:`iterate_blocks` makes them of a thousand at a time."""
    if length < 3:
        raise ValueError(f"length must be at least 3, got {length}")
    bos, eos = special_ids(tokenizer)
    inside = length - 2
    joined: list[int] = []
    for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]:
        joined += [*ids, eos]
    for at in range(0, len(joined) // inside * inside, inside):
        yield [bos, *joined[at : at + inside], eos]


def wrap(texts: Iterable[str], tokenizer: Any, length: int, limit: int | None = None) -> Tensor:  # [N, L] int64
    """The blocks of :func:`iterate_blocks` as one tensor, at most ``limit`` of them.

    Raises:
        ValueError: as there, or the texts do not fill a block.
    """
    documents = 0

    def counted() -> Iterator[str]:
        nonlocal documents
        for text in texts:
            documents += 1
            yield text

    blocks = [torch.tensor(block) for block in islice(iterate_blocks(counted(), tokenizer, length), limit)]
    if not blocks:
        raise ValueError(f"the texts ({documents} documents) do not fill one block of {length} tokens")
    return torch.stack(blocks)
