"""The operators forward, against the float64 oracle of soft_mask.reference and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import soft_mask
from soft_mask import Feedback, _native, reference
from tests.operator_cases import EMBEDDING, FLOATS, GATE, STATISTIC, case


def assert_feedback(found: Feedback, oracle: Feedback, dtype: torch.dtype) -> None:
    assert found.ids.dtype == torch.int32
    assert torch.equal(found.ids, oracle.ids)
    for name in ("probs", "neg_entropy", "logsumexp"):
        # A logsumexp of thousands is stored in float32 too: beyond 100 its last bit is more than the tolerance.
        rtol = 1e-7 if name == "logsumexp" and dtype != torch.float64 else 0
        mine, true = getattr(found, name).double(), getattr(oracle, name).double()
        torch.testing.assert_close(mine, true, rtol=rtol, atol=STATISTIC[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("vocab,k", [(50_258, 3), (4096, 1), (1025, 64), (64, 64), (33, 5), (1, 1)])
def test_feedback(dtype: torch.dtype, vocab: int, k: int) -> None:
    logits = case(vocab=vocab, length=5, width=1, logits_dtype=dtype).logits
    assert_feedback(soft_mask.feedback(logits, k), reference.feedback(logits.double(), k), dtype)


@pytest.mark.parametrize("temperature", [0.3, 1.7, torch.tensor(0.6)])
@pytest.mark.parametrize("ban", [5, (0, 258), list(range(100, 140)), torch.tensor([3, 3, 4])])
def test_temperature_and_ban(temperature: float | torch.Tensor, ban: object) -> None:
    logits = case().logits
    banned = tuple(torch.as_tensor(ban).reshape(-1).tolist())
    found = soft_mask.feedback(logits, 4, temperature, ban)  # type: ignore[arg-type]
    t = temperature if isinstance(temperature, float) else temperature.item()
    assert_feedback(found, reference.feedback(logits.double(), 4, t, banned), logits.dtype)
    assert not set(found.ids.flatten().tolist()) & set(banned)


@pytest.mark.parametrize("kind", ["sorted", "reversed", "equal", "peaked", "half -inf", "offset", "tiny", "bfloat16 ties"])
def test_distributions(kind: str) -> None:
    logits = torch.randn(4, 5003, generator=torch.Generator().manual_seed(1)) * 2
    if kind == "sorted":
        logits = logits.sort(-1).values
    elif kind == "reversed":
        logits = logits.sort(-1, descending=True).values
    elif kind == "equal":
        logits = torch.full_like(logits, -3.25)
    elif kind == "peaked":
        logits[:, 4321] = 90.0
    elif kind == "half -inf":
        logits[:, ::2] = float("-inf")
    elif kind == "offset":
        logits += 3e4
    elif kind == "tiny":
        logits *= 1e-30
    elif kind == "bfloat16 ties":
        logits = logits.bfloat16().float()
    for k in (1, 7, 64, 100):
        assert_feedback(soft_mask.feedback(logits, k), reference.feedback(logits.double(), k), torch.float32)


@pytest.mark.parametrize("stride", [8, 16, 64, 1024])
def test_best_values_in_few_lanes(stride: int) -> None:
    """The largest logits all a vector's width apart, where the maxima of lanes say least."""
    logits = torch.randn(2, 9001, generator=torch.Generator().manual_seed(6))
    logits[:, 5::stride] += 10
    for k in (3, 8, 64):
        assert_feedback(soft_mask.feedback(logits, k), reference.feedback(logits.double(), k), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_rising_row(dtype: torch.dtype) -> None:
    """Each block towers above all before it, in steps that float sums of exponentials cannot span."""
    logits = torch.arange(0, 5000, dtype=torch.float32).div(1024).floor().mul(30)[None] + torch.linspace(0, 1, 5000)
    logits = torch.cat([logits, logits.flip(1), -logits]).to(dtype)
    assert_feedback(soft_mask.feedback(logits, 5), reference.feedback(logits.double(), 5), dtype)


def test_known_values() -> None:
    """A uniform row has neg_entropy = -ln V, and its ties go to the lowest ids; a certain one has neg_entropy = 0."""
    found = soft_mask.feedback(torch.zeros(1, 50_258), 3)
    assert found.ids.tolist() == [[0, 1, 2]]
    assert found.neg_entropy.item() == pytest.approx(-math.log(50_258), abs=2e-6)
    certain = torch.full((1, 1000), float("-inf"))
    certain[0, 700] = 5.0
    found = soft_mask.feedback(certain, 3)
    assert found.ids.tolist() == [[700, 0, 0]] and found.probs.tolist() == [[1.0, 0.0, 0.0]]
    assert abs(found.neg_entropy.item()) < 1e-30 and found.logsumexp.item() == 5.0


@pytest.mark.parametrize("position", [0, 1, 1023, 1024, 1025, 2047, 5002])
def test_ties_across_blocks(position: int) -> None:
    """Equal best values at the edges of whatever blocks a kernel uses: the lower id first."""
    logits = torch.randn(1, 5003, generator=torch.Generator().manual_seed(2))
    logits[0, [position, 3000, 4999]] = 9.0
    assert soft_mask.feedback(logits, 3).ids.tolist() == [sorted([position, 3000, 4999])]


@pytest.mark.parametrize("embedding_dtype", FLOATS)
@pytest.mark.parametrize("logits_dtype", FLOATS)
@pytest.mark.parametrize("shift", [0, 1])
def test_soft_mask_embed(logits_dtype: torch.dtype, embedding_dtype: torch.dtype, shift: int) -> None:
    c = case(logits_dtype=logits_dtype, embedding_dtype=embedding_dtype)
    arguments = {"mask_token_id": c.mask_token_id, "k": 3, "ban": (c.mask_token_id,), "shift": shift, **GATE}
    found = soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, **arguments)
    oracle = reference.soft_mask_embed(c.logits.double(), c.input_ids, c.embedding.double(), **arguments)
    assert found.dtype == embedding_dtype and found.shape == (*c.input_ids.shape, 123)
    tolerance = max(EMBEDDING[embedding_dtype], EMBEDDING[torch.float32] if logits_dtype != torch.float64 else 0)
    assert (found.double() - oracle).abs().max() <= tolerance * oracle.abs().max()
    plain = c.input_ids != c.mask_token_id
    assert torch.equal(found[plain], c.embedding[c.input_ids[plain]])
    assert not torch.equal(found[~plain], c.embedding[c.input_ids[~plain]])


