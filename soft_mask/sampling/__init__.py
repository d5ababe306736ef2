"""Denoising: one loop, small policies."""

from soft_mask.sampling.ancestral import Ancestral
from soft_mask.sampling.generation import GenerateOutput, generate
from soft_mask.sampling.loop import StepInfo

__all__ = ["Ancestral", "GenerateOutput", "StepInfo", "generate"]
