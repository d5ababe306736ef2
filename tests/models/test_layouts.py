"""Every layout of a checkpoint gives the same model; a hostile or broken file gives an error and runs nothing."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.models import MDLM, MDLMConfig, load_model, load_soft_mask, save_checkpoint
from soft_mask.models import save as save_module

IDS = torch.tensor([[10, 3, 10, 0, 7, 10, 10]])
# the reference's names; scale = sigmoid, steepness and -centre = softplus + 1e-6
RAW = {"raw_scale": 0.5, "raw_centre_neg": 0.1108, "raw_steep": 6.6607, "raw_temperature": 0.5413}


def tiny(seed: int = 0, **changes: Any) -> MDLM:
    sizes = {"vocab_size": 11, "model_length": 7, "hidden_dim": 16, "cond_dim": 6, "n_blocks": 2, "n_heads": 2, **changes}
    model = MDLM(MDLMConfig(**sizes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model.eval()


class Node:  # as omegaconf's: named by the pickle, its state a dict
    def __init__(self, content: Any) -> None:
        if isinstance(content, dict):
            self._content: Any = {key: Node(value) for key, value in content.items()}
        else:
            self._val = content

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("a class of the file was run")


CONFIG = {"model": {"length": 7, "dropout": 0.05}, "algo": {"tran_head": {"mixinputs_k": 5}}}


def lightning(path: Path, model: MDLM, average: MDLM | None = None, soft: bool = False, config: Any = None) -> Path:
    state = OrderedDict((f"backbone.{name}", tensor) for name, tensor in model.state_dict().items())
    if soft:
        state |= {f"tran_head.{name}": torch.tensor(value) for name, value in RAW.items()}
    content: dict[str, Any] = {
        "epoch": 1,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"config": Node(config or CONFIG), "tokenizer": Node({"vocab": 3})},
    }
    if average is not None:
        shadow = [p.detach().clone() for p in average.parameters()]
        content["ema"] = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow}
    torch.save(content, path)
    return path


def test_lightning_takes_the_average_and_the_raw_gate(tmp_path: Path) -> None:
    raw, average = tiny(0), tiny(1)
    path = lightning(tmp_path / "last.ckpt", raw, average, soft=True)
    found = load_model(path)
    assert torch.equal(found(IDS), average(IDS)) and not torch.equal(average(IDS), raw(IDS))
    assert torch.equal(load_model(path, ema=False)(IDS), raw(IDS))
    assert found.config == MDLMConfig(**{**tiny().config.__dict__, "dropout": 0.05})
    gate = load_soft_mask(path)
    assert gate is not None and gate.config.k == 5 and gate.config.mask_token_id == 10 and gate.config.ban == (10,)
    learned = [gate.scale.item(), gate.steepness.item(), gate.centre.item()]
    expected = [1 / (1 + math.exp(-0.5)), math.log1p(math.exp(6.6607)) + 1e-6, -math.log1p(math.exp(0.1108)) - 1e-6]
    assert learned == pytest.approx(expected, rel=1e-6)
    assert load_soft_mask(lightning(tmp_path / "binary.ckpt", raw)) is None


def test_a_time_conditioned_lightning_checkpoint_is_refused(tmp_path: Path) -> None:
    for config in ({"time_conditioning": True}, {"algo": {"time_conditioning": True}}):
        with pytest.raises(ValueError, match="time_conditioning=True is not supported"):
            load_model(lightning(tmp_path / "a.ckpt", tiny(), config=config))


def test_an_average_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ema in .* holds 30 tensors for 20 parameters"):
        load_model(lightning(tmp_path / "a.ckpt", tiny(n_blocks=1), tiny()))
    with pytest.raises(ValueError, match="ema in .*: shape"):
        load_model(lightning(tmp_path / "b.ckpt", tiny(), tiny(cond_dim=4)))


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.", "module.backbone.", "_orig_mod.", "model._orig_mod.module."])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".bin", ".safetensors"])
def test_bare_state_dicts(tmp_path: Path, prefix: str, ending: str) -> None:
    model = tiny()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / f"weights{ending}"
    save_file(state, path) if ending == ".safetensors" else torch.save(state, path)
    found = load_model(path, config={"model_length": 7})
    assert found.config == model.config and torch.equal(found(IDS), model(IDS))
    assert load_model(path).model_length == 1024


def test_shards_and_bin_of_a_folder(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert torch.equal(load_model(tmp_path)(IDS), model(IDS))
    names = list(tensors)
    places = {name: f"model-0000{1 + (i > 9)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / "pytorch_model.bin").unlink()
    assert torch.equal(load_model(tmp_path)(IDS), model(IDS))
    index.write_text(json.dumps({"weight_map": {**places, names[0]: "../other.safetensors"}}))
    with pytest.raises(ValueError, match="names '../other.safetensors', which is no safetensors file of the folder"):
        load_model(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / places[names[0]]).unlink()
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors"):
        load_model(tmp_path)


class Code:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "itself", "tensor"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, place: str) -> None:
    witness = tmp_path / "witness"
    code = Code(f"touch {witness}")
    state: dict[str, Any] = dict(tiny().state_dict())
    if place == "tensor":
        state["vocab_embed.embedding"] = code
    content: Any = {"state_dict": code if place == "state_dict" else state}
    if place == "hyper_parameters":
        content["hyper_parameters"] = {"config": code}
    torch.save(code if place == "itself" else content, tmp_path / "evil.ckpt")
    if place == "hyper_parameters":  # what is not needed is passed over
        assert torch.equal(load_model(tmp_path / "evil.ckpt")(IDS), tiny()(IDS))
    else:
        with pytest.raises(ValueError, match="evil.ckpt"):
            load_model(tmp_path / "evil.ckpt")
    assert not witness.exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert witness.exists()  # the file does what it was made to do, where it is let


# Programs that reach for more: dotted names, the rebuilding functions' own attributes, a tensor beyond its storage.
STORAGE = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI2\ntQ"
PROGRAMS = {
    "dotted": b"\x80\x04\x8c\x0ctorch._utils\x8c\x16_rebuild_tensor_v2.a.b\x93(tR.",
    "build": b"ctorch._utils\n_rebuild_tensor_v2\n}Vx\nI1\nsb.",
    "beyond": b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"I0\n(I9\nt(I1\ntI00\nNtR.",
    "expanded": b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"I0\n(I999999999\nt(I0\ntI00\nNtR.",
    "cut": b"\x80\x02}q",
    "a terabyte of bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
}


@pytest.mark.parametrize("program", list(PROGRAMS))
def test_hostile_programs_are_refused(tmp_path: Path, program: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", PROGRAMS[program])
        archive.writestr("a/data/0", bytes(8))
    with pytest.raises(ValueError, match=r"a\.pt"):
        load_model(tmp_path / "a.pt")


@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_compressed_entries_are_refused_unread(tmp_path: Path, entry: str) -> None:
    """A thousand times as large as the file, if they were unpacked."""
    torch.save(dict(tiny().state_dict()), tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for name in source.namelist():
            packed = zipfile.ZIP_DEFLATED if name.endswith(entry) else zipfile.ZIP_STORED
            bomb.writestr(name, source.read(name), compress_type=packed)
    with pytest.raises(ValueError, match=f"none of torch.save .*{entry} in it is compressed"):
        load_model(tmp_path / "bomb.pt")


@pytest.mark.parametrize("keep", [0, 100, 3000, -1, -40])
def test_truncated_checkpoints_are_refused(tmp_path: Path, keep: int) -> None:
    path = lightning(tmp_path / "a.ckpt", tiny(), tiny(1))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"is not a whole file of torch\.save"):
        load_model(path)


def test_files_of_other_things_are_refused(tmp_path: Path) -> None:
    torch.save({"lm_head.weight": torch.zeros(3, 3)}, tmp_path / "gpt.pt")
    with pytest.raises(ValueError, match="gpt.pt' is no MDLM: it has no 2-dimensional 'vocab_embed.embedding'"):
        load_model(tmp_path / "gpt.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is not a whole file"):
        load_model(tmp_path / "plain.pt")
    for change in ({"extra": torch.zeros(1)}, {"blocks.1.norm1.weight": None}):
        state = {name: tensor for name, tensor in {**tiny().state_dict(), **change}.items() if tensor is not None}
        torch.save(state, tmp_path / "b.pt")
        with pytest.raises(ValueError, match=r"do not fit the config: (unexpected: extra|missing: blocks\.1\.norm1)"):
            load_model(tmp_path / "b.pt")


def test_sizes_of_the_public_model_from_its_shapes() -> None:
    from soft_mask.models.layouts import _sizes

    with torch.device("meta"):
        model = MDLM(MDLMConfig())
    assert sum(p.numel() for p in model.parameters()) == 169_627_218 and len(list(model.parameters())) == 130
    assert MDLMConfig.from_dict(_sizes(model.state_dict(), "meta", {})) == MDLMConfig()


def test_save_checkpoint_keeps_the_gate_to_the_bit(tmp_path: Path) -> None:
    model, gate = tiny(), SoftMask(SoftMaskConfig(10, k=2, scale=0.3123456, ban=(10,)))
    save_checkpoint(tmp_path, model, gate)
    again = load_soft_mask(tmp_path)
    assert again is not None and again.config == gate.config and torch.equal(load_model(tmp_path)(IDS), model(IDS))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), gate.parameters(), strict=True))
    values = json.loads((tmp_path / "transparency_config.json").read_text())
    assert values == {
        "transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.3125, "transparency_centre": -0.75,
        "transparency_steepness": 6.65625, "mixinputs_k": 2, "mixture_temp": 1.0, "transparency_scheduling": "none",
    }  # fmt: skip
    (tmp_path / "soft_mask_config.json").unlink()
    (tmp_path / "soft_mask.safetensors").unlink()
    rounded = load_soft_mask(tmp_path)
    assert rounded is not None and rounded.config.ban == (10,)
    assert rounded.scale.item() == pytest.approx(0.3125) and rounded.steepness.item() == pytest.approx(6.65625)
    save_checkpoint(tmp_path, model)
    assert load_soft_mask(tmp_path) is None and not (tmp_path / "transparency_config.json").exists()


def test_a_transparency_of_scale_zero_is_exactly_off(tmp_path: Path) -> None:
    model = tiny()
    save_checkpoint(tmp_path, model)
    fields = {"transparency_scale": 0.0, "transparency_centre": -1.0, "transparency_steepness": 5.0, "mixinputs_k": 1}
    path = tmp_path / "transparency_config.json"
    path.write_text(json.dumps({"transparency_alg": "mixinputs_with_topk", **fields}))
    gate = load_soft_mask(tmp_path)
    assert gate is not None
    assert torch.equal(gate(IDS, torch.randn(1, 7, 11), model.embedding), model.embedding[IDS])
    for text, words in (
        ("{", "is not valid JSON"),
        ("{}", "no transparency_alg"),
        ('{"transparency_alg": "mixinputs_with_temp"}', "'mixinputs_with_temp' is not supported"),
        ('{"transparency_alg": "mixinputs_with_topk", "mixinputs_k": 3}', "has no transparency_scale"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            load_soft_mask(tmp_path)
    path.write_text('{"transparency_alg": "none"}')
    assert load_soft_mask(tmp_path) is None


def test_push_to_hub_uploads_files_that_load_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    import huggingface_hub

    calls: list[Any] = []

    class Api:
        def __init__(self, token: str | None) -> None: ...

        def create_repo(self, *args: Any, **options: Any) -> None:
            calls.append((args, options))

        def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"commit of {repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    model, gate = tiny(), SoftMask(SoftMaskConfig(10, scale=0.25))
    said = save_module.push_to_hub("me/tiny", model, gate, results={"validation perplexity": 21.6}, licence="apache-2.0")
    assert said == "commit of me/tiny" and calls == [(("me/tiny",), {"private": True, "exist_ok": True})]
    assert torch.equal(load_model(tmp_path / "hub")(IDS), model(IDS)) and load_soft_mask(tmp_path / "hub") is not None
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: soft-mask\n") and "license: apache-2.0" in card
    assert 'soft_mask.load_soft_mask("me/tiny")' in card and "| validation perplexity | 21.6 |" in card and "0.25" in card
