"""Gradients of the operators: gradcheck on the compiled float64 kernel, and against autograd through the oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import soft_mask
from soft_mask import Feedback, _native, reference
from tests.operator_cases import EMBEDDING, GATE, case

NAMES = ("scale", "steepness", "centre")


def gate_tensors(dtype: torch.dtype) -> list[Tensor]:
    return [torch.tensor(GATE[name], dtype=dtype, requires_grad=True) for name in NAMES]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("chosen", [False, True])
def test_gradcheck_soft_mask_embed(shift: int, chosen: bool) -> None:
    c = case(length=5, vocab=11, width=3, logits_dtype=torch.float64, embedding_dtype=torch.float64)
    where = torch.rand(c.input_ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5 if chosen else None

    def run(embedding: Tensor, scale: Tensor, steepness: Tensor, centre: Tensor) -> Tensor:
        return soft_mask.soft_mask_embed(
            c.logits, c.input_ids, embedding, mask_token_id=c.mask_token_id, k=3, scale=scale, steepness=steepness,
            centre=centre, ban=c.mask_token_id, shift=shift, where=where,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, (c.embedding.requires_grad_(), *gate_tensors(torch.float64)))


@pytest.mark.parametrize("shift", [0, 1])
def test_gradcheck_mix_embed(shift: int) -> None:
    """To the feedback's own numbers too, and nothing but zeros where a row has none."""
    c = case(length=5, vocab=11, width=3, logits_dtype=torch.float64, embedding_dtype=torch.float64)
    fb = soft_mask.feedback(c.logits, 3)
    fb.neg_entropy[1, 1] = float("-inf")

    def run(probs: Tensor, embedding: Tensor, scale: Tensor, steepness: Tensor, centre: Tensor) -> Tensor:
        given = Feedback(fb.ids, probs, fb.neg_entropy, fb.logsumexp)
        return soft_mask.mix_embed(
            c.input_ids, given, embedding, mask_token_id=c.mask_token_id, scale=scale, steepness=steepness, centre=centre,
            shift=shift,
        )  # fmt: skip

    inputs = (fb.probs.requires_grad_(), c.embedding.requires_grad_(), *gate_tensors(torch.float64))
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [0, 1])
def test_against_the_oracle(dtype: torch.dtype, shift: int) -> None:
    c = case(batch=3, length=17, vocab=517, width=123, embedding_dtype=dtype)
    fb = soft_mask.feedback(c.logits, 4)
    upstream = torch.randn(*c.input_ids.shape, 123, generator=torch.Generator().manual_seed(5)).to(dtype)

    def gradients(mix: object, real: torch.dtype, table: Tensor) -> list[Tensor]:
        table = table.detach().requires_grad_()
        probs = fb.probs.to(real).detach().requires_grad_()
        neg_entropy = fb.neg_entropy.to(real).detach().requires_grad_()
        gate = gate_tensors(real)
        out = mix(  # type: ignore[operator]
            c.input_ids, Feedback(fb.ids, probs, neg_entropy, fb.logsumexp), table, mask_token_id=c.mask_token_id,
            **dict(zip(NAMES, gate, strict=True)), shift=shift,
        )  # fmt: skip
        return list(torch.autograd.grad(out, (table, probs, neg_entropy, *gate), upstream.to(out.dtype)))

    found = gradients(soft_mask.mix_embed, torch.float32, c.embedding)
    oracle = gradients(reference.mix_embed, torch.float64, c.embedding.double())
    assert found[0].dtype == dtype
    for name, mine, true in zip(("embedding", "probs", "neg_entropy", *NAMES), found, oracle, strict=True):
        tolerance = EMBEDDING[dtype] if name == "embedding" else 1e-4
        assert (mine.double() - true).abs().max() <= tolerance * true.abs().max(), name


