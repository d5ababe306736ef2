"""What Dream and LLaDA share."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from soft_mask.diffusion import Denoiser
from soft_mask.models.host_guards import check_buffers, default_frequencies
from tests.dream_cases import tiny_dream


def test_casting_a_model_leaves_its_rotary_frequencies_as_they_are() -> None:
    """Rounded to bfloat16 they would turn position 2,000 by radians; also when what holds the model is cast."""
    model = tiny_dream()
    right = default_frequencies(model.host.config)
    for cast in (model.to(torch.bfloat16), Denoiser(model).half().model, model.to(torch.float64)):
        assert cast.embedding.dtype in (torch.bfloat16, torch.float16, torch.float64)
        check_buffers(cast.host, right)
        assert all(b.dtype == torch.float32 for name, b in cast.named_buffers() if name.endswith("inv_freq"))
