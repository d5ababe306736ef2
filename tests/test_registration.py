"""The operators as torch sees them: opcheck, torch.compile, meta tensors."""

from __future__ import annotations

import pytest
import torch

import soft_mask
from soft_mask import _native
from tests.operator_cases import GATE, case

needs_operators = pytest.mark.skipif(_native.backend() == "reference", reason="nothing is registered on the reference path")


@needs_operators
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift", [0, 1])
def test_opcheck(dtype: torch.dtype, shift: int) -> None:
    c = case(vocab=37, width=5, logits_dtype=dtype, embedding_dtype=dtype)
    ops = torch.ops.soft_mask
    gate = torch.tensor([0.7, 1.3, -2.5], requires_grad=True)
    temperature = torch.tensor(0.8, dtype=torch.float64)
    where = torch.rand(c.input_ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    table = c.embedding.requires_grad_()
    ids, probs, neg_entropy, logsumexp = ops.feedback(c.logits, 3, None, [], True)
    probs.requires_grad_()
    neg_entropy.requires_grad_()
    mask = c.mask_token_id
    opcheck = torch.library.opcheck
    opcheck(ops.feedback.default, (c.logits, 3, temperature, [1, 2], True))
    # All but the test through AOTAutograd, which adds integer outputs to float ones; test_compile_fullgraph is in its stead.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs: tuple = (c.logits.clone().requires_grad_(), 3, temperature.clone().requires_grad_(), [], True)
    opcheck(ops.feedback.default, inputs, test_utils=utils)
    found = (ids, probs.detach(), neg_entropy.detach(), logsumexp)
    for want in (True, False):
        opcheck(ops.feedback_backward.default, (*map(torch.randn_like, found[1:]), c.logits, *found, None, [4], want))
    opcheck(ops.mix_embed.default, (c.input_ids, ids, probs, neg_entropy, table, gate, mask, shift, None, False, False))
    opcheck(ops.mix_embed.default, (c.input_ids, ids, probs, neg_entropy, table, gate, mask, shift, where, False, True))
    opcheck(
        ops.soft_mask_embed.default,
        (c.logits, c.input_ids, table, gate, mask, 3, None, [mask], shift, None, True, False, False),
    )
    inputs = (c.logits.clone().requires_grad_(), c.input_ids, table, gate, mask, 2, temperature.clone().requires_grad_())
    opcheck(ops.soft_mask_embed.default, (*inputs, [], shift, where, True, False, False))
    grad = torch.randn(*c.input_ids.shape, 5).to(dtype)
    args = (grad, c.input_ids, ids, probs.detach(), neg_entropy.detach(), table.detach(), gate.detach(), mask, shift, None)
    opcheck(ops.mix_embed_backward.default, (*args, True, False))
    opcheck(ops.mix_embed_backward.default, (*args, False, False))
    opcheck(ops.mix_embed_backward_rows.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic: bool) -> None:
    """One graph, the same numbers, forward and backward."""
    sm = soft_mask.SoftMask(soft_mask.SoftMaskConfig.for_short_runs(258, ban=(258,)))
    c = case()
    head = torch.nn.Linear(123, 10)

    def step(logits: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        fb = soft_mask.feedback(logits, 2, logits_grad=True)
        return head(sm(ids, logits, table) * 2).square().mean() + (fb.neg_entropy * fb.probs[..., 0]).mean()

    def run(fn: object) -> list[torch.Tensor]:
        table = c.embedding.detach().clone().requires_grad_()
        logits = c.logits.detach().clone().requires_grad_()
        loss = fn(logits, c.input_ids, table)  # type: ignore[operator]
        return [loss.detach(), *torch.autograd.grad(loss, (logits, table, *sm.parameters()))]

    if _native.backend() == "reference":
        pytest.skip("the reference path checks values on the host, which is no one graph")
    torch._dynamo.reset()
    for mine, eager in zip(run(torch.compile(step, fullgraph=True, dynamic=dynamic)), run(step), strict=True):
        torch.testing.assert_close(mine, eager)


def test_compile_two_steps() -> None:
    if _native.backend() == "reference":
        pytest.skip("the reference path checks values on the host, which is no one graph")
    c = case()

    def step(logits: torch.Tensor, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        fb = soft_mask.feedback(logits, 3, temperature=0.7)
        return soft_mask.mix_embed(ids, fb, table, mask_token_id=258, shift=1, **GATE)

    compiled = torch.compile(step, fullgraph=True)
    assert torch.equal(compiled(c.logits, c.input_ids, c.embedding), step(c.logits, c.input_ids, c.embedding))


@pytest.mark.skipif(_native.backend() != "native", reason="float64 goes through operators on the CPU only")
def test_fake_tensors_have_the_shapes() -> None:
    c = case(logits_dtype=torch.float64)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(x) for x in (c.logits, c.input_ids, c.embedding)]
        out = soft_mask.soft_mask_embed(*fakes, mask_token_id=c.mask_token_id, **GATE)
        fb = soft_mask.feedback(fakes[0], 5)
    assert out.shape == (2, 7, 123) and out.dtype == torch.float32
    assert fb.ids.shape == (2, 7, 5) and fb.probs.dtype == torch.float64
