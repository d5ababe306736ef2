"""What only the CUDA kernels have: rows that begin anywhere, split rows, heavy rows of a gradient, sorted orders."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

import soft_mask
from soft_mask import reference
from tests.operator_cases import EMBEDDING, GATE, STATISTIC

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def assert_feedback(
    logits: Tensor, k: int, temperature: float = 1.0, ban: tuple[int, ...] = (), oracle: soft_mask.Feedback | None = None
) -> None:
    found, oracle = soft_mask.feedback(logits, k, temperature, ban), oracle or oracle_of(logits, k, temperature, ban)
    assert torch.equal(found.ids, oracle.ids)
    for name in ("probs", "neg_entropy", "logsumexp"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(oracle, name), rtol=1e-7, atol=STATISTIC[logits.dtype]
        )


def oracle_of(logits: Tensor, k: int, temperature: float = 1.0, ban: tuple[int, ...] = ()) -> soft_mask.Feedback:
    return reference.feedback(logits.double(), k, temperature, ban)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("vocab", [1, 31, 64, 1023, 2049, 8200, 20_011])
def test_rows_that_begin_anywhere(emulation: ModuleType, dtype: torch.dtype, vocab: int) -> None:
    storage = torch.randn(70 + 3 * vocab, generator=torch.Generator().manual_seed(vocab)).to(dtype)
    for start in (0, 1, 7, 33, 64):
        assert_feedback(storage[start : start + 2 * vocab].view(1, 2, vocab), min(3, vocab))


@pytest.mark.parametrize("k", [1, 3, 32, 33, 64])
@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_split_rows(emulation: ModuleType, rows: int, k: int) -> None:
    g = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(1, rows, 60_001, generator=g)
    logits[0, 0, ::1000] = 12.0  # ties in every part
    assert_feedback(logits, k)
    assert_feedback(logits.bfloat16(), k, 0.7, (0, 5, 1000, 59_999, 60_000))


KINDS = ("normal", "sorted", "reversed", "equal", "peaked", "half -inf")


# float16 differs from bfloat16 in how a number is unpacked alone: one kind of rows shows that
@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "kind"), [*((d, kind) for d in FLOATS[:2] for kind in KINDS), (torch.float16, "normal")])
@pytest.mark.parametrize("vocab", [50_258, 152_064])
def test_real_vocabularies(emulation: ModuleType, dtype: torch.dtype, vocab: int, kind: str) -> None:
    logits = 2 * torch.randn(1, 36, vocab, generator=torch.Generator().manual_seed(1))
    if kind in ("sorted", "reversed"):
        logits = logits.sort(-1, descending=kind == "reversed").values
    elif kind == "equal":
        logits = torch.full_like(logits, 1.25)
    elif kind == "peaked":
        logits[..., vocab // 3] = 40.0
    elif kind == "half -inf":
        logits[..., ::2] = float("-inf")
    logits = logits.to(dtype)
    whole = oracle_of(logits, 64)
    for k in (1, 3, 8, 64):
        probs = whole.probs[..., :k] / whole.probs[..., :k].sum(-1, keepdim=True)  # of fewer: the same, renormalised
        assert_feedback(logits, k, oracle=whole._replace(ids=whole.ids[..., :k], probs=probs))


def test_bans_anywhere(emulation: ModuleType) -> None:
    """At the edges of lines, vectors and chunks, and many at once."""
    logits = torch.randn(1, 2, 5001, generator=torch.Generator().manual_seed(3))
    for ban in ((0,), (5000,), (31, 32, 33), tuple(range(0, 4000, 16)), tuple(range(250))):
        assert_feedback(logits, 4, ban=ban)
        assert_feedback(logits.half(), 4, ban=ban)


def gradient(table: Tensor, logits: Tensor, ids: Tensor, upstream: Tensor, **arguments: object) -> Tensor:
    table = table.detach().requires_grad_()
    out = soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=7, **GATE, **arguments)  # type: ignore[arg-type]
    return torch.autograd.grad(out, table, upstream.to(out.dtype))[0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [8, 123, 768])
@pytest.mark.parametrize("deterministic", [False, True])
def test_heavy_rows(emulation: ModuleType, dtype: torch.dtype, width: int, deterministic: bool) -> None:
    """The mask's row, one token that everyone has and one that everyone predicts: each from more entries than a chunk."""
    g = torch.Generator().manual_seed(0)
    logits, table = torch.randn(2, 331, 97, generator=g), torch.randn(97, width, generator=g).to(dtype)
    logits[..., 11] = 9.0
    ids = torch.where(torch.rand(2, 331, generator=g) < 0.6, 7, 90)
    upstream = torch.randn(2, 331, width, generator=g).to(dtype)
    found = gradient(table, logits, ids, upstream, deterministic=deterministic)
    leaf = table.double().requires_grad_()
    oracle = reference.soft_mask_embed(logits.double(), ids, leaf, mask_token_id=7, **GATE)
    (true,) = torch.autograd.grad(oracle, leaf, upstream.double())
    assert (found.double() - true).abs().max() <= 2 * EMBEDDING[dtype] * true.abs().max()
    sparse = gradient(table, logits, ids, upstream, sparse_grad=True)
    assert (sparse.to_dense().double() - true).abs().max() <= 2 * EMBEDDING[dtype] * true.abs().max()


