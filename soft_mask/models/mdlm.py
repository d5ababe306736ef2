"""MDLM (arXiv 2406.07524): a bidirectional transformer that predicts the masked tokens of a sequence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from soft_mask.models.mdlm_config import MDLMConfig
from soft_mask.models.mdlm_layers import Block, OutputLayer, RotaryEmbedding, SigmaMap, VocabEmbedding, at_least_float32

__all__ = ["MDLM", "MDLMConfig"]

PREFIX = "backbone."  # the names on disk are this and the names in the module
TIED = "output_layer.linear.weight"


class MDLM(nn.Module):
    """MDLM's diffusion transformer, the public 169M model or any other size; meets ``MaskedDiffusionModel``.

    A model just made has random weights. The residual stream and the norms are float32 whatever the weights are.

    Args:
        config: the sizes.

    Example:
        >>> model = MDLM(MDLMConfig(vocab_size=33, model_length=32, hidden_dim=64, n_blocks=1, n_heads=4))
        >>> logits = model(torch.zeros(2, 32, dtype=torch.int64))  # [2, 32, 33]
    """

    shift = 0
    bans_mask = True

    def __init__(self, config: MDLMConfig) -> None:
        super().__init__()
        if not isinstance(config, MDLMConfig):
            raise TypeError(f"config must be an MDLMConfig, got {type(config).__name__}")
        assert config.mask_token_id is not None
        self.config = config
        self.mask_token_id = config.mask_token_id
        self.vocab_size = config.vocab_size
        dim, cond = config.hidden_dim, config.cond_dim
        self.vocab_embed = VocabEmbedding(config.vocab_size, dim)
        self.sigma_map = SigmaMap(cond)
        self.rotary_emb = RotaryEmbedding(dim // config.n_heads)
        self.blocks = nn.ModuleList(
            Block(dim, config.n_heads, cond, config.dropout, config.gate_init) for _ in range(config.n_blocks)
        )
        self.output_layer = OutputLayer(dim, config.vocab_size, cond)
        self._tie()

    def _tie(self) -> None:
        if self.config.tie_word_embeddings:
            self.output_layer.linear.weight = self.vocab_embed.embedding

    @property
    def embedding(self) -> Tensor:
        """The token table ``[V, d]``."""
        return self.vocab_embed.embedding

    @property
    def model_length(self) -> int:
        return self.config.model_length

    def hidden(
        self,
        inputs_embeds: Tensor,  # [B, L, d]
        attention_mask: Tensor | None = None,  # [B, L] bool or 0/1: the positions that may be attended to
        position_ids: Tensor | None = None,  # [B, L] int64; 0 .. L-1 when None
        cache: object | None = None,
    ) -> Tensor:  # [B, L, d] float32
        """The blocks' output, before the final norm.

        Raises:
            ValueError: a shape does not fit, the sequence is longer than ``model_length``, or a cache is given (this
                model has none).
        """
        if cache is not None:
            raise ValueError("cache must be None: MDLM attends to the whole sequence anew at every step")
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[-1] != self.config.hidden_dim:
            raise ValueError(f"inputs_embeds must be [B, L, {self.config.hidden_dim}], got shape {list(inputs_embeds.shape)}")
        length = inputs_embeds.shape[1]
        if length > self.config.model_length:
            raise ValueError(f"a sequence has {length} tokens, more than model_length={self.config.model_length}")
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs_embeds.device)[None]
        elif position_ids.shape[-1:] != (length,) or position_ids.dim() > 2:
            raise ValueError(f"position_ids must be [B, {length}], got shape {list(position_ids.shape)}")
        mask = None
        if attention_mask is not None:
            if attention_mask.shape != inputs_embeds.shape[:2]:
                raise ValueError(
                    f"attention_mask must have shape {list(inputs_embeds.shape[:2])}, got {list(attention_mask.shape)}"
                )
            mask = attention_mask.bool()[:, None, None, :]
        x = at_least_float32(inputs_embeds)
        cond = self.sigma_map()
        rotary = self.rotary_emb(position_ids if position_ids.dim() == 2 else position_ids[None])
        for block in self.blocks:
            x = block(x, cond, rotary, mask)
        return x

    def head(self, rows: Tensor) -> Tensor:  # [.., d] -> [.., V]
        """Raw logits of rows of :meth:`hidden`; the mask token's column is there, SUBS is left to the caller."""
        return self.output_layer(at_least_float32(rows), self.sigma_map())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # [B, L] int64 -> [B, L, V]
        """Raw logits of every position: one binary pass, no feedback."""
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must be [B, L], got shape {list(input_ids.shape)}")
        return self.head(self.hidden(self.vocab_embed(input_ids), attention_mask))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` under the public names; a tied table is written once."""
        from soft_mask.models.checkpoint import write_checkpoint

        tensors = {PREFIX + name: tensor for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del tensors[PREFIX + TIED]
        write_checkpoint(folder, {"architectures": ["MDLM"], **self.config.to_dict()}, tensors)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> MDLM:
        """Read a folder with ``config.json`` and its weights, names with or without ``backbone.``; in eval mode.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: a file is broken, or of another model: tensors missing, unexpected, or of another shape.
        """
        from soft_mask.models.layouts import read_folder

        found = read_folder(folder)
        return cls.from_tensors(found.config, found.tensors, os.fspath(folder))

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: dict[str, Tensor], where: str) -> MDLM:
        """A model in eval mode that holds these tensors, every one of which must fit; ``where`` names them in errors.

        Raises:
            ValueError: tensors are missing, unexpected, or of another shape.
        """
        from soft_mask.models.checkpoint import load_strict

        own = MDLMConfig.from_dict(config)
        if own.n_blocks > len(tensors):  # before that many are made
            raise ValueError(f"the weights in {where!r} do not fit the config: n_blocks={own.n_blocks}, {len(tensors)} tensors")
        with torch.device("meta"):
            model = cls(own)
        table = tensors.get("vocab_embed.embedding")
        if own.tie_word_embeddings and table is not None:
            if TIED in tensors and not torch.equal(tensors[TIED], table):
                raise ValueError(f"the weights in {where!r} do not fit the config: tied by it, but {TIED} is not the embedding")
            tensors = {**tensors, TIED: table}
        load_strict(model, tensors, where=where)
        model._tie()  # loading has given each name a parameter of its own
        stored = model.rotary_emb.inv_freq.float()
        if not torch.allclose(stored, RotaryEmbedding.frequencies(2 * len(stored)), rtol=0.01):  # bfloat16 is within 0.004
            raise ValueError(f"rotary_emb.inv_freq in {where!r} is not that of rotary base 10000")
        return model.eval()
