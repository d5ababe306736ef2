"""Dream's generation: against upstream's own loop, and what ours promises beyond it.

``dream_upstream.json`` was made by running Dream's published code (its transformers 4.57 port in ZHZisZZ/dllm, with
IBM/soft-masked-diffusion-language-models' ``dream_sm.patch`` applied) on the folder that ``tests.hosts.tiny_dream(0)``
writes, in float32 on the CPU, each call after ``torch.manual_seed(seed)``. One thing was mended there: where its schedule
makes the scale 0, the patch returns lambda in a shape that crashes. Cases in which a decision hung on less than 1e-3 were
left out. "middle" is the history's entry in the middle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from soft_mask import SoftMask, SoftMaskConfig, generate  # noqa: E402
from soft_mask.models import Dream  # noqa: E402
from soft_mask.models.soft_mask_files import fixed_gate  # noqa: E402
from soft_mask.sampling.confidence import ConfidenceSampler  # noqa: E402
from tests.hosts import tiny_dream  # noqa: E402

MASK, PAD = 38, 35
FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "dream_upstream.json").read_text(encoding="utf-8"))
ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")


@pytest.fixture(scope="module")
def dream() -> Dream:
    return tiny_dream(0)


def gate(k: int = 3, **changes: Any) -> SoftMask:
    return SoftMask(
        SoftMaskConfig(**{"mask_token_id": MASK, "k": k, "scale": 0.7, "steepness": 3.0, "centre": -2.0, **changes})
    )


def raised(step: int, x: Tensor, logits: Tensor) -> Tensor:
    logits = logits.clone()
    logits[:, :, 3] += 1.5
    return logits


def remasked(step: int | None, x: Tensor, logits: Tensor | None) -> Tensor:
    if step == 1:
        x = x.clone()
        x[:, 5] = MASK
    return x


def named(case: dict[str, Any]) -> str:
    more = "".join(
        f"-{n}{v}" for n, v in case.items() if n in ("schedule", "temperature", "top_p", "top_k", "alg_temp", "hooks")
    )
    return f"{case['alg']}-k{case['k']}-{case['steps']}of{case['T']}-b{len(case['x'])}-{case['seed']}{more}"


@pytest.mark.parametrize("case", FROZEN["cases"], ids=named)
def test_equals_upstream(dream: Dream, case: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        n: case[n] for n in ("temperature", "top_p", "top_k", "alg_temp", "num_return_sequences") if n in case
    }
    if case.get("hooks"):
        options |= {"generation_tokens_hook_func": remasked, "generation_logits_hook_func": raised}
        if case["alg"] != "origin":
            options["transfer_count"] = "batch"  # the hook leaves sequences with different numbers of masks
    sm = gate(case["k"], schedule=case.get("schedule", "none")) if case["k"] else None
    torch.manual_seed(case["seed"])
    out = generate(
        dream,
        torch.tensor(case["ids"]),
        torch.tensor(case["mask"]),
        case["T"],
        steps=case["steps"],
        alg=case["alg"],
        soft_mask=sm,
        history=True,
        **options,
    )
    start = len(case["ids"][0])
    assert out.sequences[:, start:].tolist() == case["x"]
    assert out.history is not None and len(out.history) == case["steps"]
    assert out.history[case["steps"] // 2][:, start:].tolist() == case["middle"]


def test_the_frozen_cases_can_tell() -> None:
    """Soft masking changes tokens in them, and so do k, hooks, schedules and filters."""
    plain = {named(case): case["x"] for case in FROZEN["cases"] if len(case) == 9}
    pairs = [(name, name.replace("-k0-", "-k3-")) for name in plain if "-k0-" in name]
    assert sum(plain[a] != plain[b] for a, b in pairs if b in plain) >= 10
    assert (
        sum(plain[b] != plain[b.replace("-k3-", "-k1-")] for _, b in pairs if {b, b.replace("-k3-", "-k1-")} <= set(plain)) >= 5
    )
    assert len(FROZEN["cases"]) > 130


def test_logits_equal_upstream(dream: Dream) -> None:
    frozen = FROZEN["logits"]
    ids, mask = torch.tensor(frozen["ids"]), torch.tensor(frozen["mask"])
    with torch.no_grad():
        for logits, expected in ((dream(ids), frozen["plain"]), (dream(ids, mask), frozen["padded"])):
            assert (logits.flatten(0, 1)[frozen["rows"]] - torch.tensor(expected)).abs().max() < 1e-6 * 5  # logits up to 5


@pytest.mark.parametrize("case", FROZEN["filters"]["cases"])
def test_filtered_probabilities_equal_upstream(case: dict[str, Any]) -> None:
    logits = torch.tensor(FROZEN["filters"]["logits"])
    policy = ConfidenceSampler("entropy", 4, case["temperature"], 1e-3, case["top_p"], case["top_k"])
    torch.testing.assert_close(policy._filtered(logits).softmax(-1), torch.tensor(case["probs"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alg", ["origin", "entropy"])
def test_tokens_are_drawn_from_the_filtered_probabilities(alg: str, dream: Dream) -> None:
    """Chi-square over 4000 draws of one position; the 1e-4 quantile."""
    ids = torch.tensor([[3, 9, MASK, 4]]).expand(4000, -1)
    out = generate(
        dream, ids, steps=1, alg=alg, temperature=0.8, top_p=0.9, generator=torch.Generator().manual_seed(1)
    ).sequences[:, 2]
    with torch.no_grad():
        row = dream(ids[:1])[0, 1]
    probs = ConfidenceSampler(alg, 1, 0.8, top_p=0.9)._filtered(row[None]).softmax(-1)[0]
    counts = torch.bincount(out, minlength=40).float()
    kept = probs > 0
    assert counts[~kept].sum() == 0 and kept.sum() >= 4
    expected = 4000 * probs[kept]
    chi = ((counts[kept] - expected) ** 2 / expected).sum().item()
    freedom = int(kept.sum()) - 1
    assert chi < freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty


@pytest.mark.parametrize("alg", ALGORITHMS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_scale_of_zero_is_binary(dream: Dream, alg: str, temperature: float) -> None:
    off = fixed_gate(SoftMaskConfig(mask_token_id=MASK, k=3, scale=0.0))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    runs = []
    for sm in (None, off):
        source = torch.Generator().manual_seed(3)
        out = generate(
            dream, ids, None, 9, steps=9, alg=alg, temperature=temperature, soft_mask=sm, generator=source, history=True
        )
        assert out.history is not None
        runs.append((torch.stack(out.history), out.nfe, source.get_state()))
    assert runs[0][0].equal(runs[1][0]) and runs[0][1] == runs[1][1] and runs[0][2].equal(runs[1][2])


@pytest.mark.parametrize("alg", ALGORITHMS[1:])
@pytest.mark.parametrize("soft", [None, gate(3), gate(1, schedule="linear"), gate(3, schedule="stepwise")])
def test_a_batch_gives_what_each_gives_alone(dream: Dream, alg: str, soft: SoftMask | None) -> None:
    """Different lengths, different numbers of masks, masks at the very beginning, and tokens after the masks."""
    rows = [[5, 9, MASK, 3, MASK, 17], [MASK, MASK, 8, MASK], [30, 2, 11, 7, 21, 4, 9], [MASK, 12]]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    together = generate(dream, ids, mask, 5, steps=6, alg=alg, soft_mask=soft).sequences
    for b, row in enumerate(rows):
        alone = generate(dream, torch.tensor([row]), None, 5, steps=6, alg=alg, soft_mask=soft).sequences[0]
        assert together[b, width - len(row) :].equal(alone)
        fixed = torch.tensor(row) != MASK
        assert alone[: len(row)][fixed].equal(torch.tensor(row)[fixed])  # what was given stays
        assert together[b, : width - len(row)].eq(PAD).all()


def test_upstream_s_count_erases_what_ours_keeps(dream: Dream) -> None:
    ids = torch.tensor([[1, 2, 3, 4, 5, MASK], [MASK, MASK, MASK, MASK, MASK, 6]])
    ours = generate(dream, ids, steps=2, alg="entropy").sequences
    assert ours[0, :5].equal(ids[0, :5])
    theirs = generate(dream, ids, steps=2, alg="entropy", transfer_count="batch").sequences
    assert not theirs[0, :5].equal(ids[0, :5]) and (theirs == MASK).any()


def test_infilling_without_new_tokens_and_nothing_to_fill(dream: Dream) -> None:
    ids = torch.tensor([[4, MASK, 9, MASK, MASK, 2]])
    out = generate(dream, ids, max_new_tokens=0, steps=3, alg="entropy")
    assert out.sequences[ids != MASK].equal(ids[ids != MASK]) and out.nfe == 2  # the first step (of 3) transfers nothing
    assert generate(dream, out.sequences.clamp_max(37), steps=3, alg="entropy").nfe == 0


class Counting(nn.Module):
    """Counts the rows that go through the head, and the forwards."""

    def __init__(self, inner: Dream) -> None:
        super().__init__()
        self.inner = inner
        self.rows: list[int] = []
        self.forwards = 0
        for name in ("mask_token_id", "vocab_size", "shift", "bans_mask", "default_alg", "model_length"):
            setattr(self, name, getattr(inner, name))

    @property
    def embedding(self) -> Tensor:
        return self.inner.embedding

    def hidden(self, *arguments: Any) -> Tensor:
        self.forwards += 1
        return self.inner.hidden(*arguments)

    def head(self, rows: Tensor) -> Tensor:
        self.rows.append(len(rows))
        return self.inner.head(rows)


@pytest.mark.parametrize("soft", [None, gate(1)])
def test_the_head_runs_once_on_masked_rows_alone(dream: Dream, soft: SoftMask | None) -> None:
    counting = Counting(dream)
    ids = torch.tensor([[4, 8, 9, 1, 1, 2]])
    out = generate(counting, ids, None, 6, steps=6, alg="entropy", soft_mask=soft)
    assert out.nfe == counting.forwards
    # Step 0 transfers nothing: without feedback its forward serves step 1 too, and with it refines what is fed back.
    held = [6] if soft is None else []
    assert counting.rows == [6, 6, 5, 4, 3, 2] and counting.forwards == 6 - len(held)
    origin = Counting(dream)
    generate(origin, ids, None, 6, steps=3, alg="origin", soft_mask=soft, generator=torch.Generator().manual_seed(0))
    assert sum(origin.rows) <= 6 * 3 and max(origin.rows) <= 6


def test_a_callback_sees_every_step_and_may_stop(dream: Dream) -> None:
    seen: list[tuple[int, int, int]] = []

    def look(info: Any) -> bool:
        seen.append((info.step, info.changed, int((info.input_ids == MASK).sum())))
        assert (info.feedback is not None) and info.feedback.k == 1
        return len(seen) < 3

    out = generate(dream, torch.tensor([[4, 8]]), None, 6, steps=6, alg="entropy", soft_mask=gate(1), callback=look)
    assert [s for s, _, _ in seen] == [1, 2, 3] and seen[-1][2] == (out.sequences == MASK).sum()


def test_hooks_are_held_to_their_word(dream: Dream) -> None:
    ids = torch.tensor([[4, 8]])
    for hook, words in (
        ({"generation_tokens_hook_func": lambda step, x, logits: None}, "must return int64 .* got NoneType"),
        ({"generation_tokens_hook_func": lambda step, x, logits: x + 100}, r"ids outside \[0, 40\)"),
        ({"generation_logits_hook_func": lambda step, x, logits: logits[:, :1]}, "must return logits"),
    ):
        with pytest.raises(ValueError, match=words):
            generate(dream, ids, None, 3, steps=2, alg="entropy", **hook)
    with pytest.raises(TypeError, match="generation_logits_hook_func must be callable"):
        generate(dream, ids, None, 3, steps=2, generation_logits_hook_func=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"max_new_tokens": 63}, ValueError, "together more than the model's model_length of 64"),
        ({"soft_mask": SoftMask(SoftMaskConfig(mask_token_id=7))}, ValueError, "mask_token_id is 7, the model's is 38"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"alg_temp": -1.0}, ValueError, "alg_temp must be a finite number of at least 0"),
        ({"alg": "origin", "alg_temp": 0.5}, ValueError, "alg_temp is no option of alg='origin'"),
        ({"transfer_count": "all"}, ValueError, "transfer_count must be one of row, batch"),
        ({"eta": 0.1}, ValueError, "eta is no option of alg='entropy'"),
        ({"noise": "race"}, ValueError, "noise is no option of alg='entropy'"),
        ({"alg": "ancestral", "top_k": 3}, ValueError, "top_k is no option of alg='ancestral'"),
        ({"num_return_sequences": 0}, ValueError, "num_return_sequences must be at least 1"),
    ],
)
def test_bad_input_is_told_in_words(dream: Dream, change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        generate(dream, torch.tensor([[4, 8]]), **{"max_new_tokens": 4, "steps": 2, "alg": "entropy", **change})


def test_defaults_are_upstream_s(dream: Dream) -> None:
    steps: list[int] = []
    generate(dream, torch.tensor([[4, MASK]]), callback=lambda info: steps.append(info.steps))
    assert set(steps) == {512} and dream.default_alg == "origin"


def test_dreams_algorithms_serve_mdlm_too_and_mdlms_dream(dream: Dream) -> None:
    out = generate(dream, torch.tensor([[4, 8]]), None, 6, steps=4, alg="ancestral", generator=torch.Generator().manual_seed(0))
    assert out.sequences.shape == (1, 8) and out.nfe <= 5
