"""LLaDA on Llama: the published code's logits, its names, and what is refused.

``llada_upstream.json`` was made by running the published modelling code (the copy in NVlabs/Fast-dLLM, under transformers
4.57, float32, CPU) on the folder that ``tests.hosts.tiny_llada(1)`` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")

from soft_mask import SoftMask, SoftMaskConfig, generate, load_model  # noqa: E402
from soft_mask.models import LLaDA, LLaDAConfig, MaskedDiffusionModel  # noqa: E402
from tests.hosts import tiny_llada  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("llada")
    tiny_llada(1).save_pretrained(where)
    return where


def test_logits_equal_upstream(folder: Path) -> None:
    frozen = json.loads((Path(__file__).parent / "llada_upstream.json").read_text(encoding="utf-8"))
    model = load_model(folder)
    assert isinstance(model, LLaDA) and isinstance(model, MaskedDiffusionModel) and model.shift == 0
    with torch.no_grad():
        logits = model(torch.tensor(frozen["ids"])).flatten(0, 1)[frozen["rows"]]
    assert (logits - torch.tensor(frozen["logits"])).abs().max() < 5e-6  # of logits up to 5


def test_names_are_the_published_ones(folder: Path) -> None:
    names = set(load_file(folder / "model.safetensors"))
    block = ("attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out")
    assert names == {
        *(f"model.transformer.{part}.weight" for part in ("wte", "ln_f", "ff_out")),
        *(f"model.transformer.blocks.{i}.{part}.weight" for i in range(2) for part in block),
    }


def test_generation_runs_with_feedback(folder: Path) -> None:
    model = load_model(folder)
    sm = SoftMask(SoftMaskConfig(mask_token_id=model.mask_token_id, k=3, scale=0.7, centre=-2.0))
    ids = torch.tensor([[1, 2, 3], [35, 4, 5]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    together = generate(model, ids, mask, 6, steps=4, soft_mask=sm).sequences
    alone = generate(model, ids[1:, 1:], None, 6, steps=4, soft_mask=sm).sequences
    assert together[1, 1:].equal(alone[0]) and not (together == model.mask_token_id).any()


def test_a_tensor_that_is_missing_or_left_over_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name = "model.transformer.blocks.1.ff_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: model\.layers\.1\.mlp\.gate_proj\.weight"):
        load_model(tmp_path)
    save_file({**tensors, "model.transformer.wpe.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected: model\.transformer\.wpe\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_type": "sequential"}, "block_type must be 'llama'"),
        ({"alibi": True}, "alibi must be False"),
        ({"include_qkv_bias": True}, "include_qkv_bias must be False"),
        ({"n_kv_heads": 3}, "n_kv_heads divide n_heads"),
        ({"model_type": "qwen2"}, "model_type must be 'llada'"),
    ],
)
def test_other_layouts_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LLaDAConfig.from_dict({**LLaDAConfig().to_dict(), **change})


def test_the_defaults_are_the_8b_model() -> None:
    c = LLaDAConfig.from_dict(LLaDAConfig().to_dict())
    assert (c.d_model, c.n_layers, c.vocab_size, c.mask_token_id) == (4096, 32, 126_464, 126_336)
