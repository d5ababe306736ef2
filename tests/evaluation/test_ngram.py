"""The n-gram judge against sums done by hand and by a plain dictionary."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
import torch

from soft_mask.evaluation.ngram import NGram, unigram_entropy


def by_dictionary(texts: list[list[int]], vocab_size: int, order: int, history: list[int], token: int) -> float:
    probability = 1.0 / vocab_size
    for n in range(1, min(order, len(history) + 1) + 1):
        after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in texts:
            for i in range(len(text) - n + 1):
                after[tuple(text[i : i + n - 1])][text[i + n - 1]] += 1
        seen = after.get(tuple(history[len(history) - (n - 1) :]))
        if seen is None:
            continue
        probability = (seen[token] + len(seen) * probability) / (sum(seen.values()) + len(seen))
    return probability


def test_by_hand() -> None:
    model = NGram(vocab_size=2, order=2).fit(torch.tensor([0, 0, 1]))
    # order 1: c(0)=2, c(1)=1, T=2 -> p(0) = (2 + 2/2)/5, p(1) = (1 + 2/2)/5
    assert model.nll(torch.tensor([[0]])).exp().reciprocal().item() == pytest.approx(0.6)
    # after 0: one 0, one 1 -> p(1|0) = (1 + 2 * 0.4)/4
    assert model.nll(torch.tensor([[0, 1]]))[0, 1].item() == pytest.approx(-math.log(0.45))


@pytest.mark.parametrize("order", [1, 3, 6])
def test_against_a_dictionary(order: int) -> None:
    generator = torch.Generator().manual_seed(order)
    texts = [torch.randint(0, 5, (n,), generator=generator) for n in (60, 3, 41)]
    ids = torch.randint(0, 5, (4, 9), generator=generator)
    nll = NGram(5, order).fit(*texts).nll(ids)
    plain = [text.tolist() for text in texts]
    for row, scores in zip(ids.tolist(), nll.tolist(), strict=True):
        for i, score in enumerate(scores):
            assert score == pytest.approx(-math.log(by_dictionary(plain, 5, order, row[:i], row[i])), rel=1e-12)


def test_probabilities_sum_to_one() -> None:
    model = NGram(7, 4).fit(torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0)))
    for history in ([], [3], [1, 2], [6, 6, 6, 6, 6]):
        ids = torch.tensor([[*history, token] for token in range(7)])
        assert model.nll(ids)[:, -1].neg().exp().sum().item() == pytest.approx(1.0)


def test_text_it_has_read_is_likelier_than_noise() -> None:
    text = torch.arange(4).repeat(50)
    model = NGram(4, 3).fit(text)
    noise = torch.randint(0, 4, (1, 40), generator=torch.Generator().manual_seed(1))
    assert model.nll(text[None, :40]).mean() < 0.5 * model.nll(noise).mean()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="order"):
        NGram(100, 0)
    with pytest.raises(ValueError, match="63 bits"):
        NGram(50_000, 6)
    with pytest.raises(ValueError, match="nothing to count"):
        NGram(4).fit()
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        NGram(4).fit(torch.tensor([4]))
    with pytest.raises(TypeError, match="int64"):
        NGram(4).fit(torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="fit"):
        NGram(4).nll(torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="2 dimensions"):
        NGram(4).fit(torch.tensor([1])).nll(torch.tensor([1]))


def test_unigram_entropy() -> None:
    same = torch.zeros(3, 8, dtype=torch.int64)
    assert unigram_entropy(same) == 0.0
    rows = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    assert unigram_entropy(rows) == 0.0
    assert unigram_entropy(rows, pooled=True) == pytest.approx(math.log(2))
    assert unigram_entropy(torch.arange(8)[None]) == pytest.approx(math.log(8))
    with pytest.raises(ValueError, match="at least one token"):
        unigram_entropy(same[:0])
