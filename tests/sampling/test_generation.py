"""What ``generate`` takes, refuses and promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from soft_mask import SoftMask, SoftMaskConfig, generate
from soft_mask.diffusion.denoiser import encode
from soft_mask.models import MDLM

MASK = 10


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(batch: int = 3, length: int = 8) -> torch.Tensor:
    return torch.full((batch, length), MASK)


def test_seeds(model: MDLM, sm: SoftMask) -> None:
    for soft_mask in (None, sm):
        runs = [generate(model, masks(), steps=5, soft_mask=soft_mask, generator=seeded(s)).sequences for s in (1, 1, 2)]
        assert runs[0].equal(runs[1]) and not runs[0].equal(runs[2])
    before = torch.get_rng_state()
    generate(model, masks(), steps=5, generator=seeded(1))
    assert torch.get_rng_state().equal(before)  # a generator given is the only source
    torch.manual_seed(1)
    assert generate(model, masks(), steps=5).sequences.equal(generate(model, masks(), steps=5, generator=seeded(1)).sequences)


def test_the_prompt_stays_and_masks_are_filled_anywhere(model: MDLM, sm: SoftMask) -> None:
    ids = torch.tensor([[1, 10, 3, 10, 10, 6, 10, 8], [10, 10, 10, 10, 10, 10, 10, 0]])
    kept = ids.clone()
    out = generate(model, ids, steps=4, soft_mask=sm, generator=seeded(0)).sequences
    assert ids.equal(kept)  # the argument is not written to
    assert out[ids != MASK].equal(ids[ids != MASK])
    assert out.min() >= 0 and out.max() < MASK and out.dtype == torch.int64


def test_new_tokens_are_appended(model: MDLM) -> None:
    ids = torch.tensor([[1, 2, 10], [4, 5, 6]])
    out = generate(model, ids, max_new_tokens=5, steps=4, generator=seeded(0)).sequences
    assert out.shape == (2, 8) and not (out == MASK).any()
    assert out[0, :2].tolist() == [1, 2] and out[1, :3].tolist() == [4, 5, 6]
    again = generate(model, torch.cat([ids, masks(2, 5)], dim=1), steps=4, generator=seeded(0)).sequences
    assert out.equal(again)
    free = generate(model, masks(2, 0), max_new_tokens=4, steps=2, generator=seeded(0)).sequences
    assert free.shape == (2, 4)


def test_nothing_to_fill_costs_nothing(model: MDLM) -> None:
    ids = torch.arange(8)[None]
    out = generate(model, ids, steps=4, history=True)
    assert out.sequences.equal(ids) and out.nfe == 0 and out.history == ()
    assert generate(model, ids, steps=4).history is None
    for shape in ((0, 8), (2, 0)):
        empty = generate(model, torch.zeros(shape, dtype=torch.int64), steps=4)
        assert empty.sequences.shape == shape and empty.nfe == 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_padding_is_neither_seen_nor_filled(model: MDLM, sm: SoftMask, dtype: torch.dtype) -> None:
    ids = torch.randint(0, 10, (32, 5), generator=seeded(0))
    ids[:, 1:4] = MASK
    padded = torch.cat([ids, torch.tensor([[10, 7, 10]]).expand(32, 3)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]]).expand(32, 8).to(dtype)
    # At temperature 0 and with one step everything is decided by the first forward, so batches can be compared.
    alone = generate(model, ids, steps=1, eps=0.0, temperature=0.0).sequences
    out = generate(model, padded, mask, steps=1, eps=0.0, temperature=0.0).sequences
    assert out[:, :5].equal(alone) and out[:, 5:].equal(padded[:, 5:])
    hidden = encode(model, None, padded, None, mask)[:, :5]
    torch.testing.assert_close(hidden, encode(model, None, ids, None))
    assert (hidden - encode(model, None, padded, None)[:, :5]).abs().max() > 1e-2  # seen, padding would matter
    soft = generate(model, padded, mask, steps=6, soft_mask=sm, generator=seeded(0)).sequences
    assert soft[:, 5:].equal(padded[:, 5:]) and not (soft[:, :5] == MASK).any()
    left = generate(model, ids.flip(1), mask[:, 3:].flip(1), max_new_tokens=3, steps=2, generator=seeded(0)).sequences
    assert left.shape == (32, 8) and not (left[:, 5:] == MASK).any()  # new tokens are never padding


def test_closing_pass_is_spent_only_when_masks_are_left(model: MDLM) -> None:
    assert generate(model, masks(), steps=1, eps=0.0, generator=seeded(0)).nfe == 1
    late = generate(model, masks(), steps=1, eps=0.9, generator=seeded(0))
    assert late.nfe == 2 and not (late.sequences == MASK).any()


CASES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_ids": [[1, 2]]}, TypeError, "input_ids must be an int64 tensor, got list"),
    ({"input_ids": masks().int()}, TypeError, "input_ids must be an int64 tensor, got torch.int32"),
    ({"input_ids": masks()[0]}, ValueError, r"input_ids must be \[B, L\], got shape \[8\]"),
    ({"input_ids": masks() + 1}, ValueError, r"input_ids must lie in \[0, 11\), got ids from 11 to 11"),
    ({"input_ids": masks() - 11}, ValueError, "got ids from -1 to -1"),
    ({"input_ids": masks().to("meta")}, ValueError, "input_ids is on meta, the model on cpu"),
    ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be at least 0, got -1"),
    ({"max_new_tokens": 1.0}, TypeError, "max_new_tokens must be an int"),
    ({"max_new_tokens": 1}, ValueError, "8 tokens and max_new_tokens is 1: .* model_length of 8"),
    ({"attention_mask": torch.ones(3, 7, dtype=torch.bool)}, ValueError, "attention_mask must have the shape"),
    ({"attention_mask": torch.ones(3, 8)}, TypeError, "attention_mask must be a bool or integer tensor"),
    ({"attention_mask": torch.zeros(3, 8).bool()}, ValueError, "attention_mask has a sequence without a single True"),
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": 2.0}, TypeError, "steps must be an int, got 2.0"),
    ({"alg": "beam"}, ValueError, "alg must be one of analytic, ancestral, .*, got 'beam'"),
    ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\], or be None, got 0.0"),
    ({"eta": 0.1}, ValueError, "eta is no option of alg='ancestral'$"),
    ({"alg": "remdm-cap", "t_on": 0.1}, ValueError, "t_on is no option of alg='remdm-cap', which takes eta"),
    ({"alg": "remdm-cap", "eta": 1.1}, ValueError, r"eta must lie in \[0, 1\], got 1.1"),
    ({"alg": "remdm-loop", "t_on": 0.01}, ValueError, "t_off and t_on must satisfy 0 < t_off < t_on < 1, got 0.05 and 0.01"),
    ({"alg": "remdm-loop", "alpha_on": 0.99}, ValueError, "alpha_on must lie in .* got alpha_on=0.99 and eta=0.02"),
    ({"noise": "dice"}, ValueError, "noise must be one of coin, race, got 'dice'"),
    ({"noise_dtype": torch.float16}, ValueError, "noise_dtype must be torch.float64 or torch.float32"),
    ({"confidence_dtype": torch.float16}, ValueError, "confidence_dtype must be torch.float32 or torch.bfloat16"),
    ({"remask_feedback": "old"}, ValueError, "remask_feedback must be one of erased, last, none, got 'old'"),
    ({"temperature": -0.1}, ValueError, "temperature must be a finite number of at least 0"),
    ({"temperature": float("nan")}, ValueError, "temperature must be"),
    ({"eps": 1.0}, ValueError, r"eps must lie in \[0, 1\)"),
    ({"soft_mask": 0.5}, TypeError, "soft_mask must be a SoftMask or None, got float"),
    ({"soft_mask": SoftMask(SoftMaskConfig(mask_token_id=3))}, ValueError, "mask_token_id is 3, the model's is 10"),
    ({"generator": 7}, TypeError, "generator must be a torch.Generator or None, got int"),
    ({"callback": 7}, TypeError, "callback must be callable or None, got int"),
]


@pytest.mark.parametrize(("change", "error", "words"), CASES)
def test_bad_input_is_told_in_words(model: MDLM, change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        generate(model, **{"input_ids": masks(), "steps": 2, **change})


def test_what_is_no_model_is_told_in_words() -> None:
    with pytest.raises(TypeError, match="but Linear has no 'mask_token_id'"):
        generate(torch.nn.Linear(2, 2), masks(), steps=2)  # type: ignore[arg-type]


def test_a_broken_model_is_told_in_words(model: MDLM, sm: SoftMask) -> None:
    model.output_layer.linear.bias.data[2] = float("nan")
    with pytest.raises(ValueError, match="the model's logits hold NaN"):
        generate(model, masks(), steps=2, generator=seeded(0))
