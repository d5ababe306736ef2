"""Jobs side by side as processes of one thread each; finished ones are kept, so that a stopped command goes on."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar


class JobError(Exception):
    """Something the user should read; a command prints it and ends with code 1."""


class Job(Protocol):
    """A process that prints one JSON event a line, and leaves a result."""

    @property
    def name(self) -> str: ...
    @property
    def log_file(self) -> Path: ...

    def finished(self) -> dict[str, Any] | None:
        """The result, of this run or of an earlier one with the very same settings, or None."""
        ...

    def start(self) -> subprocess.Popen[str]: ...


class KeptJob:
    """A job whose result is ``NAME.json`` in ``folder``, with the hash of the settings it was made with."""

    folder: Path

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def hash(self) -> str:
        """Of all settings."""
        raise NotImplementedError

    @property
    def result_file(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.name}.log"

    def finished(self) -> dict[str, Any] | None:
        """The result of an earlier run with the very same settings, or None."""
        try:
            result = json.loads(self.result_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("hash") == self.hash else None

    def spawn(self, module: str, **job: Any) -> subprocess.Popen[str]:
        """``python -m module`` with this job's file: what is given, where the result goes, and the hash."""
        job_file = self.folder / f"{self.name}.job"
        about = {**job, "result": str(self.result_file.resolve()), "hash": self.hash}
        job_file.write_text(json.dumps(about, indent=1), encoding="utf-8")
        return spawn(module, job_file, self.log_file)


AnyJob = TypeVar("AnyJob", bound=Job)
AnyJobIn = TypeVar("AnyJobIn", bound=Job, contravariant=True)


class Screen(Protocol[AnyJobIn]):
    def event(self, job: AnyJobIn, event: dict[str, Any]) -> None: ...
    def tick(self) -> None: ...


def usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(len(os.sched_getaffinity(0)), 1)
    return os.cpu_count() or 1


def spawn(module: str, job_file: Path, log_file: Path) -> subprocess.Popen[str]:
    """``python -m module job_file`` on one thread, its events on standard output, all else in the log."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log_file.open("w", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**os.environ, **one_thread, "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children in order
        )


class Reporter:
    """A job's events for the parent, one JSON object a line: {"stage", "done", "of", ...}, and at times {"frames"}."""

    def __init__(self, stream: TextIO | None, total: int) -> None:
        self.stream = stream
        self.total = total
        self.finished = 0  # updates of the stages before this one

    def __call__(self, **event: Any) -> None:
        if self.stream is not None:
            print(json.dumps(event), file=self.stream, flush=True)

    def update(self, stage: str, step: int, **facts: Any) -> None:
        self(stage=stage, done=self.finished + step, of=self.total, **facts)


def own_events() -> TextIO:
    """In a job: standard output for its events alone; whatever libraries print becomes standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def write_whole(file: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    unfinished.replace(file)


def run_jobs(jobs: Sequence[AnyJob], workers: int, screen: Screen[AnyJob]) -> list[dict[str, Any]]:
    """Results in the order of ``jobs``. On any way out, no child is left running.

    Raises :class:`JobError` when a job fails, with the end of its log.
    """
    results: dict[str, dict[str, Any]] = {}
    for job in jobs:
        kept = job.finished()
        if kept is not None:
            results[job.name] = kept
            screen.event(job, {"kept": True, "frames": kept.get("trace")})
    waiting = [job for job in jobs if job.name not in results]
    events: queue.Queue[tuple[AnyJob, dict[str, Any] | None]] = queue.Queue()
    with _children() as running:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[job.name] = job.start()
                threading.Thread(target=_read, args=(job, running[job.name], events), daemon=True).start()
            try:
                job, event = events.get(timeout=0.1)
            except queue.Empty:
                screen.tick()
                continue
            if event is not None:
                screen.event(job, event)
                continue
            code = running.pop(job.name).wait()
            result = job.finished()
            if code != 0 or result is None:
                raise JobError(f"{job.name} stopped with code {code}.\n{_tail(job.log_file)}\nIts log: {job.log_file}")
            results[job.name] = result
            screen.event(job, {"finished": True})
    return [results[job.name] for job in jobs]


@contextmanager
def _children() -> Iterator[dict[str, subprocess.Popen[str]]]:
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _read(job: AnyJob, process: subprocess.Popen[str], events: queue.Queue[tuple[AnyJob, dict[str, Any] | None]]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        events.put((job, event))
    events.put((job, None))


def _tail(log: Path, lines: int = 12) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
