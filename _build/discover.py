"""What the build needs and where it is: torch (its headers and libraries), cmake, ninja, nvcc.

Used by backend.py, which asks pip for what is absent, and by setup.py, which uses what is there.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

OLDEST_TORCH = (2, 10)  # the first whose stable interface has all that csrc/torch uses
OLDEST_CMAKE = (3, 18)
OLDEST_NVCC = (12, 0)
CUDA_ARCHS = ("80", "90", "100", "120")  # what a release has kernels for, as far as the nvcc at hand knows them


class Torch(NamedTuple):
    folder: Path  # the package itself: include/ and lib/ are in it
    version: str  # "2.13.0+cpu"


def numbers(text: str) -> tuple[int, ...]:
    """``"cmake version 3.25.1"`` and ``"3.25.1"`` to ``(3, 25, 1)``."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def torch_folders() -> Iterator[Path]:
    """Where a torch may lie, nearest first.

    pip's isolated build hides the environment's packages from ``sys.path`` but leaves the prefix as it is; other front
    ends have a prefix of their own and leave ``VIRTUAL_ENV``. Only headers and libraries are wanted: no import.
    """
    for entry in sys.path:
        yield Path(entry)
    for name in ("purelib", "platlib"):
        yield Path(sysconfig.get_path(name))
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if prefix := os.environ.get(variable):
            yield Path(prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")


def find_torch(folders: Iterable[Path] | None = None) -> Torch | None:
    """The first torch that is new enough, without importing it."""
    for folder in torch_folders() if folders is None else folders:
        try:
            text = (folder / "torch" / "version.py").read_text()
        except OSError:
            continue
        found = re.search(r"__version__ = ['\"](.+?)['\"]", text)
        if found and numbers(found[1]) >= OLDEST_TORCH:
            return Torch(folder / "torch", found[1])
    return None


def find_tool(name: str) -> str | None:
    """``cmake`` or ``ninja`` that really runs: from PATH, else from the Python package of that name.

    In an isolated build the environment's cmake is still on PATH, but it is a Python script whose package is hidden.
    """
    candidates = [shutil.which(name)]
    try:
        package = importlib.import_module(name)
        candidates.append(shutil.which(name, path=getattr(package, "CMAKE_BIN_DIR", None) or package.BIN_DIR))
    except (ImportError, AttributeError):
        pass
    for candidate in filter(None, candidates):
        try:
            answer = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        if answer.returncode == 0 and (name != "cmake" or numbers(answer.stdout) >= OLDEST_CMAKE):
            return candidate
    return None


def find_nvcc() -> str | None:
    """An nvcc that runs and is new enough: CUDACXX, CUDA_HOME, PATH, the usual place. It may be a wrapper script."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for candidate in filter(None, candidates):
        try:
            answer = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        except OSError:
            continue
        release = re.search(r"release ([\d.]+)", answer.stdout)
        if answer.returncode == 0 and release and numbers(release[1]) >= OLDEST_NVCC:
            return candidate
    return None


def cuda_archs(nvcc: str, wanted: str | None) -> list[str]:
    """CMake's names of the architectures to compile for: those of ``TORCH_CUDA_ARCH_LIST`` where it is set (``wanted``, as
    ``"8.0;9.0+PTX"``), else all of a release that this nvcc knows, and PTX of the last for GPUs to come.

    Raises:
        ValueError: a name that is no architecture.
    """
    if wanted:
        names = []
        for entry in re.split(r"[;,\s]+", wanted.strip()):
            found = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX)?", entry)
            if not found:
                raise ValueError(f"TORCH_CUDA_ARCH_LIST={wanted!r}: {entry!r} is no compute capability such as 9.0 or 12.0+PTX")
            arch = found[1] + found[2] + found[3]
            names.append(arch if found[4] else f"{arch}-real")
        return names
    answer = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = set(re.findall(r"compute_(\d+)", answer.stdout))
    archs = [arch for arch in CUDA_ARCHS if arch in known]
    return [f"{arch}-real" for arch in archs[:-1]] + archs[-1:]
