"""What is seen while the demo runs: bars and text being denoised on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .run import Job

STAGES = {
    "preparing": "preparing",
    "base": "binary base",
    "binary": "binary, continued",
    "soft": "soft masking",
    "binary_long": "binary, same compute",
}
TITLES = {"markov": "Act 1, a language with a known optimum", "text": "Act 2, real text"}
FRAME_SECONDS = 0.35
HOLD_FRAMES = 5  # how long the finished sequence stays


def frame_text(frame: dict[str, Any]) -> Text:
    """One step of denoising: tokens that are fixed, and in place of masks what is believed, the brighter the surer."""
    line = Text()
    for i, character in enumerate(frame["text"]):
        if not frame["masked"][i]:
            line.append(_visible(character), style="bold white")
        elif frame["gate"][i] < 0.02:
            line.append("·", style="grey35")
        else:
            level = round(90 + 140 * min(frame["gate"][i] / 0.5, 1.0))
            line.append(_visible(frame["tokens"][i][0]), style=f"rgb({level},{level * 3 // 4},40)")
    return line


def _visible(character: str) -> str:
    return {"\n": "⏎", "\t": " "}.get(character, character)


class _State:
    """The last word from every job, and the last sequence denoised in every act."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs: dict[str, dict[str, Any]] = {job.name: {"act": job.act.name, "seed": job.seed} for job in jobs}
        self.frames: dict[str, list[dict[str, Any]]] = {}
        self.labels: dict[str, str] = {}

    def take(self, job: Job, event: dict[str, Any]) -> None:
        state = self.jobs[job.name]
        if event.get("frames"):
            self.frames[job.act.name] = event["frames"]["frames"]
            self.labels[job.act.name] = event["frames"].get("label", "")
        if "stage" in event:
            state.pop("note", None)
            if event["stage"] != state.get("stage"):
                state.pop("lambda", None)
        state.update({key: value for key, value in event.items() if key != "frames"})
        if event.get("finished") or event.get("kept"):
            state["done"], state["of"] = 1, 1


class LiveScreen:
    """Redraws itself a few times a second; use as a context manager."""

    def __init__(self, console: Console, jobs: list[Job]) -> None:
        self.state = _State(jobs)
        self.began = time.monotonic()
        self.live = Live(console=console, refresh_per_second=6, transient=True, get_renderable=self.render)

    def __enter__(self) -> LiveScreen:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def event(self, job: Job, event: dict[str, Any]) -> None:
        self.state.take(job, event)

    def tick(self) -> None:
        pass  # Live has its own clock

    def render(self) -> RenderableType:
        elapsed = time.monotonic() - self.began
        table = Table.grid(padding=(0, 2))
        for state in self.state.jobs.values():
            table.add_row(
                f"{state['act']}, seed {state['seed']}",
                ProgressBar(total=state.get("of", 1), completed=state.get("done", 0), width=30),
                Text(_status(state), style="dim"),
            )
        parts: list[RenderableType] = [
            Text(f"soft masking against binary masking   {elapsed:4.0f} s", style="bold"),
            table,
        ]
        for act, frames in self.state.frames.items():
            at = int(elapsed / FRAME_SECONDS) % (len(frames) + HOLD_FRAMES)
            frame = frames[min(at, len(frames) - 1)]
            title = f"{TITLES[act]}: {self.state.labels[act]}, step {frame['step']} of {frames[-1]['step']}"
            parts.append(Panel(frame_text(frame), title=title, title_align="left", border_style="grey50"))
        return Group(*parts)


class PlainScreen:
    """One line whenever a job reaches something new."""

    def __init__(self, console: Console, jobs: list[Job]) -> None:
        self.console = console
        self.state = _State(jobs)
        self.said: dict[str, str] = {}
        self.shown: set[tuple[str, str]] = set()
        self.began = time.monotonic()

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, job: Job, event: dict[str, Any]) -> None:
        self.state.take(job, event)
        state = self.state.jobs[job.name]
        word = "kept from an earlier run" if event.get("kept") else "done" if event.get("finished") else state.get("stage")
        if word and word != self.said.get(job.name):
            self.said[job.name] = word
            self._say(f"{job.name:<12} {STAGES.get(word, word)}")
        if event.get("frames"):
            self._show(job, event["frames"])

    def tick(self) -> None:
        pass

    def _show(self, job: Job, trace: dict[str, Any]) -> None:
        key = (job.act.name, trace.get("label", ""))
        if key in self.shown:
            return
        self.shown.add(key)
        self._say(f"{job.name:<12} {trace.get('label', '')}: one sequence from all masks (·)")
        frames = trace["frames"]
        for at in sorted({0, len(frames) // 3, 2 * len(frames) // 3, len(frames) - 1}):
            line = "".join("·" if m else _visible(c) for c, m in zip(frames[at]["text"], frames[at]["masked"], strict=True))
            self._say(f"    step {frames[at]['step']:>3}  {line}")

    def _say(self, line: str) -> None:
        self.console.print(f"{time.monotonic() - self.began:6.1f} s  {line}", markup=False, highlight=False)


def _status(state: dict[str, Any]) -> str:
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
    gate = f"  lambda {state['lambda']:.2f}" if "lambda" in state else ""
    return f"{words}{loss}{gate}"


def make_screen(console: Console, jobs: list[Job]) -> LiveScreen | PlainScreen:
    return LiveScreen(console, jobs) if console.is_terminal else PlainScreen(console, jobs)
