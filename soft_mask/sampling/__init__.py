"""Denoising: one loop, small policies."""

from soft_mask.sampling.generation import GenerateOutput, generate
from soft_mask.sampling.loop import StepInfo
from soft_mask.sampling.sampler import ALGORITHMS, PRESETS, Sampler
from soft_mask.sampling.semi_autoregressive import generate_semi_autoregressive

__all__ = ["ALGORITHMS", "PRESETS", "GenerateOutput", "Sampler", "StepInfo", "generate", "generate_semi_autoregressive"]
