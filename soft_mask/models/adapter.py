"""A model object that a caller already holds, such as Dream's own class, made to meet ``MaskedDiffusionModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from soft_mask.models.host_guards import check_buffers, check_not_causal

__all__ = ["AdaptedModel", "adapt_model"]


def adapt_model(
    model: Any, *, mask_token_id: int | None = None, shift: int = 1, bans_mask: bool = False, probe: bool = True
) -> AdaptedModel:
    """Wrap a loaded model for ``generate`` and training, whatever its class; the object itself is used, not copied.

    It needs ``get_input_embeddings()``, and a ``forward`` that takes ``inputs_embeds``, ``attention_mask`` (None or bool
    ``[B, 1, L, L]``) and ``position_ids``, and gives logits or something with ``.logits``. Dream's published class does,
    under the version of ``transformers`` it was written for.

    Args:
        mask_token_id: ``model.config.mask_token_id`` when None; where both are given they must agree.
        shift: 1 where row t - 1 predicts token t (Dream), 0 where row t does.
        bans_mask: the mask token leaves the predicted distribution.
        probe: run it on eight tokens to see that a later one is attended to.

    Raises:
        TypeError: it lacks what is needed.
        ValueError: the mask's id is not told, or told twice and differently.
        RuntimeError: its rotary buffers hold no numbers, or it is causal.
    """
    if not callable(getattr(model, "get_input_embeddings", None)) or not callable(model):
        raise TypeError(f"model must have get_input_embeddings() and a forward, but {type(model).__name__} has not")
    told: Any = getattr(getattr(model, "config", None), "mask_token_id", None)
    if mask_token_id is None and told is None:
        raise ValueError("mask_token_id must be given: model.config has none")
    if mask_token_id is not None and told is not None and mask_token_id != told:
        raise ValueError(f"mask_token_id is {mask_token_id}, and model.config.mask_token_id is {told}")
    if shift not in (0, 1):
        raise ValueError(f"shift must be 0 or 1, got {shift!r}")
    mask = int(told) if mask_token_id is None else mask_token_id
    adapted = AdaptedModel(model, mask, shift, bans_mask)
    if isinstance(model, nn.Module):
        check_buffers(model, None)
    if probe:
        check_not_causal(adapted)
    return adapted


class AdaptedModel(nn.Module):
    """See :func:`adapt_model`. Its hidden rows are the object's logits, and its head gives them back."""

    def __init__(self, model: Any, mask_token_id: int, shift: int, bans_mask: bool) -> None:
        super().__init__()
        self.inner = model
        self.mask_token_id = mask_token_id
        self.shift = shift
        self.bans_mask = bans_mask
        config = getattr(model, "config", None)
        self.vocab_size = int(getattr(config, "vocab_size", self.embedding.shape[0]))
        self.model_length = getattr(config, "max_position_embeddings", None)
        self.default_alg = "origin" if shift else "maskgit_plus"
        self.default_steps = 512 if shift else None

    @property
    def embedding(self) -> Tensor:
        """The token table ``[V_e, d]``."""
        return self.inner.get_input_embeddings().weight

    def hidden(
        self,
        inputs_embeds: Tensor,  # [B, L, d]
        attention_mask: Tensor | None = None,  # [B, L] bool
        position_ids: Tensor | None = None,  # [B, L] int64
        cache: object | None = None,
    ) -> Tensor:  # [B, L, V]
        """The object's logits. Padding is masked pair by pair and positions counted without it, as Dream's loop does."""
        if cache is not None:
            raise ValueError("cache must be None: the object's own cache is not known here")
        mask = None
        if attention_mask is not None:
            valid = attention_mask.bool()
            if position_ids is None:
                position_ids = (valid.long().cumsum(-1) - 1).masked_fill(~valid, 1)
            # A row of padding attends to itself, so that no kernel divides by zero; nobody reads it.
            own = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
            mask = ((valid[:, None, :] & valid[:, :, None]) | own)[:, None]
        out = self.inner(inputs_embeds=inputs_embeds, attention_mask=mask, position_ids=position_ids)
        logits = getattr(out, "logits", out)
        if not isinstance(logits, Tensor) or logits.shape[:2] != inputs_embeds.shape[:2] or logits.dim() != 3:
            raise TypeError(f"forward of {type(self.inner).__name__} must give logits [B, L, V], or something with .logits")
        return logits

    def head(self, rows: Tensor) -> Tensor:  # [.., V] -> [.., V]
        return rows

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:  # [B, L] int64 -> [B, L, V]
        """Raw logits, not shifted."""
        return self.hidden(nn.functional.embedding(input_ids, self.embedding), attention_mask)
