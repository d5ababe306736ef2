"""``soft-mask demo``: soft masking against binary masking in a few minutes, in two acts, with errors and all costs."""

from __future__ import annotations

import json
import os
import platform
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results, made if absent.")] = Path("soft_mask_demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute: shows that it runs, proves little.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 text for act 2 instead of Python's own help texts.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of act 1 [4, quick: 2].", show_default=False)] = None,
    text_seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of act 2 [2, quick: 1].", show_default=False)] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="The seeds count up from here.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes side by side [one per usable CPU].", show_default=False)
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Where the gate starts. 0 is the paper's; act 1's checks then fail."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not use finished parts of an earlier run.")] = False,
) -> None:
    """Train, compare and sample with and without soft masking: a language with a known optimum, then real text.

    Ends with code 0 when act 1's claims hold, 1 when they do not or something failed, 2 for bad arguments, 130 when
    interrupted. An interrupted demo goes on where it was when the same command is given again.

    Example: soft-mask demo --out results --text my_novel.txt
    """
    from rich.console import Console

    from ..jobs import JobError

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 130))
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        holds = _demo(console, out, quick, text, seeds, text_seeds, first_seed, workers, scale, fresh)
    except ValueError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(2) from None
    except JobError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        said = f"\nInterrupted. Finished parts are kept in {out / 'parts'}: the same command goes on from there."
        console.print(said, soft_wrap=True)
        raise typer.Exit(130) from None
    raise typer.Exit(0 if holds else 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _demo(
    console: Any,
    out: Path,
    quick: bool,
    text: Path | None,
    seeds: int | None,
    text_seeds: int | None,
    first_seed: int,
    workers: int | None,
    scale: float | None,
    fresh: bool,
) -> bool:
    from ..jobs import run_jobs, usable_cpus
    from . import settings
    from .report import favours, print_report
    from .run import Job
    from .screen import make_screen
    from .summary import checks, summarise
    from .text import TextLanguage, load_text

    began = time.monotonic()
    data = TextLanguage.from_text(load_text(text)).facts  # a bad text is told before any work
    parts = out / "parts"
    _make_writable(parts)
    acts = {act.name: settings.quick(act) if quick else act for act in (settings.MARKOV, settings.TEXT)}
    if scale is not None:
        acts = {name: replace(act, scale=scale) for name, act in acts.items()}
    count = {"markov": seeds or (2 if quick else 4), "text": text_seeds or (1 if quick else 2)}
    jobs = [
        Job(act, seed, parts, text if name == "text" else None, str(data["sha256"]) if name == "text" else "")
        for name, act in acts.items()
        for seed in range(first_seed, first_seed + count[name])
    ]
    if fresh:
        for job in jobs:
            job.result_file.unlink(missing_ok=True)
    workers = workers or min(usable_cpus(), len(jobs))
    console.print(
        f"{len(jobs)} jobs, {workers} at a time, one thread each; parts in {parts}. Ctrl-C stops, the same command goes on.",
        style="dim",
        highlight=False,
    )
    with make_screen(console, jobs) as screen:
        results = run_jobs(jobs, workers, screen)

    by_act = {name: [part for part in results if part["act"] == name] for name in acts}
    summaries = {name: summarise(acts[name], found) for name, found in by_act.items()}
    judged = checks(summaries["markov"])
    print_report(console, acts, summaries, judged)
    holds = all(check.holds is not False for check in judged)

    from .picture import draw

    draw(out / "demo.png", acts, summaries, {name: found[0]["trace"] for name, found in by_act.items()})
    record: dict[str, Any] = {
        "settings": {name: _settings(act) for name, act in acts.items()},
        "chosen_to_favour_the_effect": favours(acts),
        "environment": _environment(results, workers),
        "text": data,
        "acts": summaries,
        "checks": [vars(check) for check in judged],
        "holds": holds,
        "parts": {job.name: _without_trace(part) for job, part in zip(jobs, results, strict=True)},
        "wall_seconds": time.monotonic() - began,
    }
    (out / "demo.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    backend = ", ".join(record["environment"]["backends"])
    console.print(
        f"\n{out / 'demo.png'}, {out / 'demo.json'}; operators: {backend}; {record['wall_seconds']:.0f} s.",
        highlight=False,
    )
    return holds


def _make_writable(folder: Path) -> None:
    """Raises ValueError in words when results could not be written: better now than after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out: cannot write to {folder}: {error.strerror or error}") from None


def _settings(act: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(act), "branches": act.branches, "nfes": act.nfes, "compute_ratio": act.compute_ratio}


def _environment(results: list[dict[str, Any]], workers: int) -> dict[str, Any]:
    import torch
    import transformers

    import soft_mask

    return {
        "soft_mask": soft_mask.__version__,
        "backends": sorted({str(part["backend"]) for part in results}),
        "build": soft_mask.build_info(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "workers": workers,
        "cpu_seconds": sum(part["cpu_seconds"] for part in results),
    }


def _without_trace(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "trace"}
