"""The picture of a GPU report from its CSV: ``python -m bench.gpu_plots [CSV] [PNG]``."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).with_name("results")
NAME = re.compile(r"forward, (\w+), V=(\d+), (\d+) rows, k=3(?:, (.+))?$")


def draw(table: Path, picture: Path) -> None:
    """Share of the attainable bandwidth over rows, and how much longer the others take; one colour a vocabulary."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = list(csv.DictReader(table.open()))
    share: dict[str, list[tuple[int, float]]] = {}
    slower: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        found = NAME.match(line["name"])
        if not found or not line["ratio"]:
            continue
        dtype, vocab, rows, other = found.groups()
        if line["unit"] == "GB/s":
            share.setdefault(f"{dtype}, V={vocab}", []).append((int(rows), float(line["ratio"])))
        elif other in ("eager", "torch.compile"):
            slower.setdefault(f"{other}, {dtype}, V={vocab}", []).append((int(rows), float(line["ratio"])))
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5))
    for axis, series, title in (
        (axes[0], share, "share of the attainable bandwidth"),
        (axes[1], slower, "time of others over ours"),
    ):
        for label, points in sorted(series.items()):
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("masked rows")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if series:
            axis.legend(fontsize=7)
    axes[0].axhline(0.9, color="black", linewidth=0.8, linestyle=":")
    axes[1].set_yscale("log")
    figure.suptitle(lines[0]["device"] if lines else "")
    figure.tight_layout()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    names = [Path(argument) for argument in sys.argv[1:]]
    draw(names[0] if names else RESULTS / "gpu.csv", names[1] if len(names) > 1 else RESULTS / "gpu.png")
