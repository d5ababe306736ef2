"""The build: what it finds, what it asks for, what it makes, and how it fails."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import soft_mask

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def discover(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "_build"))
    return importlib.import_module("discover")


@pytest.fixture
def backend(discover: ModuleType) -> ModuleType:
    return importlib.import_module("backend")


def fake_torch(folder: Path, version: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "version.py").write_text(f"__all__ = ['__version__']\n__version__ = '{version}'\n")
    return folder


def fake_tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


# --- what the build finds ---------------------------------------------------------------------------------------


def test_find_torch_takes_the_first_that_is_new_enough(discover: ModuleType, tmp_path: Path) -> None:
    empty, old = tmp_path / "empty", fake_torch(tmp_path / "old", "2.9.1")
    first, second = fake_torch(tmp_path / "first", "2.10.0+cu130"), fake_torch(tmp_path / "second", "2.13.0")
    assert discover.find_torch([empty, old, first, second]) == (first / "torch", "2.10.0+cu130")
    assert discover.find_torch([empty, old]) is None


def test_find_torch_looks_in_the_environment_of_an_isolated_build(
    discover: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip hides the packages from sys.path only; other front ends leave just VIRTUAL_ENV or CONDA_PREFIX."""
    prefix, conda = tmp_path / "prefix", tmp_path / "conda"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(discover.sysconfig, "get_path", lambda name: str(prefix / name))
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "absent"))
    monkeypatch.setenv("CONDA_PREFIX", str(conda))
    assert discover.find_torch() is None
    site = conda / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    fake_torch(site, "2.12.0")
    assert discover.find_torch() == (site / "torch", "2.12.0")
    fake_torch(prefix / "platlib", "2.11.0")
    assert discover.find_torch() == (prefix / "platlib" / "torch", "2.11.0")


