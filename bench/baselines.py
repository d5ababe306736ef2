"""What the operator is measured against: the paper's algorithm in plain PyTorch, and a bare read of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

GATE = {"scale": 0.7, "steepness": 10 / 1.5, "centre": -3.0}


def eager(logits: Tensor, input_ids: Tensor, embedding: Tensor, mask_token_id: int, k: int = 3) -> Tensor:
    """Soft masking as its authors write it (full softmax, ln(p + 1e-10), top-k, gather), fewest passes; [.., d]."""
    p = torch.softmax(logits, -1)
    neg_entropy = (p * torch.log(p + 1e-10)).sum(-1)
    values, ids = logits.topk(k, -1)
    weights = torch.softmax(values.float(), -1)
    lam = GATE["scale"] * torch.sigmoid(GATE["steepness"] * (neg_entropy.float() - GATE["centre"]))
    lam = torch.where(input_ids == mask_token_id, lam, 0.0).unsqueeze(-1)
    believed = (weights.unsqueeze(-1) * embedding[ids]).sum(-2)
    return ((1 - lam) * embedding[input_ids] + lam * believed).to(embedding.dtype)


def bare_read(logits: Tensor) -> Tensor:
    """The least that any reader of the logits does."""
    return logits.sum()
