"""The loop against a dense twin that holds everything, and its book-keeping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soft_mask import SoftMask, generate, reference
from soft_mask.models import MDLM
from soft_mask.sampling import StepInfo
from soft_mask.sampling.noise import gumbel, uniform
from soft_mask.state import Feedback

MASK = 10


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(batch: int = 3, length: int = 8) -> Tensor:
    ids = torch.full((batch, length), MASK)
    ids[0, 2], ids[1, 0] = 5, 3
    return ids


@torch.no_grad()
def dense(
    model: MDLM, x: Tensor, steps: int, eps: float, sm: SoftMask | None, generator: torch.Generator
) -> tuple[Tensor, int, list[Tensor]]:
    """The same sampler with whole [B, L, V] logits, the reference operators and no cleverness."""
    model.eval()

    def forward(x: Tensor, logits: Tensor | None) -> Tensor:
        embeds = model.embedding[x]
        if sm is not None and logits is not None:
            fb = reference.feedback(logits, sm.config.k, 1.0, (MASK,))
            embeds = reference.mix_embed(
                x, fb, model.embedding, mask_token_id=MASK, scale=sm.scale, steepness=sm.steepness, centre=sm.centre
            )
        out = model.head(model.hidden(embeds))
        out = torch.cat([out[:, :1], out[:, :-1]], dim=1) if model.shift else out
        return out.index_fill(-1, torch.tensor(MASK), float("-inf"))

    times = torch.linspace(1, eps, steps + 1, dtype=torch.float64).tolist()
    logits: Tensor | None = None
    held, nfe = False, 0
    states: list[Tensor] = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        if not (x == MASK).any():
            return x, nfe, states
        if not held:
            logits, nfe = forward(x, logits), nfe + 1
        assert logits is not None
        coins = uniform((x.numel(),), generator, x.device).view(x.shape)
        shown = (x == MASK) & (coins < 1 - s / t)
        chosen = logits[shown].double()
        after = x.clone()
        after[shown] = (chosen + gumbel(chosen.shape, generator, x.device)).argmax(-1)
        held = after.equal(x)
        x = after
        states.append(x)
    if (x == MASK).any():
        x, nfe = torch.where(x == MASK, forward(x, logits).argmax(-1), x), nfe + 1
        states.append(x)
    return x, nfe, states


@pytest.mark.parametrize("steps", [1, 3, 8, 60])
@pytest.mark.parametrize("eps", [1e-5, 0.4])  # the later leaves much to the closing pass
@pytest.mark.parametrize("soft", [False, True])
def test_equals_the_dense_twin(either: MDLM, sm: SoftMask, steps: int, eps: float, soft: bool) -> None:
    gate = sm if soft else None
    expected, nfe, states = dense(either, masks(8), steps, eps, gate, seeded(7))
    out = generate(either, masks(8), steps=steps, eps=eps, soft_mask=gate, generator=seeded(7), history=True)
    assert out.sequences.equal(expected)
    assert out.nfe == nfe <= steps + 1
    assert out.history is not None and len(out.history) == len(states)
    assert all(mine.equal(theirs) for mine, theirs in zip(out.history, states, strict=True))
    assert not (out.sequences == MASK).any()
    if steps == 60:
        assert out.nfe < 50  # the other steps held


def test_feedback_changes_what_is_sampled(model: MDLM, sm: SoftMask) -> None:
    binary = generate(model, masks(64), steps=8, generator=seeded(0))
    soft = generate(model, masks(64), steps=8, soft_mask=sm, generator=seeded(0))
    assert (binary.sequences != soft.sequences).float().mean() > 0.02


def test_a_scale_of_zero_is_binary_and_draws_the_same_numbers(model: MDLM, sm: SoftMask) -> None:
    sm.raw_scale.data.fill_(float("-inf"))
    assert sm.scale.item() == 0.0
    one, two = seeded(3), seeded(3)
    binary = generate(model, masks(), steps=8, generator=one)
    soft = generate(model, masks(), steps=8, soft_mask=sm, generator=two)
    assert binary.sequences.equal(soft.sequences) and binary.nfe == soft.nfe
    assert one.get_state().equal(two.get_state())


class Counting(nn.Module):
    """Passes everything on to a model, and counts."""

    def __init__(self, model: MDLM) -> None:
        super().__init__()
        self.inner = model
        self.mask_token_id, self.vocab_size = model.mask_token_id, model.vocab_size
        self.shift, self.bans_mask = model.shift, model.bans_mask
        self.inputs: list[Tensor] = []
        self.head_rows: list[int] = []

    @property
    def embedding(self) -> Tensor:
        return self.inner.embedding

    def hidden(self, inputs_embeds: Tensor, *rest: Any) -> Tensor:
        self.inputs.append(inputs_embeds)
        return self.inner.hidden(inputs_embeds, *rest)

    def head(self, rows: Tensor) -> Tensor:
        assert rows.dim() == 2
        self.head_rows.append(len(rows))
        return self.inner.head(rows)


def test_binary_spends_the_head_on_revealed_rows_only(model: MDLM) -> None:
    counting = Counting(model)
    out = generate(counting, masks(), steps=8, generator=seeded(1))
    assert len(counting.inputs) == out.nfe
    assert sum(counting.head_rows) == int((masks() == MASK).sum())


def test_feedback_is_read_once_a_forward(model: MDLM, sm: SoftMask) -> None:
    counting = Counting(model)
    seen: list[StepInfo] = []
    out = generate(counting, masks(), steps=60, soft_mask=sm, generator=seeded(1), callback=seen.append)
    assert len(counting.inputs) == out.nfe < 30
    # Every forward's masked rows go through the head once, for a token or for feedback; held steps add what they show.
    left = [int((x == MASK).sum()) for x in (masks(), *(info.input_ids for info in seen))]
    fresh = [info.nfe > before for before, info in zip([0, *(i.nfe for i in seen)], seen, strict=False)]
    rows = sum(left[i] if fresh[i] else info.changed for i, info in enumerate(seen))
    assert sum(counting.head_rows) == rows
    assert torch.equal(counting.inputs[0], model.embedding[masks()])  # the first forward is binary
    assert all(not torch.equal(x, model.embedding[masks()]) for x in counting.inputs[1:])


def test_a_step_that_reveals_nothing_holds_prediction_and_feedback(model: MDLM, sm: SoftMask) -> None:
    seen: list[StepInfo] = []
    generate(model, masks(), steps=60, soft_mask=sm, generator=seeded(5), callback=seen.append)
    held = [(a, b) for a, b in zip(seen, seen[1:], strict=False) if a.changed == 0 and not b.final]
    assert len(held) > 20
    for before, after in held:
        assert after.nfe == before.nfe and after.feedback is before.feedback
    moved = [(a, b) for a, b in zip(seen, seen[1:], strict=False) if a.changed]
    assert moved
    for before, after in moved:
        assert after.nfe == before.nfe + 1
        assert before.feedback is not None and (after.final or after.feedback is not before.feedback)


def test_feedback_store_is_the_last_forward_at_what_is_still_masked(either: MDLM, sm: SoftMask) -> None:
    """Read from the model's own distribution, whatever the temperature of the choice is."""
    seen: list[StepInfo] = []
    generate(either, masks(), steps=5, temperature=0.3, soft_mask=sm, generator=seeded(2), callback=seen.append)
    x, store = masks(), None
    for info in seen[:3]:
        with torch.no_grad():
            embeds = either.embedding[x]
            if store is not None:
                embeds = reference.mix_embed(
                    x, store, either.embedding, mask_token_id=MASK, scale=sm.scale, steepness=sm.steepness,
                    centre=sm.centre,
                )  # fmt: skip
            logits = either.head(either.eval().hidden(embeds))
            logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if either.shift else logits
            expected = reference.feedback(logits, 3, 1.0, (MASK,))
        store, x = info.feedback, info.input_ids
        assert isinstance(store, Feedback)
        assert store.ids.shape == (3, 8, 3) and store.neg_entropy.shape == (3, 8)
        masked = x == MASK
        assert store.ids[masked].equal(expected.ids[masked])
        for mine, theirs in zip(store[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine[masked], theirs[masked], rtol=0, atol=2e-5)
        assert bool(torch.isneginf(store.neg_entropy[~masked]).all())  # what is shown carries no feedback


def test_the_callback_sees_every_step(model: MDLM) -> None:
    seen: list[StepInfo] = []
    out = generate(model, masks(), steps=4, eps=0.3, generator=seeded(0), callback=seen.append, history=True)
    assert out.history is not None
    assert [info.step for info in seen] == [1, 2, 3, 4, 4]
    assert [info.final for info in seen] == [False] * 4 + [True]
    assert all(info.steps == 4 and info.feedback is None for info in seen)
    assert [info.t for info in seen] == pytest.approx([1.0, 0.825, 0.65, 0.475, 0.3])
    assert [info.nfe for info in seen] == [1, 2, 3, 4, 5] and out.nfe == 5
    assert sum(info.changed for info in seen) == int((masks() == MASK).sum())
    states = [masks(), *(info.input_ids for info in seen)]
    for info, before, after, kept in zip(seen, states, states[1:], out.history, strict=False):
        assert info.changed == int((before != after).sum())
        assert after[before != MASK].equal(before[before != MASK])  # what is shown stays
        assert kept.equal(after)
    assert states[-1].equal(out.sequences)


def test_returning_false_stops_and_nothing_else_does(model: MDLM) -> None:
    answers: list[object] = [None, 0, "", True, False, None]
    count = 0

    def callback(info: StepInfo) -> object:
        nonlocal count
        count += 1
        return answers[count - 1]

    out = generate(model, masks(), steps=20, generator=seeded(0), callback=callback)
    assert count == 5
    assert (out.sequences == MASK).any()
    assert not (generate(model, out.sequences, steps=2, generator=seeded(0)).sequences == MASK).any()


def test_an_interrupt_comes_through_and_modes_come_back(model: MDLM, sm: SoftMask) -> None:
    model.train()
    model.blocks[0].eval()
    modes: list[bool] = []

    def callback(info: StepInfo) -> None:
        modes.extend(part.training for part in (*model.modules(), sm))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, masks(), steps=4, soft_mask=sm, callback=callback)
    assert modes and not any(modes)
    assert model.training and sm.training and model.output_layer.training
    assert not any(part.training for part in model.blocks[0].modules())
    out = generate(model, masks(), steps=4)
    assert model.training and not out.sequences.requires_grad and not out.sequences.is_inference()
