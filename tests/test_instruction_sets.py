"""Every instruction set that this machine has gives the right numbers, and the same ids as the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import soft_mask

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["tests/test_forward.py", "tests/test_backward.py", "tests/test_logits_grad.py"]
RUN = """
import json, torch, soft_mask
from tests.operator_cases import case
found = {}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    logits = case(batch=4, length=8, vocab=50258, width=1, logits_dtype=dtype).logits
    for k in (3, 64):
        fb = soft_mask.feedback(logits, k)
        found[f"{dtype} {k}"] = [fb.ids.tolist(), fb.neg_entropy.tolist(), fb.logsumexp.tolist()]
print(json.dumps({"isa": soft_mask.build_info()["isa"], "found": found}))
"""


def runs_here(isa: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return isa == "portable" or {"avx2": " avx2 ", "avx512": " avx512dq "}[isa] in flags


def process(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SOFT_MASK_CPU": isa, "SOFT_MASK_BACKEND": "native", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


native = pytest.mark.skipif(soft_mask.build_info()["backend"] != "native", reason="instruction sets are the native library's")


@native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_operators(isa: str) -> None:
    if not runs_here(isa):
        pytest.skip(f"this machine has no {isa}")
    if isa == soft_mask.build_info()["isa"]:
        pytest.skip(f"{isa} is what all the other tests run on")
    done = process(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS)
    assert done.returncode == 0, done.stdout[-3000:]


@native
def test_same_ids_and_close_numbers() -> None:
    found = []
    for isa in ("portable", "avx2", "avx512"):
        if runs_here(isa):
            done = process(isa, "-c", RUN)
            assert done.returncode == 0, done.stderr[-2000:]
            result = json.loads(done.stdout)
            assert result["isa"] == isa
            found.append(result["found"])
    for other in found[1:]:
        for name, (ids, *numbers) in other.items():
            assert ids == found[0][name][0], name
            for mine, first in zip(numbers, found[0][name][1:], strict=True):
                for a, b in zip(mine, first, strict=True):
                    assert a == pytest.approx(b, abs=5e-6), name


@native
def test_one_that_is_not_there() -> None:
    done = process("sse9", "-c", "import torch, soft_mask; soft_mask.feedback(torch.zeros(1, 4))")
    assert done.returncode != 0 and "SOFT_MASK_CPU=sse9" in done.stderr
