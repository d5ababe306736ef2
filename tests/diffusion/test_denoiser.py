"""The training step's mathematics against the original's numbers and against a dense twin written out here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from soft_mask import SoftMask, SoftMaskConfig, reference
from soft_mask.diffusion import Denoiser, antithetic_times, mask_tokens
from soft_mask.models import MDLM, MDLMConfig

V, L, MASK = 11, 7, 10


class Shifted(MDLM):
    """A model of Dream's kind: row t - 1 predicts token t, and the mask token stays in the distribution."""

    shift = 1
    bans_mask = False


def tiny(kind: type[MDLM] = MDLM, seed: int = 0) -> MDLM:
    model = kind(MDLMConfig(vocab_size=V, model_length=L, hidden_dim=16, cond_dim=6, n_blocks=2, n_heads=2, dropout=0.0))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model


def soft_mask(scale: float = 0.7) -> SoftMask:
    return SoftMask(SoftMaskConfig(mask_token_id=MASK, k=3, scale=scale, steepness=2.0, centre=-1.5))


def batch(seed: int = 0, size: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, MASK, (size, L), generator=generator)
    t = antithetic_times(size, generator)
    return clean, mask_tokens(clean, t, MASK, generator), t


def dense(model: MDLM, sm: SoftMask | None, clean: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    """Per-token NELBO terms [B, L] with whole [B, L, V] logits and the reference operators."""
    ban = (MASK,) if model.bans_mask else ()

    def rows(embeds: Tensor) -> Tensor:  # logits that predict each position
        logits = model.head(model.hidden(embeds))
        return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if model.shift else logits

    embeds = model.embedding[noisy]
    if sm is not None:
        with torch.no_grad():
            fb = reference.feedback(rows(embeds), sm.config.k, 1.0, ban)
        embeds = reference.mix_embed(
            noisy, fb, model.embedding, mask_token_id=MASK, scale=sm.scale, steepness=sm.steepness, centre=sm.centre
        )
    logits = rows(embeds)
    if ban:
        logits = logits.index_fill(-1, torch.tensor(ban), float("-inf"))
    nll = -logits.log_softmax(-1).gather(-1, clean[..., None])[..., 0]
    return torch.where(noisy == MASK, nll, 0.0) / t[:, None]


def test_binary_loss_is_the_original_one() -> None:
    """Frozen numbers of the original's `_forward_pass_diffusion` arithmetic, made as in tests/models/test_mdlm.py.

    On five random models and batches the original's `_loss`, with the same seeds for times and masks, agreed to 3e-6.
    """
    model = MDLM(MDLMConfig(vocab_size=V, model_length=L, hidden_dim=16, cond_dim=6, n_blocks=2, n_heads=2)).eval()
    for i, parameter in enumerate(model.parameters()):
        j = torch.arange(parameter.numel())
        value = ((j * j * (i + 3) + 977 * j + 613 * i) % 8191).double() / 8191 - 0.5
        parameter.data.copy_((1.6 * value).float().view(parameter.shape))
    noisy = torch.tensor([[10, 3, 10, 0, 7, 10, 10], [1, 10, 10, 10, 9, 2, 5]])
    clean = torch.tensor([[4, 3, 8, 0, 7, 1, 6], [1, 2, 9, 0, 9, 2, 5]])
    out = Denoiser(model)(clean, noisy, torch.tensor([0.7, 0.35]))
    assert out.loss.item() == pytest.approx(3.5070631, abs=2e-6)
    torch.testing.assert_close(out.sequence_nll, torch.tensor([33.6931572, 15.4057302]), rtol=0, atol=2e-5)
    assert out.masked_rows == 7 and out.mean_lambda.isnan()


@pytest.mark.parametrize("kind", [MDLM, Shifted])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_equals_the_dense_twin_with_gradients(kind: type[MDLM], soft: bool, chunk_rows: int | None) -> None:
    model, sm = tiny(kind), soft_mask()
    clean, noisy, t = batch()
    terms = dense(model, sm if soft else None, clean, noisy, t)
    learned = [*model.parameters(), *sm.parameters()]
    expected = torch.autograd.grad(terms.mean(), learned, allow_unused=True)
    out = Denoiser(model, sm, chunk_rows)(clean, noisy, t, soft=soft)
    torch.testing.assert_close(out.loss, terms.mean(), rtol=0, atol=5e-6)
    torch.testing.assert_close(out.sequence_nll, terms.sum(1).detach(), rtol=1e-5, atol=1e-5)
    assert out.masked_rows == int((noisy == MASK).sum())
    assert not out.sequence_nll.requires_grad and not out.mean_lambda.requires_grad
    got = torch.autograd.grad(out.loss, learned)  # every parameter takes part, which DDP needs
    for mine, theirs in zip(got, expected, strict=True):
        theirs = torch.zeros_like(mine) if theirs is None else theirs
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-5)
    omega = torch.stack(got[-3:])
    assert omega.abs().min() > 1e-5 if soft else not omega.any()


