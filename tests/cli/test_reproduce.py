"""``soft-mask reproduce mdlm``: its arithmetic against hand-computed numbers; the small study, also killed and resumed."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from soft_mask.cli.demo.branches import Reporter
from soft_mask.cli.main import app
from soft_mask.cli.reproduce import settings, table
from soft_mask.cli.reproduce.corpora import Corpus, Source, find_sources, split
from soft_mask.cli.reproduce.screen import Progress
from soft_mask.cli.reproduce.settings import CHARACTERS, SAMPLERS, Study, quick
from soft_mask.cli.reproduce.small import Job
from soft_mask.cli.reproduce.stages import Stages

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
TEXT = "".join(f"Line {i} says that {i * 7 % 10} is not {i * 3 % 10}.\n" for i in range(1000))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command takes SIGTERM as Ctrl-C: here it gives it back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def call(*arguments: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["reproduce", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE in GPT-2's two files: one token a byte, and one for the letters "no"."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()
    words = [*characters.values(), "no", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "encoder.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nn o\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("tinyshakespeare/input.txt", "wikitext2/valid.txt"):
        (folder / name).parent.mkdir()
        (folder / name).write_text(TEXT)
    write_tokenizer(folder / "gpt2")
    return folder


# ---- the texts ----


def test_training_dev_and_test_have_no_character_in_common() -> None:
    parts = split("".join(chr(0x4E00 + i) for i in range(20_000)))
    sets = [set("".join(parts[name])) for name in ("training", "dev", "test")]
    assert [len(some) for some in sets] == [16_000, 2_000, 2_000]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert all(split("x" * n)[name] for n in (20_000, 400_000) for name in ("training", "dev", "test"))


def test_bits_per_byte_are_a_code_length_of_the_whole_text(data: Path, tmp_path: Path) -> None:
    # the tokens of the test segments alone: "#", which is in no training segment, and "é", two bytes and two such tokens
    text = TEXT[:20_000]
    at = 5 * 1000 + 100  # segments are a twentieth of a short text; the sixth is of the test
    text = text[:at] + "#é" + text[at + 2 :]
    (tmp_path / "text").write_text(text, encoding="utf-8")
    corpus = Corpus(Source(tmp_path / "text", data / "gpt2"), 8)
    held = corpus.held_out("test", 10_000)
    assert corpus.vocab_size == len(corpus.kept) + 2 and int((held.blocks == len(corpus.kept)).sum()) == 3
    hidden = 3 * math.log(258 - len(corpus.kept))
    assert held.hidden_nats == pytest.approx(hidden)
    pairs = int((held.blocks == int(torch.searchsorted(corpus.kept, torch.tensor(256)))).sum())
    assert pairs > 10 and held.bytes == held.blocks.numel() + pairs  # "no" is the one token of two bytes
    assert held.bits_per_byte(0.5) == pytest.approx((0.5 * held.blocks.numel() + hidden) / math.log(2) / held.bytes)
    letters = Corpus(Source(tmp_path / "text"), 8)
    assert letters.spell(letters.held_out("test", 9).blocks[0]) in text
    assert letters.facts["training_characters"] == 16_000


def test_the_judge_reads_the_characters_of_tokens(data: Path) -> None:
    text = data / "wikitext2/valid.txt"
    tokens, letters = Corpus(Source(text, data / "gpt2"), 8), Corpus(Source(text), 8)
    row = tokens.held_out("test", 1).blocks
    again = letters.characters.encode(tokens.spell(row[0]))[None]
    assert tokens.judge(row)["ngram_nats"] == pytest.approx(float(letters.reader.nll(again).mean()))
    assert tokens.judge(torch.zeros_like(row))["entropy"] == 0.0


# ---- the arithmetic ----


def part(seed: int, binary: float, soft: float) -> dict[str, Any]:
    """A job's result with these bounds in nats, the longer binary branch 0.01 better, the shorter soft one 0.01 worse."""

    def branch(nats: float, **more: Any) -> dict[str, Any]:
        scores = {"ngram_nats": nats + 1, "entropy": 3.0, "nfe": 9}
        cells = {f"{sampler}-{steps}": scores for sampler in SAMPLERS for steps in CHARACTERS.steps}
        return {"nats": nats, "bits_per_byte": nats / math.log(2), "cpu_ms_per_update": 10.0, "samples": cells, **more}

    gate = {"gate": {"scale": 0.5, "steepness": 2.0, "centre": -2.0}, "mean_lambda": 0.3, "nats_one_pass": soft + 0.1}
    return {
        "study": "characters", "seed": seed, "real_text": {"ngram_nats": 1.7, "entropy": 2.5},
        "data": {"unit": "character", "text": "some.txt", "vocabulary": 66},
        "base": {"parameters": 1, **branch(binary + 0.1)},
        "branches": {
            "binary": branch(binary), "binary_long": branch(binary - 0.01),
            "soft": branch(soft, **gate), "soft_short": branch(soft + 0.01, **gate),
        },
    }  # fmt: skip


