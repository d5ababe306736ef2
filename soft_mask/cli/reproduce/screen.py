"""What is seen while the study runs: a bar a job on a terminal, plain lines anywhere else; both say how long it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

STAGES = {
    "base": "binary base",
    "binary": "binary",
    "soft": "soft masking",
    "binary_long": "binary, soft's compute",
    "soft_short": "soft masking, binary's compute",
}
SAID_EVERY = 60.0  # seconds between plain lines of one stage
KNOWN = 0.01  # share of all work that must be done before an estimate is given
MEASURING = 0.12  # share of a job's time after its training, roughly: for the estimate alone


class Named(Protocol):
    @property
    def name(self) -> str: ...


class Progress:
    """Where every job stands, and when all will be done if it goes on at this pace."""

    def __init__(self, jobs: Sequence[Named], cost: dict[str, float], workers: int, clock: Any = time.monotonic) -> None:
        self.cost, self.workers, self.clock = cost, workers, clock
        self.began = clock()
        self.states: dict[str, dict[str, Any]] = {job.name: {} for job in jobs}
        self.first: dict[str, float] = {}  # the share that was done already when a job was first heard of

    def take(self, name: str, event: dict[str, Any]) -> None:
        state = self.states[name]
        if "stage" in event:
            state.pop("note", None)
        state.update(event)
        if event.get("of") and event["stage"] != "preparing":
            self.first.setdefault(name, self.share(name))

    def share(self, name: str) -> float:
        state = self.states[name]
        if state.get("finished") or state.get("kept"):
            return 1.0
        done = (1 - MEASURING) * state.get("done", 0) / max(state.get("of", 1), 1)
        return done + MEASURING * state.get("measured", 0.0)

    def eta(self) -> float | None:
        """Seconds left, or None while little is known. Jobs cost what ``cost`` says, relative to one another."""
        made = sum(self.cost[name] * (self.share(name) - first) for name, first in self.first.items())
        spent = self.clock() - self.began
        if made < KNOWN * sum(self.cost.values()):
            return None
        left = sum(self.cost[name] * (1 - self.share(name)) for name in self.states)
        return left * spent / made

    def line(self, name: str) -> str:
        state = self.states[name]
        if state.get("kept"):
            return "kept from an earlier run"
        if state.get("finished"):
            return "done"
        if "stage" not in state:
            return "waiting"
        words = STAGES.get(state["stage"], state["stage"])
        if "note" in state:
            return f"{words}: {state['note']}"
        loss = f"  loss {state['loss']:.3f}" if "loss" in state else ""
        gate = f"  lambda {state['lambda']:.2f}" if "lambda" in state and state["stage"].startswith("soft") else ""
        return f"{words}{loss}{gate}"

    def clock_text(self) -> str:
        eta = self.eta()
        spent = timedelta(seconds=round(self.clock() - self.began))
        return f"{spent}  ETA {timedelta(seconds=round(eta)) if eta is not None else '?'}"


class LiveScreen:
    """Redraws itself; use as a context manager."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.progress = progress
        self.live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self.render)

    def __enter__(self) -> LiveScreen:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def event(self, job: Named, event: dict[str, Any]) -> None:
        self.progress.take(job.name, event)

    def tick(self) -> None:
        pass  # Live has its own clock

    def render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for name in self.progress.states:
            bar = ProgressBar(total=1.0, completed=self.progress.share(name), width=30)
            table.add_row(name, bar, Text(self.progress.line(name), style="dim"))
        return Group(Text(f"soft masking, small scale   {self.progress.clock_text()}", style="bold"), table)


class PlainScreen:
    """A line whenever a job reaches something new, and once a minute in between."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.progress = console, progress
        self.said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, job: Named, event: dict[str, Any]) -> None:
        self.progress.take(job.name, event)
        state, now = self.progress.states[job.name], self.progress.clock()
        word = "kept" if state.get("kept") else "done" if state.get("finished") else str(state.get("stage"))
        before, when = self.said.get(job.name, ("", -SAID_EVERY))
        if word != before or now - when >= SAID_EVERY:
            self.said[job.name] = (word, now)
            share = f"{100 * self.progress.share(job.name):3.0f} %"
            text = f"{self.progress.clock_text()}  {job.name:<16} {share}  {self.progress.line(job.name)}"
            self.console.print(text, markup=False, highlight=False)

    def tick(self) -> None:
        pass


def make_screen(console: Console, progress: Progress) -> LiveScreen | PlainScreen:
    return LiveScreen(console, progress) if console.is_terminal else PlainScreen(console, progress)
