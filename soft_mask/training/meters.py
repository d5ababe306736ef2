"""What the trainer measures on the way: time in updates alone, and the gate's mean lambda."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from soft_mask.diffusion import DenoiserOutput

__all__ = ["GateMeter", "Pace"]


class Pace(TrainerCallback):
    """Time spent in updates alone (forward passes, backward, optimizer), without evaluation and saving."""

    def __init__(self) -> None:
        self.updates = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._begin = (0.0, 0.0)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._begin = (time.perf_counter(), time.process_time())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.updates += 1
        self.seconds += time.perf_counter() - self._begin[0]
        self.cpu_seconds += time.process_time() - self._begin[1]


@dataclass
class GateMeter:
    """Mean lambda over masked rows and the share of soft micro-batches; the sum stays on its device until asked for."""

    total: Tensor | float = 0.0
    rows: int = 0
    soft: int = 0
    batches: int = 0

    def add(self, output: DenoiserOutput, soft: bool) -> None:
        self.batches += 1
        if soft:
            self.soft += 1
            if output.masked_rows:
                self.total = self.total + output.mean_lambda * output.masked_rows
                self.rows += output.masked_rows

    @property
    def mean_lambda(self) -> float:
        return float(self.total) / self.rows
