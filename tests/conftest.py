"""What every test may rely on: the backend that was asked for runs, and where data files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop, with an error, where something else runs than is to be tested: by default the compiled operators."""
    wanted = os.environ.get("SOFT_MASK_BACKEND") or "native"
    from soft_mask import build_info

    found = build_info()
    if found["backend"] != wanted:
        pytest.exit(f"these tests are for SOFT_MASK_BACKEND={wanted}, but {found['backend']} runs: {found['why']}", 1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data files that are not in the repository; without it the test skips, saying where it looked."""
    folder = Path(os.environ.get("SOFT_MASK_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data files: {folder} is not a folder (SOFT_MASK_DATA names another)")
    return folder
