"""What the samplers, the losses and the trainer ask of a model. A model knows nothing of them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["MaskedDiffusionModel"]


@runtime_checkable
class MaskedDiffusionModel(Protocol):
    """A masked diffusion language model, cut where soft masking needs it: before the blocks and before the head.

    ``hidden`` and ``head`` are apart so that the head, the widest matrix of the model, runs on masked rows only.
    Calling them as methods bypasses ``forward``, where DDP, FSDP and autocast hook in: training therefore goes through
    :class:`soft_mask.diffusion.Denoiser`, one module whose ``forward`` does everything.

    Attributes:
        mask_token_id: id of the mask token.
        vocab_size: number V of logits a row has.
        shift: 0 if hidden row t predicts token t, 1 if row t - 1 does (Dream).
        bans_mask: the mask token leaves the predicted distribution (MDLM's SUBS; Dream keeps it).
    """

    mask_token_id: int
    vocab_size: int
    shift: int
    bans_mask: bool

    @property
    def embedding(self) -> Tensor:
        """The input embedding, ``[V_e, d]`` with ``V_e`` at least the largest id in use plus one."""
        ...

    def hidden(
        self,
        inputs_embeds: Tensor,  # [B, L, d]
        attention_mask: Tensor | None = None,  # [B, L] bool, True where a position may be attended to
        position_ids: Tensor | None = None,  # [B, L] int64
        cache: object | None = None,
    ) -> Tensor:  # [B, L, d]
        """Everything between the embedding and the head."""
        ...

    def head(self, rows: Tensor) -> Tensor:  # [.., d] -> [.., V]
        """Raw logits of rows of ``hidden``: unshifted, the mask column intact. Rows do not see each other."""
        ...
