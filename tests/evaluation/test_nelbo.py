"""The likelihood bound: what is fixed by the seed, and its value where it is known."""

from __future__ import annotations

import math

import pytest
import torch

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.evaluation import nelbo
from soft_mask.evaluation.nelbo import stratified_times
from soft_mask.models import MDLM, MDLMConfig

VOCAB, LENGTH = 12, 16


def make(soft: bool = True, uniform: bool = False) -> Denoiser:
    torch.manual_seed(0)
    config = MDLMConfig(
        vocab_size=VOCAB, model_length=LENGTH, hidden_dim=16, cond_dim=4, n_blocks=1, n_heads=2, dropout=0.5, gate_init=1.0
    )
    model = MDLM(config)
    if not uniform:
        torch.nn.init.normal_(model.output_layer.linear.weight, std=0.5)
    gate = SoftMask(SoftMaskConfig(VOCAB - 1, scale=0.9, centre=-5.0)) if soft else None
    return Denoiser(model, gate)


def blocks(count: int) -> torch.Tensor:
    return torch.randint(0, VOCAB - 1, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def test_a_uniform_model_costs_the_logarithm_of_its_vocabulary() -> None:
    # head of zeros: 1 / 11 for each token (the mask is banned); a token is masked with probability (1 - 1e-3) t, weight 1/t
    nats = nelbo(make(uniform=True), blocks(1500), seed=3, draws=4, soft=False)
    assert nats.dtype == torch.float64 and nats.shape == (1500,)
    error = float(nats.std()) / math.sqrt(1500)
    assert float(nats.mean()) == pytest.approx(LENGTH * (1 - 1e-3) * math.log(11), abs=4 * error)


def test_the_seed_fixes_times_and_masks() -> None:
    denoiser = make()
    denoiser.train()
    whole = nelbo(denoiser, blocks(40), seed=5, draws=2)
    assert denoiser.training
    torch.manual_seed(123)  # dropout is off and nothing is drawn from the global generator
    torch.testing.assert_close(nelbo(denoiser, blocks(40), seed=5, draws=2, batch_size=7), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(nelbo(denoiser, blocks(40), seed=6, draws=2), whole)


def test_two_passes_differ_from_one_and_share_its_masks() -> None:
    one, two = (nelbo(make(), blocks(40), soft=soft) for soft in (False, True))
    assert float((one - two).abs().mean()) > 1e-3
    assert torch.equal(nelbo(make(soft=False), blocks(40), soft=True), one)
    # the same masks: sequences of which nothing was masked cost nothing in both, and costs go together
    assert torch.equal(one == 0, two == 0)
    assert float(torch.corrcoef(torch.stack([one, two]))[0, 1]) > 0.9


def test_times_are_stratified() -> None:
    times = stratified_times(100, torch.Generator().manual_seed(0)).double()
    cell = ((times - 1e-3) / (1 - 1e-3) * 100).floor().long()
    assert cell.sort().values.tolist() == list(range(100))
    assert not torch.equal(times, times.sort().values)


def test_bad_input() -> None:
    denoiser = make()
    for wrong in (blocks(2).float(), blocks(2)[0], "text"):
        with pytest.raises(ValueError, match=r"blocks: expected int64 \[N, L\]"):
            nelbo(denoiser, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one token"):
        nelbo(denoiser, blocks(2)[:0])
    with pytest.raises(ValueError, match="draws"):
        nelbo(denoiser, blocks(2), draws=0)
    with pytest.raises(ValueError, match="eps"):
        nelbo(denoiser, blocks(2), eps=0.0)
