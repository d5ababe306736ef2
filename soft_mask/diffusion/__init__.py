"""The diffusion process: noise schedule, corruption, losses, and the module that is trained."""

from soft_mask.diffusion.corruption import mask_tokens
from soft_mask.diffusion.denoiser import Denoiser, DenoiserOutput, encode, masked_rows, predicting_rows, read_feedback
from soft_mask.diffusion.losses import mdlm_nelbo, row_cross_entropy
from soft_mask.diffusion.noise import FlooredNoise, LogLinearNoise, Noise, antithetic_times
from soft_mask.diffusion.objectives import OBJECTIVES, MaskedRows, Objective, count_weight, find_objective

__all__ = [
    "OBJECTIVES",
    "Denoiser",
    "DenoiserOutput",
    "FlooredNoise",
    "LogLinearNoise",
    "MaskedRows",
    "Noise",
    "Objective",
    "antithetic_times",
    "count_weight",
    "encode",
    "find_objective",
    "mask_tokens",
    "masked_rows",
    "mdlm_nelbo",
    "predicting_rows",
    "read_feedback",
    "row_cross_entropy",
]
