"""``soft-mask reproduce mdlm`` at full scale: what it says without having measured, and all its stages on tiny recipes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("yaml")

from typer.testing import CliRunner

from soft_mask import MDLM, MDLMConfig, load_model, load_soft_mask, save_checkpoint
from soft_mask.cli.main import app
from soft_mask.cli.reproduce import full, full_table
from soft_mask.cli.reproduce.paper import MODELS, PERPLEXITY, SAMPLES
from soft_mask.diffusion import Denoiser
from soft_mask.evaluation import perplexity, unigram_entropy

ROOT = Path(__file__).parents[2]
SIZES = {"vocab_size": 258, "model_length": 16, "hidden_dim": 8, "cond_dim": 4, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
TEXT = "".join(f"Line {i} says that {i * 7 % 10} is not {i * 3 % 10}.\n" for i in range(60))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command takes SIGTERM as Ctrl-C: here it gives it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def call(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["reproduce", "mdlm", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_without_a_run_only_the_papers_figures_are_shown(tmp_path: Path) -> None:
    output = call("--out", tmp_path / "out")
    for figure in ("23.14", "22.88", "21.63", "0.034 | 50.46", "0.596 | 24.63", "0.602 | 23.53", "0.411 | 28.62"):
        assert figure in output
    rows = [line for line in output.splitlines() if line.startswith("| ") and "paper" not in line]
    assert len(rows) == len(PERPLEXITY) + len(SAMPLES)
    assert all(set(row.rstrip(" |").split(" | ")[-2:]) == {"-"} for row in rows)  # nothing of ours
    assert "100,000 updates of 512 x 1024 tokens" in output and "not trained yet" in output
    for model in MODELS.values():
        assert model.recipe is None or f"{model.recipe}.yaml" in output
    assert not (tmp_path / "out").exists()


def test_bad_arguments(tmp_path: Path) -> None:
    assert "--table must be" in call("--table", "words", code=2)
    assert "--scale must be" in call("--scale", "medium", code=2)
    assert "has no mdlm-owt-continue-binary.yaml" in call("--recipes", tmp_path, code=2).replace("\n", " ")
    assert "unknown setting" in call("--set", "training.speed=2", code=2)
    if not torch.cuda.is_available():
        assert "no GPU here" in call("--run", "--out", tmp_path / "out", code=2)
        assert not (tmp_path / "out").exists()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Recipes under the paper's names whose every run takes a second, of a model of bytes."""
    (tmp_path / "text").write_text(TEXT)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "base", MDLM(MDLMConfig(**SIZES)))
    folder = tmp_path / "recipes"
    folder.mkdir()
    training = {
        "updates": 4, "batch": 4, "micro_batch": 4, "warmup_updates": 1, "bf16": False, "cpu": True, "tensorboard": False,
        "save_every": 2, "log_every": 2, "ema": 0.9,
    }  # fmt: skip
    for model in MODELS.values():
        if model.recipe is None:
            continue
        scratch = "scratch" in model.recipe
        recipe: dict[str, Any] = {
            "output": "unused",
            "model": {"config": SIZES} if scratch else {"load": str(tmp_path / "base")},
            "soft_mask": None if "binary" in model.recipe else {"scale": 0.5, "centre": -3.0},
            "data": {
                "files": [str(tmp_path / "text")], "validation_files": [str(tmp_path / "text")], "whole_files": True,
                "tokenizer": "bytes", "length": 16, "cache": str(tmp_path / "cache"),
            },
            "training": training,
        }  # fmt: skip
        (folder / f"{model.recipe}.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    return folder


def test_perplexity_is_trained_and_measured_for_real(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    run = subprocess.run

    def here(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """The very command, in this process: starting another would take longer than the training."""
        if "soft_mask" not in command:
            return run(command, **options)
        started.append(command)
        at = command.index("soft_mask")
        result = CliRunner().invoke(app, command[at + 1 :])
        return subprocess.CompletedProcess(command, result.exit_code)

    monkeypatch.setattr(full.subprocess, "run", here)
    out = tmp_path / "out"
    common = ("--recipes", tiny, "--out", out, "--run", "--cpu", "--table", "perplexity", "--blocks", 8)
    output = call(*common)
    assert len(started) == 3 and all((out / "runs" / name / "ema").is_dir() for name in ("continue", "continue-binary"))
    record = json.loads((out / "perplexity-continue.json").read_text())
    assert record["environment"]["torch"] and record["results"]["sequences"] == 8 and record["results"]["passes"] == 2
    weights = out / "runs" / "continue" / "ema"
    plan = full.Plan(out, tiny, limit=8)
    *_, blocks = full._load(plan, "continue")
    denoiser = Denoiser(load_model(weights), load_soft_mask(weights))
    expected = perplexity(denoiser, blocks, seed=1, times="antithetic", batch_size=8)
    assert record["results"]["perplexity"] == pytest.approx(expected.perplexity, rel=1e-6)
    assert f"| + soft masking, 100k updates | 21.63 | {expected.perplexity:.2f} ±" in output
    assert (out / "table.md").read_text() in output
    assert call(*common).count("validation perplexity of") == 0 and len(started) == 3  # all of it is kept
    assert full_table.markdown(full.Plan(out, tiny, limit=7)).count("±") == 0  # of other settings: not shown


def test_samples_are_judged_and_go_on_where_they_were(
    tiny: Path, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from soft_mask.data import load_tokenizer

    judge = tmp_path / "judge"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=64)).save_pretrained(judge)
    load_tokenizer(data_dir / "gpt2").save_pretrained(judge)
    plan = full.Plan(tmp_path / "out", tiny, str(judge), samples=6, steps=4, batch_size=2, limit=8)
    plan.out.mkdir()
    monkeypatch.setattr(full.Plan, "weights", lambda self, model: str(tmp_path / "base"))
    full._measure_samples(plan, "scratch-binary", "sm-mdlm")
    kept = plan.out / "samples-scratch-binary-sm-mdlm.jsonl"
    lines = kept.read_text().splitlines()
    results = plan.measured("samples", "scratch-binary", "sm-mdlm")
    assert results is not None and len(lines) == 7
    ids = torch.tensor([json.loads(line)["ids"] for line in lines[1:]])
    assert results["entropy"] == pytest.approx(unigram_entropy(ids))
    assert results["generative_perplexity"]["texts"] == 6 and 0 < results["nfe"] <= 5
    assert f"{results['generative_perplexity']['perplexity']:.2f} | {results['entropy']:.2f}" in full_table.markdown(plan)
    kept.write_text("\n".join(lines[:4])[:-5])  # two whole samples, and one that a kill cut off
    full._measure_samples(plan, "scratch-binary", "sm-mdlm")
    assert kept.read_text().splitlines() == lines
    assert plan.measured("samples", "scratch-binary", "sm-mdlm") == results
