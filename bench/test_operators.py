"""The same contenders under pytest-benchmark: ``make bench``. Numbers are asserted, times are reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import soft_mask
from bench import baselines


@pytest.mark.parametrize("rows", [32, 256])
@pytest.mark.parametrize("contender", ["ours", "eager", "bare read"])
def test_forward(benchmark: Any, contender: str, rows: int) -> None:
    vocab, width = 50_258, 768
    logits, embedding = torch.randn(1, rows, vocab), torch.randn(vocab, width)
    ids = torch.full((1, rows), vocab - 1)
    arguments = {"mask_token_id": vocab - 1, "k": 3, **baselines.GATE}
    runs = {
        "ours": lambda: soft_mask.soft_mask_embed(logits, ids, embedding, **arguments),
        "eager": lambda: baselines.eager(logits, ids, embedding, vocab - 1),
        "bare read": lambda: baselines.bare_read(logits),
    }
    benchmark.group = f"forward float32, V={vocab}, {rows} masked rows"
    torch.testing.assert_close(runs["ours"](), runs["eager"](), rtol=0, atol=5e-5)
    benchmark.pedantic(runs[contender], rounds=7, warmup_rounds=1)
    benchmark.extra_info.update(bytes=logits.numel() * 4, threads=torch.get_num_threads(), **soft_mask.build_info())
    benchmark.extra_info["GB/s"] = logits.numel() * 4 / benchmark.stats["median"] / 1e9
