"""The small-scale study as a whole: jobs, table, rows, record, picture."""

from __future__ import annotations

import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from soft_mask.evaluation.record import environment, write_record

from ..jobs import KeptJob, run_jobs, usable_cpus
from .corpora import Source, find_sources
from .settings import CHARACTERS, SAMPLERS, TOKENS, Study, settings_hash


@dataclass(frozen=True)
class Job(KeptJob):
    study: Study
    seed: int
    folder: Path  # of parts
    source: Source
    data: str  # the source's fingerprint

    @property
    def name(self) -> str:
        return f"{self.study.name}-{self.seed}"

    @property
    def hash(self) -> str:
        return settings_hash(self.study, self.seed, self.data)

    def start(self) -> subprocess.Popen[str]:
        return self.spawn(
            "soft_mask.cli.reproduce.stages",
            study=asdict(self.study),
            seed=self.seed,
            text=str(self.source.text.resolve()) if self.source.text else "",
            tokenizer=str(self.source.tokenizer.resolve()) if self.source.tokenizer else "",
            folder=str((self.folder / self.name).resolve()),
        )


def run_small(
    console: Any, out: Path, data: Path | None, seeds: int, first_seed: int, workers: int | None, quick: bool, only: str | None
) -> dict[str, Any]:
    """Run what is not finished, write ``table.md``, ``rows.csv``, ``reproduce.json`` and ``reproduce.png`` into ``out``.

    Raises:
        ValueError: ``data`` or ``out`` in words, before any work. JobError: a job failed.
    """
    from . import settings, table
    from .picture import draw
    from .screen import Progress, make_screen

    sources, said = find_sources(data)
    if only is not None:
        if only not in sources:
            raise ValueError(f"--only must be one of {', '.join(sources)} with this --data, got {only!r}")
        sources = {only: sources[only]}
    parts = out / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        (parts / ".probe").write_text("")
        (parts / ".probe").unlink()
    except OSError as error:
        raise ValueError(f"--out: cannot write to {parts}: {error.strerror or error}") from None
    all_studies = {"characters": CHARACTERS, "tokens": TOKENS}
    studies = {name: settings.quick(all_studies[name]) if quick else all_studies[name] for name in sources}
    fingerprints = {name: source.fingerprint() for name, source in sources.items()}
    jobs = [
        Job(study, seed, parts, sources[name], fingerprints[name])
        for name, study in studies.items()
        for seed in range(first_seed, first_seed + seeds)
    ]
    workers = workers or min(usable_cpus(), len(jobs))
    for text in said:
        console.print(f"Note: {text}.", highlight=False)
    console.print(
        f"{len(jobs)} jobs, {workers} at a time, one thread each; parts in {parts}. "
        "It may be stopped or killed: the same command goes on.",
        style="dim",
        highlight=False,
    )
    began = time.monotonic()
    cost = {job.name: job.study.total_updates() * job.study.cost_of_update for job in jobs}
    with make_screen(console, Progress(jobs, cost, workers)) as screen:
        results = run_jobs(jobs, workers, screen)
    by_study = {name: [part for part in results if part["study"] == name] for name in studies}
    summaries = {name: table.summarise(studies[name], found) for name, found in by_study.items()}
    text = table.markdown(studies, summaries, [*said, *([QUICK] if quick else [])])
    (out / "table.md").write_text(text, encoding="utf-8")
    table.write_rows(out / "rows.csv", by_study)
    draw(out / "reproduce.png", studies, summaries)
    settings_said = {
        name: {**asdict(study), "branches": study.branches, "compute_ratio": study.compute_ratio}
        for name, study in studies.items()
    }
    record = write_record(
        out / "reproduce.json",
        "reproduce mdlm, small",
        {"studies": settings_said, "samplers": SAMPLERS, "notes": said, "quick": quick, "workers": workers},
        {
            "summaries": summaries,
            "parts": {job.name: part for job, part in zip(jobs, results, strict=True)},
            "wall_seconds_of_this_call": time.monotonic() - began,
        },
    )
    return {"text": text, "record": record, "environment": environment()}


QUICK = "--quick: a few updates of a tiny model, which shows that all of it runs and proves nothing"
