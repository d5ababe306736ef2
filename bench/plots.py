"""Pictures of the operator's speed and memory: ``python -m bench.plots [--quick] [--out DIR]``.

Time against the vocabulary, rows, k, the share of masked rows and threads, and the peak of memory; each against the eager
algorithm, the same compiled, topk + embedding_bag, and a bare read of the logits. Writes a CSV beside the picture.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import soft_mask
from bench import baselines, measure
from bench.operators import VOCAB, Inputs

OURS, EAGER, COMPILED, BAG, READ = "soft_mask", "eager", "torch.compile", "topk + embedding_bag", "bare read"
COLOURS = {OURS: "#d1495b", EAGER: "#30638e", COMPILED: "#7a9e9f", BAG: "#edae49", READ: "#999999"}


def contenders(inputs: Inputs, k: int = 3, ids: Tensor | None = None, compiled: bool = True) -> measure.Contenders:
    ids = inputs.ids if ids is None else ids
    found: measure.Contenders = {
        OURS: lambda: inputs.ours(k=k, ids=ids),
        EAGER: lambda: baselines.eager(inputs.logits, ids, inputs.embedding, inputs.mask, k),
        BAG: lambda: baselines.topk_embedding_bag(inputs.logits, ids, inputs.embedding, inputs.mask, k),
        READ: lambda: baselines.bare_read(inputs.logits),
    }
    if compiled:
        run = torch.compile(baselines.eager, dynamic=False)
        found[COMPILED] = lambda: run(inputs.logits, ids, inputs.embedding, inputs.mask, k)
    return found


def sweep(axis: str, values: list[Any], make: Callable[[Any], measure.Contenders], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for value in values:
        torch._dynamo.reset()
        for name, seconds in measure.medians(make(value), rounds).items():
            rows.append({"axis": axis, "at": value, "contender": name, "value": seconds * 1e3, "unit": "ms"})
            print(f"{axis} {value}: {name} {seconds * 1e3:.2f} ms", flush=True)
    return rows


def masked(inputs: Inputs, share: float) -> Tensor:
    plain = torch.rand(inputs.ids.shape, generator=torch.Generator().manual_seed(2)) >= share
    return inputs.ids.masked_fill(plain, 1)


def measure_all(rows: int, rounds: int, quick: bool) -> list[dict[str, Any]]:
    inputs = Inputs(rows)

    def with_threads(n: int) -> measure.Contenders:
        torch.set_num_threads(n)
        return contenders(inputs, compiled=False)

    threads = torch.get_num_threads()
    points = sweep("vocabulary", [VOCAB] if quick else [VOCAB, 126_464, 152_064], lambda v: contenders(Inputs(rows, v)), rounds)
    points += sweep("rows", [rows] if quick else [8, 64, 512, 2048], lambda n: contenders(Inputs(n), compiled=False), rounds)
    points += sweep("k", [3, 64] if quick else [1, 3, 8, 64], lambda k: contenders(inputs, k, compiled=False), rounds)
    share = [0.5] if quick else [0.1, 0.25, 0.5, 0.75, 1.0]
    points += sweep("share of rows masked", share, lambda s: contenders(inputs, ids=masked(inputs, s), compiled=False), rounds)
    points += sweep("threads", [1, threads], with_threads, rounds)
    torch.set_num_threads(threads)
    if measure.can_measure_memory():
        for name, run in contenders(inputs, compiled=False).items():
            if name != READ:
                peak = measure.peak_beyond(run)  # type: ignore[arg-type]
                points.append({"axis": "memory", "at": rows, "contender": name, "value": peak, "unit": "MiB"})
    return points


def draw(points: list[dict[str, Any]], title: str, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes_names = list(dict.fromkeys(p["axis"] for p in points))
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), constrained_layout=True)
    for ax, axis in zip(axes.flat, axes_names, strict=False):
        some = [p for p in points if p["axis"] == axis]
        names = list(dict.fromkeys(p["contender"] for p in some))
        if axis == "memory":
            bars = ax.bar(names, [p["value"] for p in some], color=[COLOURS[n] for n in names])
            ax.bar_label(bars, fmt="%.3g MiB")
            ax.set_title("memory beyond the result")
            ax.set_ylabel("MiB")
            ax.tick_params(axis="x", labelsize=8)
            continue
        for name in names:
            line = [(p["at"], p["value"]) for p in some if p["contender"] == name]
            ax.plot(*zip(*line, strict=True), "o-", color=COLOURS[name], label=name, linewidth=2 if name == OURS else 1.3)
        ax.set_yscale("log")
        if axis in ("rows", "k"):
            ax.set_xscale("log", base=2)
        values = sorted({p["at"] for p in some})
        ax.set_xticks(values, [f"{v:,}" for v in values])
        ax.minorticks_off()
        ax.set_xlabel(axis)
        ax.set_ylabel("ms (median)")
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(axes_names) :]:
        ax.axis("off")
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few points: shows that it runs")
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, rounds = (32, 2) if options.quick else (512, 7)
    points = measure_all(rows, rounds, options.quick)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "operators-cpu.csv").open("w", newline="") as file:
        about = {"torch": torch.__version__, "isa": soft_mask.build_info()["isa"], "soft_mask": soft_mask.__version__}
        table = csv.DictWriter(file, [*points[0], *about])
        table.writeheader()
        table.writerows({**point, **about} for point in points)
    title = (
        f"soft_mask_embed, float32, {rows} rows, d = 768, {options.threads} threads ({about['isa']}), where not said otherwise"
    )
    draw(points, title, options.out / "operators-cpu.png")
    print(f"wrote {options.out / 'operators-cpu.csv'} and operators-cpu.png")


if __name__ == "__main__":
    main()
