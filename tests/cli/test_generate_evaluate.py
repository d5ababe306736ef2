"""``soft-mask generate`` and ``evaluate`` end to end: a tiny checkpoint with the real GPT-2 tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")

from soft_mask import MDLM, MDLMConfig, SoftMask, SoftMaskConfig, save_checkpoint  # noqa: E402
from soft_mask.cli import generate as generate_module  # noqa: E402
from soft_mask.cli.main import app  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model = MDLM(MDLMConfig(model_length=16, hidden_dim=8, cond_dim=4, n_blocks=1, n_heads=2))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    save_checkpoint(folder, model, SoftMask(SoftMaskConfig(50257, scale=0.5, ban=(50257,))))
    return str(folder)


def call(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_generate(checkpoint: str, data_dir: Path, tmp_path: Path) -> None:
    common = ("generate", checkpoint, "--tokenizer", data_dir / "gpt2", "--steps", 4, "--prompt", "The cat")
    call(*common, "--number", 3, "--batch-size", 2, "--out", tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["text"].startswith("The cat") for row in rows)
    assert all(len(row["ids"]) == 16 and 50257 not in row["ids"] and row["nfe"] <= 5 for row in rows)
    settings = rows[0]["settings"]
    assert settings["soft_mask"]["scale"] == pytest.approx(0.5) and settings["dtype"] == "float32"
    call(*common, "--number", 3, "--batch-size", 2, "--out", tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    call(*common, "--binary", "--out", tmp_path / "c.jsonl")
    assert json.loads((tmp_path / "c.jsonl").read_text())["settings"]["soft_mask"] is None
    filled = call("generate", checkpoint, "--tokenizer", data_dir / "gpt2", "--infill", "A[PAD][PAD] sat", "--steps", 2)
    assert filled.startswith("A") and filled.rstrip("\n").endswith(" sat") and "[PAD]" not in filled


def test_the_mask_is_gpt2s_pad(data_dir: Path) -> None:
    from soft_mask.models.tokenizer import mdlm_tokenizer

    tokenizer = mdlm_tokenizer(data_dir / "gpt2", 50257)
    assert len(tokenizer) == 50258 and tokenizer.pad_token_id == 50257 and tokenizer.eos_token_id == 50256
    assert tokenizer.decode([15496, 50257, 50256]) == "Hello[PAD]<|endoftext|>"


def test_bad_arguments(checkpoint: str, data_dir: Path) -> None:
    common = ("generate", checkpoint, "--tokenizer", data_dir / "gpt2")
    for more, words in (
        (("--preset", "x"), "--preset must be one of"),
        (("--infill", "no gap"), "has no gap"),
        (("--length", 17), "longest is 16"),
        (("--dtype", "int8"), "--dtype must be one of"),
        (("--binary", "--k", 2), "leave --binary out"),
    ):
        assert words in call(*common, *more, code=2)
    assert "no folder or file" in call("generate", "nowhere", code=2)
    assert "the model's mask is id 50257" in call("generate", checkpoint, "--tokenizer", data_dir / "qwen2.5", code=2)


def test_interrupted(checkpoint: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate_module.sample

    def stops(*arguments: Any) -> Any:
        yield next(iter(whole(*arguments)))
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_module, "sample", stops)
    common = ("--tokenizer", data_dir / "gpt2", "--steps", 2, "--batch-size", 1)
    said = call("generate", checkpoint, *common, "-n", 3, "--out", tmp_path / "a.jsonl", code=130)
    assert "1 of 3 samples were finished" in said and len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def test_evaluate(checkpoint: str, data_dir: Path, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from soft_mask.models.tokenizer import load_tokenizer

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "judge")
    load_tokenizer(data_dir / "gpt2").save_pretrained(tmp_path / "judge")
    text = tmp_path / "some.txt"
    text.write_text("One line of text, and then another one.\n" * 20)
    out = tmp_path / "results"
    said = call(
        "evaluate", checkpoint, "--tokenizer", data_dir / "gpt2", "--data", text, "--blocks", 6, "--draws", 2,
        "--samples", 3, "--batch-size", 2, "--drop-last", "--steps", 2, "--scorer", tmp_path / "judge", "--out", out,
    )  # fmt: skip
    assert "some: perplexity" in said and "generative perplexity" in said
    record = json.loads((out / "perplexity-some.json").read_text())
    assert record["results"]["sequences"] == 6 and record["results"]["passes"] == 2
    assert record["results"]["error_draws"] > 0 and record["settings"]["draws"] == 2
    judged = json.loads((out / "samples.json").read_text())
    assert judged["results"]["nfe"] <= 3 and judged["results"]["generative_perplexity"]["texts"] == 2
    assert judged["settings"]["drop_last"] is True and judged["settings"]["count_all"] is False
    assert judged["settings"]["dtype"] == "float32" and judged["environment"]["torch"]
    assert "nothing to measure" in call("evaluate", checkpoint, code=2)


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> str:
    from soft_mask import Dream, DreamConfig
    from soft_mask.models.tokenizer import dream_tokenizer

    folder = tmp_path_factory.mktemp("dream")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Dream(DreamConfig(vocab_size=151_672, num_key_value_heads=1, max_position_embeddings=64, **sizes))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    model.save_pretrained(folder)
    dream_tokenizer(data_dir / "qwen2.5").save_pretrained(folder)
    fields = {"transparency_scale": 0.5, "transparency_centre": -3.0, "transparency_steepness": 5.0, "mixinputs_k": 1}
    (folder / "transparency_config.json").write_text(json.dumps({"transparency_alg": "mixinputs_with_topk", **fields}))
    return str(folder)


def test_generate_with_dream(dream: str, tmp_path: Path) -> None:
    common = ("generate", "--prompt", "Hi", "--max-new-tokens", 6, "--out", tmp_path / "a.jsonl")
    call(*common, "--model", dream)
    (row,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    settings = row["settings"]
    assert settings["chat"] and settings["alg"] == "entropy" and settings["steps"] == 6 and row["nfe"] == 6
    assert settings["soft_mask"]["scale"] == pytest.approx(0.5) and settings["soft_mask"]["k"] == 1
    assert row["ids"][-9:-6] == [151644, 77091, 198] and "im_start" not in row["text"]  # <|im_start|>assistant
    call(*common, dream, "--no-chat", "--steps", 3, "--binary", "--alg", "maskgit_plus", "--temperature", 0.5, "--top-k", 5)
    (row,) = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(row["ids"]) == 7 and row["text"].startswith("Hi") and row["settings"]["soft_mask"] is None
    filled = call("generate", dream, "--infill", "A<|mask|><|mask|> sat", "--scale", 0, "--schedule", "linear")
    assert filled.rstrip().endswith(" sat") and "<|mask|>" not in filled
    assert "has no gap: write <|mask|>" in call("generate", dream, "--infill", "none", code=2)
    assert "a model must be named" in call("generate", code=2)
    assert "the model is named twice" in call("generate", dream, "--model", "other", code=2)
    assert "longest is 64" in call("generate", dream, "--prompt", "a", "--max-new-tokens", 64, code=2)
    assert "alg must be one of" in call("generate", dream, "--infill", "<|mask|>", "--alg", "beam", code=2)


def test_what_the_terminal_shows(dream: str) -> None:
    from rich.console import Console

    from soft_mask.cli.models import GateOptions, load
    from soft_mask.cli.prompts import start_of
    from soft_mask.cli.screen import Screen
    from soft_mask.sampling import StepInfo

    loaded = load(dream, None, "cpu", None, GateOptions())
    start = start_of(loaded, "Hi", "", "", None, None, 4)
    ids = start.ids.clone()
    ids[-4], ids[-2] = 9707, 151_645  # "Hello", and the end of the turn
    info = StepInfo(2, 4, 0.5, ids[None], 2, 1, None)
    console = Console(width=100, record=True)
    console.print(Screen(loaded, start, 1, 4, False).frame(info))
    shown = console.export_text()
    assert "step 2 of 4" in shown and "2 masks left" in shown and "Hello\u2591" in shown and "user" not in shown
