"""The demo in one picture: the bounds, the samples, and the beliefs that are fed back while a sequence is denoised."""

from __future__ import annotations

from pathlib import Path
from statistics import stdev
from typing import TYPE_CHECKING, Any

from .report import BITS
from .settings import Act

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

INK = "#22252b"
FAINT = "#7d838e"
ORANGE = "#d9730d"
BRANCH = {
    "binary": ("binary", "#8b919c"),
    "binary_long": ("binary,\nequal compute", "#4f7cac"),
    "soft": ("soft masking", ORANGE),
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c4c8cf",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def draw(path: Path, acts: dict[str, Act], summaries: dict[str, Any], traces: dict[str, Any]) -> None:
    """Write the PNG. ``traces`` holds one denoised sequence per act, as the parts record it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(16, 8.8), dpi=110, facecolor="white")
        figure.text(0.022, 0.945, "Soft masking: what the model believes is fed back", fontsize=19, fontweight="bold")
        counts = [f"{len(s['seeds'])} on the {name.replace('markov', 'chain')}" for name, s in summaries.items()]
        subtitle = f"Means with two standard errors over seeds ({', '.join(counts)}); grey lines: single seeds"
        figure.text(0.022, 0.912, subtitle, fontsize=11, color=FAINT)
        panels: Any = figure.subfigures(1, 2, width_ratios=[1.16, 1])
        _numbers(panels[0], acts, summaries)
        _beliefs(panels[1], traces["markov"])
        figure.savefig(path)
        plt.close(figure)


def _numbers(figure: SubFigure, acts: dict[str, Act], summaries: dict[str, Any]) -> None:
    grid: Any = figure.subplots(len(summaries), 2, squeeze=False)
    figure.subplots_adjust(left=0.1, right=0.985, top=0.835, bottom=0.075, wspace=0.26, hspace=0.52)
    for (left, right), (name, summary) in zip(grid, summaries.items(), strict=True):
        if name == "markov":
            _bounds(left, summary, 1.0, "nats per token above the exact floor", "Markov chain: gap to the optimum")
            _against_steps(right, acts[name], summary, "legal", 1.0, "legal transitions (higher is better)")
        else:
            _bounds(left, summary, BITS, "bits per character", "Text: held-out likelihood bound")
            _against_steps(right, acts[name], summary, "nll", BITS, "6-gram bits per character (lower is better)")
        right.set_title("Samples, by number of steps")
    grid[0][1].legend(loc="lower right")


def _bounds(axes: Axes, summary: dict[str, Any], factor: float, label: str, title: str) -> None:
    """Every seed a line over the three branches; the mean with two standard errors in colour.

    Where the floor is known the distance to it is drawn, seed by seed: languages differ in their floor.
    """
    names = list(BRANCH)
    floors = summary["floor"]["per_seed"] if "floor" in summary else [0.0] * len(summary["seeds"])
    per_seed = [
        [(value - floor) * factor for value, floor in zip(summary["branches"][name]["nelbo"]["per_seed"], floors, strict=True)]
        for name in names
    ]  # fmt: skip
    for values in zip(*per_seed, strict=True):
        axes.plot(range(3), values, color="#d5d9df", lw=1.2, zorder=1, marker="o", ms=3.5)
    middles = [sum(values) / len(values) for values in per_seed]
    for x, (name, seeds, middle) in enumerate(zip(names, per_seed, middles, strict=True)):
        colour = BRANCH[name][1]
        if len(seeds) > 1:
            spread = stdev(seeds) / len(seeds) ** 0.5
            axes.errorbar(x, middle, yerr=2 * spread, color=colour, capsize=5, lw=2, zorder=3)
        axes.plot(x, middle, "o", color=colour, ms=10, zorder=4)
        axes.annotate(
            f"{middle:.3f}", (x, middle), xytext=(13, 6), textcoords="offset points", va="center", color=colour,
            fontweight="bold", fontsize=12,
        )  # fmt: skip
    axes.set_xlim(-0.45, 2.75)
    if "floor" in summary:
        axes.set_ylim(bottom=0.0)
        axes.annotate("0: the exact optimum", (-0.42, 0), xytext=(0, 5), textcoords="offset points", fontsize=9.5, color=FAINT)
    axes.set_xticks(range(3), [BRANCH[name][0] for name in names])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_ylabel(label)
    axes.set_title(title)


def _against_steps(axes: Axes, act: Act, summary: dict[str, Any], score: str, factor: float, label: str) -> None:
    for i, (name, (words, colour)) in enumerate(BRANCH.items()):
        generation = summary["branches"][name]["generation"]
        middles = [scores[score]["mean"] * factor for scores in generation.values()]
        errors = [2 * factor * (scores[score]["se"] or 0.0) for scores in generation.values()]
        # side by side, so that the error bars can be told apart
        places = [x + 0.05 * (i - 1) for x in range(len(middles))]
        axes.errorbar(
            places, middles, yerr=errors, color=colour, marker="o", ms=6, lw=2, elinewidth=1.3, capsize=3,
            label=words.replace("\n", " "), zorder=3 if name == "soft" else 2,
        )  # fmt: skip
    parts = ("L/4", "L/2", "L tokens")
    axes.set_xticks(range(3), [f"{steps}\n({part})" for steps, part in zip(act.nfes, parts, strict=True)])
    axes.set_xlim(-0.25, 2.25)
    axes.grid(axis="y")
    axes.set_ylabel(label)


def _beliefs(figure: SubFigure, trace: dict[str, Any]) -> None:
    axes: Any = figure.subplots(2, 1, height_ratios=[2.45, 1])
    film, close = axes
    figure.subplots_adjust(left=0.085, right=0.985, top=0.835, bottom=0.075, hspace=0.42)
    position = _telling_position(trace["frames"])
    _film(film, trace)
    _close_up(close, trace, position)
    bottom = len(trace["frames"]) - 0.5
    film.annotate(
        "", (position, bottom), xytext=(position, bottom + 0.95), annotation_clip=False,
        arrowprops={"arrowstyle": "-|>", "color": ORANGE, "lw": 1.8},
    )  # fmt: skip


def _film(axes: Axes, trace: dict[str, Any]) -> None:
    """One row a step, one column a position: fixed tokens on white, beliefs on a colour that says how much they count."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    frames = trace["frames"]
    colours = LinearSegmentedColormap.from_list("gate", ["#f3f4f6", "#fbdcb5", ORANGE])
    highest = max([gate for frame in frames for gate in frame["gate"]] + [1e-6])
    for y, frame in enumerate(frames):
        for x, character in enumerate(frame["text"]):
            if not frame["masked"][x]:
                axes.text(x, y, character, ha="center", va="center_baseline", fontsize=9.5, fontweight="bold", color=INK)
                continue
            share = frame["gate"][x] / highest
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colours(share), ec="white", lw=0.8))
            if share > 0.08:
                guess, colour = frame["tokens"][x][0], "white" if share > 0.7 else "#8a5312"
                axes.text(x, y, guess, ha="center", va="center_baseline", fontsize=8, color=colour)
    axes.set_xlim(-0.5, trace["length"] - 0.5)
    axes.set_ylim(len(frames) - 0.5, -0.5)
    steps = range(0, len(frames), 5)
    axes.set_yticks(steps, [str(frames[y]["step"]) for y in steps])
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_ylabel("denoising step")
    axes.set_title("A sequence of the Markov chain, from masks (top) to tokens (bottom)", pad=27)
    axes.text(
        0, 1.025, "bold: fixed.  Orange: still masked, best guess shown; deeper: more of it mixed in (λ)",
        transform=axes.transAxes, fontsize=10, color=FAINT,
    )  # fmt: skip


