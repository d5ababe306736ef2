"""Masked diffusion language models, each meeting one small protocol."""

from soft_mask.models.load import load_model
from soft_mask.models.mdlm import MDLM, MDLMConfig
from soft_mask.models.protocol import MaskedDiffusionModel

__all__ = ["MDLM", "MDLMConfig", "MaskedDiffusionModel", "load_model"]
