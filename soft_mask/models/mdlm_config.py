"""The configuration of an MDLM, in the words of the public checkpoints' ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["MDLMConfig"]


@dataclass
class MDLMConfig:
    """Sizes of an MDLM; the defaults are the public 169M model (arXiv 2406.07524).

    Args:
        vocab_size: V, the mask token included.
        model_length: longest sequence.
        hidden_dim: width d of the model.
        cond_dim: width of the adaLN conditioning vector.
        n_blocks: number of transformer blocks.
        n_heads: attention heads; ``hidden_dim / n_heads`` must be even.
        dropout: on the residual branches, in training.
        time_conditioning: must be False; the noise level does not enter the network.
        tie_word_embeddings: the head uses the embedding table (not so in the public models).
        mask_token_id: ``vocab_size - 1`` when None.
        gate_init: where the adaLN gates start. 0 is the original's adaLN-zero, each block the identity at first; 1 is
            a plain pre-norm residual block, which learned a little faster in runs of a thousand updates. Used only
            when a model is made.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a value is out of range, or asks for what is not built.
    """

    vocab_size: int = 50_258
    model_length: int = 1024
    hidden_dim: int = 768
    cond_dim: int = 128
    n_blocks: int = 12
    n_heads: int = 12
    dropout: float = 0.1
    time_conditioning: bool = False
    tie_word_embeddings: bool = False
    mask_token_id: int | None = None
    gate_init: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "model_length", "hidden_dim", "cond_dim", "n_blocks", "n_heads"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.hidden_dim % (2 * self.n_heads):
            raise ValueError(
                f"hidden_dim / n_heads must be an even whole number (rotary positions turn pairs), "
                f"got hidden_dim={self.hidden_dim}, n_heads={self.n_heads}"
            )
        for name in ("dropout", "gate_init"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a float, got {value!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.time_conditioning:
            raise ValueError(
                "time_conditioning=True is not supported: the network is told no noise level (sigma is 0 throughout), "
                "as in the public MDLM; a time-conditioned checkpoint would give wrong numbers here"
            )
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        if isinstance(self.mask_token_id, bool) or not isinstance(self.mask_token_id, int):
            raise TypeError(f"mask_token_id must be an int or None, got {self.mask_token_id!r}")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id must lie in [0, {self.vocab_size}), got {self.mask_token_id}")

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "mdlm", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MDLMConfig:
        """Read a ``config.json``; fields this class does not know (a library's version, ...) are passed over.

        Raises:
            ValueError: ``model_type`` is given and is not "mdlm".
        """
        kind = values.get("model_type", "mdlm")
        if kind != "mdlm":
            raise ValueError(f"model_type must be 'mdlm' for an MDLM, got {kind!r}")
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