@pytest.mark.parametrize("shift", [0, 1])
def test_two_steps_are_one(shift: int) -> None:
    """soft_mask_embed is mix_embed of feedback, to the bit."""
    c = case()
    fb = soft_mask.feedback(c.logits, 3)
    arguments = {"mask_token_id": c.mask_token_id, "shift": shift, **GATE}
    once = soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, k=3, **arguments)
    twice = soft_mask.mix_embed(c.input_ids, fb, c.embedding, **arguments)
    torch.testing.assert_close(once, twice, rtol=0, atol=1e-6)


def test_where_names_the_rows() -> None:
    c = case()
    where = torch.zeros_like(c.input_ids, dtype=torch.bool)
    where[0, 3] = where[1, 6] = True
    found = soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, where=where, **GATE)
    fb = reference.feedback(c.logits[where].double(), 3)
    lam = reference.gate(fb.neg_entropy, **GATE)[:, None]
    table = c.embedding.double()
    expected = (1 - lam) * table[c.input_ids[where]] + lam * (fb.probs[..., None] * table[fb.ids.long()]).sum(1)
    torch.testing.assert_close(found[where].double(), expected, rtol=0, atol=2e-5)
    assert torch.equal(found[~where], c.embedding[c.input_ids[~where]])


@pytest.mark.skipif(_native.backend() == "reference", reason="the twin multiplies by a probability of 0")
def test_absent_predictions_are_not_read() -> None:
    """Where fewer than k logits are finite the missing ids are 0, and whatever row 0 of the embedding holds stays out."""
    c = case(vocab=259, width=300)
    c.logits[..., 5:] = float("-inf")
    c.logits[..., 0] = float("-inf")
    c.embedding[0] = float("nan")
    c.input_ids[c.input_ids == 0] = 1
    found = soft_mask.soft_mask_embed(c.logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, k=8, **GATE)
    assert found.isfinite().all()


