"""What every public call of the operator says to bad input: the argument's name, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import soft_mask
from soft_mask import Feedback
from tests.operator_cases import GATE, case


def embed(**changes: Any) -> torch.Tensor:
    c = case(vocab=40, width=6)
    arguments: dict[str, Any] = {
        "logits": c.logits, "input_ids": c.input_ids, "embedding": c.embedding, "mask_token_id": 39, **GATE, **changes
    }  # fmt: skip
    return soft_mask.soft_mask_embed(**arguments)


def mix(**changes: Any) -> torch.Tensor:
    c = case(vocab=40, width=6)
    fb = soft_mask.feedback(c.logits, 3)
    parts = {name: changes.pop(name) for name in Feedback._fields if name in changes}
    arguments: dict[str, Any] = {
        "input_ids": c.input_ids, "fb": fb._replace(**parts), "embedding": c.embedding, "mask_token_id": 39, **GATE, **changes
    }  # fmt: skip
    return soft_mask.mix_embed(**arguments)


@pytest.mark.parametrize(
    "changes,error,says",
    [
        ({"logits": torch.randn(2, 6, 40)}, ValueError, r"logits must be \[\.\., L, V\].*\(2, 7\).*\(2, 6, 40\)"),
        ({"logits": torch.randn(40)}, ValueError, "logits"),
        ({"logits": torch.zeros(2, 7, 40, dtype=torch.int32)}, TypeError, "logits must be float32"),
        ({"logits": [1.0]}, TypeError, "logits must be a tensor"),
        ({"logits": torch.empty(2, 7, 40, device="meta")}, ValueError, "logits is on meta"),
        ({"input_ids": torch.zeros(2, 7, dtype=torch.int32)}, TypeError, "input_ids must be int64"),
        ({"input_ids": torch.full((2, 7), 40)}, RuntimeError, "input_ids.*id 40.*40 rows"),
        ({"input_ids": torch.full((2, 7), -1)}, RuntimeError, "input_ids.*id -1"),
        ({"embedding": torch.randn(40)}, ValueError, "embedding must be"),
        ({"embedding": torch.zeros(40, 6, dtype=torch.int64)}, TypeError, "embedding must be float32"),
        ({"mask_token_id": 40}, ValueError, "mask_token_id 40 has no row"),
        ({"mask_token_id": -1}, ValueError, "mask_token_id -1 has no row"),
        ({"mask_token_id": 3.0}, TypeError, "mask_token_id must be an int"),
        ({"k": 0}, ValueError, "k must lie between 1 and the 40 logits.*got 0"),
        ({"k": 41}, ValueError, "k must lie between"),
        ({"k": 39, "ban": (1, 2)}, ValueError, "less 2 banned, got 39"),
        ({"k": 2.0}, TypeError, "k must be an int"),
        ({"ban": 40}, ValueError, "ban: id 40"),
        ({"ban": "x"}, TypeError, "ban must be"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": float("nan")}, ValueError, "temperature must be positive"),
        ({"temperature": torch.ones(2)}, ValueError, "temperature must be a float or a 0-dim"),
        ({"algorithm": "top-k"}, ValueError, "algorithm must be one of top_k, expectation"),
        ({"scale": torch.ones(2)}, ValueError, "scale must be a float or a 0-dim"),
        ({"centre": "low"}, TypeError, "centre must be"),
        ({"shift": 2}, ValueError, "shift must be 0 or 1"),
        ({"where": torch.zeros(2, 7)}, TypeError, "where must be a bool"),
        ({"where": torch.zeros(2, 6, dtype=torch.bool)}, ValueError, "where must have the shape"),
    ],
)
def test_soft_mask_embed(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        embed(**changes)


@pytest.mark.parametrize(
    "changes,error,says",
    [
        ({"fb": "feedback"}, TypeError, "fb must be a soft_mask.Feedback"),
        ({"ids": torch.zeros(2, 7, 3, dtype=torch.int64)}, TypeError, "fb.ids must be int32"),
        ({"ids": torch.zeros(2, 6, 3, dtype=torch.int32)}, ValueError, "fb.ids must have the leading shape"),
        ({"probs": torch.zeros(2, 7, 2)}, ValueError, "fb.probs"),
        ({"probs": torch.zeros(2, 7, 3, dtype=torch.bfloat16)}, TypeError, "fb.probs must be float32"),
        ({"neg_entropy": torch.zeros(2, 6)}, ValueError, "fb.neg_entropy"),
        ({"ids": torch.full((2, 7, 3), 40, dtype=torch.int32)}, RuntimeError, "fb.ids.*40 rows"),
        ({"ids": torch.full((2, 7, 3), -7, dtype=torch.int32)}, RuntimeError, "fb.ids.*40 rows"),
    ],
)
def test_mix_embed(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mix(**changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 1, 1024, 2999])
def test_not_a_number(dtype: torch.dtype, bad: float, at: int) -> None:
    logits = torch.randn(5, 3000).to(dtype)
    logits[3, at] = bad
    with pytest.raises(RuntimeError, match=r"logits: row 3 .*holds NaN or \+inf"):
        soft_mask.feedback(logits)
    found = soft_mask.feedback(logits, check=False)
    assert found.neg_entropy[3].isnan() and not found.neg_entropy[[0, 1, 2, 4]].isnan().any()
    assert (found.ids >= 0).all() and (found.ids < 3000).all()


def test_not_a_number_among_minus_infinities() -> None:
    logits = torch.full((2, 3000), float("-inf"))
    logits[0, 5], logits[1, 5], logits[1, 2500] = 0.0, 0.0, float("nan")
    with pytest.raises(RuntimeError, match="logits: row 1"):
        soft_mask.feedback(logits, 1)


def test_bad_values_of_unmasked_rows_are_never_read() -> None:
    c = case(vocab=40, width=6)
    c.logits[c.input_ids != c.mask_token_id] = float("nan")
    assert embed(logits=c.logits).isfinite().all()


def test_no_distribution() -> None:
    """A row wholly -inf (or wholly banned) is refused; unchecked it is "no feedback": the plain row, and no gradient."""
    logits = torch.randn(2, 7, 40)
    logits[1, 0] = float("-inf")
    with pytest.raises(RuntimeError, match="logits: row 7 .*-inf throughout"):
        embed(logits=logits)
    found = soft_mask.feedback(logits, check=False)
    assert found.neg_entropy[1, 0] == float("-inf") and found.probs[1, 0].tolist() == [0, 0, 0]
    table = case(vocab=40, width=6).embedding
    assert torch.equal(embed(logits=logits, check=False)[1, 0], table[39])


def test_more_predictions_than_finite_logits() -> None:
    logits = torch.full((1, 50), float("-inf"))
    logits[0, [7, 9]] = torch.tensor([1.0, 2.0])
    found = soft_mask.feedback(logits, 4)
    assert found.ids.tolist() == [[9, 7, 0, 0]]
    torch.testing.assert_close(found.probs, torch.tensor([[0.7310586, 0.2689414, 0.0, 0.0]]))


def test_predicted_id_without_an_embedding() -> None:
    c = case(vocab=40, width=6)
    logits = torch.randn(2, 7, 44)
    logits[0, 0, 43] = 50.0
    with pytest.raises(RuntimeError, match="logits: among the k best.*row 0 .*40 rows|fb.ids: id 43"):
        embed(logits=logits, embedding=c.embedding)


def test_more_embedding_rows_than_logits() -> None:
    c = case(vocab=40, width=6)
    wide = torch.cat([c.embedding, torch.full((5, 6), float("nan"))])
    assert torch.equal(embed(embedding=wide), embed())


def test_temperature_tensor_is_checked() -> None:
    with pytest.raises(RuntimeError, match="temperature must be positive"):
        soft_mask.feedback(torch.randn(2, 9), 2, torch.tensor(-1.0))
