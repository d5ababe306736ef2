"""Recipes: the paper's settings, strict reading, and a run of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("yaml")

from soft_mask import SoftMask
from soft_mask.cli.main import app
from soft_mask.models import load_model
from soft_mask.training.recipe import read_recipe
from soft_mask.training.run import build_trainer, run_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = [
    "training.updates=6", "training.log_every=1", "training.save_every=3", "training.warmup_updates=0", "data.length=16",
    "model.config.model_length=16", "model.config.hidden_dim=16",
]  # fmt: skip


def short(tmp_path: Path, *more: str) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("a text to learn from, over and over. " * 60)
    return [*SHORT, f"data.files=[{text}]", f"data.cache={tmp_path / 'cache'}", f"output={tmp_path / 'run'}", *more]


@pytest.mark.parametrize(("name", "updates"), [("continue", 100_000), ("scratch", 1_000_000)])
def test_the_papers_settings(name: str, updates: int) -> None:
    soft = read_recipe(RECIPES / f"mdlm-owt-{name}.yaml")
    t, gate = soft.training, soft.soft_mask
    assert gate is not None
    assert (t.updates, t.batch, soft.data.length) == (updates, 512, 1024)
    assert (t.learning_rate, t.omega_learning_rate, t.p_sm, gate.k) == (3e-4, 1e-2, 0.8, 3)
    assert (t.ema, t.clip, t.weight_decay, t.warmup_updates, t.schedule) == (0.9999, 1.0, 0.0, 2500, "constant_with_warmup")
    assert (gate.scale, gate.steepness, gate.centre) == (0.0, 6.66, -0.75)
    assert t.clip_omega and not soft.model.average  # as the reference clips, and from the raw weights of a .ckpt
    twin, half = (read_recipe(RECIPES / f"mdlm-owt-{name}-{kind}.yaml").to_dict() for kind in ("binary", "equal-compute"))
    whole = soft.to_dict()
    assert {key for key in whole if twin[key] != whole[key]} == {"about", "output", "soft_mask"} and twin["soft_mask"] is None
    assert half["training"] == {**whole["training"], "updates": updates // 2}
    assert {key for key in whole if half[key] != whole[key]} == {"about", "output", "training"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.updats=3", "training: unknown setting updats; known: updates"),
        ("colour=red", "recipe: unknown setting colour"),
        ("training.updates=3.5", "training.updates: expected int, got 3.5"),
        ("training.bf16=1", "training.bf16: expected bool, got 1"),
        ("training.p_sm=1.5", r"training.p_sm must lie in \[0, 1\], got 1.5"),
        ("training.learning_rate=-1", "training.learning_rate must not be negative"),
        ("training.learning_rate=.nan", "training.learning_rate must be finite"),
        ("training.schedule=sine", "training.schedule must be one of constant"),
        ("soft_mask.k=0", "soft_mask.k must be above 0"),
        ("data.files=text", "data.files: expected a list of texts"),
        ("data.hub=a/b", "data: give one of hub, files, tokens; got hub and files"),
        ("model.load=x/y", "model: give either load or config"),
        ("training.evaluate_every=5", "data names no validation_split"),
        ("training.seed", "expected name=value"),
        ("training={", "is not YAML"),
        ("data=null", "recipe: give either data or instructions"),
    ],
)
def test_faults_are_named(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_recipe(RECIPES / "tiny.yaml", [override])


def test_faulty_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ValueError, match="circle"):
        read_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="a recipe is a mapping"):
        read_recipe(tmp_path / "c.yaml")
    (tmp_path / "d.yaml").write_text("output: x\n")
    with pytest.raises(ValueError, match="model is missing"):
        read_recipe(tmp_path / "d.yaml")
    with pytest.raises(ValueError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")
    result = CliRunner().invoke(app, ["train", str(tmp_path / "c.yaml")])
    assert result.exit_code == 2 and "a recipe is a mapping" in result.output


def test_the_command_trains_logs_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    recipe, run = str(RECIPES / "tiny.yaml"), tmp_path / "run"
    more = ["training.tensorboard=true", "training.evaluate_every=3", f"data.validation_files=[{tmp_path / 'text.txt'}]"]
    changes = short(tmp_path, *more)
    result = CliRunner().invoke(app, ["train", recipe, *changes])
    assert result.exit_code == 0, result.output
    assert "update 5/6" in result.output and "ETA 0:00:0" in result.output and "tokens/s" in result.output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in log if "loss" in entry]
    assert steps == [1, 2, 3, 4, 5, 6] and sum("eval_loss" in entry for entry in log) == 2
    for name in ("grad_norm", "omega_grad_norm", "scale", "steepness", "centre", "tokens_per_second", "eta_seconds", "lambda"):
        assert any(name in entry for entry in log), name
    assert list(run.glob("runs/*/events*")) or list(run.glob("**/events.out.tfevents*"))
    assert load_model(run / "ema").config.hidden_dim == 16 and SoftMask.from_pretrained(run).config.ban == (257,)
    assert CliRunner().invoke(app, ["train", recipe, *changes, "--fresh"]).exit_code == 2
    said = CliRunner().invoke(app, ["generate", str(run), "--tokenizer", "bytes", "--prompt", "a text", "--steps", "2"])
    assert said.exit_code == 0 and said.output.startswith("a text"), said.output
    longer = CliRunner().invoke(app, ["train", recipe, *changes, "training.updates=8"])
    assert longer.exit_code == 0 and "update 7/8" in longer.output and "update 6/8" not in longer.output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6, 7, 8]


def weights_after(tmp_path: Path, *more: str) -> dict[str, Any]:
    trainer = run_recipe(read_recipe(RECIPES / "tiny.yaml", short(tmp_path, *more)))
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_ways_to_save_memory_change_no_number(tmp_path: Path) -> None:
    plain = weights_after(tmp_path)
    for number, more in enumerate((["training.gradient_checkpointing=true"], ["training.micro_batch=8", "data.stream=true"])):
        other = weights_after(tmp_path, *more, f"output={tmp_path / str(number)}")
        if number == 0:
            for name in plain:
                torch.testing.assert_close(other[name], plain[name], rtol=1e-5, atol=1e-6, msg=name)
        assert other.keys() == plain.keys()


def test_omega_alone_moves_on_a_frozen_backbone(tmp_path: Path) -> None:
    settings = read_recipe(RECIPES / "tiny.yaml", short(tmp_path, "training.omega_only=true", "soft_mask.centre=-6.0"))
    trainer = build_trainer(settings)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    torch.nn.init.normal_(trainer.model.model.output_layer.linear.weight, std=0.3)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("soft_mask.") for name in moved)


def test_files_where_folders_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for name in ("output", "data.cache"):
        changes = [*short(tmp_path), f"{name}={tmp_path / 'file'}"]
        result = CliRunner().invoke(app, ["train", str(RECIPES / "tiny.yaml"), *changes])
        assert result.exit_code == 2 and f"{name}: {tmp_path / 'file'} is a file" in result.output.replace("\n", ""), (
            result.output
        )
    changes = [*short(tmp_path), f"output={tmp_path / 'file' / 'below'}"]
    assert CliRunner().invoke(app, ["train", str(RECIPES / "tiny.yaml"), *changes]).exit_code == 2
    assert (tmp_path / "file").read_text() == "precious"


def test_batches_and_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 is no multiple of micro_batch x ranks = 3 x 1"):
        build_trainer(read_recipe(RECIPES / "tiny.yaml", short(tmp_path, "training.micro_batch=3")))
    with pytest.raises(ValueError, match="'bytes' has 257 tokens, the model 200"):
        build_trainer(read_recipe(RECIPES / "tiny.yaml", short(tmp_path, "model.config.vocab_size=200")))
    with pytest.raises(ValueError, match="model.config: unknown setting heads"):
        build_trainer(read_recipe(RECIPES / "tiny.yaml", short(tmp_path, "model.config.heads=2")))
    with pytest.raises(ValueError, match="there is no file"):
        build_trainer(read_recipe(RECIPES / "tiny.yaml", [*short(tmp_path), "data.files=[none.txt]"]))
