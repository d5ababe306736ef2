"""linear_feedback against the feedback of logits that are held whole, by one piece and by many."""

from __future__ import annotations

import sys

import pytest
import torch

import soft_mask
from soft_mask import reference
from tests.operator_cases import STATISTIC

linear = sys.modules["soft_mask.linear_feedback"]  # soft_mask.linear_feedback is the function


def inputs(dtype: torch.dtype, vocab: int = 2600) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 5, 48, generator=g).to(dtype),
        torch.randn(vocab, 48, generator=g).div(3).to(dtype),
        torch.randn(vocab, generator=g).to(dtype),
    )


@pytest.fixture(params=[(512, 2**21), (4, 4096)], ids=["one piece", "many pieces"], autouse=True)
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, size = request.param
    monkeypatch.setattr(linear, "ROWS", rows)
    monkeypatch.setattr(linear, "PIECE_BYTES", size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("k", [1, 3, 300])
def test_is_the_feedback_of_the_logits(dtype: torch.dtype, k: int) -> None:
    hidden, weight, bias = inputs(dtype)
    arguments = {"temperature": 0.7, "ban": (0, 1300, 2599)}
    found = soft_mask.linear_feedback(hidden, weight, k, bias=bias, **arguments)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    oracle = reference.feedback(logits.double(), k, **arguments)  # type: ignore[arg-type]
    if dtype != torch.float32:  # a product in pieces may round its float32 sums otherwise, which decides between near equals
        assert torch.equal(found.ids, oracle.ids)
    for name in ("probs", "neg_entropy", "logsumexp"):
        mine, true = getattr(found, name), getattr(oracle, name)
        assert mine.shape == true.shape
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=STATISTIC[dtype])


def test_ties_go_to_the_lower_id() -> None:
    hidden, weight, _ = inputs(torch.float32)
    weight[1::2] = weight[::2]
    found = soft_mask.linear_feedback(hidden, weight, 4)
    assert (found.ids[..., 0] % 2 == 0).all() and torch.equal(found.ids[..., 1], found.ids[..., 0] + 1)


def test_ban_of_a_whole_piece() -> None:
    hidden, weight, _ = inputs(torch.float32)
    banned = tuple(range(600))
    found = soft_mask.linear_feedback(hidden, weight, 3, ban=banned)
    assert found.ids.min() >= 600
    torch.testing.assert_close(found.neg_entropy, reference.feedback(hidden @ weight.T, 3, 1.0, banned).neg_entropy)


def test_shapes() -> None:
    _, weight, _ = inputs(torch.float32)
    for lead in ((), (0,), (2, 0), (7,)):
        found = soft_mask.linear_feedback(torch.zeros(*lead, 48), weight, 2)
        assert found.ids.shape == (*lead, 2) and found.neg_entropy.shape == lead


def test_bad_input() -> None:
    hidden, weight, bias = inputs(torch.float32)
    with pytest.raises(ValueError, match=r"head_weight must be \[V, 48\]"):
        soft_mask.linear_feedback(hidden, weight.T)
    with pytest.raises(TypeError, match="they must have one dtype"):
        soft_mask.linear_feedback(hidden.bfloat16(), weight)
    with pytest.raises(ValueError, match="bias must be"):
        soft_mask.linear_feedback(hidden, weight, bias=bias[:5])
    with pytest.raises(ValueError, match="k must lie between"):
        soft_mask.linear_feedback(hidden, weight, 2601)
    hidden[1, 2, 0] = float("nan")
    with pytest.raises(RuntimeError, match="row 7 .* NaN"):
        soft_mask.linear_feedback(hidden, weight)
    assert soft_mask.linear_feedback(hidden, weight, check=False).neg_entropy.isnan().sum() == 1
