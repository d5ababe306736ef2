"""Folders of models: what is written can be read back, and nothing else can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from soft_mask.models import MDLM, MDLMConfig, load_model

TINY: dict[str, Any] = {
    "vocab_size": 11,
    "model_length": 7,
    "hidden_dim": 16,
    "cond_dim": 6,
    "n_blocks": 1,
    "n_heads": 2,
}
IDS = torch.tensor([[10, 3, 10, 0, 7, 10, 10]])


def tiny(**changes: Any) -> MDLM:
    model = MDLM(MDLMConfig(**{**TINY, **changes}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip(tmp_path: Path, tied: bool) -> None:
    model = tiny(tie_word_embeddings=tied).train()
    model.save_pretrained(tmp_path / "a" / "b")
    names = set(load_file(tmp_path / "a" / "b" / "model.safetensors"))
    expected = {f"backbone.{name}" for name in model.state_dict()}
    assert names == expected - ({"backbone.output_layer.linear.weight"} if tied else set())
    assert {item.name for item in (tmp_path / "a" / "b").iterdir()} == {"config.json", "model.safetensors"}
    again = load_model(tmp_path / "a" / "b")
    assert isinstance(again, MDLM) and again.config == model.config and not again.training
    assert torch.equal(again(IDS), model.eval()(IDS))
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert (again.output_layer.linear.weight is again.embedding) == tied
    again(IDS).sum().backward()
    assert again.embedding.grad is not None
    assert json.loads((tmp_path / "a" / "b" / "config.json").read_text())["model_type"] == "mdlm"


def test_dtype_is_kept(tmp_path: Path) -> None:
    tiny().bfloat16().save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).embedding.dtype == torch.bfloat16


def test_names_without_prefix_are_read(folder: Path) -> None:
    expected = load_model(folder)(IDS)
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("backbone."): t for name, t in tensors.items()}, folder / "model.safetensors")
    assert torch.equal(load_model(folder)(IDS), expected)


NAME = "backbone.blocks.0.attn_qkv.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NAME), "missing: blocks.0.attn_qkv.weight"),
        (lambda t: t.update({"backbone.extra": torch.zeros(1)}), "unexpected: extra"),
        (lambda t: t.update({NAME: torch.zeros(48, 15)}), r"shape \[48, 15\] in the file, \[48, 16\] by the config"),
        (lambda t: t.update({NAME: torch.zeros(48, 16, dtype=torch.int8)}), "int8 in the file"),
        (lambda t: [t.pop(name) for name in list(t)[3:]], "missing: .*; and 13 more"),
    ],
)
def test_weights_of_another_model_are_refused(folder: Path, change: Any, words: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.5])
def test_another_rotary_base_is_refused(folder: Path, value: float) -> None:
    rewrite(folder, lambda t: t["backbone.rotary_emb.inv_freq"].__setitem__(1, value))
    with pytest.raises(ValueError, match="inv_freq in .* is not that of rotary base 10000"):
        load_model(folder)


def test_config_of_another_size_is_refused(folder: Path) -> None:
    values = {**json.loads((folder / "config.json").read_text()), "n_blocks": 2}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"do not fit the config: missing: blocks\.1\.norm1\.weight"):
        load_model(folder)


def test_a_config_that_ties_what_the_file_does_not_is_refused(folder: Path) -> None:
    values = {**json.loads((folder / "config.json").read_text()), "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"tied by it, but output_layer\.linear\.weight is not the embedding"):
        load_model(folder)


def test_a_config_of_millions_of_blocks_is_refused_at_once(folder: Path) -> None:
    values = {**json.loads((folder / "config.json").read_text()), "n_blocks": 10_000_000}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="do not fit the config: n_blocks=10000000"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"model_type": "bert"}', "model_type 'bert' in .* is not known; known: Dream, llada, mdlm"),
        ("{}", "model_type None"),
        ('{"model_type": "mdlm", "time_conditioning": true}', "time_conditioning=True is not supported"),
        ('{"model_type": "mdlm", "n_heads": 5}', "even whole number"),
    ],
)
def test_bad_config_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


def test_what_is_missing_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or file 'nowhere'"):
        load_model("nowhere")
    with pytest.raises(ValueError, match="expected a folder, or a file ending in"):
        load_model(folder / "config.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a whole file of torch.save"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no model.safetensors in"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_model(folder)


def test_writing_over_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError, match="a folder to write into was expected"):
        tiny().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_hub_id_is_fetched_without_code_or_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert isinstance(load_model("someone/some-mdlm"), MDLM)
    ((name, patterns),) = asked
    assert name == "someone/some-mdlm" and {"config.json", "*.safetensors"} < set(patterns)
    assert all(pattern.endswith((".json", ".safetensors", ".txt", ".jinja")) for pattern in patterns)
