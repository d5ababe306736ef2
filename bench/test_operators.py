"""The same contenders under pytest-benchmark: ``make bench``. Numbers are asserted, times are reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import soft_mask
from bench import baselines
from bench.operators import VOCAB, WIDTH, Inputs, K


def report(benchmark: Any, run: Callable[[], object], group: str, size: int) -> None:
    benchmark.group = group
    benchmark.pedantic(run, rounds=7, warmup_rounds=1)
    info = soft_mask.build_info()
    benchmark.extra_info.update(
        bytes=size, threads=torch.get_num_threads(), **{n: info[n] for n in ("backend", "isa", "torch")}
    )
    benchmark.extra_info["GB/s"] = size / benchmark.stats["median"] / 1e9


@pytest.mark.parametrize("rows", [32, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("contender", ["ours", "eager", "topk + embedding_bag", "bare read"])
def test_forward(benchmark: Any, contender: str, dtype: torch.dtype, rows: int) -> None:
    inputs = Inputs(rows, dtype=dtype)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "ours": inputs.ours,
        "eager": inputs.other(baselines.eager),
        "topk + embedding_bag": inputs.other(baselines.topk_embedding_bag),
        "bare read": lambda: baselines.bare_read(inputs.logits),
    }
    if contender != "bare read":
        inputs.check({contender: runs[contender]})
    report(benchmark, runs[contender], f"forward {inputs.case}", inputs.logits.numel() * inputs.logits.element_size())


@pytest.mark.parametrize("contender", ["dense", "sparse", "frozen"])
def test_forward_and_backward(benchmark: Any, contender: str) -> None:
    inputs = Inputs(256)
    table = inputs.embedding.clone().requires_grad_(contender != "frozen")
    scale = torch.tensor(0.7, requires_grad=True)
    wanted = (scale,) if contender == "frozen" else (scale, table)

    def run() -> tuple[torch.Tensor, ...]:
        out = soft_mask.soft_mask_embed(
            inputs.logits, inputs.ids, table, mask_token_id=inputs.mask, k=K, sparse_grad=contender == "sparse",
            **{**baselines.GATE, "scale": scale},
        )  # fmt: skip
        return torch.autograd.grad(out.sum(), wanted)

    assert all(g.to_dense().isfinite().all() and g.to_dense().abs().max() > 0 for g in run())
    size = inputs.logits.numel() * 4 + (VOCAB * WIDTH * 4 if contender == "dense" else 0)
    report(benchmark, run, f"forward + backward {inputs.case}", size)


def test_logits_gradient(benchmark: Any) -> None:
    inputs = Inputs(256)
    logits = inputs.logits.requires_grad_()
    fb = soft_mask.feedback(logits, K, logits_grad=True)
    loss = fb.neg_entropy.sum()
    assert torch.autograd.grad(loss, logits, retain_graph=True)[0].sum(-1).abs().max() < 1e-4  # a softmax's gradient sums to 0
    report(
        benchmark, lambda: torch.autograd.grad(loss, logits, retain_graph=True), "gradient into the logits", 8 * logits.numel()
    )
