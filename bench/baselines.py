"""What the operator is measured against: the paper's algorithm in plain PyTorch, and bare reads and writes of the logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

GATE = {"scale": 0.7, "steepness": 10 / 1.5, "centre": -3.0}
Number = float | Tensor


def eager(
    logits: Tensor,
    input_ids: Tensor,
    embedding: Tensor,
    mask_token_id: int,
    k: int = 3,
    scale: Number = GATE["scale"],
    steepness: Number = GATE["steepness"],
    centre: Number = GATE["centre"],
) -> Tensor:
    """Soft masking as its authors write it (full softmax, ln(p + 1e-10), top-k, gather), fewest passes; [.., d]."""
    p = torch.softmax(logits, -1)
    neg_entropy = (p * torch.log(p + 1e-10)).sum(-1)
    values, ids = logits.topk(k, -1)
    weights = torch.softmax(values.float(), -1)
    lam = scale * torch.sigmoid(steepness * (neg_entropy.float() - centre))
    lam = torch.where(input_ids == mask_token_id, lam, 0.0).unsqueeze(-1)
    believed = (weights.unsqueeze(-1) * F.embedding(ids, embedding)).sum(-2)
    return ((1 - lam) * F.embedding(input_ids, embedding) + lam * believed).to(embedding.dtype)


def topk_embedding_bag(logits: Tensor, input_ids: Tensor, embedding: Tensor, mask_token_id: int, k: int = 3) -> Tensor:
    """The same with PyTorch's own fused parts: log_softmax for the entropy, topk, embedding_bag for the mean; [.., d]."""
    log_p = torch.log_softmax(logits, -1)
    neg_entropy = (log_p.exp() * log_p).sum(-1)
    values, ids = logits.topk(k, -1)
    weights = torch.softmax(values.float(), -1).to(embedding.dtype)
    lam = GATE["scale"] * torch.sigmoid(GATE["steepness"] * (neg_entropy.float() - GATE["centre"]))
    lam = torch.where(input_ids == mask_token_id, lam, 0.0).unsqueeze(-1)
    believed = F.embedding_bag(ids.reshape(-1, k), embedding, per_sample_weights=weights.reshape(-1, k), mode="sum")
    return ((1 - lam) * F.embedding(input_ids, embedding) + lam * believed.view(*input_ids.shape, -1)).to(embedding.dtype)


def bare_read(logits: Tensor) -> Tensor:
    """The least that any reader of the logits does."""
    return logits.sum()


def bare_read_write(logits: Tensor, out: Tensor) -> Tensor:
    """The least that any function from logits to as many gradients does, into memory that is there already."""
    return torch.neg(logits, out=out)