def test_find_tool_passes_over_one_that_does_not_run(
    discover: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an isolated build the cmake on PATH may be a script whose Python package is hidden."""
    path, package = tmp_path / "path", tmp_path / "package"
    monkeypatch.setenv("PATH", str(path), prepend=os.pathsep)
    fake_tool(path, "cmake", "exit 1")
    monkeypatch.setitem(sys.modules, "cmake", None)
    assert discover.find_tool("cmake") is None
    fake_tool(package, "cmake", "echo cmake version 3.28.1")
    monkeypatch.setitem(sys.modules, "cmake", (module := ModuleType("cmake")))
    module.CMAKE_BIN_DIR = str(package)  # type: ignore[attr-defined]
    assert discover.find_tool("cmake") == str(package / "cmake")
    fake_tool(package, "cmake", "echo cmake version 3.17.9")  # too old
    assert discover.find_tool("cmake") is None


def test_find_nvcc_passes_over_one_that_is_too_old(
    discover: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    fake_tool(old, "nvcc", "echo Cuda compilation tools, release 11.8, V11.8.89")
    fake_tool(new, "nvcc", "echo Cuda compilation tools, release 13.0, V13.0.88")
    monkeypatch.setenv("CUDACXX", str(old / "nvcc"))
    monkeypatch.setenv("PATH", str(new), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert discover.find_nvcc() == str(new / "nvcc")
    monkeypatch.setattr(discover.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    assert discover.find_nvcc() is None


def test_cuda_archs(discover: ModuleType, tmp_path: Path) -> None:
    """All of a release that nvcc knows with PTX of the last, or what TORCH_CUDA_ARCH_LIST says in torch's spelling."""
    fake_tool(tmp_path, "nvcc", "for arch in 75 80 86 90 100 120; do echo compute_$arch; done")
    nvcc = str(tmp_path / "nvcc")
    assert discover.cuda_archs(nvcc, None) == ["80-real", "90-real", "100-real", "120"]
    assert discover.cuda_archs(nvcc, "8.0;9.0a+PTX 12.0") == ["80-real", "90a", "120-real"]
    fake_tool(tmp_path, "nvcc", "echo compute_75 compute_80 compute_90")
    assert discover.cuda_archs(nvcc, "") == ["80-real", "90"]
    with pytest.raises(ValueError, match="'ampere' is no compute capability"):
        discover.cuda_archs(nvcc, "ampere")


# --- what the backend asks pip for ------------------------------------------------------------------------------


def test_backend_has_every_hook(backend: ModuleType) -> None:
    for kind in ("wheel", "editable", "sdist"):
        assert callable(getattr(backend, f"build_{kind}"))
        assert callable(getattr(backend, f"get_requires_for_build_{kind}"))
    assert callable(backend.prepare_metadata_for_build_wheel)
    assert callable(backend.prepare_metadata_for_build_editable)


def test_backend_asks_for_nothing_that_is_there(backend: ModuleType) -> None:
    assert backend.missing() == []


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_backend_asks_for_what_is_absent(backend: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "find_torch", lambda: None)
    monkeypatch.setattr(backend, "find_tool", lambda name: None)
    monkeypatch.setattr(backend.build_meta, f"get_requires_for_build_{kind}", lambda settings: ["theirs"])
    hook = getattr(backend, f"get_requires_for_build_{kind}")
    assert hook() == ["theirs", "torch>=2.10", "cmake>=3.18", "ninja"]


def test_versions_agree() -> None:
    """The oldest torch: of the build, of the library, of the requirement, of the check at import."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert '"torch>=2.10"' in pyproject
    assert "TORCH_TARGET_VERSION=0x020a000000000000ULL" in (ROOT / "CMakeLists.txt").read_text()
    assert "OLDEST_TORCH = (2, 10)" in (ROOT / "_build" / "discover.py").read_text()
    assert soft_mask._native.OLDEST_TORCH == (2, 10)


# --- what the build makes ---------------------------------------------------------------------------------------


def sources(folder: Path) -> Path:
    """A copy of what a build reads, so that no test writes into the checkout."""
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("_build", "csrc", "soft_mask"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def pip(tree: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pip as on a machine without a network."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-build-isolation", "--no-deps", "--no-index", str(tree)]
    return subprocess.run(command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_wheel_serves_every_python_and_loads(tmp_path: Path) -> None:
    tree, made = sources(tmp_path / "tree"), tmp_path / "made"
    ran = pip(tree, "wheel", "-v", "-w", str(made), SOFT_MASK_NATIVE="1", SOFT_MASK_CUDA="0")
    assert ran.returncode == 0, ran.stdout[-8000:]
    assert not re.search(r"warning: .*\.(cpp|h):|\.(cpp|h):\d+:\d+: warning", ran.stdout), ran.stdout
    (wheel,) = made.iterdir()
    assert re.fullmatch(rf"soft_mask-{re.escape(soft_mask.__version__)}-py3-none-linux_\w+\.whl", wheel.name)

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("/METADATA"))).decode()
        archive.extractall(tmp_path / "unpacked")
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "soft_mask").rglob("*.py")}
    expected |= {"soft_mask/py.typed", "soft_mask/libsoft_mask.so"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("LICENSE") for name in names)
    assert "Requires-Dist: torch>=2.10" in metadata.replace("(", "").replace(")", "").replace("torch >", "torch>")
    assert re.search(r"^License(-Expression)?: Apache-2.0$", metadata, re.MULTILINE)

    # Nothing of the machine that built it: no search path for libraries, no folder in a message.
    library = (tmp_path / "unpacked" / "soft_mask" / "libsoft_mask.so").read_bytes()
    assert str(tree).encode() not in library

    code = "import json, soft_mask; print(json.dumps([soft_mask.__file__, soft_mask.build_info()]))"
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "unpacked"), "SOFT_MASK_BACKEND": "native"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    file, info = json.loads(ran.stdout)
    assert Path(file).is_relative_to(tmp_path / "unpacked")
    assert Path(info["library"]).is_relative_to(tmp_path / "unpacked")
    assert info["backend"] == "native" and info["version"] == soft_mask.__version__


@pytest.mark.parametrize("env", [{"SOFT_MASK_NATIVE": "0"}, {"CXX": "no-such-compiler"}], ids=["unwanted", "no-compiler"])
def test_wheel_without_library(env: dict[str, str], tmp_path: Path) -> None:
    tree, made = sources(tmp_path / "tree"), tmp_path / "made"
    (tree / "soft_mask" / "libsoft_mask.so").write_bytes(b"left by a former build")
    ran = pip(tree, "wheel", "-v", "-w", str(made), **env)
    assert ran.returncode == 0, ran.stdout[-8000:]
    assert "installing without the compiled operators" in ran.stdout
    (wheel,) = made.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not any(name.endswith(".so") for name in archive.namelist())


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"CXX": "false"}, "compiling the operators failed"),
        ({"SOFT_MASK_NATIVE": "1", "CXX": "no-such-compiler"}, "there is no C++ compiler here (no-such-compiler)"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0;fast"}, "'fast' is no compute capability"),
        ({"SOFT_MASK_CUDA": "yes"}, "SOFT_MASK_CUDA='yes', expected one of auto, 0, 1"),
    ],
)
def test_build_that_cannot_be_fails_in_words(env: dict[str, str], words: str, tmp_path: Path) -> None:
    ran = pip(sources(tmp_path / "tree"), "wheel", "-w", str(tmp_path / "made"), **env)
    assert ran.returncode != 0
    assert words in ran.stdout


@pytest.mark.thorough
def test_one_wheel_has_kernels_for_every_architecture(tmp_path: Path) -> None:
    """Compiled with nvcc against whatever torch is here, it loads under it, and in an environment with nothing but it."""
    if importlib.import_module("discover").find_nvcc() is None:
        pytest.skip("no nvcc here")
    made, env = tmp_path / "made", tmp_path / "env"
    ran = pip(sources(tmp_path / "tree"), "wheel", "-w", str(made), SOFT_MASK_CUDA="1", TORCH_CUDA_ARCH_LIST="")
    assert ran.returncode == 0, ran.stdout[-8000:]
    (wheel,) = made.iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    (site,) = env.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import soft_mask, json; print(json.dumps(soft_mask.build_info()))"
    (site / "torch.pth").write_text(str(Path(importlib.import_module("torch").__file__ or "").parents[1]))
    inner = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"SOFT_MASK_BACKEND": "native"}
    ran = subprocess.run([str(env / "bin" / "python"), "-c", code], cwd=tmp_path, env=inner, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    info = json.loads(ran.stdout)
    assert info["cuda_archs"] == ["80", "90", "100", "120", "120+PTX"] and info["why"] == ""
