"""Which checkpoint may be resumed: only one that was written to its end before the process died."""

from __future__ import annotations

import json
import re
from pathlib import Path

_FOLDER = re.compile(r"^checkpoint-(\d+)$")
STATE_FILE = "trainer_state.json"
_SCHEDULE = "scheduler.pt"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")  # any one of them
_OPTIMIZER = ("optimizer.pt", "optimizer.bin")  # the second is that of sharded runs


def what_is_missing(checkpoint: str | Path, ranks: int = 1) -> str | None:
    """None for a complete checkpoint, otherwise the reason in words.

    Trainer writes its state file last, after weights, optimizer, schedule and random states are closed; so a state file
    that parses and names the folder's own step means that the rest is whole.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "there is no such folder"
    optimizer = next((name for name in _OPTIMIZER if (folder / name).is_file()), _OPTIMIZER[0])
    weights = next((name for name in _WEIGHTS if (folder / name).is_file()), _WEIGHTS[0])
    random_states = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    for name in (weights, optimizer, _SCHEDULE, *random_states, STATE_FILE):
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        step = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError):
        return f"{STATE_FILE} was cut off"
    named = _FOLDER.match(folder.name)
    if named and int(named[1]) != step:
        return f"{STATE_FILE} is that of step {step}"
    return None


def last_complete_checkpoint(output_dir: str | Path, ranks: int = 1) -> str | None:
    """The ``checkpoint-N`` of ``output_dir`` with the highest N that was written to its end, or None."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return None
    found = [(int(match[1]), entry) for entry in folder.iterdir() if (match := _FOLDER.match(entry.name))]
    for _, entry in sorted(found, reverse=True):
        if what_is_missing(entry, ranks) is None:
            return str(entry)
    return None
