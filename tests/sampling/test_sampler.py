"""The law of the ancestral sampler, and its random numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from soft_mask import generate
from soft_mask.models import MDLM, MDLMConfig
from soft_mask.sampling import Sampler
from soft_mask.sampling.loop import StepInfo
from soft_mask.sampling.noise import choose_tokens, gumbel
from soft_mask.sampling.prediction import Prediction

MASK = 10


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """In standard deviations beyond its mean; about normal, so 4 is far out. Thin cells are put together."""
    thin = expected < 5
    if thin.any():
        counts = torch.cat([counts[~thin], counts[thin].sum()[None]])
        expected = torch.cat([expected[~thin], expected[thin].sum()[None]])
        if expected[-1] < 1e-9:
            assert counts[-1] == 0  # what cannot happen has not
            counts, expected = counts[:-1], expected[:-1]
    degrees = len(expected) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / (2 * degrees) ** 0.5)


def test_times_run_from_one_to_eps() -> None:
    policy = Sampler("ancestral", steps=4, eps=1e-5)
    assert [policy.time(i) for i in range(5)] == pytest.approx([1.0, 0.7500025, 0.500005, 0.2500075, 1e-5], abs=1e-12)


def test_a_transition_is_the_posterior(model: MDLM) -> None:
    """From t=1 to s=3/4 each mask stays with s/t and becomes v with p(v) (t - s)/t; wrong shares would be seen."""
    n = 4000
    ids = torch.tensor([[10, 3, 10, 0, 7, 10, 10, 5]])
    out = generate(
        model, ids.repeat(n, 1), steps=4, eps=0.0, generator=torch.Generator().manual_seed(0), callback=lambda _: False
    )
    with torch.no_grad():
        p = model.eval()(ids)[0, :, :MASK].softmax(-1)
    for position in range(8):
        counts = out.sequences[:, position].bincount(minlength=11).double()
        if ids[0, position] != MASK:
            assert counts[ids[0, position]] == n
            continue
        assert chi_square(counts, n * torch.cat([p[position] / 4, torch.tensor([0.75])]).double()) < 4
        assert chi_square(counts, n * torch.cat([p[position] * 0.29, torch.tensor([0.71])]).double()) > 4
        assert chi_square(counts, n * torch.cat([p[position].flip(0) / 4, torch.tensor([0.75])]).double()) > 4


# q of the original's `_ddpm_caching_update` at t=0.6, dt=0.2, caught before its draw and normalised, made with the
# weights and ids of tests/models/test_mdlm.py: sequence 1, position 1. On five random models the two agreed to 2.4e-7.
ORIGINAL_Q = [0.0294397, 0.0020980, 0.0283497, 0.0000072, 0.0008330, 0.0007081, 0.0001934, 0.0047335, 0.0083160,
              0.2586547, 0.6666666]  # fmt: skip


def test_a_transition_is_the_original_one() -> None:
    model = MDLM(MDLMConfig(vocab_size=11, model_length=7, hidden_dim=16, cond_dim=6, n_blocks=2, n_heads=2)).eval()
    for i, parameter in enumerate(model.parameters()):
        j = torch.arange(parameter.numel())
        value = ((j * j * (i + 3) + 977 * j + 613 * i) % 8191).double() / 8191 - 0.5
        parameter.data.copy_((1.6 * value).float().view(parameter.shape))
    ids = torch.tensor([[10, 3, 10, 0, 7, 10, 10], [1, 10, 10, 10, 9, 2, 5]])
    rows = torch.tensor([0, 8])
    with torch.no_grad():
        prediction = Prediction(model, model.hidden(model.embedding[ids]), rows)
        (logits,) = prediction.logits(rows[1:])
    policy = Sampler("ancestral", steps=5, eps=0.0)  # its step 2 goes from 0.6 to 0.4
    kept = policy.time(3) / policy.time(2)
    q = torch.cat([logits.softmax(-1)[0, :MASK] * (1 - kept), torch.tensor([kept])])
    torch.testing.assert_close(q, torch.tensor(ORIGINAL_Q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_whole_chain_has_the_law_it_must(make: Callable[..., MDLM], steps: int) -> None:
    """Three tokens, two positions: every path summed by hand, closing argmax and all, against 20,000 samples."""
    model = make(vocab_size=4).eval()
    mask = 3
    eps = 0.2  # late enough that the closing pass has much to do
    states = list(itertools.product(range(4), repeat=2))
    with torch.no_grad():
        p = dict(zip(states, model(torch.tensor(states))[..., :mask].double().softmax(-1), strict=True))
    law = dict.fromkeys(states, 0.0)
    law[(mask, mask)] = 1.0
    times = [1 + (eps - 1) * i / steps for i in range(steps + 1)]
    for t, s in zip(times[:-1], times[1:], strict=True):
        after = dict.fromkeys(states, 0.0)
        for state, chance in law.items():
            ways = [
                [(token, 1.0)]
                if token != mask
                else [(mask, s / t), *((v, p[state][i][v].item() * (1 - s / t)) for v in range(mask))]
                for i, token in enumerate(state)
            ]
            for (a, pa), (b, pb) in itertools.product(*ways):
                after[(a, b)] += chance * pa * pb
        law = after
    final = dict.fromkeys(states, 0.0)
    for state, chance in law.items():
        best = [int(p[state][i].argmax()) if token == mask else token for i, token in enumerate(state)]
        final[(best[0], best[1])] += chance
    n = 20_000
    generator = torch.Generator().manual_seed(1)
    x = generate(model, torch.full((n, 2), mask), steps=steps, eps=eps, generator=generator).sequences
    counts = (x[:, 0] * 4 + x[:, 1]).bincount(minlength=16).double()
    expected = torch.tensor([n * final[state] for state in states], dtype=torch.float64)
    assert chi_square(counts, expected) < 4
    assert (expected > 200).sum() >= 5  # the law is spread, so the test has something to find


def test_gumbel_numbers_are_frozen() -> None:
    draw = torch.rand(2, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = gumbel(torch.Size([2, 20]), torch.Generator().manual_seed(0), torch.device("cpu"))
    assert noise.dtype == torch.float64
    torch.testing.assert_close(noise, -(-draw.log()).log(), rtol=0, atol=0)
    assert noise[0, :3].tolist() == pytest.approx([3.4931624206806697, 1.062572649554405, 0.2511944266207423], abs=1e-12)


def test_choice_follows_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, float("-inf"), -1.0])
    n = 20_000
    for temperature in (0.5, 1.0, 2.0):
        tokens = choose_tokens(logits.expand(n, 5), temperature, torch.Generator().manual_seed(2))
        counts = tokens.bincount(minlength=5).double()
        assert chi_square(counts, n * (logits.double() / temperature).softmax(-1)) < 4
        assert chi_square(counts, n * (logits.double() / (temperature * 1.2)).softmax(-1)) > 4
    generator = torch.Generator().manual_seed(2)
    before = generator.get_state()
    assert choose_tokens(logits.expand(3, 5), 0.0, generator).tolist() == [2, 2, 2]
    assert generator.get_state().equal(before)  # nothing is drawn for what is certain


def test_the_tail_of_the_noise_is_there() -> None:
    """Of 4 million draws some must reach beyond 14, the mean be Euler's, and hardly two be equal."""
    noise = gumbel(torch.Size([4_000_000]), torch.Generator().manual_seed(3), torch.device("cpu"))
    assert noise.mean().item() == pytest.approx(0.5772157, abs=3e-3)
    assert noise.max() > 14 and torch.isfinite(noise).all()
    assert len(noise.unique()) > 3_999_990  # float32 repeats itself thousands of times


def test_coins_do_not_depend_on_the_temperature(model: MDLM) -> None:
    ids = torch.full((50, 8), MASK)
    steps: dict[float, list[StepInfo]] = {}
    for temperature in (0.0, 1.0, 3.0):
        seen: list[StepInfo] = []
        generate(
            model,
            ids,
            steps=6,
            temperature=temperature,
            generator=torch.Generator().manual_seed(4),
            callback=seen.append,
        )
        steps[temperature] = seen
    first = [seen[0].input_ids for seen in steps.values()]
    assert first[0].eq(MASK).equal(first[1].eq(MASK)) and first[1].eq(MASK).equal(first[2].eq(MASK))
    assert not first[0].equal(first[1])
    with torch.no_grad():
        best = model(ids)[..., :MASK].argmax(-1)
    assert first[0].eq(torch.where(first[0] == MASK, MASK, best)).all()
