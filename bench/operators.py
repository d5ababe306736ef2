"""Speed and memory of the fused operator on this machine: ``python -m bench.operators [--quick] [--json FILE]``.

All ratios are of medians taken in one run, the contenders in turn within each round, so that a noisy neighbour hits all of
them alike. Each contender's numbers are checked before it is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import soft_mask
from bench import baselines
from soft_mask import reference

WIDTH, K = 768, 3  # MDLM
VOCAB = 50_258


def rounds_of(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # warm-up; compiles what compiles
    for _ in range(rounds):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def record(name: str, value: float, unit: str, against: str = "", ratio: float | None = None, bar: str = "") -> dict[str, Any]:
    """One line of the report; ``bar`` is ">= x" or "<= x" for the ratio (for the value where there is none)."""
    judged = value if ratio is None else ratio
    holds = None
    if bar:
        sign, limit = bar.split()
        holds = judged >= float(limit) if sign == ">=" else judged <= float(limit)
    return {"name": name, "value": value, "unit": unit, "against": against, "ratio": ratio, "bar": bar, "holds": holds}


def forward(rows: int, vocab: int, rounds: int) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, rows, vocab, generator=g)
    embedding = torch.randn(vocab, WIDTH, generator=g)
    mask = vocab - 1
    ids = torch.full((1, rows), mask)

    def ours() -> torch.Tensor:
        return soft_mask.soft_mask_embed(logits, ids, embedding, mask_token_id=mask, k=K, **baselines.GATE)

    compiled = torch.compile(baselines.eager)
    contenders: dict[str, Callable[[], object]] = {
        "ours": ours,
        "eager": lambda: baselines.eager(logits, ids, embedding, mask, K),
        "torch.compile": lambda: compiled(logits, ids, embedding, mask, K),
        "bare read": lambda: baselines.bare_read(logits),
    }
    few = slice(0, 8)
    oracle = reference.soft_mask_embed(
        logits[:, few].double(), ids[:, few], embedding.double(), mask_token_id=mask, k=K, **baselines.GATE
    )
    for name in ("ours", "eager", "torch.compile"):
        found = contenders[name]()
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found[:, few].double(), oracle, rtol=0, atol=5e-5)
    seconds = rounds_of(contenders, rounds)
    case = f"forward float32, V={vocab}, d={WIDTH}, k={K}, {rows} masked rows"
    mine = seconds["ours"]
    gigabytes = logits.numel() * 4 / 1e9
    lines = [record(f"{case}: ours", mine * 1e3, "ms"), record(f"{case}: ours, logits read", gigabytes / mine, "GB/s")]
    for name, bar in (("eager", ">= 20"), ("torch.compile", ""), ("bare read", "")):
        ratio = mine / seconds[name] if name == "bare read" else seconds[name] / mine
        lines.append(record(f"{case}: {name}", seconds[name] * 1e3, "ms", against=name, ratio=ratio, bar=bar))
    return lines


def memory(rows: int, vocab: int) -> list[dict[str, Any]]:
    """Peak of the process during a call, beyond its result."""
    logits, embedding = torch.randn(1, rows, vocab), torch.randn(vocab, WIDTH)
    mask = vocab - 1
    ids = torch.full((1, rows), mask)
    lines = []
    for name, run, bar in (
        ("ours", lambda: soft_mask.soft_mask_embed(logits, ids, embedding, mask_token_id=mask, k=K, **baselines.GATE), True),
        ("eager", lambda: baselines.eager(logits, ids, embedding, mask, K), False),
    ):
        kept = [run()]  # results are kept, so that no call finds its memory in what the one before gave back
        size = kept[0].numel() * kept[0].element_size()
        beyond = statistics.median(_peak_beyond(run, size, kept) for _ in range(5))
        limit = f"<= {(2**20 + 64 * rows) / 2**20:.3f}" if bar else ""
        lines.append(record(f"memory beyond the result, {rows} masked rows: {name}", beyond / 2**20, "MiB", bar=limit))
    return lines


def _peak_beyond(run: Callable[[], torch.Tensor], result_bytes: int, kept: list[torch.Tensor]) -> int:
    """Linux: the high-water mark of resident memory is reset, and read after the call."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    kept.append(run())
    return max(_status("VmHWM") - before - result_bytes, 0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows and rounds: shows that it runs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, rounds = (64, 3) if options.quick else (512, 15)
    # Memory first: what compiling leaves behind would blur it.
    records = memory(rows, VOCAB) if Path("/proc/self/clear_refs").exists() else []
    records += forward(rows, VOCAB, rounds)
    for r in records:
        ratio = "" if r["ratio"] is None else f"   ratio {r['ratio']:.2f}"
        bar = f"   bar {r['bar']}: {'holds' if r['holds'] else 'FAILS'}" if r["bar"] else ""
        print(f"{r['name']:<76} {r['value']:10.3f} {r['unit']}{ratio}{bar}")
    if options.json:
        about = {"torch": torch.__version__, "threads": options.threads, "machine": platform.processor() or platform.machine()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        build = {name: value for name, value in soft_mask.build_info().items() if name != "library"}  # a path of this machine
        options.json.write_text(json.dumps({"about": {**about, "build": build}, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
