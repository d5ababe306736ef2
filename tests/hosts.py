"""Tiny Dream and LLaDA models whose weights are the same on every machine, for tests and for what they are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from soft_mask import Dream, DreamConfig, LLaDA, LLaDAConfig

DREAM: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "mask_token_id": 38, "pad_token_id": 35, "bos_token_id": 35,
    "eos_token_id": 35,
}  # fmt: skip
LLADA: dict[str, Any] = {
    "d_model": 16, "n_heads": 4, "n_kv_heads": 4, "n_layers": 2, "mlp_hidden_size": 24, "vocab_size": 40,
    "embedding_size": 40, "max_sequence_length": 64, "mask_token_id": 38, "pad_token_id": 35, "eos_token_id": 35,
}  # fmt: skip


def fill(model: Any, seed: int, logit_std: float) -> Any:
    """Random weights, norms and biases too; logits of about this standard deviation, which depend on the context."""
    source = np.random.RandomState(seed)  # its stream never changes
    for name, parameter in model.host.named_parameters():
        shape = tuple(parameter.shape)
        std = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        if "embed" in name:
            std = 1.0
        if "lm_head" in name:
            std *= logit_std
        values = source.standard_normal(shape) * std + (1.0 if "norm" in name else 0.0)
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def tiny_dream(seed: int = 0, logit_std: float = 2.0, **changes: Any) -> Dream:
    return fill(Dream(DreamConfig(**{**DREAM, **changes})), seed, logit_std)


def tiny_llada(seed: int = 0, logit_std: float = 2.0, **changes: Any) -> LLaDA:
    return fill(LLaDA(LLaDAConfig(**{**LLADA, **changes})), seed, logit_std)
