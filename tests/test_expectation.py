"""algorithm="expectation": the mean embedding under the whole distribution, forward and backward, in blocks of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import soft_mask
from soft_mask import expectation, reference
from tests.operator_cases import EMBEDDING, GATE, case


@pytest.fixture(params=[1, 2**24], ids=["one row a block", "one block"], autouse=True)
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expectation, "BLOCK_BYTES", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0, 1])
def test_forward(dtype: torch.dtype, shift: int) -> None:
    c = case(logits_dtype=dtype, embedding_dtype=dtype)
    c.logits[..., 5] = float("-inf")
    arguments = {"mask_token_id": c.mask_token_id, "ban": (c.mask_token_id,), "temperature": 0.8, "shift": shift, **GATE}
    found = soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, algorithm="expectation", **arguments)
    oracle = reference.expectation_embed(c.logits.double(), c.input_ids, c.embedding.double(), **arguments)
    assert found.dtype == dtype
    assert (found.double() - oracle).abs().max() <= EMBEDDING[dtype] * oracle.abs().max()
    plain = c.input_ids != c.mask_token_id
    assert torch.equal(found[plain], c.embedding[c.input_ids[plain]])


@pytest.mark.parametrize("shift", [0, 1])
def test_gradcheck(shift: int) -> None:
    c = case(length=4, vocab=11, width=3, logits_dtype=torch.float64, embedding_dtype=torch.float64)

    def run(logits: Tensor, embedding: Tensor, *numbers: Tensor) -> Tensor:
        scale, steepness, centre, temperature = numbers
        return soft_mask.soft_mask_embed(
            logits, c.input_ids, embedding, mask_token_id=10, scale=scale, steepness=steepness, centre=centre, ban=10,
            temperature=temperature, shift=shift, algorithm="expectation", logits_grad=True,
        )  # fmt: skip

    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.7, 1.3, -2.5, 0.8)]
    assert torch.autograd.gradcheck(run, (c.logits.requires_grad_(), c.embedding.requires_grad_(), *numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_against_the_oracle(dtype: torch.dtype) -> None:
    c = case(vocab=517, logits_dtype=dtype, embedding_dtype=dtype)
    upstream = torch.randn(*c.input_ids.shape, 123, generator=torch.Generator().manual_seed(5)).to(dtype)

    def gradients(run: object, real: torch.dtype, **more: object) -> tuple[Tensor, ...]:
        logits, table = (x.to(real).detach().requires_grad_() for x in (c.logits, c.embedding))
        out = run(logits, c.input_ids, table, mask_token_id=516, **GATE, **more)  # type: ignore[operator]
        return torch.autograd.grad(out, (logits, table), upstream.to(real))

    found = gradients(soft_mask.soft_mask_embed, dtype, algorithm="expectation", logits_grad=True)
    for mine, true in zip(found, gradients(reference.expectation_embed, torch.float64), strict=True):
        assert (mine.double() - true).abs().max() <= EMBEDDING[dtype] * true.abs().max()


def test_is_detached_unless_asked() -> None:
    c = case()
    logits = c.logits.requires_grad_()
    out = soft_mask.soft_mask_embed(
        logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, algorithm="expectation", **GATE
    )
    assert not out.requires_grad


def test_bad_values() -> None:
    c = case()
    c.logits[1, 1, 3] = float("nan")
    run = {"mask_token_id": c.mask_token_id, "algorithm": "expectation", **GATE}
    with pytest.raises(RuntimeError, match="row 8 .* holds NaN"):
        soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, **run)
    c.logits[1, 1] = float("-inf")
    with pytest.raises(RuntimeError, match="row 8 .* is -inf throughout"):
        soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, **run)
    unchecked = soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, check=False, **run)
    assert torch.equal(unchecked[1, 1], c.embedding[c.mask_token_id])
    with pytest.raises(ValueError, match="embedding must have a row for each"):
        soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding[:200], **{**run, "mask_token_id": 3})
