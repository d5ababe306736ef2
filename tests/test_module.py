"""SoftMask and SoftMaskConfig: the parametrisation, saving, what survives a cast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import soft_mask
from soft_mask import Feedback, SoftMask, SoftMaskConfig
from tests.operator_cases import case


def test_paper_start() -> None:
    """scale 0 is held at 1e-6, steepness 10/1.5, centre -0.75 (arXiv 2510.17206 and its code)."""
    sm = SoftMask(SoftMaskConfig(mask_token_id=9))
    assert sm.scale.item() == pytest.approx(1e-6, rel=1e-3)
    assert sm.raw_scale.item() == pytest.approx(-13.8155, abs=1e-3)
    assert sm.steepness.item() == pytest.approx(10 / 1.5, rel=1e-6)
    assert sm.centre.item() == pytest.approx(-0.75, rel=1e-6)
    assert [p.shape for p in sm.parameters()] == [torch.Size([])] * 3


@pytest.mark.parametrize("scale,steepness,centre", [(0.5, 6.66, -3.0), (0.01, 0.02, -0.001), (1.0, 80.0, -12.0)])
def test_start_is_what_was_asked(scale: float, steepness: float, centre: float) -> None:
    sm = SoftMask(SoftMaskConfig(mask_token_id=9, scale=scale, steepness=steepness, centre=centre))
    assert sm.scale.item() == pytest.approx(scale, rel=1e-5)
    assert sm.steepness.item() == pytest.approx(steepness, rel=1e-5)
    assert sm.centre.item() == pytest.approx(centre, rel=1e-4)


def test_logits_feedback_and_nothing_agree() -> None:
    c = case()
    sm = SoftMask(SoftMaskConfig.for_short_runs(c.mask_token_id, ban=(c.mask_token_id,), shift=1))
    from_logits = sm(c.input_ids, c.logits, c.embedding)
    torch.testing.assert_close(from_logits, sm(c.input_ids, sm.feedback(c.logits), c.embedding))
    plain = sm(c.input_ids, None, c.embedding)
    assert torch.equal(plain, c.embedding[c.input_ids])
    assert torch.equal(plain, sm(c.input_ids, Feedback.empty(c.input_ids.shape, 3), c.embedding))
    assert not torch.equal(plain, from_logits)


def test_gradients_reach_the_three_numbers() -> None:
    c = case()
    sm = SoftMask(SoftMaskConfig.for_short_runs(c.mask_token_id))
    sm(c.input_ids, c.logits, c.embedding).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in sm.parameters())


def test_gate_is_zero_without_feedback() -> None:
    sm = SoftMask(SoftMaskConfig.for_short_runs(9))
    found = sm.gate(torch.tensor([float("-inf"), -3.0, 0.0]))
    assert found.tolist() == pytest.approx([0.0, 0.25, 0.5], rel=1e-5) and found[0] == 0.0


def test_cast_keeps_full_precision() -> None:
    """model.to(bfloat16) would round omega away; it moves with the model and stays float32, to the bit."""
    sm = SoftMask(SoftMaskConfig(mask_token_id=9, scale=0.123))
    before = [p.detach().clone() for p in sm.parameters()]
    model = torch.nn.ModuleDict({"sm": sm, "linear": torch.nn.Linear(2, 2)}).to(torch.bfloat16).half()
    assert model["linear"].weight.dtype == torch.float16  # type: ignore[union-attr]
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(before, sm.parameters(), strict=True))
    assert sm.double().raw_scale.dtype == torch.float64


def test_bfloat16_embedding_under_float32_omega() -> None:
    c = case(embedding_dtype=torch.bfloat16)
    sm = SoftMask(SoftMaskConfig.for_short_runs(c.mask_token_id))
    assert sm(c.input_ids, c.logits, c.embedding).dtype == torch.bfloat16


def test_save_and_load_to_the_bit(tmp_path: Path) -> None:
    sm = SoftMask(SoftMaskConfig(mask_token_id=9, k=5, scale=0.3, temperature=0.9, ban=(9, 2), shift=1))
    with torch.no_grad():
        sm.raw_centre += 1e-7 + 0.1
    sm.save_pretrained(tmp_path / "sm")
    loaded = SoftMask.from_pretrained(tmp_path / "sm")
    assert loaded.config == sm.config
    assert all(torch.equal(a, b) for a, b in zip(sm.parameters(), loaded.parameters(), strict=True))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="soft_mask_config.json"):
        SoftMask.from_pretrained(tmp_path)
    SoftMask(SoftMaskConfig(mask_token_id=9)).save_pretrained(tmp_path)
    weights, config = tmp_path / "soft_mask.safetensors", tmp_path / "soft_mask_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"soft_mask\.safetensors is not a whole safetensors file"):
        SoftMask.from_pretrained(tmp_path)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, weights)
    with pytest.raises(ValueError, match=r"holds \['weight'\]"):
        SoftMask.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "colour": "red"}))
    with pytest.raises(ValueError, match="unknown settings.*colour"):
        SoftMask.from_pretrained(tmp_path)
    config.write_text('{"mask_token_id": 9')
    with pytest.raises(ValueError, match="is not JSON"):
        SoftMask.from_pretrained(tmp_path)
    config.write_text("[]")
    with pytest.raises(ValueError, match="JSON object"):
        SoftMask.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes,says",
    [({"k": 0}, "k must"), ({"scale": 1.5}, "scale must"), ({"steepness": 0.0}, "steepness must"),
     ({"centre": 0.5}, "centre must"), ({"temperature": -1.0}, "temperature must"), ({"shift": 2}, "shift must"),
     ({"mask_token_id": -1}, "mask_token_id must")],
)  # fmt: skip
def test_bad_settings(changes: dict[str, float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SoftMaskConfig(**{"mask_token_id": 9, **changes})  # type: ignore[arg-type]


def test_repr_shows_what_was_learned() -> None:
    text = repr(SoftMask(SoftMaskConfig.for_short_runs(9, shift=1)))
    assert "scale=0.5" in text and "centre=-3" in text and "shift=1" in text and "mask_token_id=9" in text


def test_public_names() -> None:
    for name in soft_mask.__all__:
        assert getattr(soft_mask, name) is not None
