"""ReMDM on the loop: what may be masked again, what is fed back there, and the law of the coin against the race."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from soft_mask import SoftMask, generate
from soft_mask.models import MDLM
from soft_mask.sampling import ALGORITHMS, PRESETS, StepInfo
from soft_mask.sampling.kernels import remdm_conf
from soft_mask.sampling.noise import nucleus

MASK, V = 10, 11
REMASKING = {"remdm-cap": {"eta": 0.4}, "remdm-rescale": {"eta": 0.4}, "remdm-conf": {},
             "remdm-loop": {"eta": 0.1, "alpha_on": 0.8}}  # fmt: skip


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(batch: int = 3) -> Tensor:
    ids = torch.full((batch, 8), MASK)
    ids[0, 2], ids[1, 0] = 5, 3
    return ids


@pytest.mark.parametrize("alg", list(REMASKING))
@pytest.mark.parametrize("noise", ["coin", "race"])
@pytest.mark.parametrize("soft", [False, True])
def test_tokens_are_masked_again_but_never_the_prompt(model: MDLM, sm: SoftMask, alg: str, noise: str, soft: bool) -> None:
    seen: list[StepInfo] = []
    out = generate(
        model, masks(), steps=20, alg=alg, noise=noise, soft_mask=sm if soft else None, generator=seeded(0),
        callback=seen.append, **REMASKING[alg],
    )  # fmt: skip
    states = [masks(), *(info.input_ids for info in seen)]
    again = sum(int(((a != MASK) & (b == MASK)).sum()) for a, b in zip(states, states[1:], strict=False))
    assert again > 3
    assert all(x[0, 2] == 5 and x[1, 0] == 3 for x in states)
    assert not (out.sequences == MASK).any() and out.nfe <= 21
    for before, after, info in zip(states, states[1:], seen, strict=False):
        assert info.changed == int((before != after).sum())
        assert not ((before != MASK) & (after != MASK) & (before != after)).any()  # no token becomes another at once


@pytest.mark.parametrize("mode", ["erased", "last", "none"])
@pytest.mark.parametrize("noise", ["coin", "race"])
def test_what_a_position_masked_again_feeds_back(model: MDLM, sm: SoftMask, mode: str, noise: str) -> None:
    seen: list[StepInfo] = []
    generate(
        model, masks(), steps=20, alg="remdm-cap", eta=0.4, soft_mask=sm, remask_feedback=mode, noise=noise,
        generator=seeded(1), callback=seen.append,
    )  # fmt: skip
    states = [masks(), *(info.input_ids for info in seen)]
    last: dict[tuple[int, int], Tensor] = {}  # neg_entropy that was stored while a position was last masked
    checked = 0
    for before, after, info in zip(states, states[1:], seen, strict=False):
        store = info.feedback
        assert store is not None
        if info.final:
            break
        for b, i in ((before != MASK) & (after == MASK)).nonzero().tolist():
            checked += 1
            if mode == "erased":
                assert store.ids[b, i, 0] == before[b, i] and store.probs[b, i].tolist() == [1.0, 0.0, 0.0]
                assert store.neg_entropy[b, i] == 0.0
            elif mode == "none":
                assert torch.isneginf(store.neg_entropy[b, i])
            else:
                assert store.neg_entropy[b, i] == last[b, i] and store.neg_entropy[b, i] < -1e-3
        if mode == "last":
            for b, i in (before == MASK).nonzero().tolist():
                last[b, i] = store.neg_entropy[b, i]
    assert checked > 5


def test_the_feedback_of_masked_again_positions_changes_the_samples(model: MDLM, sm: SoftMask) -> None:
    runs = [
        generate(model, masks(64), steps=12, alg="remdm-cap", eta=0.4, soft_mask=sm, remask_feedback=mode, generator=seeded(2))
        for mode in ("erased", "last", "none")
    ]
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert (runs[one].sequences != runs[two].sequences).float().mean() > 0.01


@pytest.mark.parametrize("alg", list(ALGORITHMS))
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_coin_and_race_have_one_law(make: Callable[..., MDLM], alg: str, top_p: float) -> None:
    """20,000 two-token sequences each: the shares of all 9 outcomes agree within 5 standard errors."""
    model = make(vocab_size=4)
    model.output_layer.linear.weight.data *= 0.1  # flat enough for a nucleus of two tokens
    n = 20_000
    shares = []
    for noise in ("coin", "race"):
        out = generate(
            model, torch.full((n, 2), 3), steps=4, alg=alg, top_p=top_p, noise=noise, generator=seeded(3),
            **REMASKING.get(alg, {}),
        )  # fmt: skip
        shares.append((out.sequences[:, 0] * 3 + out.sequences[:, 1]).bincount(minlength=9) / n)
    error = (2 * shares[0].clamp(min=1e-4) / n).sqrt()
    assert ((shares[0] - shares[1]).abs() < 5 * error + 1e-4).all()
    assert (shares[0] > 0.01).sum() >= 3  # spread, so there is something to find


def test_nucleus_is_the_reference_s_rule() -> None:
    p = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04], [0.95, 0.02, 0.01, 0.01, 0.01], [0.06, 0.1, 0.04, 0.5, 0.3]])
    kept = nucleus(p.log(), 0.85)
    # 0.5 + 0.3 is at most 0.85 and the next would pass it: the usual rule would keep that one too
    assert kept.isfinite().tolist() == [
        [True, True, False, False, False],
        [True, False, False, False, False],  # the likeliest stays though it alone is more than p
        [False, False, False, True, True],
    ]
    torch.testing.assert_close(kept.softmax(-1)[0, :2], torch.tensor([0.625, 0.375]))
    assert nucleus(p.log(), 1.0).equal(p.log())


def test_nothing_outside_the_nucleus_is_drawn(model: MDLM, sm: SoftMask) -> None:
    """With so small a nucleus only the likeliest is left: temperature 1 gives what temperature 0 gives."""
    for noise in ("coin", "race"):
        greedy = generate(model, masks(), steps=5, temperature=0.0, soft_mask=sm, noise=noise, generator=seeded(4))
        small = generate(model, masks(), steps=5, top_p=1e-6, soft_mask=sm, noise=noise, generator=seeded(4))
        if noise == "race":  # the coin draws nothing for what is certain, so its stream differs
            assert greedy.sequences.equal(small.sequences)
        first = [generate(model, masks(), steps=1, eps=0.0, top_p=1e-6, noise=noise, generator=seeded(4)).sequences]
        assert first[0].equal(generate(model, masks(), steps=1, eps=0.0, temperature=0.0).sequences)


def test_the_nucleus_never_touches_the_feedback(model: MDLM, sm: SoftMask) -> None:
    stores = []
    for top_p in (1.0, 1e-6):
        seen: list[StepInfo] = []
        generate(model, masks(), steps=5, top_p=top_p, soft_mask=sm, generator=seeded(4), callback=seen.append)
        stores.append(seen[0].feedback)
    assert stores[0] is not None and stores[1] is not None
    assert stores[0].neg_entropy.equal(stores[1].neg_entropy) and stores[0].probs.equal(stores[1].probs)


def test_confidence_in_float32_is_the_posterior() -> None:
    confidence = torch.tensor([[-0.9, -0.2, float("-inf"), float("-inf")], [float("-inf")] * 4])
    reveal, remask = remdm_conf(0.6, 0.5, confidence)
    share = torch.tensor([-0.9, -0.2]).softmax(-1)
    assert reveal == pytest.approx(0.1 / 0.6, abs=1e-6)
    assert isinstance(remask, Tensor)
    torch.testing.assert_close(remask[0, :2], share.double(), rtol=0, atol=1e-6)  # sigma_max is 1 here
    assert remask[0, 2:].tolist() == [0, 0] and remask[1].tolist() == [0] * 4
    coarse, _ = remdm_conf(0.6, 0.5999, confidence.to(torch.bfloat16))
    assert abs(coarse - 0.0001 / 0.6) > 1e-4  # what the original's rounding makes of a small step


def test_every_preset_runs(model: MDLM, sm: SoftMask) -> None:
    for options in PRESETS.values():
        out = generate(model, masks(), steps=6, soft_mask=sm, generator=seeded(5), **options)
        assert not (out.sequences == MASK).any()