def test_errors_are_over_seeds_and_differences_in_pairs() -> None:
    parts = [part(1, 2.00, 1.96), part(2, 2.30, 2.24), part(3, 2.60, 2.58)]
    summary = table.summarise(CHARACTERS, parts)
    equal = summary["differences"]["equal updates"]  # -0.04, -0.06, -0.02: mean -0.04, standard deviation 0.02
    assert equal["mean"] == pytest.approx(-0.04) and equal["se"] == pytest.approx(0.02 / math.sqrt(3))
    assert equal["per_seed"] == pytest.approx([-0.04, -0.06, -0.02])
    assert equal["perplexity_percent"] == pytest.approx(-3.921056, abs=1e-5)  # 100 (e^-0.04 - 1)
    assert equal["bits_per_byte"]["mean"] == pytest.approx(-0.0577078, abs=1e-6)  # -0.04 / ln 2
    for sense in ("equal compute (more for binary)", "equal compute (less for soft)"):
        assert summary["differences"][sense]["mean"] == pytest.approx(-0.03)
    binary = summary["branches"]["binary"]  # 2.0, 2.3, 2.6: standard deviation 0.3
    assert binary["nats"]["mean"] == pytest.approx(2.3) and binary["nats"]["se"] == pytest.approx(0.3 / math.sqrt(3))
    assert binary["perplexity"]["mean"] == pytest.approx((math.exp(2.0) + math.exp(2.3) + math.exp(2.6)) / 3)
    cell = summary["samples"]["remdm-conf-64"]
    assert cell["soft - binary"]["ngram_nats"]["se"] == pytest.approx(0.02 / math.sqrt(3))
    assert cell["soft - binary_long"]["ngram_nats"]["mean"] == pytest.approx(-0.03)
    text = table.markdown({"characters": CHARACTERS}, {"characters": summary}, ["a note"])
    assert "-0.0400 ± 0.0115 nats/character, lower on 3 of 3 seeds: a gain beyond 2 standard errors" in text
    assert "| **soft masking** | 2,000 | 2.2600 ± 0.1793 |" in text and "-3.9 %" in text
    assert text.count("\n| remdm-") == 12 and "Note: a note." in text


def test_equal_compute_is_counted_in_passes_and_rounded_for_binary() -> None:
    study = Study("characters", updates=600, p_sm=0.8)
    assert study.compute_ratio == pytest.approx(3.8 / 3)
    assert study.branches == {"binary": 600, "soft": 600, "binary_long": 760, "soft_short": 473}
    assert settings.settings_hash(study, 1, "") != settings.settings_hash(quick(study), 1, "")


def test_the_time_left_follows_what_was_done() -> None:
    class One:
        name = "a"

    now = [0.0]
    progress = Progress([One()], {"a": 1.0}, 1, clock=lambda: now[0])
    assert progress.eta() is None
    progress.take("a", {"stage": "base", "done": 0, "of": 100})
    now[0] = 20.0
    progress.take("a", {"stage": "base", "done": 50, "of": 100})
    done = progress.share("a")
    assert progress.eta() == pytest.approx(20.0 * (1 - done) / done)
    progress.take("a", {"finished": True})
    assert progress.eta() == pytest.approx(0.0)


