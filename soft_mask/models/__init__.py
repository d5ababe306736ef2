"""Masked diffusion language models, each meeting one small protocol."""

from soft_mask.models.adapter import AdaptedModel, adapt_model
from soft_mask.models.dream import Dream, DreamConfig
from soft_mask.models.llada import LLaDA, LLaDAConfig
from soft_mask.models.load import load_model, load_soft_mask
from soft_mask.models.mdlm import MDLM, MDLMConfig
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.models.save import model_card, push_to_hub, save_checkpoint

__all__ = [
    "MDLM",
    "AdaptedModel",
    "Dream",
    "DreamConfig",
    "LLaDA",
    "LLaDAConfig",
    "MDLMConfig",
    "MaskedDiffusionModel",
    "adapt_model",
    "load_model",
    "load_soft_mask",
    "model_card",
    "push_to_hub",
    "save_checkpoint",
]
