"""The study in one picture: bounds of every branch, and what a reader says of the samples, by steps and sampler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo.picture import FAINT, INK, ORANGE, STYLE
from .settings import SAMPLERS, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BRANCH = {
    "binary": ("binary", "#8b919c"),
    "binary_long": ("binary,\nsoft's\ncompute", "#4f7cac"),
    "soft_short": ("soft,\nbinary's\ncompute", "#eeb06b"),
    "soft": ("soft\nmasking", ORANGE),
}


def draw(path: Path, studies: dict[str, Study], summaries: dict[str, Any]) -> None:
    """Write the PNG: a row for each study."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = len(summaries)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, 3, figsize=(16, 1.3 + 4.4 * rows), dpi=110, squeeze=False, width_ratios=[1, 1.05, 1.15], facecolor="white"
        )
        top = 1 - 1.15 / (1.3 + 4.4 * rows)
        figure.subplots_adjust(left=0.06, right=0.985, top=top, bottom=0.75 / (1.3 + 4.4 * rows), wspace=0.27, hspace=0.46)
        figure.text(
            0.02, 1 - 0.42 / (1.3 + 4.4 * rows), "Soft masking from a trained binary base", fontsize=18, fontweight="bold"
        )
        counts = ", ".join(f"{len(summary['seeds'])} on {name}" for name, summary in summaries.items())
        subtitle = f"Means with two standard errors over seeds ({counts}); grey lines: single seeds; lower is better everywhere"
        figure.text(0.02, 1 - 0.72 / (1.3 + 4.4 * rows), subtitle, fontsize=11, color=FAINT)
        for (left, middle, right), (name, summary) in zip(grid, summaries.items(), strict=True):
            _bounds(left, summary, f"{name.capitalize()}: held-out bound")
            _by_steps(middle, studies[name], summary)
            _by_sampler(right, studies[name], summary)
        figure.savefig(path)
        plt.close(figure)


def _bounds(axes: Axes, summary: dict[str, Any], title: str) -> None:
    per_seed = [summary["branches"][name]["bits_per_byte"] for name in BRANCH]
    for values in zip(*(found["per_seed"] for found in per_seed), strict=True):
        axes.plot(range(len(BRANCH)), values, color="#d5d9df", lw=1.2, marker="o", ms=3.5, zorder=1)
    for x, ((_, colour), found) in enumerate(zip(BRANCH.values(), per_seed, strict=True)):
        axes.errorbar(
            x, found["mean"], yerr=2 * (found["se"] or 0.0), color=colour, marker="o", ms=9, capsize=5, lw=2, zorder=3
        )
        axes.annotate(
            f"{found['mean']:.3f}",
            (x, found["mean"]),
            xytext=(10, 7),
            textcoords="offset points",
            color=colour,
            fontweight="bold",
        )
    axes.set_xlim(-0.4, len(BRANCH) - 0.35)
    axes.set_xticks(range(len(BRANCH)), [words for words, _ in BRANCH.values()])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_ylabel("bits per byte")
    axes.set_title(title)


def _by_steps(axes: Axes, study: Study, summary: dict[str, Any]) -> None:
    for i, name in enumerate(("binary", "binary_long", "soft")):
        words, colour = BRANCH[name]
        found = [summary["samples"][f"ancestral-{steps}"][name]["ngram_nats"] for steps in study.steps]
        places = [x + 0.05 * (i - 1) for x in range(len(found))]  # side by side, so that the bars can be told apart
        axes.errorbar(
            places, [f["mean"] for f in found], yerr=[2 * (f["se"] or 0.0) for f in found],
            color=colour, marker="o", ms=6, lw=2, capsize=3, label=words.replace("\n", " "),
        )  # fmt: skip
    parts = ("L/4", "L/2", "L tokens")
    axes.set_xticks(range(3), [f"{steps}\n({part})" for steps, part in zip(study.steps, parts, strict=True)])
    axes.set_xlim(-0.25, 2.25)
    axes.grid(axis="y")
    axes.set_ylabel("5-gram nats per character")
    axes.set_title("Ancestral samples, by steps")
    axes.legend()


def _by_sampler(axes: Axes, study: Study, summary: dict[str, Any]) -> None:
    """Soft minus binary, for every sampler and number of steps."""
    shades = ["#f3cd9f", "#eeb06b", ORANGE]
    for i, (steps, shade) in enumerate(zip(study.steps, shades, strict=True)):
        found = [summary["samples"][f"{sampler}-{steps}"]["soft - binary"]["ngram_nats"] for sampler in SAMPLERS]
        places = [y + 0.2 * (i - 1) for y in range(len(found))]
        axes.errorbar(
            [f["mean"] for f in found], places, xerr=[2 * (f["se"] or 0.0) for f in found], color=shade, marker="o", ms=6, lw=0,
            elinewidth=1.6, capsize=2.5, label=f"{steps} steps",
        )  # fmt: skip
    axes.axvline(0, color=INK, lw=1)
    axes.set_yticks(range(len(SAMPLERS)), [name.replace("autoregressive", "AR") for name in SAMPLERS])
    axes.set_ylim(len(SAMPLERS) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("5-gram nats per character, soft - binary (left of 0: soft is better)")
    axes.set_title("Soft against binary, by sampler")
    axes.legend(fontsize=8.5)
