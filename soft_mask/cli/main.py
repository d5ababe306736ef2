"""The commands of ``soft-mask``, one module each; what a command needs is imported when it runs."""

from __future__ import annotations

import typer

from .._version import __version__
from .demo import demo
from .evaluate import evaluate
from .generate import generate
from .info import info
from .reproduce import reproduce
from .train import train

app = typer.Typer(
    help="Soft-masked diffusion language models (arXiv 2510.17206).",
    epilog="Example: soft-mask demo --quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
app.command(epilog="Example: soft-mask info --json")(info)
app.command()(demo)
app.command(epilog="Example: soft-mask generate kuleshov-group/mdlm-owt --steps 256 --preset sm-mdlm")(generate)
app.command(epilog="Example: soft-mask evaluate kuleshov-group/mdlm-owt --dataset wikitext2 --draws 4")(evaluate)
app.command(epilog="Example: torchrun --nproc-per-node 8 -m soft_mask train recipes/mdlm-owt-continue.yaml output=runs/a")(
    train
)
app.command(epilog="Example: soft-mask reproduce mdlm --scale small --data data")(reproduce)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"soft-mask {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None: ...
