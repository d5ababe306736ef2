"""The command line, ``soft-mask``; imported by nothing else."""

from __future__ import annotations

import sys


def run() -> None:
    """What the ``soft-mask`` script and ``python -m soft_mask`` call."""
    try:
        from .main import app
    except ModuleNotFoundError as error:
        if error.name in ("typer", "rich"):  # soft_mask itself runs without them, so they may be absent
            sys.exit(f"soft-mask: the command line needs {error.name}: pip install typer rich")
        raise
    app(prog_name="soft-mask")
