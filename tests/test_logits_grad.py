"""The gradient that goes on into the logits, and to a temperature, on request."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import soft_mask
from soft_mask import reference
from tests.operator_cases import GATE, case


def double_case() -> tuple[Tensor, Tensor, Tensor, int]:
    return case(length=5, vocab=11, width=3, logits_dtype=torch.float64, embedding_dtype=torch.float64)


@pytest.mark.parametrize("ban", [None, (2, 10)])
def test_gradcheck_feedback(ban: tuple[int, ...] | None) -> None:
    logits = double_case()[0]

    def run(logits: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        return soft_mask.feedback(logits, 3, temperature, ban, logits_grad=True)[1:]

    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (logits.requires_grad_(), temperature))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("first", ["mixed, mixed", "mixed, plain", "plain, mixed"])
def test_gradcheck_soft_mask_embed(shift: int, first: str) -> None:
    """With shift the first row of logits has two readers, of which either may be plain."""
    logits, ids, table, mask = double_case()
    ids[:, :2] = torch.tensor([mask if word == "mixed" else 1 for word in first.split(", ")])

    def run(logits: Tensor, temperature: Tensor, table: Tensor, scale: Tensor) -> Tensor:
        return soft_mask.soft_mask_embed(
            logits, ids, table, mask_token_id=mask, scale=scale, steepness=1.3, centre=-2.5, temperature=temperature, ban=mask,
            shift=shift, logits_grad=True,
        )  # fmt: skip

    numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.4, 0.7)]
    assert torch.autograd.gradcheck(run, (logits.requires_grad_(), numbers[0], table.requires_grad_(), numbers[1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1024, 5003])
def test_against_the_oracle(dtype: torch.dtype, vocab: int) -> None:
    """Each gradient within one rounding of the oracle's; what is banned or -inf gets exactly 0."""
    logits = case(vocab=vocab, logits_dtype=dtype).logits
    logits[..., 1::7] = float("-inf")
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(2, 7, 4, generator=g), *torch.randn(2, 2, 7, generator=g)]

    def gradients(run: object, logits: Tensor, **more: object) -> tuple[Tensor, ...]:
        logits = logits.detach().requires_grad_()
        temperature = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        found = run(logits, 4, temperature, (3, 700), **more)[1:]  # type: ignore[operator]
        return torch.autograd.grad(found, (logits, temperature), [u.to(x.dtype) for u, x in zip(upstream, found, strict=True)])

    found, temperature = gradients(soft_mask.feedback, logits, logits_grad=True)
    oracle, true_temperature = gradients(reference.feedback, logits.double())
    assert found.dtype == dtype
    rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    # Relative to each entry, down to where float16 has no more bits; float32 statistics leave 2e-6 of the largest besides.
    slack = rounding * oracle.abs() + 4e-6 * oracle.abs().max() + (2**-24 if dtype == torch.float16 else 0)
    assert ((found.double() - oracle).abs() <= slack).all()
    assert found[..., 1::7].abs().max() == 0 and found[..., [3, 700]].abs().max() == 0
    torch.testing.assert_close(temperature, true_temperature, rtol=1e-5, atol=1e-6)


def test_rows_without_feedback_get_zero() -> None:
    """Rows that are not mixed, and rows that are -inf throughout, whatever NaN lies in the others' logits."""
    c = case()
    plain = c.input_ids != c.mask_token_id
    logits = c.logits.clone()
    logits[plain] = float("nan")
    logits[0, 0] = float("-inf")
    logits.requires_grad_()
    out = soft_mask.soft_mask_embed(
        logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, logits_grad=True, check=False, **GATE
    )
    out.square().sum().backward()
    assert logits.grad is not None and logits.grad[plain].abs().max() == 0 and logits.grad[0, 0].abs().max() == 0
    assert (logits.grad[~plain].abs().amax(-1) > 0).sum() == (~plain).sum() - 1


def test_temperature_alone() -> None:
    """A learned temperature needs no gradient in the logits."""
    c = case()
    temperature = torch.tensor(0.9, requires_grad=True)
    out = soft_mask.soft_mask_embed(
        c.logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, temperature=temperature, **GATE
    )
    (found,) = torch.autograd.grad(out.square().sum(), temperature)
    double = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    out = reference.soft_mask_embed(
        c.logits.double(), c.input_ids, c.embedding.double(), mask_token_id=c.mask_token_id, temperature=double, **GATE
    )
    (true,) = torch.autograd.grad(out.square().sum(), double)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(true.item(), rel=1e-4)
