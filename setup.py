"""Builds soft_mask/libsoft_mask.so with CMake; everything else is in pyproject.toml.

Environment variables:
    SOFT_MASK_NATIVE     unset: build the operators where there is a C++ compiler; 0: never; 1: no compiler is an error
    SOFT_MASK_CUDA       auto (default): the CUDA kernels where there is an nvcc, with or without a GPU; 0: not; 1: or an error
    SOFT_MASK_DEV        1: also the emulated CUDA kernels and their Python module, for the tests (needs pybind11)
    TORCH_CUDA_ARCH_LIST what to compile them for, as "9.0" or "8.0;12.0+PTX" (default: 8.0 9.0 10.0 12.0+PTX)
    CUDACXX, CUDA_HOME   where nvcc is, if not on PATH
    SOFT_MASK_BUILD_DIR  a build folder that is kept, for quick rebuilds while working on csrc/ (default: a fresh one)
    CXX, CXXFLAGS, CMAKE_BUILD_PARALLEL_LEVEL  as CMake reads them
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "_build"))
from discover import OLDEST_NVCC, cuda_archs, find_nvcc, find_tool, find_torch  # noqa: E402

LIBRARY = "libsoft_mask.so"
DEVELOPMENT = ("libsoft_mask_emulated.so", "_emulation.*.so")


def choice(variable: str, *values: str) -> str:
    """The value of an environment variable; the first of `values` where it is unset or empty."""
    value = os.environ.get(variable) or values[0]
    if value not in values:
        raise SystemExit(f"soft_mask: {variable}={value!r}, expected one of {', '.join(values)}")
    return value


class Cuda(NamedTuple):
    nvcc: str
    archs: list[str]
    why_not: str  # "" where there is an nvcc


def cuda() -> Cuda:
    """What the CUDA kernels are compiled with, or why there are none; with SOFT_MASK_CUDA=1 every such reason is an error."""
    wanted = choice("SOFT_MASK_CUDA", "auto", "0", "1")
    if wanted == "0":
        return Cuda("", [], "Built with SOFT_MASK_CUDA=0: no CUDA kernels.")
    nvcc = find_nvcc()
    if nvcc is None:
        oldest = ".".join(map(str, OLDEST_NVCC))
        why = f"No CUDA kernels: there was no nvcc >= {oldest} (looked at CUDACXX, CUDA_HOME, PATH) when it was built."
        if wanted == "1":
            raise SystemExit(f"soft_mask: SOFT_MASK_CUDA=1 was asked for. {why} Use SOFT_MASK_CUDA=auto or 0.")
        return Cuda("", [], why)
    try:
        return Cuda(nvcc, cuda_archs(nvcc, os.environ.get("TORCH_CUDA_ARCH_LIST")), "")
    except ValueError as error:
        raise SystemExit(f"soft_mask: {error}.") from None


def why_no_library() -> str | None:
    """Why nothing is to be compiled, or None. A compiler that is there and fails is an error, later."""
    native = choice("SOFT_MASK_NATIVE", "auto", "0", "1")
    compiler = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    why = None
    if native == "0":
        why = "SOFT_MASK_NATIVE=0"
    elif not sys.platform.startswith("linux"):
        why = f"the operators are built on Linux only, this is {sys.platform}"
    elif not any(map(shutil.which, compiler)):
        why = f"there is no C++ compiler here ({', '.join(compiler)})"
    if why and native == "1":
        raise SystemExit(f"soft_mask: SOFT_MASK_NATIVE=1 was asked for, but {why}.")
    return why


def for_development() -> dict[str, str]:
    """CMake's settings for the emulated kernels."""
    try:
        import pybind11
    except ImportError:
        raise SystemExit("soft_mask: SOFT_MASK_DEV=1 needs pybind11: pip install pybind11") from None
    return {"SOFT_MASK_DEV": "ON", "pybind11_DIR": pybind11.get_cmake_dir(), "Python_EXECUTABLE": sys.executable}


class BuildWithCMake(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # No Python version in the name: the library knows nothing of Python.
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        torch, cmake, ninja = find_torch(), find_tool("cmake"), find_tool("ninja")
        if torch is None:
            raise SystemExit("soft_mask: building the operators needs torch >= 2.10: pip install torch")
        if cmake is None:
            raise SystemExit("soft_mask: building the operators needs cmake >= 3.18: pip install cmake ninja")
        print(f"soft_mask: building against torch {torch.version} in {torch.folder}", file=sys.stderr)
        # Fresh by default: a kept folder remembers the ninja of a build environment that is gone.
        folder = os.environ.get("SOFT_MASK_BUILD_DIR") or tempfile.mkdtemp(dir=BUILD)
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "TORCH_DIR": torch.folder.as_posix(),
            "TORCH_VERSION": torch.version,
            "SOFT_MASK_WHY": CUDA.why_not,
            "SOFT_MASK_CUDA_ARCHS": ";".join(CUDA.archs),
            **({"CMAKE_CUDA_COMPILER": CUDA.nvcc} if CUDA.nvcc else {}),
            **(for_development() if DEV else {}),
        }
        configure = [cmake, "-S", str(ROOT), "-B", folder, *(f"-D{name}={value}" for name, value in settings.items())]
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", folder, "--parallel", jobs], check=True)
        except subprocess.CalledProcessError:
            raise SystemExit(
                "soft_mask: compiling the operators failed; the compiler's words are above. "
                "SOFT_MASK_NATIVE=0 installs without them (the slower reference path in plain PyTorch runs then)."
            ) from None
        target = Path(self.get_ext_fullpath(ext.name)).parent
        target.mkdir(parents=True, exist_ok=True)
        put([Path(folder, LIBRARY), *development(Path(folder))], target)

    def copy_extensions_to_source(self) -> None:
        """Editable and in place: setuptools knows of the one library only."""
        super().copy_extensions_to_source()
        put(development(Path(self.build_lib, "soft_mask")), ROOT / "soft_mask")


def development(folder: Path) -> list[Path]:
    """The emulated kernels and their Python module, where they were built."""
    return [made for name in DEVELOPMENT for made in folder.glob(name)]


def put(files: list[Path], folder: Path) -> None:
    for file in files:  # beside it first: a library that is in use must not be written into
        new = folder / (file.name + ".new")
        shutil.copy(file, new)
        os.replace(new, folder / file.name)


class AnyPythonWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class Editable(editable_wheel):
    def run(self) -> None:
        if WHY_NO_LIBRARY:  # else the library of an earlier build would be loaded
            (ROOT / "soft_mask" / LIBRARY).unlink(missing_ok=True)
        if not DEV or WHY_NO_LIBRARY:
            for left in development(ROOT / "soft_mask"):
                left.unlink()
        super().run()


DEV = choice("SOFT_MASK_DEV", "0", "1") == "1"
WHY_NO_LIBRARY = why_no_library()
CUDA = cuda()
if WHY_NO_LIBRARY:
    print(f"soft_mask: installing without the compiled operators: {WHY_NO_LIBRARY}.", file=sys.stderr)

# Not ./build: what a former build left there (modules since removed) would go into the wheel.
BUILD = tempfile.mkdtemp(prefix="soft-mask-build-")
atexit.register(shutil.rmtree, BUILD, ignore_errors=True)

setup(
    license="Apache-2.0",
    ext_modules=[] if WHY_NO_LIBRARY else [Extension("soft_mask.libsoft_mask", sources=[])],
    cmdclass={"build_ext": BuildWithCMake, "bdist_wheel": AnyPythonWheel, "editable_wheel": Editable},
    options={"build": {"build_base": BUILD}},
)
