"""Soft-masked diffusion language models (arXiv 2510.17206): the operator, the module, and real models around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import reference
from ._native import backend as _backend
from ._native import build_info
from ._version import __version__
from .config import SoftMaskConfig
from .functional import feedback, gate, mix_embed, soft_mask_embed
from .linear_feedback import linear_feedback
from .module import SoftMask
from .state import Feedback

if _backend() != "reference":
    from . import ops as _ops  # noqa: F401  (torch.ops.soft_mask.* has its shapes and gradients at once)

if TYPE_CHECKING:
    from .models import (
        MDLM,
        Dream,
        DreamConfig,
        LLaDA,
        LLaDAConfig,
        MDLMConfig,
        adapt_model,
        load_model,
        load_soft_mask,
        push_to_hub,
        save_checkpoint,
    )
    from .sampling import GenerateOutput, generate
    from .training import SoftMaskTrainer, SoftMaskTrainingArguments

# Loaded on first use, so that `import soft_mask` needs torch alone.
_LAZY = {
    "load_model": "models",
    "load_soft_mask": "models",
    "push_to_hub": "models",
    "save_checkpoint": "models",
    "Dream": "models",
    "DreamConfig": "models",
    "LLaDA": "models",
    "LLaDAConfig": "models",
    "adapt_model": "models",
    "MDLM": "models",
    "MDLMConfig": "models",
    "generate": "sampling",
    "GenerateOutput": "sampling",
    "SoftMaskTrainer": "training",
    "SoftMaskTrainingArguments": "training",
}

__all__ = [
    "MDLM",
    "Dream",
    "DreamConfig",
    "Feedback",
    "GenerateOutput",
    "LLaDA",
    "LLaDAConfig",
    "MDLMConfig",
    "SoftMask",
    "SoftMaskConfig",
    "SoftMaskTrainer",
    "SoftMaskTrainingArguments",
    "__version__",
    "adapt_model",
    "build_info",
    "feedback",
    "gate",
    "generate",
    "linear_feedback",
    "load_model",
    "load_soft_mask",
    "mix_embed",
    "push_to_hub",
    "reference",
    "save_checkpoint",
    "soft_mask_embed",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
