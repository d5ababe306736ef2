"""From the jobs' results to means, errors over seeds and paired differences; as markdown and as rows."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from ..demo.summary import statistic, verdict
from .settings import SAMPLED, Study

NAMES = {
    "binary": "binary",
    "binary_long": "binary, soft's compute",
    "soft": "**soft masking**",
    "soft_short": "soft masking, binary's compute",
}
#: What is compared: (soft branch, binary branch) and in which sense they are equal.
COMPARED = {
    "equal updates": ("soft", "binary"),
    "equal compute (more for binary)": ("soft", "binary_long"),
    "equal compute (less for soft)": ("soft_short", "binary"),
}


def paired(parts: list[dict[str, Any]], get: Any, one: str, other: str) -> dict[str, Any]:
    """Mean over seeds of ``get(branch one) - get(branch other)``, with the standard error of these differences."""
    return statistic([get(part["branches"][one]) - get(part["branches"][other]) for part in parts])


def summarise(study: Study, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One study over its seeds. Bounds in nats a token and bits a byte, samples in nats a character: lower is better."""
    branches: dict[str, Any] = {}
    for name, updates in study.branches.items():
        records = [part["branches"][name] for part in parts]
        branch: dict[str, Any] = {"updates": updates}
        for key in ("nats", "bits_per_byte", "nats_one_pass", "mean_lambda", "cpu_ms_per_update"):
            if key in records[0]:
                branch[key] = statistic([record[key] for record in records])
        branch["perplexity"] = statistic([math.exp(record["nats"]) for record in records])
        if "gate" in records[0]:
            branch["gate"] = {key: statistic([record["gate"][key] for record in records]) for key in records[0]["gate"]}
        branches[name] = branch
    differences = {}
    for sense, (soft, binary) in COMPARED.items():
        found = paired(parts, lambda record: record["nats"], soft, binary)
        found["bits_per_byte"] = paired(parts, lambda record: record["bits_per_byte"], soft, binary)
        found["perplexity_percent"] = 100 * math.expm1(found["mean"])
        differences[sense] = found
    return {
        "seeds": [part["seed"] for part in parts],
        "unit": parts[0]["data"]["unit"],
        "data": parts[0]["data"],
        "parameters": parts[0]["base"]["parameters"],
        "compute_ratio_counted": study.compute_ratio,
        "base": {
            "updates": study.base_updates,
            **{key: statistic([part["base"][key] for part in parts]) for key in ("nats", "bits_per_byte")},
            "perplexity": statistic([math.exp(part["base"]["nats"]) for part in parts]),
        },
        "branches": branches,
        "differences": differences,
        "samples": _samples(parts),
        "real_text": parts[0]["real_text"],
        "examples": parts[0]["branches"]["soft"]["samples"],
    }


