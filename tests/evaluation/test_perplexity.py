"""Perplexity: its units, its two errors, and the originals' way of drawing times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.evaluation import nelbo, perplexity, write_record
from soft_mask.models import MDLM, MDLMConfig

VOCAB, LENGTH = 12, 16


def make(soft: bool = True, uniform: bool = False) -> Denoiser:
    torch.manual_seed(0)
    model = MDLM(
        MDLMConfig(vocab_size=VOCAB, model_length=LENGTH, hidden_dim=16, cond_dim=4, n_blocks=1, n_heads=2, gate_init=1.0)
    )
    if not uniform:
        torch.nn.init.normal_(model.output_layer.linear.weight, std=0.5)
    return Denoiser(model, SoftMask(SoftMaskConfig(VOCAB - 1, scale=0.9, centre=-5.0)) if soft else None)


def blocks(count: int) -> Tensor:
    return torch.randint(0, VOCAB - 1, (count, LENGTH), generator=torch.Generator().manual_seed(1))


def test_units_and_counts() -> None:
    """A uniform model over 11 tokens: perplexity 11, up to the 1e-3 of the schedule."""
    found = perplexity(make(soft=False, uniform=True), blocks(400), draws=6, n_bytes=400 * LENGTH * 2)
    assert found.error_sequences is not None and found.error_draws is not None and found.bits_per_byte is not None
    assert found.nats_per_token == pytest.approx((1 - 1e-3) * math.log(11), abs=4 * found.error_sequences)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    assert found.bits_per_token == pytest.approx(found.nats_per_token / math.log(2))
    assert found.bits_per_byte == pytest.approx(found.bits_per_token / 2)  # two bytes a token
    assert (found.tokens, found.sequences, found.draws, found.passes) == (400 * LENGTH, 400, 6, 1)
    assert len(found.per_draw) == 6 and sum(found.per_draw) / 6 == pytest.approx(found.nats_per_token)


def test_errors_are_those_of_repetition() -> None:
    """error_draws tells how far the figures of other seeds lie apart."""
    denoiser, data = make(soft=False), blocks(60)
    repeated = torch.tensor([perplexity(denoiser, data, seed=1000 * i).nats_per_token for i in range(24)])
    told = perplexity(denoiser, data, seed=5, draws=24)
    assert told.error_draws is not None
    assert told.error_draws * math.sqrt(24) == pytest.approx(float(repeated.std()), rel=0.6)
    one = perplexity(denoiser, data)
    assert one.error_draws is None and one.bits_per_byte is None and one.error_sequences is not None
    assert perplexity(denoiser, data[:1]).error_sequences is None


def test_two_passes_are_counted_and_used() -> None:
    soft, binary = perplexity(make(), blocks(20)), perplexity(make(), blocks(20), soft=False)
    assert (soft.passes, binary.passes) == (2, 1)
    assert abs(soft.nats_per_token - binary.nats_per_token) > 1e-4
    assert binary.nats_per_token == perplexity(make(soft=False), blocks(20)).nats_per_token


def test_antithetic_times_spread_over_each_batch() -> None:
    """As MDLM draws them: each batch of n has one time in every n-th of the interval, so the batch size matters."""
    seen: list[Tensor] = []

    class Recording(Denoiser):
        def forward(self, input_ids: Tensor, noisy_ids: Tensor, t: Tensor, *rest: object, **more: object):  # type: ignore[no-untyped-def]
            seen.append(t.clone())
            return super().forward(input_ids, noisy_ids, t, *rest, **more)  # type: ignore[arg-type]

    base = make(soft=False)
    nelbo(Recording(base.model, None), blocks(20), batch_size=8, times="antithetic")
    assert [len(t) for t in seen] == [8, 8, 4]
    for t in seen:
        n = len(t)
        assert sorted(((t - 1e-3) / (1 - 1e-3) * n).floor().clamp(0, n - 1).int().tolist()) == list(range(n))
    a, b = (nelbo(base, blocks(20), batch_size=size, times="antithetic") for size in (8, 5))
    assert not torch.allclose(a, b)


def test_bad_input_is_told_in_words() -> None:
    for change, words in (
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"n_bytes": 0}, "n_bytes must be at least 1"),
        ({"times": "even"}, "times: expected 'stratified' or 'antithetic', got 'even'"),
    ):
        with pytest.raises(ValueError, match=words):
            perplexity(make(), blocks(2), **change)  # type: ignore[arg-type]


def test_a_record_says_how_it_came_about(tmp_path: Path) -> None:
    found = perplexity(make(), blocks(4), draws=2)
    file = tmp_path / "deep" / "result.json"
    settings = {"dtype": torch.float32, "seed": 0, "draws": 2, "limit": math.inf, "data": Path("a.txt")}
    write_record(file, "perplexity", settings, found.to_dict())
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["kind"] == "perplexity"
    assert record["settings"] == {"dtype": "torch.float32", "seed": 0, "draws": 2, "limit": "inf", "data": "a.txt"}
    assert record["results"]["nats_per_token"] == found.nats_per_token
    assert record["results"]["per_draw"] == list(found.per_draw)
    assert (
        record["environment"]["torch"] == torch.__version__.split("+")[0] or record["environment"]["torch"] == torch.__version__
    )
    assert record["environment"]["backend"] and not list(file.parent.glob("*.partial"))
