"""Registers, spills and occupancy of every CUDA kernel, as its compiler tells them: ``python -m bench.cuda_kernels``.

    python -m bench.cuda_kernels [--archs 80 90 100 120] [--json FILE] [--table FILE]

Needs nvcc and no GPU. A kernel may not spill at all, and may hold nothing in local memory, except those for k > 32.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_build"))
from discover import CUDA_ARCHS, find_nvcc  # noqa: E402

REGISTERS = 65_536  # of a multiprocessor, handed out to warps in steps of 256
WARP = 32


class Multiprocessor(NamedTuple):
    """What one holds at a time (CUDA C++ programming guide, technical specifications)."""

    threads: int
    blocks: int
    shared_bytes: int  # each block takes 1 KiB more than it asks for


MULTIPROCESSORS = {
    "80": Multiprocessor(2048, 32, 164 * 1024),
    "90": Multiprocessor(2048, 32, 228 * 1024),
    "100": Multiprocessor(2048, 32, 228 * 1024),
    "120": Multiprocessor(1536, 24, 100 * 1024),
}

ENTRY = re.compile(r"\.entry (\w+)\(.*?\)\s*\.maxntid (\d+)", re.DOTALL)
USED = re.compile(
    r"Compiling entry function '(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers(?:, used \d+ barriers)?(?:, \d+ bytes cumulative stack size)?(?:, (\d+) bytes smem)?",
    re.DOTALL,
)


def compile_one(nvcc: str, source: Path, arch: str, folder: Path) -> list[dict[str, Any]]:
    """A line for each kernel of ``source`` compiled for ``arch``, by way of its PTX, which has the threads of a block.

    Raises:
        SystemExit: the compiler fails, or says something else than is read here.
    """
    ptx = folder / f"{source.stem}-{arch}.ptx"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-arch=compute_{arch}", "-ptx", str(source), "-o", str(ptx)]
    run(nvcc, *flags)
    told = run(nvcc, "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", str(ptx), "-o", str(ptx.with_suffix(".cubin")))
    threads = {name: int(n) for name, n in ENTRY.findall(ptx.read_text())}
    lines = []
    for name, stack, stores, loads, registers, shared in USED.findall(told):
        lines.append(
            {
                "kernel": demangled(name),
                "arch": arch,
                "threads": threads[name],
                "registers": int(registers),
                "local_bytes": int(stack),
                "spill_bytes": int(stores) + int(loads),
                "shared_bytes": int(shared or 0),
                "warps": resident_warps(threads[name], int(registers), int(shared or 0), MULTIPROCESSORS[arch]),
                "occupancy": 0.0,
            }
        )
        lines[-1]["occupancy"] = lines[-1]["warps"] * WARP / MULTIPROCESSORS[arch].threads
    if len(lines) != len(threads):
        raise SystemExit(f"{source.name} for sm_{arch} has {len(threads)} kernels, but ptxas spoke of {len(lines)}:\n{told}")
    return lines


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:1])} failed:\n{done.stderr}")
    return done.stdout + done.stderr


def demangled(name: str) -> str:
    """``summarise_kernel<float, 1>`` of its name in the binary."""
    full = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    full = re.sub(r"soft_mask::(cuda::)?(\(anonymous namespace\)::)?", "", full)
    return re.sub(r"^void ", "", full).rsplit("(", 1)[0]


def resident_warps(threads: int, registers: int, shared: int, on: Multiprocessor) -> int:
    """Warps of this kernel that one multiprocessor runs at a time."""
    warps = threads // WARP
    by_registers = REGISTERS // (-(-registers * WARP // 256) * 256) // warps
    blocks = min(on.blocks, on.threads // threads, by_registers, on.shared_bytes // (shared + 1024))
    return blocks * warps


def for_large_k(kernel: str) -> bool:
    """Those that keep two entries a lane, for 32 < k <= 64."""
    return kernel.startswith("summarise_kernel<") and kernel.endswith(", 2>")


def records(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from bench.measure import record

    small = [line for line in lines if not for_large_k(line["kernel"])]
    return [
        record("spilled bytes, all kernels", sum(line["spill_bytes"] for line in lines), "bytes", bar="<= 0"),
        record("local memory, kernels for k <= 32", sum(line["local_bytes"] for line in small), "bytes", bar="<= 0"),
        record("kernels, over all architectures", len(lines), ""),
    ]


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: a row a kernel, for each architecture registers and the share of the threads that can be resident."""
    archs = list(dict.fromkeys(line["arch"] for line in lines))
    head = ["kernel", "threads", "shared bytes", "local bytes", *(f"sm_{arch}" for arch in archs)]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for kernel in sorted({line["kernel"] for line in lines}):
        own = {line["arch"]: line for line in lines if line["kernel"] == kernel}
        first = own[archs[0]]
        local = max(line["local_bytes"] + line["spill_bytes"] for line in own.values())
        cells = [f"{own[arch]['registers']}, {own[arch]['occupancy']:.0%}" for arch in archs]
        text.append(f"| `{kernel}` | {first['threads']} | {first['shared_bytes']} | {local} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=list(CUDA_ARCHS), choices=sorted(MULTIPROCESSORS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path, help="also as Markdown into this file")
    parser.add_argument("--quick", action="store_true", help="one architecture")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("no nvcc here (looked at CUDACXX, CUDA_HOME, PATH)")
    archs = ["90"] if arguments.quick else arguments.archs
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        jobs = [pool.submit(compile_one, nvcc, source, arch, Path(folder)) for source, arch in product(sources, archs)]
        lines = [line for job in jobs for line in job.result()]
    from bench import measure

    print(table(lines))
    found = records(lines)
    measure.report(found, None)
    release = re.search(r"release [\d.]+, V[\d.]+", run(nvcc, "--version"))
    about = {"nvcc": release[0] if release else "", "archs": archs}
    if arguments.json:
        arguments.json.write_text(json.dumps({"about": about, "records": found, "kernels": lines}, indent=1) + "\n")
    if arguments.table:
        arguments.table.write_text(f"nvcc {about['nvcc']}; registers a thread, share of the threads resident\n\n{table(lines)}")
    return int(any(line["holds"] is False for line in found))


if __name__ == "__main__":
    sys.exit(main())
