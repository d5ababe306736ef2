"""The losses by name against plain formulas over whole tensors, and what goes with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from soft_mask.diffusion import OBJECTIVES, Denoiser, FlooredNoise, count_weight, find_objective, mask_tokens
from soft_mask.models import MDLM, MDLMConfig

B, L, V, MASK = 3, 9, 13, 12


class Shifted(MDLM):
    """Of Dream's kind: row t - 1 predicts token t, and the mask token stays in the distribution."""

    shift = 1
    bans_mask = False


def problem(first: int = 2) -> tuple[Shifted, Tensor, Tensor, Tensor]:
    """Model, clean and noisy tokens, and the answers, which begin at ``first`` or one later."""
    torch.manual_seed(0)
    model = Shifted(MDLMConfig(vocab_size=V, model_length=L, hidden_dim=8, cond_dim=2, n_blocks=1, n_heads=2))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    clean = torch.randint(0, MASK, (B, L))
    answer = torch.arange(L) >= torch.tensor([[first], [first + 1], [first]])
    noisy = mask_tokens(clean, torch.full((B,), 0.6), MASK, torch.Generator().manual_seed(1), answer)
    return model.eval(), clean, noisy, answer


def dense_nll(model: Shifted, clean: Tensor, noisy: Tensor) -> Tensor:  # [B, L], 0 where nothing is masked
    logits = model(noisy)
    logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    nll = -logits.log_softmax(-1).gather(-1, clean[..., None])[..., 0]
    return torch.where(noisy == MASK, nll, 0.0)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_each_loss_is_its_formula(name: str) -> None:
    model, clean, noisy, answer = problem()
    t = torch.tensor([0.3, 0.5, 0.8]) if name != "dream" else torch.full((B,), 0.4)
    nll = dense_nll(model, clean, noisy)
    masked = (noisy == MASK).sum()
    expected = {
        "mdlm": (nll / t[:, None]).sum() / (B * L),
        "per_token": (nll / t[:, None]).sum() / answer.sum(),
        "dream": nll.sum() / masked / 0.4,
        "llada": (nll.sum(1) / (0.999 * t + 0.001) / answer.sum(1)).mean(),
    }[name]
    for chunk in (None, 4):
        out = Denoiser(model, None, chunk, loss=name)(clean, noisy, t, answer=answer)
        torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.sequence_nll, (nll / t[:, None]).sum(1).detach(), rtol=1e-5, atol=1e-5)


def test_dream_is_the_causal_language_model_loss_over_t() -> None:
    """The reference calls it with labels; it shifts by itself, and so never learns a masked position 0."""
    model, clean, noisy, answer = problem()
    labels = clean.masked_fill(noisy != MASK, -100)
    logits = model(noisy)
    causal = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    out = Denoiser(model, loss="dream")(clean, noisy, torch.full((B,), 0.4), answer=answer)
    torch.testing.assert_close(out.loss, causal / 0.4, rtol=1e-6, atol=1e-6)
    # Position 0 is always of the prompt. Where it is not, it is learned from its own row, and the reference drops it.
    noisy, answer = noisy.clone(), answer.clone()
    noisy[:, 0], answer[:, 0] = MASK, True
    out = Denoiser(model, loss="dream")(clean, noisy, torch.full((B,), 0.4), answer=answer)
    nll = dense_nll(model, clean, noisy)
    torch.testing.assert_close(out.loss, nll.sum() / (noisy == MASK).sum() / 0.4, rtol=1e-6, atol=1e-6)
    assert out.masked_rows == int((noisy == MASK).sum())


def test_a_mask_token_in_a_prompt_is_not_learned() -> None:
    model, clean, noisy, answer = problem()
    noisy = noisy.clone()
    noisy[:, 1] = MASK  # of the prompt
    for name in OBJECTIVES:
        out = Denoiser(model, loss=name)(clean, noisy, torch.full((B,), 0.4), answer=answer)
        assert out.masked_rows == int((noisy == MASK)[answer].sum())


def test_nothing_masked_is_zero_with_a_graph() -> None:
    model, clean, _, answer = problem()
    for name in OBJECTIVES:
        loss = Denoiser(model, loss=name)(clean, clean, torch.full((B,), 0.4), answer=answer).loss
        loss.backward()
        assert loss.item() == 0.0


def test_weights_of_micro_batches() -> None:
    _, clean, _, answer = problem()
    weights = {name: int(count_weight(find_objective(name), clean, answer)) for name in OBJECTIVES}
    assert weights == {"mdlm": B * L, "per_token": int(answer.sum()), "dream": B, "llada": B}
    assert count_weight(find_objective("per_token"), clean, None) == B * L
    with pytest.raises(ValueError, match="loss must be one of mdlm, per_token, dream, llada, got 'sum'"):
        Denoiser(problem()[0], loss="sum")


def test_at_least_one_mask_in_an_answer_and_none_in_a_prompt() -> None:
    clean = torch.zeros(4000, 6, dtype=torch.int64)
    answer = (torch.arange(6) >= 2).expand_as(clean)
    t = torch.full((4000,), 1e-4)
    noisy = mask_tokens(clean, t, MASK, torch.Generator().manual_seed(0), answer, FlooredNoise(), at_least_one=True)
    found = noisy == MASK
    assert bool((found.sum(1) >= 1).all()) and not found[:, :2].any()
    # each position as often: 4000 / 4 within four standard deviations (and a few more by chance of t)
    assert bool(((found[:, 2:].sum(0) - 1000).abs() < 120).all())
    few = mask_tokens(clean, t, MASK, torch.Generator().manual_seed(0), answer, FlooredNoise())
    assert 0 < (few == MASK).sum() < 100 and bool((found | (few != MASK)).all())  # the same draws, and one more where none
    with pytest.raises(ValueError, match="sequence 1 has no position"):
        mask_tokens(clean[:2], t[:2], MASK, maskable=torch.tensor([[True] * 6, [False] * 6]), at_least_one=True)


def test_floored_noise() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(FlooredNoise().mask_probability(t), torch.tensor([0.001, 0.5005, 1.0]))
