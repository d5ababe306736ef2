"""What a run says while it runs: one line to read, one line of JSON to keep."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

__all__ = ["LOG_FILE", "JsonLog", "ProgressLine"]

LOG_FILE = "log.jsonl"


class JsonLog(TrainerCallback):
    """Appends every log entry to ``log.jsonl``; a resumed run first drops what came after its checkpoint."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.path = Path(args.output_dir) / LOG_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if state.global_step and self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= state.global_step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut off
        self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and hasattr(self, "path"):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class ProgressLine(TrainerCallback):
    """Prints the update, the loss, the gate, the pace and the time that is left, whenever something is logged."""

    SHOWN = (
        ("loss", "loss {:.4f}"),
        ("eval_loss", "validation {:.4f}"),
        ("grad_norm", "|g| {:.2f}"),
        ("omega_grad_norm", "|g_omega| {:.1e}"),
        ("lambda", "lambda {:.4f}"),
        ("scale", "omega ({:.4g},"),
        ("steepness", "{:.3g},"),
        ("centre", "{:.3g})"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not ("loss" in logs or "eval_loss" in logs):
            return
        parts = [pattern.format(float(logs[name])) for name, pattern in self.SHOWN if name in logs]
        done = state.global_step - getattr(self, "first", 0)
        if done > 0 and state.max_steps > state.global_step:
            left = (time.monotonic() - self.begin) / done * (state.max_steps - state.global_step)
            parts.append(f"ETA {timedelta(seconds=round(left))}")
        print(f"update {state.global_step}/{state.max_steps}  {'  '.join(parts)}", flush=True)
