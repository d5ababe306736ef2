"""Tiny Dream models whose weights follow a formula, so that another program can build the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soft_mask.models import Dream, DreamConfig

MASK, PAD = 58, 57
SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "mask_token_id": MASK, "pad_token_id": PAD, "bos_token_id": PAD,
    "eos_token_id": PAD,
}  # fmt: skip


def reference() -> dict[str, Any]:
    """What the paper's code gave on these models; how is said in the file."""
    return json.loads((Path(__file__).parent / "reference_dream.json").read_text())


def tiny_dream(**changes: Any) -> Dream:
    model = Dream(DreamConfig(**{**SIZES, **changes}))
    fill(model.host.named_parameters())
    return model


def fill(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Numbers by place in the order of names and by position; norms near 1, magnitudes of DoRA near what they were."""
    for i, (name, p) in enumerate(sorted(named, key=lambda item: item[0])):
        j = torch.arange(p.numel())
        value = (((j * j * (i + 3) + 977 * j + 613 * i) % 8191).double() / 8191 - 0.5).view(p.shape)
        if "norm" in name:
            value = 1 + 0.4 * value
        elif "magnitude" in name:
            value = p.detach().double() * (1 + 0.5 * value)
        else:
            value = value * (2.0 if name.startswith(("model.embed", "lm_head")) else 0.8)
        p.data.copy_(value.to(p.dtype))


def fill_adapter(model: Dream) -> None:
    fill([(f"base_model.model.{n}", p) for n, p in model.host.named_parameters() if p.requires_grad])


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Clean tokens [2, 16], which of them are masked, and the answers."""
    at = torch.arange(32)
    clean = ((at * at * 7 + at * 13 + 5) % 57).view(2, 16)
    clean[0, 12:] = PAD
    answer = torch.arange(16) >= torch.tensor([[4], [6]])
    return clean, ((at * 5 + at // 3) % 3 != 0).view(2, 16) & answer, answer
