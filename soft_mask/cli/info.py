"""``soft-mask info``: what runs here and how it was built."""

from __future__ import annotations

import json
from typing import Any

import typer

from .._native import build_info


def info(as_json: bool = typer.Option(False, "--json", help="Print build_info() as JSON.")) -> None:
    """Say which backend runs here, how it was built, and what is missing."""
    found = build_info()
    typer.echo(json.dumps(found, indent=2) if as_json else in_words(found))


def in_words(found: dict[str, Any]) -> str:
    """``build_info()`` as lines to read."""
    lines = {"torch": found["torch"]}
    if found["backend"] == "reference":
        lines["backend"] = "reference: plain PyTorch, no compiled operators"
    else:
        lines["backend"] = f"{found['backend']}: the compiled operators"
        lines["CPU kernels"] = f"{found['isa']} (the library holds: {', '.join(found['isas_built'])})"
        lines["CUDA kernels"] = ", ".join(f"sm_{arch}" for arch in found["cuda_archs"]) or "none"
        if found["emulation"]:
            lines["emulation"] = "the CUDA kernels run on the CPU"
        lines["built with"] = f"{found['compiler']}, {found['build_type']}, torch {found['torch_built']}"
        lines["library"] = found["library"]
    if found["why"]:
        lines["not here"] = found["why"]
    return "\n".join([f"soft_mask {found['version']}", *(f"  {name:<13}{text}" for name, text in lines.items())])
