"""The configuration of Dream and Dream-Coder, in the words of their ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from soft_mask.models.checks import need_fields

__all__ = ["DreamConfig"]

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
#: What a ``config.json`` that leaves these out means by upstream's class, where that differs from the 7B models.
UPSTREAM = {"rope_theta": 10_000.0, "max_position_embeddings": 32_768}
#: Fields that name code to import or that a library writes for itself; they are never kept.
DROPPED = ("auto_map", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "is_causal")


@dataclass
class DreamConfig:
    """Sizes of a Dream model; the defaults are Dream-v0-7B and Dream-Coder-v0-7B (arXiv 2508.15487, 2509.01142).

    Args:
        vocab_size: V, rows of the embedding and of the head; more than the tokenizer has.
        max_position_embeddings: longest sequence.
        rope_scaling: as in ``transformers`` (None in the public models).
        mask_token_id: ``<|mask|>``.
        extra: further fields of a ``config.json``, written back as they came (``quantization_config`` among them).

    Raises:
        TypeError, ValueError: a field has the wrong type or is out of range.
    """

    vocab_size: int = 152_064
    hidden_size: int = 3584
    intermediate_size: int = 18_944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    hidden_act: str = "silu"
    max_position_embeddings: int = 131_072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float = 1_000_000.0
    rope_scaling: dict[str, Any] | None = None
    attention_dropout: float = 0.0
    use_sliding_window: bool = False
    mask_token_id: int = 151_666
    pad_token_id: int | None = 151_643
    bos_token_id: int | None = 151_643
    eos_token_id: int | None = 151_643
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        need_fields(self, (*SIZES, "max_position_embeddings"))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads or self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size / num_attention_heads must be even, and num_key_value_heads divide num_attention_heads; got "
                f"{self.hidden_size}, {self.num_attention_heads} and {self.num_key_value_heads}"
            )
        if self.use_sliding_window:
            raise ValueError("use_sliding_window=True is not supported: a Dream model attends to the whole sequence")

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        values = asdict(self)
        return {"architectures": ["DreamModel"], "model_type": "Dream", **values.pop("extra"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DreamConfig:
        """Read a ``config.json``; sizes must be there, what else is missing has upstream's default.

        Raises:
            ValueError: it is the configuration of another model, or of a causal one.
        """
        kind = values.get("model_type")
        if kind != "Dream":
            raise ValueError(f"model_type must be 'Dream' for a Dream model, got {kind!r}")
        if values.get("is_causal"):
            raise ValueError("is_causal=True: this is a causal checkpoint, and a Dream model attends to both sides")
        missing = [name for name in SIZES if name not in values]
        if missing:
            raise ValueError(f"config.json of a Dream model must hold {', '.join(missing)}")
        found = {**UPSTREAM, **values}
        rope = found.pop("rope_parameters", None)  # how transformers 5 writes what was rope_theta and rope_scaling
        if isinstance(rope, Mapping):
            found["rope_theta"] = rope.get("rope_theta", found["rope_theta"])
            if rope.get("rope_type", "default") != "default":
                found["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
        known = {one.name for one in fields(cls)} - {"extra"}
        extra = {name: value for name, value in found.items() if name not in known and name not in DROPPED}
        return cls(**{name: value for name, value in found.items() if name in known}, extra=extra)