# ---- the small study ----


def test_the_study_from_end_to_end_with_a_job_that_was_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    out = tmp_path / "out"
    parts = out / "parts"
    parts.mkdir(parents=True)
    # a job of the run to come, killed in its soft branch after the first checkpoint there
    source = find_sources(data)[0]["characters"]
    job = Job(quick(CHARACTERS), 7, parts, source, source.fingerprint())
    process = job.start()
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event.get("stage") == "soft" and event.get("saved") == 4:
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL and job.finished() is None
    before = (parts / "characters-7" / "binary.json").stat().st_mtime_ns

    common = ("mdlm", "--scale", "small", "--quick", "--data", data, "--seeds", 1, "--first-seed", 7, "--out", out)
    output = call(*common, "--workers", 2)
    assert "## Characters: tinyshakespeare/input.txt" in output and "## Tokens: wikitext2/valid.txt" in output
    assert "ETA" in output and "no conclusion" in output and "proves nothing" in output
    record = json.loads((out / "reproduce.json").read_text())
    assert record["environment"]["torch"] and record["settings"]["studies"]["tokens"]["branches"]["binary_long"] == 11
    found = record["results"]["parts"]
    cells = found["tokens-7"]["branches"]["soft"]["samples"]
    assert {cell.rpartition("-")[0] for cell in cells} == set(SAMPLERS) and all(cell["nfe"] >= 1 for cell in cells.values())
    assert (out / "reproduce.png").stat().st_size > 20_000
    rows = (out / "rows.csv").read_text().splitlines()
    nats = found["characters-7"]["branches"]["soft"]["nats"]
    assert rows[0] == "study,seed,branch,measure,value" and f"characters,7,soft,nats,{nats}" in rows
    assert call(*common).count("kept from an earlier run") == 2

    # the killed job went on where it was, to the numbers of one that was never killed
    assert found["characters-7"]["branches"]["soft"]["resumed"] in ("checkpoint-4", "checkpoint-8")
    assert found["characters-7"]["branches"]["binary_long"]["resumed"] is None
    assert (parts / "characters-7" / "binary.json").stat().st_mtime_ns == before  # not trained again
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        corpus, report = Corpus(source, job.study.length), Reporter(None, 1)
        whole = Stages(job.study, 7, corpus, tmp_path / "whole", "", report).run()
    finally:
        torch.set_num_threads(threads)
    assert without_times(whole) == without_times(found["characters-7"])


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = {"cpu_ms_per_update", "cpu_seconds", "resumed", "hash"}
        return {key: without_times(item) for key, item in value.items() if key not in timed}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def test_bad_data_is_told_before_any_work(data: Path, tmp_path: Path) -> None:
    small = ("mdlm", "--scale", "small", "--out", tmp_path / "out")
    assert "is not a folder" in call(*small, "--data", tmp_path / "nowhere", code=2)
    folder = tmp_path / "data"
    folder.mkdir()
    assert "must hold tinyshakespeare/input.txt or wikitext2/valid.txt" in call(*small, "--data", folder, code=2)
    (folder / "tinyshakespeare").mkdir()
    text = folder / "tinyshakespeare" / "input.txt"
    text.write_bytes(b"\xff" * 30_000)
    assert "is not UTF-8" in call(*small, "--data", folder, code=2)
    text.write_text(TEXT)
    (folder / "gpt2").mkdir()
    assert "gpt2 holds no tokenizer" in call(*small, "--data", folder, code=2).replace("\n", " ")
    assert "--only must be one of" in call(*small, "--only", "words", "--data", data, code=2)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").write_text("a file")
    assert "--out: cannot write" in call(*small, "--data", data, code=2)
    (folder / "gpt2").rmdir()
    sources, said = find_sources(folder)
    assert list(sources) == ["characters"] and "GPT-2 tokens are left out" in said[-1]
    sources, said = find_sources(None)
    assert sources["characters"].text is None and "left out" in said[0]
