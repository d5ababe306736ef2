"""What the commands share: a model, its soft mask and its tokenizer from the arguments, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import typer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass
class Loaded:
    model: Any
    soft_mask: Any
    tokenizer: Any
    device: str
    settings: dict[str, Any]  # for the record


def load(
    path: str,
    tokenizer: str,
    device: str,
    dtype: str,
    soft: bool,
    scale: float | None,
    steepness: float | None,
    centre: float | None,
    k: int | None,
    ema: bool,
) -> Loaded:
    """ValueError for bad arguments; the gate's numbers given here win over those of the checkpoint."""
    from soft_mask import SoftMask, load_model, load_soft_mask
    from soft_mask.models.tokenizer import mdlm_tokenizer

    if dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = load_model(path, ema=ema).to(where, DTYPES[dtype])
    words = mdlm_tokenizer(tokenizer, model.mask_token_id)
    gate = load_soft_mask(path) if soft else None
    given = {"scale": scale, "steepness": steepness, "centre": centre, "k": k}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes and not soft:
        raise ValueError(f"--{next(iter(changes))} needs the soft mask: leave --binary out")
    if changes:
        gate = SoftMask(_changed(gate, model.mask_token_id, changes))
    if gate is not None:
        gate = gate.to(where)
    said = None
    if gate is not None:
        said = {**gate.config.to_dict(), **{n: getattr(gate, n).item() for n in ("scale", "steepness", "centre")}}
    settings = {
        "model": path, "tokenizer": tokenizer, "device": where, "dtype": dtype, "ema": ema,
        "soft_mask": said, "config": model.config.to_dict(),
    }  # fmt: skip
    return Loaded(model, gate, words, where, settings)


def _changed(gate: Any, mask: int, changes: dict[str, Any]) -> Any:
    from soft_mask import SoftMaskConfig

    values: dict[str, Any] = {"mask_token_id": mask, "ban": (mask,)}
    if gate is not None:
        values = {**gate.config.to_dict(), **{n: getattr(gate, n).item() for n in ("scale", "steepness", "centre")}}
    elif "scale" not in changes:
        raise ValueError("the checkpoint has no soft mask: --scale must be given with --steepness, --centre or --k")
    return SoftMaskConfig(**{**values, **changes})


@contextmanager
def errors() -> Iterator[None]:
    """A wrong argument or a broken file ends with one line and code 2, a missing package with code 1."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except ImportError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