def test_mask_row_gathers_every_masked_position() -> None:
    """E[mask] receives (1 - lambda) g of each mixed row; with g = 1, the sum of (1 - lambda) plus its part as a prediction."""
    c = case(vocab=50, width=4)
    table = c.embedding.requires_grad_()
    fb = soft_mask.feedback(c.logits, 3, ban=c.mask_token_id)
    out = soft_mask.mix_embed(c.input_ids, fb, table, mask_token_id=c.mask_token_id, **GATE)
    out.sum().backward()
    masked = c.input_ids == c.mask_token_id
    expected = (1 - soft_mask.gate(fb.neg_entropy, **GATE))[masked].sum()
    assert table.grad is not None
    torch.testing.assert_close(table.grad[c.mask_token_id], expected.expand(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", [True, False])
def test_sparse_grad(dtype: torch.dtype, fused: bool) -> None:
    """The rows in use, each once, ascending: the dense gradient to the bit, as nn.Embedding(sparse=True) has it."""
    c = case(vocab=517, embedding_dtype=dtype)
    fb = soft_mask.feedback(c.logits, 3)
    upstream = torch.randn(*c.input_ids.shape, 123, generator=torch.Generator().manual_seed(5)).to(dtype)

    def gradient(sparse: bool) -> Tensor:
        table = c.embedding.detach().requires_grad_()
        arguments = {"mask_token_id": c.mask_token_id, "sparse_grad": sparse, "shift": 1, **GATE}
        if fused:
            out = soft_mask.soft_mask_embed(c.logits, c.input_ids, table, k=3, **arguments)
        else:
            out = soft_mask.mix_embed(c.input_ids, fb, table, **arguments)
        (2 * out).backward(upstream)
        assert table.grad is not None
        return table.grad

    dense, sparse = gradient(False), gradient(True)
    if _native.backend() != "reference":  # the twin has dense gradients only
        assert sparse.is_sparse and sparse.dtype == dtype
        assert torch.equal(sparse._indices()[0], (dense != 0).any(1).nonzero().squeeze(1)) and sparse._nnz() < 517
    assert torch.equal(sparse.to_dense(), dense)


def test_a_row_of_many_contributions() -> None:
    """More than the kernel sums in one go, and as many rows as make several runs: the mask's row beside single ones."""
    c = case(batch=1, length=400, vocab=1100, width=300)
    table = c.embedding.requires_grad_()
    soft_mask.soft_mask_embed(c.logits, c.input_ids, table, mask_token_id=c.mask_token_id, **GATE).square().sum().backward()
    double = c.embedding.detach().double().requires_grad_()
    out = reference.soft_mask_embed(c.logits.double(), c.input_ids, double, mask_token_id=c.mask_token_id, **GATE)
    out.square().sum().backward()
    assert table.grad is not None and double.grad is not None
    torch.testing.assert_close(table.grad.double(), double.grad, rtol=0, atol=1e-5 * double.grad.abs().max().item())


def test_frozen_embedding_gets_nothing() -> None:
    c = case()
    scale, steepness, centre = gate_tensors(torch.float32)
    out = soft_mask.soft_mask_embed(
        c.logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, scale=scale, steepness=steepness, centre=centre
    )
    out.sum().backward()
    assert c.embedding.grad is None and scale.grad is not None and scale.grad.abs() > 0


def test_feedback_is_detached_from_the_logits() -> None:
    c = case()
    logits = c.logits.requires_grad_()
    assert not any(part.requires_grad for part in soft_mask.feedback(logits))
    out = soft_mask.soft_mask_embed(logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, **GATE)
    assert not out.requires_grad


def test_no_rows() -> None:
    table = torch.randn(9, 4, requires_grad=True)
    out = soft_mask.soft_mask_embed(torch.empty(2, 0, 9), torch.empty(2, 0, dtype=torch.long), table, mask_token_id=8, **GATE)
    out.sum().backward()
    assert table.grad is not None and table.grad.abs().sum() == 0
