"""The operator tests once more, on the CUDA kernels as the emulated GPU runs them; and tests/cuda, which look closer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import soft_mask

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["forward", "backward", "bad_input", "logits_grad", "registration", "linear_feedback", "module"]
FILES = ["tests/cuda", *(f"tests/test_{name}.py" for name in TESTS)]

pytestmark = pytest.mark.skipif(soft_mask.build_info()["backend"] != "native", reason="starts processes of its own")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough)])
def test_operators(seed: int, request: pytest.FixtureRequest) -> None:
    """Seed 0: blocks and lanes in order; others: in random order, several blocks at a time."""
    environment = {**os.environ, "SOFT_MASK_BACKEND": "emulated-cuda", "SOFT_MASK_SEED": str(seed), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *FILES]
    if request.config.getoption("--all") and seed == 0:
        command.append("--all")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