def _samples(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """By cell "sampler-steps": every score of every branch, and soft against both binaries in pairs."""
    found: dict[str, Any] = {}
    for cell, first in parts[0]["branches"]["soft"]["samples"].items():
        scores = [key for key, value in first.items() if isinstance(value, (int, float))]
        entry: dict[str, Any] = {
            name: {key: statistic([part["branches"][name]["samples"][cell][key] for part in parts]) for key in scores}
            for name in SAMPLED
        }
        for rival in ("binary", "binary_long"):
            entry[f"soft - {rival}"] = {
                key: paired(parts, lambda record, cell=cell, key=key: record["samples"][cell][key], "soft", rival)
                for key in ("ngram_nats", "entropy")
            }
        found[cell] = entry
    return found


def number(value: dict[str, Any], digits: int = 3, signed: bool = False) -> str:
    """Mean ± standard error over seeds."""
    text = f"{value['mean']:+.{digits}f}" if signed else f"{value['mean']:.{digits}f}"
    return text if value["se"] is None else f"{text} ± {value['se']:.{digits}f}"


def markdown(studies: dict[str, Study], summaries: dict[str, Any], said: list[str]) -> str:
    """Both tables of each study, and what may be concluded, as markdown."""
    lines = ["# `soft-mask reproduce mdlm --scale small`", "", *(f"Note: {text}." for text in said), ""]
    for name, summary in summaries.items():
        lines += [f"## {name.capitalize()}: {summary['data']['text']}", "", _about(studies[name], summary), ""]
        unit = summary["unit"]
        lines += [
            f"| | updates | nats/{unit} | perplexity | bits/byte | minus binary, nats | perplexity | CPU ms/update |",
            "|---|---|---|---|---|---|---|---|",
            _row("binary base", summary["base"], None),
            *(_row(NAMES[b], summary["branches"][b], _against_binary(summary, b)) for b in NAMES),
            "",
            *_sentences(studies[name], summary),
            "",
            _about_samples(studies[name], summary),
            "",
            "| sampler | steps | NFE | binary | binary, soft's compute | soft masking | soft - binary "
            "| soft - binary, soft's compute | entropy, binary / soft |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_cell(cell, entry) for cell, entry in summary["samples"].items()),
            "",
        ]
    return "\n".join(lines) + "\n"


def _about(study: Study, summary: dict[str, Any]) -> str:
    layers = "one layer" if study.n_blocks == 1 else f"{study.n_blocks} layers"
    return (
        f"MDLM of {layers}, width {study.hidden_dim}, {summary['parameters']:,} parameters; blocks of {study.length}, "
        f"vocabulary {summary['data']['vocabulary']:,}. A binary base of {study.base_updates:,} updates, at whose end the "
        "learning rate is 0, then the branches from it, each with a new optimizer and the same blocks in the same order. Seeds "
        f"{', '.join(map(str, summary['seeds']))}. Means ± standard error over seeds; differences within a seed, on the same "
        "test masks."
    )


def _about_samples(study: Study, summary: dict[str, Any]) -> str:
    real = summary["real_text"]
    return (
        "Samples, read by an order-5 model of the training text's characters: nats a character, lower is better; "
        f"{study.samples * len(summary['seeds'])} samples a cell. Held-out text reads at {real['ngram_nats']:.3f} with entropy "
        f"{real['entropy']:.2f}. Never without the entropy (nats, over the {summary['unit']}s of one sample): low cost at low "
        "entropy is text that repeats itself."
    )


def _against_binary(summary: dict[str, Any], branch: str) -> dict[str, Any] | None:
    return {
        "soft": summary["differences"]["equal updates"],
        "soft_short": summary["differences"]["equal compute (less for soft)"],
    }.get(branch)


def _row(name: str, record: dict[str, Any], difference: dict[str, Any] | None) -> str:
    shown = ["", ""]
    if difference is not None:
        shown = [number(difference, 4, signed=True), f"{difference['perplexity_percent']:+.1f} %"]
    pace = f"{record['cpu_ms_per_update']['mean']:.0f}" if "cpu_ms_per_update" in record else ""
    values = [number(record["nats"], 4), number(record["perplexity"], 2), number(record["bits_per_byte"])]
    cells = [name, f"{record['updates']:,}", *values, *shown, pace]
    return "| " + " | ".join(cells) + " |"


def _cell(cell: str, entry: dict[str, Any]) -> str:
    sampler, _, steps = cell.rpartition("-")
    words = [number(entry[name]["ngram_nats"]) for name in SAMPLED]
    apart = [number(entry[f"soft - {rival}"]["ngram_nats"], signed=True) for rival in ("binary", "binary_long")]
    entropies = " / ".join(f"{entry[name]['entropy']['mean']:.2f}" for name in ("binary", "soft"))
    binary, soft, long = words
    nfe = f"{entry['soft']['nfe']['mean']:.0f}"
    return f"| {sampler} | {steps} | {nfe} | {binary} | {long} | {soft} | {apart[0]} | {apart[1]} | {entropies} |"


def _sentences(study: Study, summary: dict[str, Any]) -> list[str]:
    lines = []
    for sense, difference in summary["differences"].items():
        percent = f"; perplexity {difference['perplexity_percent']:+.1f} %"
        lines.append(f"- Soft against binary at {sense}: {verdict(difference, 1.0, 'nats/' + summary['unit'])}{percent}.")
    soft = summary["branches"]["soft"]
    gate = ", ".join(f"{key} {value['mean']:.2f}" for key, value in soft["gate"].items())
    lines.append(
        f"- The gate after training: {gate}; "
        f"mean lambda {soft['mean_lambda']['mean']:.2f}. The soft weights with one pass, without feedback: "
        f"{number(soft['nats_one_pass'], 4)} nats."
    )
    ratio = soft["cpu_ms_per_update"]["mean"] / summary["branches"]["binary"]["cpu_ms_per_update"]["mean"]
    lines.append(
        f"- A soft update costs {study.compute_ratio:.3f} binary ones counted in passes (forward 1, backward 2), which is what "
        f"equal compute means here; in CPU time {ratio:.2f} on this machine. Soft masking's bound takes two passes where "
        "binary's takes one; generation takes the same number of passes for both."
    )
    return lines


def write_rows(path: Path, parts: dict[str, list[dict[str, Any]]]) -> None:
    """Every figure of every seed, one a line: study, seed, branch, what, value."""
    rows: list[list[Any]] = []
    for study, results in parts.items():
        for part in results:
            records = {"base": part["base"], **part["branches"]}
            for branch, record in records.items():
                for key in ("nats", "bits_per_byte", "mean_lambda", "cpu_ms_per_update"):
                    if key in record:
                        rows.append([study, part["seed"], branch, key, record[key]])
                for cell, scores in record.get("samples", {}).items():
                    rows += [
                        [study, part["seed"], branch, f"{cell} {key}", value]
                        for key, value in scores.items()
                        if isinstance(value, (int, float))
                    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "seed", "branch", "measure", "value"])
        writer.writerows(rows)
