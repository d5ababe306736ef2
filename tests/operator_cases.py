"""Inputs and tolerances that the operator tests share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# How far a result may lie from the float64 oracle fed the same (rounded) inputs. Statistics in nats, absolute; embeddings
# relative to the largest entry: float32 sums, then one rounding at the store.
STATISTIC = {torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5, torch.float64: 1e-12}
EMBEDDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 1e-12}


class Case(NamedTuple):
    logits: Tensor  # [B, L, V]
    input_ids: Tensor  # [B, L], about half of it the mask id V - 1
    embedding: Tensor  # [V, d]
    mask_token_id: int


def case(
    batch: int = 2,
    length: int = 7,
    vocab: int = 259,
    width: int = 123,
    logits_dtype: torch.dtype = torch.float32,
    embedding_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, length, vocab, generator=g)
    ids = torch.randint(0, max(vocab - 1, 1), (batch, length), generator=g)
    ids[torch.rand(batch, length, generator=g) < 0.5] = vocab - 1
    ids[:, : min(2, length)] = vocab - 1  # shift reads row 0 twice
    table = torch.randn(vocab, width, generator=g)
    return Case(logits.to(logits_dtype), ids, table.to(embedding_dtype), vocab - 1)


GATE = {"scale": 0.7, "steepness": 1.3, "centre": -2.5}
