"""LLaDA (arXiv 2502.09992): Llama's layers under other names, attending to both sides; row t predicts token t."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor

from soft_mask.models.checks import need_fields
from soft_mask.models.dream_config import DROPPED
from soft_mask.models.hosted import HostedModel

__all__ = ["LLaDA", "LLaDAConfig"]

#: What the public models have, and the only thing that is built: a configuration that says otherwise is refused.
FIXED: dict[str, Any] = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "block_group_size": 1,
}
#: Published names of a block's parts, and the host's.
PARTS = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
OUTER = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


@dataclass
class LLaDAConfig:
    """Sizes of a LLaDA model in its own words; the defaults are LLaDA-8B.

    Args:
        vocab_size: V; ``embedding_size`` where that is given and larger is the width of the logits.
        mlp_hidden_size: width of the MLP.
        weight_tying: the head uses the embedding table.
        extra: further fields of a ``config.json``, written back as they came.

    Raises:
        TypeError, ValueError: a field has the wrong type or is out of range.
    """

    d_model: int = 4096
    n_heads: int = 32
    n_kv_heads: int | None = 32
    n_layers: int = 32
    mlp_hidden_size: int = 12_288
    vocab_size: int = 126_464
    embedding_size: int | None = 126_464
    max_sequence_length: int = 4096
    rope_theta: float = 500_000.0
    rms_norm_eps: float = 1e-5
    weight_tying: bool = False
    init_std: float = 0.02
    mask_token_id: int = 126_336
    pad_token_id: int | None = 126_081
    eos_token_id: int | None = 126_081
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need_fields(self, ("d_model", "n_heads", "n_layers", "mlp_hidden_size", "vocab_size", "max_sequence_length"))
        if self.n_kv_heads is None:
            self.n_kv_heads = self.n_heads
        if self.n_heads % self.n_kv_heads or self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model / n_heads must be even, and n_kv_heads divide n_heads; got "
                f"{self.d_model}, {self.n_heads} and {self.n_kv_heads}"
            )

    @property
    def max_position_embeddings(self) -> int:
        return self.max_sequence_length

    @property
    def tie_word_embeddings(self) -> bool:
        return self.weight_tying

    @property
    def rows(self) -> int:
        """Of the embedding and the head."""
        return max(self.vocab_size, self.embedding_size or 0)

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        values = asdict(self)
        return {"architectures": ["LLaDAModelLM"], "model_type": "llada", **FIXED, **values.pop("extra"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LLaDAConfig:
        """Read a ``config.json``.

        Raises:
            ValueError: it is the configuration of another model, or asks for what the public models do not have.
        """
        if values.get("model_type") != "llada":
            raise ValueError(f"model_type must be 'llada' for a LLaDA model, got {values.get('model_type')!r}")
        for name, value in FIXED.items():
            if name not in values and value in (False, 1):
                continue
            if (found := values.get(name)) != value:
                raise ValueError(f"{name} must be {value!r}, as in the public LLaDA models, got {found!r}")
        sizes = ("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length", "rope_theta")
        if missing := [name for name in sizes if name not in values]:
            raise ValueError(f"config.json of a LLaDA model must hold {', '.join(missing)}")
        found = {"n_kv_heads": None, "embedding_size": None, "weight_tying": True, **values}
        if found.get("mlp_hidden_size") is None:
            found["mlp_hidden_size"] = found.get("mlp_ratio", 4) * found["d_model"]
        known = {one.name for one in fields(cls)} - {"extra"}
        extra = {name: value for name, value in found.items() if name not in known and name not in DROPPED}
        return cls(**{name: value for name, value in found.items() if name in known}, extra=extra)


class LLaDA(HostedModel):
    """A LLaDA model on ``transformers``' own Llama; meets ``MaskedDiffusionModel``.

    In float32 its logits are the published code's. In bfloat16 that code turns rotary positions in float32 and Llama in
    bfloat16. The published code attends to padding; here it is masked where ``attention_mask`` says so.

    Args:
        config: the sizes. A model just made has random weights.
    """

    shift = 0
    default_alg = "maskgit_plus"
    config_class = LLaDAConfig
    key_mapping = {
        **{rf"^model\.transformer\.{theirs}\.": f"{ours}." for theirs, ours in OUTER.items()},
        **{rf"^model\.transformer\.blocks\.(\d+)\.{theirs}\.": rf"model.layers.\1.{ours}." for theirs, ours in PARTS.items()},
    }

    def __init__(self, config: LLaDAConfig, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.vocab_size = config.rows

    @staticmethod
    def host_class() -> Any:
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM

    @staticmethod
    def host_config(config: LLaDAConfig) -> Any:
        from transformers import LlamaConfig

        own = LlamaConfig(
            vocab_size=config.rows,
            hidden_size=config.d_model,
            intermediate_size=config.mlp_hidden_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            hidden_act="silu",
            max_position_embeddings=config.max_sequence_length,
            initializer_range=config.init_std,
            rms_norm_eps=config.rms_norm_eps,
            use_cache=False,
            tie_word_embeddings=config.weight_tying,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attention_bias=False,
            mlp_bias=False,
            pad_token_id=config.pad_token_id,
            bos_token_id=None,
            eos_token_id=config.eos_token_id,
        )
        if "quantization_config" in config.extra:
            own.quantization_config = config.extra["quantization_config"]
        own.is_causal = False
        own.mask_token_id = config.mask_token_id
        return own

    def published_state(self) -> dict[str, Tensor]:
        return {_published(name): tensor for name, tensor in super().published_state().items()}


def _published(name: str) -> str:
    for theirs, ours in OUTER.items():
        if name.startswith(ours + "."):
            return f"model.transformer.{theirs}{name.removeprefix(ours)}"
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if block is None:
        raise ValueError(f"{name!r} has no name in the published layout")
    theirs = {ours: theirs for theirs, ours in PARTS.items()}[block[2]]
    return f"model.transformer.blocks.{block[1]}.{theirs}.{block[3]}"