def test_no_feedback_is_the_plain_row() -> None:
    c = case()
    empty = Feedback.empty(c.input_ids.shape, 3)
    found = soft_mask.mix_embed(c.input_ids, empty, c.embedding, mask_token_id=c.mask_token_id, **GATE)
    assert torch.equal(found, c.embedding[c.input_ids])


@pytest.mark.parametrize("scale", [0.0, torch.tensor(0.0)])
def test_scale_zero_is_binary(scale: float | torch.Tensor) -> None:
    c = case()
    found = soft_mask.soft_mask_embed(
        c.logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, **{**GATE, "scale": scale}
    )
    assert torch.equal(found, c.embedding[c.input_ids])


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 4), (0,), (2, 0), (0, 3)])
def test_leading_shapes(lead: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(3)
    logits, table = torch.randn(*lead, 40, generator=g), torch.randn(40, 6, generator=g)
    ids = torch.full(lead, 39)
    found = soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=39, **GATE)
    assert found.shape == (*lead, 6)
    fb = soft_mask.feedback(logits, 2)
    assert fb.ids.shape == (*lead, 2) and fb.neg_entropy.shape == lead
    if found.numel():
        rows = soft_mask.soft_mask_embed(logits.reshape(1, -1, 40), ids.reshape(1, -1), table, mask_token_id=39, **GATE)
        assert torch.equal(found.reshape(-1, 6), rows[0])


def test_strides() -> None:
    """Any strides give the contiguous copy's result: sliced, transposed, expanded, a wider table, a strided table.

    On the CPU to the bit; the CUDA kernels cut a row where lines of memory begin, so that its sums come in another order.
    """
    tolerance = 1e-6 if _native.backend() == "emulated-cuda" else 0.0
    g = torch.Generator().manual_seed(4)
    big = torch.randn(3, 12, 101, generator=g)
    table = torch.randn(120, 9, generator=g)
    ids = torch.randint(0, 101, (3, 6), generator=g)
    ids[:, ::2] = 100
    for logits in (big[:, ::2], big[:, :6], big.transpose(0, 1)[:6].transpose(0, 1), big[:, :1].expand(3, 6, 101),
                   torch.randn(3, 101, 6, generator=g).transpose(1, 2)):  # fmt: skip
        for embedding in (table, table[:, :5], torch.randn(9, 120, generator=g).T):
            arguments = {"mask_token_id": 100, **GATE}
            found = soft_mask.soft_mask_embed(logits, ids, embedding, **arguments)
            true = soft_mask.soft_mask_embed(logits.contiguous(), ids, embedding.contiguous(), **arguments)
            torch.testing.assert_close(found, true, rtol=0, atol=tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_thread_count(threads: int) -> None:
    c = case(batch=3, length=41, vocab=3001, width=300)
    c.embedding.requires_grad_()
    scale = torch.tensor(0.7, requires_grad=True)

    def run() -> list[torch.Tensor]:
        out = soft_mask.soft_mask_embed(
            c.logits, c.input_ids, c.embedding, mask_token_id=c.mask_token_id, scale=scale, steepness=1.3, centre=-2.5
        )
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (c.embedding, scale)), *soft_mask.feedback(c.logits)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run()
        torch.set_num_threads(threads)
        together = run()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
