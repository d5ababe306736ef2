"""Dream and Dream-Coder (arXiv 2508.15487, 2509.01142): Qwen2's weights, attending to both sides, shifted by one."""

from __future__ import annotations

from typing import Any

from soft_mask.models.dream_config import DreamConfig
from soft_mask.models.hosted import HostedModel

__all__ = ["Dream", "DreamConfig"]


class Dream(HostedModel):
    """A Dream model on ``transformers``' own Qwen2; meets ``MaskedDiffusionModel``. Row t - 1 predicts token t.

    A model just made has random weights.

    Args:
        config: the sizes.

    Example:
        >>> model = Dream(DreamConfig(vocab_size=151_667, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        ...                           num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128))
        >>> logits = model(torch.zeros(2, 16, dtype=torch.int64))  # [2, 16, 151667]
    """

    shift = 1
    default_alg = "origin"
    default_steps = 512
    config_class = DreamConfig

    @staticmethod
    def host_class() -> Any:
        from transformers import Qwen2ForCausalLM

        return Qwen2ForCausalLM

    @staticmethod
    def host_config(config: DreamConfig) -> Any:
        from transformers import Qwen2Config

        own = Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            hidden_act=config.hidden_act,
            max_position_embeddings=config.max_position_embeddings,
            initializer_range=config.initializer_range,
            rms_norm_eps=config.rms_norm_eps,
            use_cache=False,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters={"rope_type": "default", **(config.rope_scaling or {}), "rope_theta": config.rope_theta},
            use_sliding_window=False,
            attention_dropout=config.attention_dropout,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
        if "quantization_config" in config.extra:
            own.quantization_config = config.extra["quantization_config"]
        own.is_causal = False  # what makes the decoder attend to both sides
        own.mask_token_id = config.mask_token_id
        return own

    def published_generation(self) -> dict[str, Any]:
        special = ("mask_token_id", "pad_token_id", "bos_token_id", "eos_token_id")
        return {
            "alg": self.default_alg, "alg_temp": None, "eps": 1e-3, "steps": self.default_steps, "temperature": 0.0,
            "top_p": None, "top_k": None, "output_history": False, **{name: getattr(self.config, name) for name in special},
        }  # fmt: skip
