"""Training on Hugging Face's Trainer: two passes in one forward, a coin that every rank tosses alike, exact resume."""

from __future__ import annotations

from .arguments import SoftMaskTrainingArguments
from .data import TokenBlocks
from .trainer import SoftMaskTrainer

__all__ = ["SoftMaskTrainer", "SoftMaskTrainingArguments", "TokenBlocks"]
