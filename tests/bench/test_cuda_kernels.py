"""What the compiler says of the CUDA kernels, and how it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cuda_kernels

# as ptxas 13.0 writes it
TOLD = """\
ptxas info    : Compiling entry function '_Z6kernelIfEv6Params' for 'sm_90'
ptxas info    : Function properties for _Z6kernelIfEv6Params
    48 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 48 bytes cumulative stack size, 19104 bytes smem
ptxas info    : Compiling entry function '_Z5otherv' for 'sm_90'
ptxas info    : Function properties for _Z5otherv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


def test_what_ptxas_says_is_read() -> None:
    assert cuda_kernels.USED.findall(TOLD) == [
        ("_Z6kernelIfEv6Params", "48", "8", "12", "64", "19104"),
        ("_Z5otherv", "0", "0", "0", "32", ""),
    ]


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "arch", "warps"),
    [
        (256, 64, 0, "90", 32),  # registers: 65,536 / 64 threads
        (256, 65, 0, "90", 24),  # 72 are handed out: 28 warps, 3 whole blocks
        (256, 32, 0, "120", 48),  # threads
        (256, 16, 30 * 1024, "120", 24),  # shared memory: 31 KiB of 100 a block
        (32, 16, 0, "120", 24),  # blocks
    ],
)
def test_resident_warps(threads: int, registers: int, shared: int, arch: str, warps: int) -> None:
    assert cuda_kernels.resident_warps(threads, registers, shared, cuda_kernels.MULTIPROCESSORS[arch]) == warps


def test_a_spill_or_local_memory_breaks_the_bar() -> None:
    line = {"kernel": "summarise_kernel<float, 1>", "spill_bytes": 0, "local_bytes": 0}
    many = {**line, "kernel": "summarise_kernel<float, 2>", "local_bytes": 8}  # k > 32 may
    spills, local, *_ = cuda_kernels.records([line, many])
    assert spills["holds"] and local["holds"]
    assert not cuda_kernels.records([{**line, "spill_bytes": 4}])[0]["holds"]
    assert not cuda_kernels.records([{**line, "local_bytes": 8}])[1]["holds"]


@pytest.mark.thorough
@pytest.mark.parametrize("arch", sorted(cuda_kernels.MULTIPROCESSORS))
def test_nothing_spills(arch: str, tmp_path: Path) -> None:
    nvcc = cuda_kernels.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc here")
    for source in sorted((cuda_kernels.ROOT / "csrc" / "cuda").glob("*.cu")):
        for line in cuda_kernels.compile_one(nvcc, source, arch, tmp_path):
            assert line["spill_bytes"] == 0 and (line["local_bytes"] == 0 or cuda_kernels.for_large_k(line["kernel"])), line
