"""The schedule and the corruption."""

from __future__ import annotations

import pytest
import torch

from soft_mask.diffusion import LogLinearNoise, antithetic_times, mask_tokens


def test_weight_is_the_rate_over_the_odds_exactly() -> None:
    """dsigma / (e^sigma - 1), by differentiating sigma, is 1/t."""
    noise = LogLinearNoise()
    t = torch.linspace(1e-3, 1, 999, dtype=torch.float64, requires_grad=True)
    sigma = noise.sigma(t)
    (rate,) = torch.autograd.grad(sigma.sum(), t)
    torch.testing.assert_close(rate / torch.expm1(sigma), noise.loss_weight(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(noise.loss_weight(t), 1 / t, rtol=0, atol=0)
    torch.testing.assert_close(noise.alpha(t), torch.exp(-sigma), rtol=0, atol=1e-15)
    torch.testing.assert_close(noise.mask_probability(t), 1 - noise.alpha(t), rtol=0, atol=1e-15)
    assert noise.mask_probability(torch.tensor(1.0)).item() == pytest.approx(0.999)


@pytest.mark.parametrize("n", [1, 3, 32])
def test_times_are_one_in_each_part(n: int) -> None:
    times = antithetic_times(n, torch.Generator().manual_seed(1))
    assert times.shape == (n,) and times.dtype == torch.float32
    assert times.min() >= 1e-3 and times.max() <= 1
    even = (times.double() - 1e-3) / (1 - 1e-3)
    assert (even * n).floor().long().tolist() == list(range(n))
    assert torch.equal(times, antithetic_times(n, torch.Generator().manual_seed(1)))
    assert not torch.equal(times, antithetic_times(n, torch.Generator().manual_seed(2)))


def test_times_are_the_formula() -> None:
    draw = torch.rand(4, generator=torch.Generator().manual_seed(5))
    expected = ((draw / 4 + torch.arange(4) / 4) % 1) * 0.99 + 0.01
    torch.testing.assert_close(antithetic_times(4, torch.Generator().manual_seed(5), eps=0.01), expected, rtol=0, atol=0)
    assert antithetic_times(0).shape == (0,)


@pytest.mark.parametrize(("n", "eps", "words"), [(-1, 1e-3, "n must be"), (2, 0.0, "eps must"), (2, 1.0, "eps must")])
def test_bad_times_are_told_in_words(n: int, eps: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        antithetic_times(n, eps=eps)


def test_masks_fall_at_their_rate() -> None:
    clean = torch.arange(2000).remainder(7).expand(3, 2000)
    t = torch.tensor([0.1, 0.5, 1.0])
    noisy = mask_tokens(clean, t, 9, torch.Generator().manual_seed(0))
    masked = noisy == 9
    assert torch.equal(noisy[~masked], clean[~masked])
    expected = 0.999 * t
    error = (2000 * expected * (1 - expected)).sqrt()
    assert ((masked.sum(1) - 2000 * expected).abs() < 4 * error).all()


def test_one_draw_a_position_whatever_the_time() -> None:
    clean = torch.zeros(2, 50, dtype=torch.int64)
    allowed = torch.arange(50).remainder(2).bool().expand(2, 50)

    def masked(t: float, maskable: torch.Tensor | None = None) -> torch.Tensor:
        return mask_tokens(clean, torch.full((2,), t), 1, torch.Generator().manual_seed(3), maskable) == 1

    early, late = masked(0.3), masked(0.6)
    assert (late | early).equal(late) and late.sum() > early.sum() > 0
    assert masked(0.6, allowed).equal(late & allowed)
    assert not masked(0.0).any()


def test_bad_corruption_is_told_in_words() -> None:
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"input_ids must be \[B, L\]"):
        mask_tokens(ids[0], torch.ones(3), 1)
    with pytest.raises(ValueError, match=r"t must have shape \[2\], got \[3\]"):
        mask_tokens(ids, torch.ones(3), 1)
    with pytest.raises(ValueError, match="maskable must have shape"):
        mask_tokens(ids, torch.ones(2), 1, maskable=torch.ones(3, 2))
