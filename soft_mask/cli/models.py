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
    hosted: bool = False  # Dream or LLaDA: prompts, chat templates, answers that end


@dataclass
class GateOptions:
    """What the command line says of the soft mask; its numbers win over those of the checkpoint."""

    soft: bool = True
    path: str | None = None
    scale: float | None = None
    steepness: float | None = None
    centre: float | None = None
    k: int | None = None
    schedule: str | None = None

    def changes(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("scale", "steepness", "centre", "k", "schedule")}
        return {name: value for name, value in given.items() if value is not None}


def load(
    path: str,
    tokenizer: str | None,
    device: str,
    dtype: str | None,
    gate: GateOptions,
    ema: bool = True,
    attention: str | None = None,
) -> Loaded:
    """ValueError for bad arguments."""
    from soft_mask import load_model
    from soft_mask.models.load import base_folder
    from soft_mask.models.tokenizer import mdlm_tokenizer, model_tokenizer

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    base = base_folder(path)
    words: Any
    if base is None:  # MDLM
        if attention is not None:
            raise ValueError("--attention is of Dream and LLaDA: MDLM has one")
        model = load_model(path, ema=ema).to(where, DTYPES[dtype or "float32"])
        words = mdlm_tokenizer(tokenizer or "gpt2", model.mask_token_id)
    else:
        options: dict[str, Any] = {"dtype": DTYPES[dtype] if dtype else "auto"}
        if where != "cpu":
            options["device_map"] = where
        if attention is not None:
            options["attn_implementation"] = attention
        model = load_model(path, **options)
        words = model_tokenizer(tokenizer or base, model)
    soft_mask = load_gate(path, model, gate)
    if soft_mask is not None:
        soft_mask = soft_mask.to(where)
    said = None
    if soft_mask is not None:
        said = {**soft_mask.config.to_dict(), **{n: getattr(soft_mask, n).item() for n in ("scale", "steepness", "centre")}}
    settings = {
        "model": path, "tokenizer": tokenizer or base or "gpt2", "device": where,
        "dtype": str(model.embedding.dtype).removeprefix("torch."), "ema": ema,
        "soft_mask": said, "config": model.config.to_dict(),
    }  # fmt: skip
    return Loaded(model, soft_mask, words, where, settings, base is not None)


def load_gate(path: str, model: Any, options: GateOptions) -> Any:
    """The checkpoint's soft mask, or that of ``--soft-mask``, with what was given changed; None for binary."""
    from soft_mask import load_soft_mask
    from soft_mask.models.soft_mask_files import fixed_gate

    changes = options.changes()
    if not options.soft:
        if options.path or changes:
            name = "soft-mask" if options.path else next(iter(changes))
            raise ValueError(f"--{name} needs the soft mask: leave --binary out")
        return None
    gate = load_soft_mask(options.path or path, model.mask_token_id if options.path else None)
    return fixed_gate(_changed(gate, model, changes)) if changes else gate


def _changed(gate: Any, model: Any, changes: dict[str, Any]) -> Any:
    from soft_mask import SoftMaskConfig

    values: dict[str, Any] = {"mask_token_id": model.mask_token_id, "ban": (model.mask_token_id,) if model.bans_mask else None}
    if gate is not None:
        values = {**gate.config.to_dict(), **{n: getattr(gate, n).item() for n in ("scale", "steepness", "centre")}}
    elif "scale" not in changes:
        raise ValueError("the checkpoint has no soft mask: --scale must be given with --steepness, --centre, --k or --schedule")
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
