"""The results for people: one table of both acts, the checks, and what was chosen to favour the effect."""

from __future__ import annotations

import math
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .settings import Act
from .summary import Check, verdict

NAMES = {
    "binary": "binary, equal updates",
    "soft": "soft masking",
    "binary_long": "binary, equal compute",
}
BITS = 1 / math.log(2)

CHOSEN = (
    "A network of one layer, which is short of depth: feeding beliefs back gives it another round. Deeper networks "
    "gain less (two layers: a third to a sixth at this size).",
    "Act 1's language is sparse, so beliefs are worth feeding back, and its base is stopped before it has converged.",
    "The gate starts open (scale {scale}, centre {centre}), not at the paper's scale of 0, which does not open within "
    "{updates} updates.",
    "Input and output embeddings are one table; untied, act 1's gain is about half.",
)


def print_report(console: Console, acts: dict[str, Act], summaries: dict[str, Any], judged: list[Check]) -> None:
    console.print(table(acts, summaries))
    for line in remarks(acts, summaries):
        console.print(line)
    if judged:
        console.print()
    for check in judged:
        mark, style = {True: ("holds", "green"), False: ("FAILS", "bold red"), None: ("  -  ", "yellow")}[check.holds]
        console.print(Text.assemble((f"{mark}  ", style), check.claim, (f"   {check.detail}", "dim")))
    console.print()
    console.print("Chosen so that an effect can be seen in minutes:", style="bold")
    for reason in favours(acts):
        console.print(Text(f"- {reason}"))


def favours(acts: dict[str, Act]) -> list[str]:
    act = next(iter(acts.values()))
    return [line.format(scale=act.scale, centre=act.centre, updates=act.updates) for line in CHOSEN]


def table(acts: dict[str, Act], summaries: dict[str, Any]) -> Table:
    title = "Soft masking against binary masking: mean ±standard error over seeds"
    out = Table(title=title, title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column("", no_wrap=True)
    for column in ("updates", "bound ↓", "soft - this", "1/4 steps", "1/2 steps", "1/1 steps", "entropy", "ms"):
        out.add_column(column, justify="right")
    for name, summary in summaries.items():
        act = acts[name]
        markov = name == "markov"
        seeds = len(summary["seeds"])
        head = "Act 1: Markov chain" if markov else "Act 2: text"
        unit = "nats/token" if markov else "bits/char"
        shown = "legal ↑" if markov else "6-gram ↓"
        out.add_section()
        out.add_row(
            Text(f"{head}, {seeds} seed{'s' * (seeds > 1)}", style="bold"),
            *(Text(word, style="dim") for word in ("", unit, unit, shown, shown, shown, "nats" if markov else "bits", "cpu")),
        )
        if "floor" in summary:
            out.add_row("best possible (exact)", "", _number(summary["floor"]), "", "1.000", "1.000", "1.000", "", "")
        factor = 1.0 if markov else BITS
        out.add_row("binary base", f"{act.base_updates:,}", _number(summary["base"], factor), "", "", "", "", "", "")
        for branch in ("binary", "binary_long", "soft"):
            record = summary["branches"][branch]
            difference = summary["differences"].get(branch)
            generation = list(record["generation"].values())
            score = "legal" if markov else "nll"
            out.add_row(
                Text(NAMES[branch], style="bold" if branch == "soft" else ""),
                f"{record['updates']:,}",
                _number(record["nelbo"], factor),
                _number(difference, factor, signed=True) if difference else "",
                *(_number(scores[score], 1.0 if markov else BITS) for scores in generation),
                f"{generation[-1]['entropy']['mean'] * factor:.2f}",
                f"{record['cpu_ms_per_update']['mean']:.1f}",
            )
            if branch == "soft":
                out.add_row(
                    Text("  its weights, one pass", style="dim"),
                    "",
                    _number(record["nelbo_one_pass"], factor),
                    *[""] * 6,
                    style="dim",
                )
    return out


def _number(statistic: dict[str, Any], factor: float = 1.0, signed: bool = False) -> str:
    size = statistic["mean"] * factor
    text = f"{size:+.3f}" if signed else f"{size:.3f}"
    return text if statistic["se"] is None else f"{text} ±{statistic['se'] * factor:.3f}".replace("±0.", "±.")


def remarks(acts: dict[str, Act], summaries: dict[str, Any]) -> list[Text]:
    """The sentences under the table: verdicts, the gate, and what the second pass costs."""
    lines = []
    for name, summary in summaries.items():
        factor, unit = (1.0, "nats/token") if name == "markov" else (BITS, "bits/char")
        act = "Act 1" if name == "markov" else "Act 2"
        for rival, words in (("binary", "equal updates"), ("binary_long", "equal compute")):
            lines.append(f"{act}, soft against binary at {words}: {verdict(summary['differences'][rival], factor, unit)}.")
        soft = summary["branches"]["soft"]
        gate = {key: value["mean"] for key, value in soft["gate"].items()}
        lines.append(
            f"{act}, the gate: scale {gate['scale']:.2f}, steepness {gate['steepness']:.1f}, "
            f"centre {gate['centre']:.1f}; mean lambda {soft['mean_lambda']['mean']:.2f}."
        )
        if name == "text":
            lines.extend(_writing(summary))
    first = next(iter(summaries))
    act_, summary = acts[first], summaries[first]
    lines.append(
        "Soft masking's bound takes two passes, binary's one. In training a share p_sm of the updates has one forward "
        f"pass more: {act_.compute_ratio:.2f}x the compute counted in passes (forward 1, backward 2), which is what "
        f"'equal compute' gives to binary; {summary['compute_ratio_measured']:.2f}x in CPU time here. "
        "Generation takes the same number of passes for all."
    )
    return [Text(line) for line in lines]


def _writing(summary: dict[str, Any]) -> list[str]:
    """What the n-gram says of act 2's samples against binary at equal compute, at every number of steps."""
    lines = []
    for steps, scores in summary["generation_differences"]["binary_long"].items():
        words = verdict(scores["nll"], BITS, "bits/char")
        lines.append(f"Act 2, 6-gram score of samples in {steps} steps, soft - binary at equal compute: {words}.")
    return lines