def test_deterministic_gradient(emulation: ModuleType) -> None:
    """The same bits whatever the order of blocks and lanes, by the argument or by torch's own switch; without, they differ."""
    g = torch.Generator().manual_seed(0)
    logits, table = torch.randn(2, 301, 97, generator=g), torch.randn(97, 16, generator=g)
    ids, upstream = torch.randint(0, 97, (2, 301), generator=g), torch.randn(2, 301, 16, generator=g)
    ids[:, ::2] = 7

    def over_orders(deterministic: bool) -> list[Tensor]:
        found = []
        try:
            for seed in range(4):
                emulation.set_seed(seed)
                found.append(gradient(table, logits, ids, upstream, deterministic=deterministic))
        finally:
            emulation.set_seed(0)
        return found

    first, *others = over_orders(True)
    assert all(torch.equal(first, other) for other in others)
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(first, other) for other in over_orders(False))
    finally:
        torch.use_deterministic_algorithms(False)
    loose = over_orders(False)
    assert any(not torch.equal(loose[0], other) for other in loose[1:])
    assert all(torch.allclose(first, other, atol=1e-5) for other in loose)


def test_numbers_of_the_host(emulation: ModuleType) -> None:
    """A gate and a temperature that are floats go with the launch: the same bits as from the device's memory."""
    logits, table = torch.randn(1, 4, 300), torch.randn(300, 16).requires_grad_()
    ids = torch.tensor([[7, 7, 1, 7]])

    def run() -> list[Tensor]:
        out = soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=7, temperature=0.7, **GATE)
        return [out, *torch.autograd.grad(out.square().sum(), table)]

    from_memory = run()
    assert emulation.traffic()["gate"]["read_bytes"] > 0 and emulation.traffic()["temperature"]["read_bytes"] > 0
    emulation.reset_traffic()
    emulation.set_numbers_on_host(True)
    try:
        from_host = run()
    finally:
        emulation.set_numbers_on_host(False)
    assert "gate" not in emulation.traffic() and "temperature" not in emulation.traffic()
    assert all(torch.equal(a, b) for a, b in zip(from_memory, from_host, strict=True))


def test_more_than_the_kernels_take(emulation: ModuleType) -> None:
    """k > 64, float64 and hundreds of bans go through plain PyTorch; the operator itself says what it cannot."""
    logits = torch.randn(1, 2, 500)
    assert_feedback(logits, 65)
    assert_feedback(logits, 3, ban=tuple(range(300)))
    assert soft_mask.feedback(logits.double(), 3).probs.dtype == torch.float64
    assert emulation.traffic() == {}
    with pytest.raises(RuntimeError, match="k must lie between 1 and 64 for the CUDA kernels, got 65"):
        torch.ops.soft_mask.feedback(logits, 65, None, [], True)
    with pytest.raises(RuntimeError, match="logits: the CUDA kernels take float32, bfloat16 and float16"):
        torch.ops.soft_mask.feedback(logits.double(), 3, None, [], True)
    with pytest.raises(RuntimeError, match="ban: at most 256 ids"):
        torch.ops.soft_mask.feedback(logits, 3, None, list(range(300)), True)
