"""``soft-mask reproduce``: the paper's tables, at full scale by recipe or at a scale that two CPU cores train in an hour."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer


def reproduce(
    table: Annotated[str, typer.Argument(help="What to reproduce: mdlm.")],
    scale: Annotated[str, typer.Option(help="full: the 169M model; small: tiny models on CPUs.")] = "full",
    out: Annotated[Path, typer.Option(help="Folder for all results, made if absent.")] = Path("soft_mask_reproduce"),
    data: Annotated[
        Path | None,
        typer.Option(help="Small: folder with tinyshakespeare/, wikitext2/, gpt2/ [CPython's help texts].", show_default=False),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Small: characters or tokens [both].", show_default=False)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Small: seeds.")] = 3,
    first_seed: Annotated[
        int | None, typer.Option(min=0, help="Small: the seeds count up from here.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Small: processes side by side [one per usable CPU].", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small: a few updates, shows that it runs, proves nothing.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Full: train and measure what is not finished, for real.")] = False,
    tables: Annotated[list[str] | None, typer.Option("--table", help="Full: perplexity or samples; repeatable [both].")] = None,
    recipes: Annotated[
        Path | None, typer.Option(help="Full: folder of the recipes [the checkout's].", show_default=False)
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Full: a setting for every recipe, training.micro_batch=64; repeatable.")
    ] = None,
    scorer: Annotated[str, typer.Option(help="Full: causal LM that judges samples.")] = "gpt2-large",
    samples: Annotated[int, typer.Option(min=2, help="Full: samples a row.")] = 5000,
    steps: Annotated[int, typer.Option(min=1, help="Full: denoising steps.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Full: of measuring; the paper samples with 1.")] = 8,
    blocks: Annotated[int | None, typer.Option(min=1, help="Full: validation blocks [all].", show_default=False)] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Full: --run without a GPU.")] = False,
) -> None:
    """The paper's tables of the 169M model, or the same comparison with tiny models on characters and GPT-2 tokens.

    Full scale prints the tables with the paper's own figures, what was measured here beside, and the commands; with --run
    it trains and measures. Small scale runs at once. Both may be stopped or killed and go on when the same command is
    given again. Code 0 when done, 1 when something failed, 2 for bad arguments, 130 when interrupted.

    Example: soft-mask reproduce mdlm --scale small --data data
    """
    from rich.console import Console

    from ..jobs import JobError
    from .settings import FRESH_SEED

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        if table != "mdlm":
            raise ValueError(f"what to reproduce must be mdlm, got {table!r}")
        if scale not in ("full", "small"):
            raise ValueError(f"--scale must be full or small, got {scale!r}")
        if scale == "small":
            _small(console, out, data, seeds, FRESH_SEED if first_seed is None else first_seed, workers, quick, only)
        else:
            _full(console, out, recipes, change, scorer, samples, steps, batch_size, blocks, run, tables, cpu)
    except (ValueError, FileNotFoundError, ImportError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(2) from None
    except JobError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print(f"\nInterrupted. What is finished is kept in {out}: the same command goes on from there.", soft_wrap=True)
        raise typer.Exit(130) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _small(
    console: Any, out: Path, data: Path | None, seeds: int, first_seed: int, workers: int | None, quick: bool, only: str | None
) -> None:
    from .small import run_small

    found = run_small(console, out, data, seeds, first_seed, workers, quick, only)
    console.print(found["text"], markup=False, highlight=False, soft_wrap=True)
    names = ", ".join(str(out / name) for name in ("table.md", "reproduce.png", "reproduce.json", "rows.csv"))
    console.print(f"Written: {names}", markup=False, highlight=False, soft_wrap=True)


def _full(
    console: Any,
    out: Path,
    recipes: Path | None,
    change: list[str] | None,
    scorer: str,
    samples: int,
    steps: int,
    batch_size: int,
    blocks: int | None,
    run: bool,
    tables: list[str] | None,
    cpu: bool,
) -> None:
    from . import full, full_table

    wanted = tuple(tables or ("perplexity", "samples"))
    for name in wanted:
        if name not in ("perplexity", "samples"):
            raise ValueError(f"--table must be perplexity or samples, got {name!r}")
    plan = full.Plan(out, recipes or full.ROOT / "recipes", scorer, samples, steps, batch_size, blocks, list(change or ()))
    full.check(plan)
    if run:
        full.run_full(plan, console, wanted, cpu)
    text = full_table.markdown(plan)
    if run:
        (out / "table.md").write_text(text, encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(full_table.needs(plan), markup=False, highlight=False, soft_wrap=True)
