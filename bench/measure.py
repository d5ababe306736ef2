"""How the benchmarks measure: contenders in turn, medians, ratios; peaks of resident memory; records with their bars."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import soft_mask

Record = dict[str, Any]
Contenders = dict[str, Callable[[], object]]


def medians(contenders: Contenders, rounds: int, cold: bool = True) -> dict[str, float]:
    """Median seconds of each, taken in turn within each round, so that a noisy neighbour hits all of them alike.

    With ``cold``, what the caches hold is pushed out of them before each run: none finds there what the one before it left,
    and each finds its own code gone too (0.3 ms of Python).
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    other = torch.ones(2**24)  # 64 MiB
    for run in contenders.values():
        run()  # warm-up; compiles what compiles
    for _ in range(rounds):
        for name, run in contenders.items():
            if cold:
                other.sum()
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def record(name: str, value: float, unit: str, against: str = "", ratio: float | None = None, bar: str = "") -> Record:
    """One line of the report; ``bar`` is ">= x" or "<= x" for the ratio (for the value where there is none)."""
    judged = value if ratio is None else ratio
    holds = None
    if bar:
        sign, limit = bar.split()
        holds = judged >= float(limit) if sign == ">=" else judged <= float(limit)
    return {"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio, "bar": bar, "holds": holds}


def without_bar(line: Record) -> Record:
    return {**line, "bar": "", "holds": None}


def peak_beyond(run: Callable[[], torch.Tensor], rounds: int = 5) -> float:
    """Median MiB by which a call lifts the process's resident memory above its result. Linux."""
    kept = [run()]  # results are kept, so that no call finds its memory in what the one before gave back
    size = kept[0].numel() * kept[0].element_size()
    beyond = []
    for _ in range(rounds):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmHWM")
        kept.append(run())
        beyond.append(max(_status("VmHWM") - before - size, 0))
    return statistics.median(beyond) / 2**20


def peak_of(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """MiB by which one call lifts the process's resident memory, and its result. Linux."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    result = run()
    return (_status("VmHWM") - before) / 2**20, result


def can_measure_memory() -> bool:
    return Path("/proc/self/clear_refs").exists()


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def about() -> dict[str, Any]:
    """What was measured on; no path of the machine."""
    build = {name: value for name, value in soft_mask.build_info().items() if name != "library"}
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "build": build,
    }


def report(records: list[Record], file: Path | None) -> None:
    for r in records:
        ratio = "" if r["ratio"] is None else f"   ratio {r['ratio']:.2f}"
        bar = f"   bar {r['bar']}: {'holds' if r['holds'] else 'FAILS'}" if r["bar"] else ""
        print(f"{r['name']:<84} {r['value']:10.3f} {r['unit']}{ratio}{bar}")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"about": about(), "records": records}, indent=1) + "\n")
