"""A result as a file that says how it came about."""

from __future__ import annotations

import json
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "write_record"]

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "mauve-text", "numpy")


def environment() -> dict[str, Any]:
    """Versions, the operators that run, and the machine; ``None`` for what is not installed."""
    import soft_mask

    build = soft_mask.build_info()
    found: dict[str, Any] = {"soft_mask": soft_mask.__version__, "backend": build["backend"], "isa": build.get("isa")}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    cuda = torch.cuda.is_available()
    return {
        **found,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads(),
    }


def write_record(path: str | os.PathLike[str], kind: str, settings: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Write ``{kind, settings, results, environment}`` as JSON, whole or not at all; returns what was written.

    Tensors' dtypes and devices in the settings become their names; infinities and NaN become strings (JSON has none).

    Raises:
        OSError: the file cannot be written.
    """
    record = {"kind": kind, "settings": _plain(settings), "results": _plain(results), "environment": environment()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(target)
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return str(value)
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