def test_soft_masking_changes_the_loss_and_reports_its_gate() -> None:
    model, sm = tiny(), soft_mask()
    clean, noisy, t = batch()
    denoiser = Denoiser(model, sm)
    binary, soft = denoiser(clean, noisy, t, soft=False), denoiser(clean, noisy, t, soft=True)
    assert (soft.loss - binary.loss).abs() > 1e-3
    assert torch.equal(binary.loss, Denoiser(model)(clean, noisy, t).loss)
    masked = noisy == MASK
    fb = reference.feedback(model(noisy)[masked], 3, 1.0, (MASK,))
    torch.testing.assert_close(soft.mean_lambda, sm.gate(fb.neg_entropy).mean().detach(), rtol=1e-5, atol=0)
    assert 0.05 < soft.mean_lambda < 0.7


def test_a_scale_of_zero_is_binary_to_the_bit() -> None:
    model, sm = tiny(), soft_mask()
    sm.raw_scale.data.fill_(float("-inf"))
    assert sm.scale.item() == 0.0
    clean, noisy, t = batch()
    denoiser = Denoiser(model, sm)
    assert torch.equal(denoiser(clean, noisy, t, soft=True).loss, denoiser(clean, noisy, t, soft=False).loss)


def test_first_pass_leaves_nothing_for_the_backward() -> None:
    """Two passes hold no more for the backward than one, but for the mixing's few rows."""

    def saved(soft: bool) -> int:
        sizes: list[int] = []

        def note(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            Denoiser(tiny(), soft_mask())(*batch(), soft=soft)
        return sum(sizes)

    assert saved(True) - saved(False) < 0.1 * saved(False)


def test_nothing_masked_gives_zero_with_a_graph() -> None:
    model, sm = tiny(), soft_mask()
    clean, _, t = batch()
    for soft in (False, True):
        out = Denoiser(model, sm)(clean, clean, t, soft=soft)
        grads = torch.autograd.grad(out.loss, [*model.parameters(), *sm.parameters()])
        assert out.loss.item() == 0.0 and out.masked_rows == 0 and not out.sequence_nll.any()
        assert all(bool((grad == 0).all()) for grad in grads)


@pytest.mark.parametrize("soft", [False, True])
def test_padding_is_neither_seen_nor_counted(soft: bool) -> None:
    denoiser = Denoiser(tiny(), soft_mask())
    clean, noisy, t = batch()
    alone = denoiser(clean[:, :5], noisy[:, :5], t, soft=soft)
    mask = torch.ones(5, L, dtype=torch.bool)
    mask[:, 5:] = False
    padded = denoiser(clean, noisy.masked_fill(~mask, MASK), t, soft=soft, attention_mask=mask)
    torch.testing.assert_close(padded.loss, alone.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(padded.sequence_nll, alone.sequence_nll, rtol=0, atol=1e-4)
    assert padded.masked_rows == alone.masked_rows


def test_uniform_predictions_cost_what_they_must() -> None:
    """E[(masked / t)] / L = 0.999, so an untrained head costs 0.999 ln(V - 1) a token."""
    model = MDLM(MDLMConfig(vocab_size=V, model_length=64, hidden_dim=8, cond_dim=2, n_blocks=1, n_heads=1))
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, MASK, (512, 64), generator=generator)
    t = antithetic_times(512, generator)
    loss = Denoiser(model)(clean, mask_tokens(clean, t, MASK, generator), t).loss
    assert loss.item() == pytest.approx(0.999 * torch.tensor(V - 1.0).log().item(), rel=0.02)


def test_bad_input_is_told_in_words() -> None:
    denoiser = Denoiser(tiny(), soft_mask())
    clean, noisy, t = batch()
    for arguments, words in (
        ((clean[0], noisy[0], t), r"input_ids must be \[B, L\]"),
        ((clean[:0], noisy[:0], t[:0]), "at least one token"),
        ((clean, noisy[:, 1:], t), "noisy_ids must have shape"),
        ((clean, noisy, t[1:]), r"t must have shape \[5\], got \[4\]"),
        ((clean, noisy, t, True, torch.ones(5, 2)), "attention_mask must have shape"),
        ((torch.full_like(clean, MASK), noisy, t), "targets hold id 10"),
        ((clean - 100, noisy, t), "targets must lie in"),
    ):
        with pytest.raises(ValueError, match=words):
            denoiser(*arguments)
    with pytest.raises(ValueError, match="mask_token_id is 3, the model's is 10"):
        Denoiser(tiny(), SoftMask(SoftMaskConfig(mask_token_id=3)))
    with pytest.raises(TypeError, match="soft_mask must be a SoftMask or None, got dict"):
        Denoiser(tiny(), {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_rows must be at least 1"):
        Denoiser(tiny(), None, 0)
