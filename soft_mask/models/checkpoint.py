"""Reading and writing a model's folder: ``config.json`` and ``model.safetensors``. No pickle, no remote code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

__all__ = ["load_strict", "read_config", "read_json", "read_object", "read_safetensors", "write_checkpoint", "write_config"]

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        ValueError: it is not JSON, or no object.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)!r} must hold a JSON object, got {type(values).__name__}")
    return values


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in ``config.json``.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is not a JSON object.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {os.fspath(folder)!r}")
    return read_object(path)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: the file is truncated or is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # Copied out of the mapped file: its tensors are not aligned, and unaligned weights give other last bits.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a whole safetensors file: {error}") from None


def load_strict(model: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Give ``model`` these tensors, which become its parameters; every name and shape must match.

    Raises:
        ValueError: names are missing or unexpected, or a shape differs; nothing has been changed then.
    """
    own = model.state_dict()
    faults = [
        *(f"missing: {name}" for name in own if name not in tensors),
        *(f"unexpected: {name}" for name in tensors if name not in own),
        *(
            f"{name}: shape {list(tensor.shape)} in the file, {list(own[name].shape)} by the config"
            for name, tensor in tensors.items()
            if name in own and own[name].shape != tensor.shape
        ),
        *(
            f"{name}: {tensor.dtype} in the file, a floating type expected"
            for name, tensor in tensors.items()
            if name in own and not tensor.is_floating_point()
        ),
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"the weights in {where!r} do not fit the config: {'; '.join(faults[:5])}{more}")
    model.load_state_dict(tensors, strict=True, assign=True)


def write_checkpoint(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files; each appears whole or not at all.

    Raises:
        NotADirectoryError: ``folder`` is a file.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{os.fspath(target)!r} is a file; a folder to write into was expected")
    target.mkdir(parents=True, exist_ok=True)
    part = target / (WEIGHTS + ".part")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
    os.replace(part, target / WEIGHTS)
    write_config(target, config)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``, whole or not at all."""
    part = folder / (CONFIG + ".part")
    part.write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)
