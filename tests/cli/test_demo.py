"""The demo: its languages, its checks (which a switched-off feedback must fail), and the command from end to end."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

import typer
from typer.testing import CliRunner

from soft_mask.cli.demo import demo, settings
from soft_mask.cli.demo.branches import run
from soft_mask.cli.demo.markov import MarkovLanguage
from soft_mask.cli.demo.run import Job
from soft_mask.cli.demo.screen import frame_text
from soft_mask.cli.demo.summary import checks, statistic, summarise, verdict
from soft_mask.cli.demo.text import CharTokenizer, TextLanguage, load_text

TINY = {
    "hidden_dim": 16, "cond_dim": 4, "n_heads": 2, "length": 8, "batch_size": 4, "base_updates": 4, "updates": 4,
    "test_sequences": 8, "test_draws": 1, "samples": 4,
}  # fmt: skip
MARKOV, TEXT = (replace(act, **TINY) for act in (settings.MARKOV, settings.TEXT))
TOPICS = "".join(f"Line {i} says that {i * 7 % 10} is not {i * 3 % 10}.\n" for i in range(800))


# ---- languages ----


@pytest.mark.parametrize("seed", [0, 1])
def test_the_floor_is_the_mean_cost_of_sequences_under_the_chain(seed: int) -> None:
    language = MarkovLanguage(seed)
    assert torch.allclose(language.start @ language.matrix, language.start) and (language.start > 0).all()
    assert (language.matrix > 0).sum(0).tolist() == (language.matrix > 0).sum(1).tolist() == [2] * 32
    ids = language.sample(20_000, 32, torch.Generator().manual_seed(5))
    cost = language.nll(ids) / 32
    assert language.legal(ids).all()
    assert float(cost.mean()) == pytest.approx(language.floor(32), abs=5 * float(cost.std()) / math.sqrt(20_000))
    assert not torch.equal(MarkovLanguage(seed + 1).matrix, language.matrix)
    wrong = ids[:1].clone()
    wrong[0, 5] = int((language.matrix[wrong[0, 4]] == 0).nonzero()[0])
    assert not language.legal(wrong)[0, 4]
    assert float(language.nll(wrong)) > float(language.nll(ids[:1])) + 5


def test_held_out_text_is_never_trained_on() -> None:
    language = TextLanguage.from_text("".join(chr(0x4E00 + i) for i in range(20_000)))  # every character once
    language.tokenizer = CharTokenizer("")
    places = [torch.arange(20_000)[i : i + 1000] for i in range(0, 20_000, 1000)]
    language.training = [part for i, part in enumerate(places) if i % 10 != 5]
    language.held_out = [part for i, part in enumerate(places) if i % 10 == 5]
    windows = language.windows(5000, 64, torch.Generator().manual_seed(0))
    assert (windows.diff(dim=1) == 1).all()  # no window reaches over a border
    assert not set(windows.flatten().tolist()) & {int(i) for part in language.held_out for i in part}
    blocks = language.held_out_blocks(64)
    assert blocks.shape == (30, 64) and (blocks.diff(dim=1) == 1).all()
    assert language.held_out_blocks(64, 10).shape == (10, 64)


def test_text_and_tokenizer() -> None:
    text = load_text()
    assert len(text) > 200_000 and text == load_text()
    language = TextLanguage.from_text(text)
    tokenizer = language.tokenizer
    assert tokenizer.decode(tokenizer.encode(text[:500])) == text[:500]
    assert tokenizer.encode("\x07").item() == tokenizer.unknown_id < tokenizer.mask_id == tokenizer.vocab_size - 1
    assert language.facts["training_characters"] + language.facts["held_out_characters"] == len(text)
    assert 0.05 < language.facts["held_out_characters"] / len(text) < 0.15


def test_bad_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    with pytest.raises(ValueError, match="cannot read"):
        load_text(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        load_text(file)
    file.write_bytes(b"fine so far \xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8.*byte 12"):
        load_text(file)
    file.write_text("too short")
    with pytest.raises(ValueError, match="9 characters; at least 20,000"):
        load_text(file)
    file.write_text(TOPICS)
    assert load_text(file, 1000) == TOPICS


# ---- settings, statistics, checks ----


def test_equal_compute_is_counted_in_passes() -> None:
    act = settings.MARKOV
    assert act.compute_ratio == pytest.approx(1 + 0.8 / 3)
    assert act.branches == {"binary": 600, "soft": 600, "binary_long": 760}
    assert act.nfes == (8, 16, 32)


def test_every_setting_is_in_the_hash(tmp_path: Path) -> None:
    hashes = {settings.settings_hash(settings.MARKOV, 1), settings.settings_hash(settings.MARKOV, 2)}
    hashes.add(settings.settings_hash(settings.MARKOV, 1, "another text"))
    hashes.add(settings.settings_hash(replace(settings.MARKOV, scale=0.1), 1))
    assert len(hashes) == 4
    job = Job(settings.MARKOV, 1, tmp_path)
    assert job.finished() is None
    job.result_file.write_text(json.dumps({"hash": "of other settings"}))
    assert job.finished() is None
    job.result_file.write_text(json.dumps({"hash": job.hash})[:-3])  # cut off
    assert job.finished() is None
    job.result_file.write_text(json.dumps({"hash": job.hash}))
    assert job.finished() == {"hash": job.hash}


def parts(seeds: int = 3, soft: float = -0.05, one_pass: float = 0.1, gate: float = 0.3) -> list[dict[str, Any]]:
    """Results as jobs write them, with the given effect."""
    found = []
    for seed in range(seeds):
        wobble = 0.004 * math.sin(seed)
        scores = {str(n): {"legal": 0.8, "nll": 2.0, "entropy": 3.4, "nfe": float(n)} for n in (8, 16, 32)}
        base = {"updates": 10, "ms_per_update": 9.0, "cpu_ms_per_update": 8.0, "generation": scores}
        binary = {**base, "nelbo": 0.9 + wobble}
        long = {**base, "nelbo": 0.89 + wobble}
        mixed = {
            **base, "nelbo": 0.9 + 2 * wobble + soft, "nelbo_one_pass": 0.9 + 2 * wobble + soft + one_pass,
            "mean_lambda": gate, "gate": {"scale": 0.4, "steepness": 5.0, "centre": -2.0},
        }  # fmt: skip
        branches = {"binary": binary, "soft": mixed, "binary_long": long}
        difference = {
            name: {"mean": mixed["nelbo"] - branches[name]["nelbo"], "paired_se": 0.003} for name in ("binary", "binary_long")
        }
        found.append(
            {"seed": seed, "parameters": 55_000, "floor": 0.73, "base": {"nelbo": 1.0}, "branches": branches,
             "differences": difference}
        )  # fmt: skip
    return copy.deepcopy(found)


def failing(found: list[dict[str, Any]]) -> list[str]:
    return [check.claim for check in checks(summarise(settings.MARKOV, found)) if check.holds is False]


def test_checks_hold_for_a_clear_effect_and_fail_for_anything_less() -> None:
    assert failing(parts()) == []
    assert any("equal updates on every seed" in claim for claim in failing(parts(soft=0.02)))
    assert any("equal compute on every seed" in claim for claim in failing(parts(soft=-0.005)))
    one_bad = parts()
    one_bad[1]["differences"]["binary_long"]["mean"] = 0.001
    assert any("equal compute on every seed" in claim for claim in failing(one_bad))
    noisy = parts()
    noisy[0]["differences"]["binary"]["mean"] = -0.5
    assert any("2 standard errors over seeds at equal updates" in claim for claim in failing(noisy))
    below = parts()
    below[0]["branches"]["soft"]["nelbo"] = 0.6
    assert any("floor" in claim for claim in failing(below))
    assert [check.holds for check in checks(summarise(settings.MARKOV, parts(2)))].count(None) == 2


def test_a_feedback_that_does_nothing_fails_the_checks() -> None:
    # tiny differences of the right sign, as a gate at 1e-6 gives: "lower on every seed" is not enough
    claims = failing(parts(soft=-1e-6, one_pass=1e-7, gate=1e-6))
    assert any("feedback is at work" in claim for claim in claims)
    assert any("worse without the feedback" in claim for claim in claims)


def test_the_papers_initial_scale_fails_the_checks_in_a_real_run(tmp_path: Path) -> None:
    found = [run(replace(MARKOV, scale=0.0), seed, scratch=str(tmp_path)) for seed in (1, 2)]
    assert all(abs(part["differences"]["binary"]["mean"]) < 1e-4 for part in found)
    summary = summarise(MARKOV, found)
    assert any("feedback is at work" in check.claim and check.holds is False for check in checks(summary))


def test_verdicts_say_what_is_known() -> None:
    assert "within noise" in verdict(statistic([-0.01, 0.012, -0.002]))
    assert "a gain beyond 2 standard errors" in verdict(statistic([-0.05, -0.06, -0.055]))
    assert "WORSE" in verdict(statistic([0.05, 0.06, 0.055]))
    assert "weak evidence" in verdict(statistic([-0.05, -0.051]))
    assert "no conclusion" in verdict(statistic([-0.05]))
    assert statistic([1.0, 2.0, 3.0])["se"] == pytest.approx(1 / math.sqrt(3))


def test_a_frame_shows_tokens_beliefs_and_plain_masks() -> None:
    frame = {"text": "a··\n", "masked": [False, True, True, False], "gate": [0, 0.4, 0.0, 0], "tokens": ["x", "yz", "z", "x"]}
    assert frame_text(frame).plain == "ay·⏎"


# ---- the command ----


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command with tiny acts, on a text of its own; call it with more arguments."""
    monkeypatch.setattr(settings, "MARKOV", MARKOV)
    monkeypatch.setattr(settings, "TEXT", TEXT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    text = tmp_path / "text.txt"
    text.write_text(TOPICS)
    app = typer.Typer()
    app.command()(demo)
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda *more: CliRunner().invoke(app, ["--text", str(text), "--out", str(tmp_path / "out"), *more])
    signal.signal(signal.SIGTERM, handler)


def test_the_command_from_end_to_end_and_again(command: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command("--seeds", "1", "--text-seeds", "1", "--workers", "2")
    assert result.exit_code == 1, result.output  # four updates prove nothing, and it says so
    assert "FAILS" in result.output and "no conclusion" in result.output and "Chosen so that" in result.output
    record = json.loads((out / "demo.json").read_text())
    assert record["holds"] is False and record["environment"]["backends"]
    assert set(record["acts"]) == {"markov", "text"}
    assert record["acts"]["markov"]["branches"]["binary_long"]["updates"] == 6
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG") and (out / "demo.png").stat().st_size > 20_000
    written = [(out / "parts" / f"{name}-1.json").stat().st_mtime_ns for name in ("markov", "text")]
    again = command("--seeds", "1", "--text-seeds", "1")
    assert again.output.count("kept from an earlier run") == 2
    assert written == [(out / "parts" / f"{name}-1.json").stat().st_mtime_ns for name in ("markov", "text")]
    assert json.loads((out / "demo.json").read_text())["acts"] == record["acts"]


def test_an_interrupted_demo_ends_its_processes_and_says_how_to_go_on(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = (
        "import typer, signal; from soft_mask.cli.demo import demo; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "app = typer.Typer(); app.command()(demo); app()"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", script, "--out", str(tmp_path / "out"), "--seeds", "1", "--workers", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "binary base" in line:
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        pids = children.read_text().split() if children.exists() else []
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 130, "".join(lines) + rest
        assert "Interrupted" in rest and "goes on from there" in rest
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        process.kill()


def test_a_folder_that_cannot_be_written_is_told_before_any_work(command: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    result = command()
    assert result.exit_code == 2 and "--out: cannot write to" in result.output


def test_a_bad_text_is_told_before_any_work(command: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xff")
    result = command()
    assert result.exit_code == 2 and "not UTF-8" in result.output
    assert not (tmp_path / "out").exists()


def test_a_job_that_fails_ends_the_demo_with_its_log(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MARKOV", replace(MARKOV, n_heads=3))  # 16 is no multiple of 6
    result = command("--seeds", "1", "--text-seeds", "1", "--workers", "1")
    assert result.exit_code == 1
    assert "markov-1 stopped with code" in result.output and "hidden_dim" in result.output
