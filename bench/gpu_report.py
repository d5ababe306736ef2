"""``make gpu-report``: builds, checks and measures the CUDA kernels on a machine with a GPU and no network.

    python -m bench.gpu_report [--minutes 9] [--out DIR] [--wheel FILE | --no-build]     on a GPU
    python -m bench.gpu_report --rehearse                                  on the emulated GPU, at small sizes

Needs torch with CUDA, nvcc, cmake and ninja; nothing is downloaded. Every line is written as it is found, so that a run that
is stopped keeps what it has: DIR/gpu.csv with versions, gpu-checks.json, gpu.md, and gpu.png where matplotlib is there
(``python -m bench.gpu_plots DIR`` draws it later elsewhere).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("memcheck", "racecheck", "synccheck")


def build() -> None:
    """Compiles in place, offline: the library lands in soft_mask/ and nothing is installed."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=ROOT,
        check=True,
        env={**os.environ, "SOFT_MASK_CUDA": "1"},
    )


def take_from(wheel: Path) -> None:
    """The library of a wheel, in place: beside it first, as one that is in use must not be written into."""
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("soft_mask/libsoft_mask.so")
    new = ROOT / "soft_mask" / "libsoft_mask.so.new"
    new.write_bytes(library)
    new.replace(new.with_suffix(""))


def sanitize(deadline: float) -> list[dict[str, Any]]:
    """The small checks under compute-sanitizer's tools, as far as the time goes."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    found = []
    for name in SANITIZERS:
        left = deadline - time.monotonic()
        line: dict[str, Any] = {"check": f"compute-sanitizer {name}", "holds": None, "error": ""}
        if tool is None or left < 20:
            line["error"] = "not run: " + ("compute-sanitizer is not here" if tool is None else "no time left")
        else:
            command = [
                tool,
                "--tool",
                name,
                "--error-exitcode",
                "9",
                "--kernel-regex",
                "kns=soft_mask",
                sys.executable,
                "-m",
                "bench.gpu_checks",
                "--small",
            ]
            try:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=left)
                line["holds"] = done.returncode == 0
                line["error"] = "" if line["holds"] else done.stdout[-1500:] + done.stderr[-500:]
            except subprocess.TimeoutExpired:
                line["error"] = "not finished: no time left"
        print(f"{line['check']}: {line['holds']} {line['error']}", flush=True)
        found.append(line)
    return found


def about() -> dict[str, str]:
    import torch

    import soft_mask

    info = soft_mask.build_info()
    versions = {
        "soft_mask": info["version"],
        "cuda_archs": " ".join(info["cuda_archs"]),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if info["emulation"]:
        return {"device": "emulated (times say nothing of a GPU)", **versions}
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver.stdout.split("\n")[0],
        "cuda": str(torch.version.cuda),
        **versions,
    }


def write_records(records: Iterable[dict[str, Any]], file: Path, deadline: float) -> list[dict[str, Any]]:
    """Into the CSV line by line, with the versions in every line; what comes after the deadline is left out, and said."""
    versions, written = about(), []
    with file.open("w", newline="") as out:
        writer = None
        for line in records:
            if writer is None:
                writer = csv.DictWriter(out, [*line, *versions])
                writer.writeheader()
            writer.writerow({**line, **versions})
            out.flush()
            written.append(line)
            ratio = "" if line["ratio"] is None else f"  {line['ratio']:.2f} of {line['against']}"
            below = f"  BELOW THE BAR {line['bar']}" if line["holds"] is False else ""
            print(f"{line['name']}: {line['value']:.1f} {line['unit']}{ratio}{below}", flush=True)
            if time.monotonic() > deadline:
                print("-- the time is up: the rest is not measured", flush=True)
                break
    return written


def markdown(checks: list[dict[str, Any]], records: list[dict[str, Any]]) -> str:
    lines = [f"{name}: {value}  " for name, value in about().items()]
    failed = [line for line in checks if line["holds"] is False]
    lines += ["", f"Checks: {sum(line['holds'] is True for line in checks)} hold, {len(failed)} fail."]
    lines += [
        f"- {line['check']}: {line['error'].splitlines()[0] if line['error'] else ''}"
        for line in checks
        if line["holds"] is not True
    ]
    lines += ["", "| | value | against | ratio | bar | holds |", "|---|---|---|---|---|---|"]
    for r in records:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        holds = {True: "yes", False: "**no**", None: ""}[r["holds"]]
        lines.append(f"| {r['name']} | {r['value']:.1f} {r['unit']} | {r['against']} | {ratio} | {r['bar']} | {holds} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="the whole run, building included")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--wheel", type=Path, help="take the library of this wheel")
    parser.add_argument("--no-build", action="store_true", help="take the library that is there")
    parser.add_argument("--rehearse", action="store_true", help="on the emulated GPU, at small sizes")
    arguments = parser.parse_args()
    began = time.monotonic()
    deadline = began + 60 * arguments.minutes
    if arguments.rehearse:
        os.environ["SOFT_MASK_BACKEND"] = "emulated-cuda"
    else:
        os.environ["SOFT_MASK_BACKEND"] = "native"
        if arguments.wheel:
            take_from(arguments.wheel)
        elif not arguments.no_build:
            build()

    from bench import gpu_checks, gpu_measure
    from bench.gpu_measure import FULL, SMALL
    from bench.measure import without_bar

    if not arguments.rehearse:
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("no GPU here that torch can use; --rehearse runs on the emulated one")
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "gpu-rehearsal" if arguments.rehearse else "gpu"
    checks = gpu_checks.run(small=arguments.rehearse)
    if not arguments.rehearse:
        checks += sanitize(began + 60 * arguments.minutes * 0.5)
    (arguments.out / f"{name}-checks.json").write_text(json.dumps({"about": about(), "checks": checks}, indent=1) + "\n")

    plan = SMALL if arguments.rehearse else FULL
    clock, read = gpu_measure.Clock(plan.rounds), gpu_measure.ReadReduce()

    def everything() -> Iterable[dict[str, Any]]:
        yield from gpu_measure.decode_steps(clock)
        yield from gpu_measure.backward(plan, clock)
        yield from gpu_measure.forward(plan, clock, read)

    measured = everything()
    if arguments.rehearse:  # the emulation's time is held against no bar
        measured = (without_bar(line) for line in measured)
    records = write_records(measured, arguments.out / f"{name}.csv", deadline)
    (arguments.out / f"{name}.md").write_text(markdown(checks, records))
    try:
        from bench import gpu_plots

        gpu_plots.draw(arguments.out / f"{name}.csv", arguments.out / f"{name}.png")
    except ImportError:
        print("no matplotlib here: python -m bench.gpu_plots draws the picture from the CSV elsewhere")
    print(f"written: {arguments.out / name}.csv, .md and -checks.json, in {(time.monotonic() - began) / 60:.1f} minutes")
    return int(any(line["holds"] is False for line in checks))


if __name__ == "__main__":
    sys.exit(main())
