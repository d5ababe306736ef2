"""Cross-entropy on rows: against the dense formula, and how much it holds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from soft_mask.diffusion import mdlm_nelbo, row_cross_entropy

V, D, M = 13, 5, 23


def problem() -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    return torch.randn(M, D, requires_grad=True), nn.Linear(D, V), torch.randint(0, V - 1, (M,))


@pytest.mark.parametrize("chunk_rows", [None, 1, 7, 22, 23, 100])
@pytest.mark.parametrize("ban", [(), (V - 1,), (V - 1, 12)])
@pytest.mark.parametrize("frozen", [False, True])
def test_equals_the_dense_formula_with_gradients(chunk_rows: int | None, ban: tuple[int, ...], frozen: bool) -> None:
    rows, head, targets = problem()
    head.requires_grad_(not frozen)
    learned = [rows] if frozen else [rows, *head.parameters()]
    keep = [i for i in range(V) if i not in ban]
    logits = head(rows)
    dense = logits[:, keep].logsumexp(-1) - logits.gather(1, targets[:, None])[:, 0]
    weight = torch.linspace(1, 2, M)
    expected = torch.autograd.grad(dense @ weight, learned)
    nll = row_cross_entropy(rows, head, targets, ban, chunk_rows)
    torch.testing.assert_close(nll, dense, rtol=0, atol=1e-6)
    for got, want in zip(torch.autograd.grad(nll @ weight, learned), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(row_cross_entropy(rows, head, targets, ban, chunk_rows), nll)


def test_chunks_never_hold_all_logits() -> None:
    rows, head, targets = problem()
    seen: list[int] = []
    saved: list[tuple[int, ...]] = []

    def counting(part: Tensor) -> Tensor:
        seen.append(len(part))
        return head(part)

    def note(x: Tensor) -> Tensor:
        saved.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        nll = row_cross_entropy(rows, counting, targets, (V - 1,), 7)
    assert seen == [0, 7, 7, 7, 2]  # no rows: whether the head has anything to learn
    assert not [shape for shape in saved if shape[-1:] == (V,) and len(shape) > 1]  # no logits wait for the backward
    nll.sum().backward()
    assert sorted(seen) == sorted([0, *[7, 7, 7, 2] * 2])  # and are made again there


def test_a_frozen_head_runs_once_a_chunk() -> None:
    rows, head, targets = problem()
    head.requires_grad_(False)
    seen: list[int] = []

    def counting(part: Tensor) -> Tensor:
        seen.append(len(part))
        return head(part)

    nll = row_cross_entropy(rows, counting, targets, (V - 1,), 7)
    nll.sum().backward()
    assert seen == [0, 7, 7, 7, 2] and rows.grad is not None  # nothing is made again
    with pytest.raises(ValueError, match="targets hold id 12"):
        row_cross_entropy(rows, head, torch.full((M,), V - 1), (V - 1,), 7)


def test_no_rows_keep_their_graph() -> None:
    rows, head, targets = problem()
    nll = row_cross_entropy(rows[:0], head, targets[:0])
    nll.sum().backward()
    assert nll.shape == (0,)
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_half_logits_are_summed_in_float32() -> None:
    rows, head, targets = problem()
    nll = row_cross_entropy(rows.bfloat16(), head.bfloat16(), targets)
    logits = head(rows.bfloat16()).double()
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.full((M,), V), r"targets must lie in \[0, 13\), got ids from 13 to 13"),
        (torch.arange(M) % V - 1, "got ids from -1 to 11"),
        (torch.full((M,), V - 1), "targets hold id 12, which can not be predicted"),
        (torch.zeros(M + 1, dtype=torch.int64), r"targets \[M\]"),
    ],
)
def test_bad_targets_are_told_in_words(targets: Tensor, words: str) -> None:
    rows, head, _ = problem()
    with pytest.raises(ValueError, match=words):
        row_cross_entropy(rows, head, targets, (V - 1,))


def test_bad_chunk_is_told_in_words() -> None:
    rows, head, targets = problem()
    with pytest.raises(ValueError, match="chunk_rows must be at least 1, got 0"):
        row_cross_entropy(rows, head, targets, chunk_rows=0)


def test_nelbo_is_over_all_tokens() -> None:
    loss = mdlm_nelbo(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.5, 0.25]), 10)
    assert loss.item() == pytest.approx((2 + 4 + 12) / 10)
