"""``soft-mask train``: a run by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, such as recipes/mdlm-owt-continue.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change: training.seed=2 output=runs/b ...")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Refuse an output folder that holds checkpoints.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the settings, every one, and do nothing.")] = False,
) -> None:
    """Train by a recipe; a run that was cut off goes on from its last whole checkpoint."""
    import json

    from ..training.recipe import read_recipe

    try:
        settings = read_recipe(recipe, overrides or ())
        if show:
            typer.echo(json.dumps(settings.to_dict(), indent=2))
            return
        from ..training.run import run_recipe

        run_recipe(settings, resume=not fresh)
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
