"""What every test may rely on: the backend that was asked for runs, and where data files are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also the thorough tests, which take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="thorough: make test-all runs it"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Stop, with an error, where something else runs than is to be tested: by default the compiled operators."""
    wanted = os.environ.get("SOFT_MASK_BACKEND") or "native"
    from soft_mask import build_info

    found = build_info()
    if found["backend"] != wanted:
        pytest.exit(f"these tests are for SOFT_MASK_BACKEND={wanted}, but {found['backend']} runs: {found['why']}", 1)
    if wanted == "emulated-cuda":
        from soft_mask import _emulation

        _emulation.set_seed(int(os.environ.get("SOFT_MASK_SEED", "0")))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data files that are not in the repository; without it the test skips, saying where it looked."""
    folder = Path(os.environ.get("SOFT_MASK_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data files: {folder} is not a folder (SOFT_MASK_DATA names another)")
    return folder