def _telling_position(frames: list[dict[str, Any]]) -> int:
    """The position that stays masked long while its belief changes most: where there is something to see."""

    def told(position: int) -> float:
        shares = [frame["gate"][position] for frame in frames if frame["masked"][position]]
        guesses = {frame["tokens"][position][0] for frame in frames if frame["masked"][position]}
        return len(shares) * (max(shares) - min(shares)) * min(len(guesses), 3) if shares else 0.0

    return max(range(len(frames[0]["masked"])), key=told)


def _close_up(axes: Axes, trace: dict[str, Any], position: int) -> None:
    """The k tokens mixed in at one position and their shares of the embedding, until the position is fixed."""
    frames = [frame for frame in trace["frames"] if frame["masked"][position]]
    shades = [ORANGE, "#eeb06b", "#f7dbbb"]
    for x, frame in enumerate(frames):
        bottom = 0.0
        for j, (token, share) in enumerate(zip(frame["tokens"][position], frame["shares"][position], strict=True)):
            height = frame["gate"][position] * share
            axes.bar(x, height, 0.82, bottom=bottom, color=shades[min(j, 2)], edgecolor="white", lw=0.8)
            if height > 0.035:
                ink = "white" if j == 0 else INK
                axes.text(x, bottom + height / 2, token, ha="center", va="center_baseline", fontsize=10, color=ink)
            bottom += height
    end = len(frames)
    fixed = trace["frames"][-1]["text"][position]
    axes.annotate(f"fixed: {fixed}", (end - 0.4, 0.015), fontsize=11, fontweight="bold", va="bottom")
    axes.set_xlim(-0.6, max(end + 1.3, 5))
    axes.set_xticks(range(end), [str(frame["step"]) for frame in frames])
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("denoising step")
    axes.set_ylabel("share of the embedding")
    axes.set_title("The position at the arrow: tokens mixed into its mask", pad=24)
    axes.text(
        0, 1.045, "height of a bar: λ; what is missing to 1 is the mask's own embedding",
        transform=axes.transAxes, fontsize=10, color=FAINT,
    )  # fmt: skip
    axes.grid(axis="y")
