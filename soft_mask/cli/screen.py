"""What is seen while text is made: the sample being denoised on a terminal, a counter for many, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

FRAME_SECONDS = 0.05


class Screen:
    """Context in which ``show`` is the callback of ``generate``. It writes to stderr, so stdout holds the result alone."""

    def __init__(self, loaded: Any, start: Any, number: int, steps: int, quiet: bool) -> None:
        self.loaded, self.start, self.number, self.steps = loaded, start, number, steps
        self.on = not quiet and sys.stderr.isatty()
        self.live: Any = None
        self.last = 0.0
        self.first, self.size = 0, 0

    def __enter__(self) -> Screen:
        if self.on and self.number == 1:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), transient=True, auto_refresh=False).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)
        elif self.on:
            sys.stderr.write("\n")

    def batch(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def show(self, info: Any) -> None:
        if not self.on:
            return
        if self.live is None:
            done = f"samples {self.first + 1} to {self.first + self.size} of {self.number}"
            sys.stderr.write(f"\r{done}: step {info.step} of {self.steps} ")
            sys.stderr.flush()
        elif time.monotonic() - self.last >= FRAME_SECONDS or info.step == self.steps:
            self.live.update(self.frame(info), refresh=True)
            self.last = time.monotonic()

    def frame(self, info: Any) -> Any:
        """The text so far, masks as shaded blocks, under a line that counts."""
        from rich.panel import Panel
        from rich.text import Text

        from .prompts import pieces

        row = info.input_ids[0].tolist()
        text = Text()
        for part, masked in pieces(self.loaded, self.start, row):
            text.append(part, style="grey50" if masked else "bold")
        left = row.count(self.loaded.model.mask_token_id)
        title = f"step {info.step} of {self.steps}   {left} masks left   {info.nfe} forward passes"
        return Panel(text, title=title, title_align="left", border_style="grey50")
