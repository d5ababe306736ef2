"""Finds and loads the compiled operators, and says what this process runs.

The choice is made once, when soft_mask is imported, from the environment variable ``SOFT_MASK_BACKEND``:

- unset: the compiled operators where they load, else the reference path in plain PyTorch, with one warning;
- ``native``, ``reference``: that one, or an error which says what is missing;
- ``emulated-cuda``: the CUDA kernels, run on the CPU for tests, in development builds.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._version import __version__

LIBRARY = Path(__file__).with_name("libsoft_mask.so")
EMULATED = Path(__file__).with_name("libsoft_mask_emulated.so")  # development builds only
BACKENDS = ("native", "reference", "emulated-cuda")
OLDEST_TORCH = (2, 10)  # whose stable C++ interface the library is built for
CUDA_MOST_BEST = 64  # k: kMaxBest of csrc/cuda/traits.h
CUDA_MOST_BANS = 256  # likewise kMaxBans


class Selection(NamedTuple):
    backend: str
    library: Path | None  # the one that was loaded
    built: dict[str, Any]  # what the library says of itself
    why: str  # what is not here and what would add it; "" where nothing is


class NotLoaded(Exception):
    """Why the library cannot be used, in words."""


def load(library: Path) -> dict[str, Any]:
    """Load the operators into ``torch.ops.soft_mask``; returns what the library says of itself.

    Raises:
        NotLoaded: there is no library, it does not load here, or it is of another version of soft_mask.
    """
    here = f"torch {torch.__version__} on {platform.system()} {platform.machine()}"
    if not library.is_file():
        raise NotLoaded(f"they were not built: there is no {library} (here is {here}).")
    oldest = ".".join(map(str, OLDEST_TORCH))
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < OLDEST_TORCH:
        raise NotLoaded(f"{library} was built for torch >= {oldest}, here is {here}.")
    try:
        torch.ops.load_library(str(library))
        built: dict[str, Any] = json.loads(torch.ops.soft_mask.build_info())
    except (OSError, AttributeError, ValueError) as error:
        raise NotLoaded(f"{library}, built for torch >= {oldest}, does not load under {here}: {error}.") from error
    if built["version"] != __version__:
        raise NotLoaded(f"{library} was built for soft_mask {built['version']}, here is soft_mask {__version__}.")
    return built


def how_to_build() -> str:
    """The command that builds the operators, from where this package lies."""
    root = Path(__file__).resolve().parents[1]
    if (root / "CMakeLists.txt").is_file():
        return f"pip install --no-deps -e {root} (with a C++17 compiler)"
    return "pip install --force-reinstall --no-deps . (in a checkout of soft_mask, with a C++17 compiler)"


def select(wanted: str | None, library: Path = LIBRARY, emulated: Path = EMULATED) -> Selection:
    """Choose the backend; ``wanted`` is the value of ``SOFT_MASK_BACKEND``, None or empty where it is unset.

    Raises:
        ValueError: not the name of a backend.
        RuntimeError: the backend that was asked for is not there.
    """
    if wanted and wanted not in BACKENDS:
        raise ValueError(f"SOFT_MASK_BACKEND={wanted!r} is no backend; expected one of {', '.join(BACKENDS)}.")
    if wanted == "emulated-cuda":
        try:
            return Selection("emulated-cuda", emulated, load(emulated), "")
        except NotLoaded as error:
            raise RuntimeError(
                f"SOFT_MASK_BACKEND=emulated-cuda was asked for, but only a development build has it: {error} "
                f"To build it: SOFT_MASK_DEV=1 {how_to_build()}, with pybind11"
            ) from None
    if wanted == "reference":
        return Selection("reference", None, {}, "SOFT_MASK_BACKEND=reference was asked for.")
    try:
        built = load(library)
    except NotLoaded as error:
        why = f"{error} To build them: {how_to_build()}"
        if wanted == "native":
            raise RuntimeError(f"SOFT_MASK_BACKEND=native was asked for, but it is not usable: {why}") from None
        warnings.warn(
            "soft_mask runs its reference path in plain PyTorch, slower and with more memory, because the compiled "
            f"operators are not usable: {why}\nSOFT_MASK_BACKEND=reference asks for this path, and is not warned of.",
            RuntimeWarning,
            stacklevel=2,
        )
        return Selection("reference", None, {}, f"The compiled operators are not usable: {why}")
    return Selection("native", library, built, str(built["why"]))


# At import, not at the first call: torch.compile then sees a constant, and torch.ops.soft_mask.* is there at once.
_selection = select(os.environ.get("SOFT_MASK_BACKEND"))


def backend() -> str:
    """What this process runs: ``"native"``, ``"reference"`` or ``"emulated-cuda"``."""
    return _selection.backend


def serves(*tensors: torch.Tensor, k: int = 1, bans: int = 0) -> bool:
    """Whether the compiled operators take these; else the reference path in plain PyTorch does.

    On the CPU they take everything. On a GPU float64, k > 64 and more than 256 banned ids go the plain way, and so does all
    of it where the library has no CUDA kernels, with one warning.
    """
    if _selection.backend == "reference":
        return False
    device = tensors[0].device.type
    if device in ("cpu", "meta") and _selection.backend == "native":
        return True
    if device == "cuda" and not _selection.built.get("cuda_archs"):
        _warn_of_no_kernels()
        return False
    fits = k <= CUDA_MOST_BEST and bans <= CUDA_MOST_BANS and all(x.dtype != torch.float64 for x in tensors)
    return fits and device == ("cpu" if _selection.backend == "emulated-cuda" else "cuda")


@cache
def _warn_of_no_kernels() -> None:
    warnings.warn(
        "soft_mask runs its reference path in plain PyTorch on this GPU, slower and with more memory, because the library "
        f"has no CUDA kernels: {_selection.why} To build them: {how_to_build()}, with nvcc",
        RuntimeWarning,
        stacklevel=3,
    )


def build_info() -> dict[str, Any]:
    """What runs in this process, how it was built, and what is missing.

    Returns:
        A new dict of JSON types: ``version`` of soft_mask; ``backend`` (``native``: the compiled operators;
        ``reference``: plain PyTorch); ``isa`` (the instruction set of the kernels that this processor gets, None on the
        reference path) and ``isas_built``; ``cuda_archs`` (compute capabilities with a kernel inside; ``"120+PTX"``
        is compiled for newer ones when it is loaded; they need an NVIDIA driver >= 580);
        ``emulation`` (whether the CUDA kernels run on the CPU, for tests); ``torch`` (running) and ``torch_built``
        (built against; any torch from 2.10 on will do); ``compiler``; ``build_type``; ``library`` (its path); and
        ``why``: what is absent and what would add it, in words, empty where nothing is.
    """
    built = _selection.built
    return {
        "version": __version__,
        "backend": _selection.backend,
        "isa": built.get("isa"),
        "isas_built": built.get("isas_built", "").split(),
        "cuda_archs": built.get("cuda_archs", "").split(),
        "emulation": built.get("emulation", False),
        "torch": torch.__version__,
        "torch_built": built.get("torch_built"),
        "compiler": built.get("compiler"),
        "build_type": built.get("build_type"),
        "library": None if _selection.library is None else str(_selection.library),
        "why": _selection.why,
    }
