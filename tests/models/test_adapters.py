"""Adapters: kept, merged, and exchanged with plain peft and with the paper's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("peft")

from safetensors.torch import load_file, save_file

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.models import Dream, load_model, load_soft_mask
from soft_mask.models.adapters import (
    AdapterSettings,
    adapter_state,
    add_adapter,
    has_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from tests.dream_cases import MASK, batch, fill_adapter, reference, tiny_dream


def adapted(base: Path | None = None, **changes: Any) -> Dream:
    model = tiny_dream()
    if base is not None:
        model.save_pretrained(base)
    add_adapter(model, AdapterSettings(r=4, alpha=8, **changes), None if base is None else str(base))
    fill_adapter(model)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(batch()[0])


def test_only_the_adapter_learns_and_in_float32() -> None:
    model = tiny_dream().bfloat16()
    before = logits(model)
    add_adapter(model)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(learned) == 2 * 4 * 3 and all("lora_" in name and p.dtype == torch.float32 for name, p in learned.items())
    assert model.embedding.dtype == torch.bfloat16 and not model.embedding.requires_grad
    assert (logits(model) - before).float().norm() < 0.03 * before.float().norm()  # an adapter begins as nothing
    settings = model.host.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout, settings.use_dora) == (16, 16, 0.0, True)
    assert settings.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("dora", [True, False])
def test_saved_loaded_and_merged_give_the_same_logits(tmp_path: Path, dora: bool) -> None:
    model = adapted(tmp_path / "base", dora=dora)
    whole = logits(model)
    assert (whole - logits(tiny_dream())).abs().max() > 0.1
    gate = SoftMask(SoftMaskConfig(MASK, k=1, scale=0.3, shift=1))
    gate.raw_scale.data += 1e-4  # more digits than bfloat16 has
    save_adapter(tmp_path / "adapter", model, gate)
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), whole) and not any(p.requires_grad for p in again.parameters())
    for merged in (load_model(tmp_path / "adapter"), load_model(tmp_path / "base", adapter=tmp_path / "adapter")):
        assert not has_adapter(merged)
        torch.testing.assert_close(logits(merged), whole, rtol=0, atol=2e-5)
    merge_adapter(again)
    again.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load_model(tmp_path / "merged")), whole, rtol=0, atol=2e-5)
    kept = load_soft_mask(tmp_path / "adapter")
    assert kept is not None and torch.equal(kept.raw_scale, gate.raw_scale) and kept.config == gate.config


def test_a_folder_of_the_papers_code_is_read(tmp_path: Path) -> None:
    theirs = reference()["adapter"]
    model = adapted(tmp_path / "base")
    ours = adapter_state(model)
    assert {name: list(t.shape) for name, t in ours.items()} == theirs["tensors"]
    folder = tmp_path / "theirs"
    folder.mkdir()
    theirs["adapter_config.json"]["base_model_name_or_path"] = str(tmp_path / "base")
    for name in ("adapter_config.json", "transparency_config.json"):
        (folder / name).write_text(json.dumps(theirs[name]))
    save_file({name: t.contiguous() for name, t in ours.items()}, folder / "adapter_model.safetensors")
    expected = torch.tensor(theirs["logits"])
    for merged in (False, True):
        if merged:
            read = load_model(folder)
        else:
            read = load_model(tmp_path / "base")
            load_adapter(read, folder)
        torch.testing.assert_close(logits(read)[:, 5::5, ::6], expected, rtol=0, atol=2e-5)
    gate = load_soft_mask(folder)  # the mask's id is the base model's
    assert gate is not None and gate.config.mask_token_id == MASK and (gate.config.k, gate.config.shift) == (1, 1)
    assert gate.scale.item() == pytest.approx(0.6015625) and gate.steepness.item() == pytest.approx(1.5)
    assert gate.centre.item() == pytest.approx(-2.0)


def test_plain_peft_reads_ours_as_it_reads_theirs(tmp_path: Path) -> None:
    """And peft 0.15.2 with Dream's published model did, to the bit, when this was written."""
    import peft

    model = adapted(tmp_path / "base")
    gate = SoftMask(SoftMaskConfig(MASK, k=1, scale=0.6, steepness=1.5, centre=-2.0, shift=1))
    save_adapter(tmp_path / "ours", model, gate)
    theirs = reference()["adapter"]
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    for name in (
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_dora",
        "bias",
        "auto_mapping",
        "inference_mode",
    ):
        assert written[name] == theirs["adapter_config.json"][name], name
    assert set(written["target_modules"]) == set(theirs["adapter_config.json"]["target_modules"])
    assert written["base_model_name_or_path"] == str(tmp_path / "base")
    transparency = json.loads((tmp_path / "ours" / "transparency_config.json").read_text())
    assert transparency == theirs["transparency_config.json"]  # the seven fields, rounded alike
    found = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert {name: list(t.shape) for name, t in found.items()} == theirs["tensors"]
    host = tiny_dream().host  # an ordinary model of transformers
    wrapped = peft.PeftModel.from_pretrained(host, str(tmp_path / "ours")).eval()
    with torch.no_grad():
        assert torch.equal(wrapped(input_ids=batch()[0]).logits, logits(model))
    save_adapter(tmp_path / "binary", model)
    assert json.loads((tmp_path / "binary" / "transparency_config.json").read_text()) == {"transparency_alg": "none"}
    assert load_soft_mask(tmp_path / "binary") is None


def test_bad_input_is_told_in_words(tmp_path: Path) -> None:
    model = adapted(tmp_path / "base")
    save_adapter(tmp_path / "a", model)
    with pytest.raises(ValueError, match="it has an adapter already"):
        add_adapter(model)
    with pytest.raises(TypeError, match="is not hosted by transformers"):
        add_adapter(torch.nn.Linear(2, 2))
    plain = tiny_dream()
    for act in (merge_adapter, lambda m: save_adapter(tmp_path / "b", m)):
        with pytest.raises(ValueError, match="it has no adapter"):
            act(plain)
    with pytest.raises(ValueError, match="r and alpha must be at least 1"):
        AdapterSettings(r=0)
    other = tiny_dream(num_hidden_layers=3)
    with pytest.raises(ValueError, match="is not one of this model: .*layers.2"):
        load_adapter(other, tmp_path / "a")
    assert not has_adapter(other)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        save_adapter(tmp_path / "file", model)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_adapter(plain, tmp_path / "a")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors"):
        load_adapter(plain, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for change, words in (({"peft_type": "IA3"}, "LORA is supported"), ({"modules_to_save": ["lm_head"]}, "not supported")):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=words):
            load_adapter(plain, tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base model"):
        load_model(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        load_adapter(plain, tmp_path / "a")
