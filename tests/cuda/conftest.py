from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from soft_mask import _native


@pytest.fixture
def emulation() -> Iterator[ModuleType]:
    """The emulated GPU, its counters at zero; as it was found afterwards."""
    if _native.backend() != "emulated-cuda":
        pytest.skip("for SOFT_MASK_BACKEND=emulated-cuda: tests/test_emulated_cuda.py runs it so")
    from soft_mask import _emulation

    _emulation.reset_traffic()
    yield _emulation
    _emulation.reset_traffic()
