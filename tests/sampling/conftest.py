"""Tiny models that sample something."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.models import MDLM, MDLMConfig

V, L, MASK = 11, 8, 10


class Shifted(MDLM):
    """Row t - 1 predicts token t."""

    shift = 1


def build(kind: type[MDLM] = MDLM, vocab_size: int = V) -> MDLM:
    """Random weights everywhere; logits of standard deviation 1.5 that depend on what stands around; eval mode."""
    config = MDLMConfig(vocab_size=vocab_size, model_length=L, hidden_dim=16, cond_dim=6, n_blocks=1, n_heads=2, gate_init=1.0)
    model = kind(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "adaLN" not in name and parameter.dim() == 2:  # biases and constant shifts would drown the context
            parameter.data.normal_(0, 1 if "embedding" in name else 0.3, generator=generator)
    with torch.no_grad():
        probe = model.eval()(torch.randint(0, vocab_size, (64, L), generator=generator))
    model.output_layer.linear.weight.data *= 1.5 / probe.std()
    return model


@pytest.fixture
def model() -> MDLM:
    return build()


@pytest.fixture(params=[MDLM, Shifted], ids=["mdlm", "shifted"])
def either(request: pytest.FixtureRequest) -> MDLM:
    return build(request.param)


@pytest.fixture
def make() -> Callable[..., MDLM]:
    return build


@pytest.fixture
def sm() -> SoftMask:
    """A gate mild enough that rounding does not grow from step to step: a random model with scale 0.9 is chaotic."""
    return SoftMask(SoftMaskConfig(mask_token_id=MASK, k=3, scale=0.5, steepness=1.0, centre=-1.5))
