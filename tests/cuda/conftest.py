from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from soft_mask import _native

# tests/test_emulated_cuda.py starts the process that collects them
collect_ignore_glob = [] if _native.backend() == "emulated-cuda" else ["test_*.py"]


@pytest.fixture
def emulation() -> Iterator[ModuleType]:
    """The emulated GPU, its counters at zero; as it was found afterwards."""
    from soft_mask import _emulation

    _emulation.reset_traffic()
    yield _emulation
    _emulation.reset_traffic()
