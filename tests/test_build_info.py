"""The choice of the backend, and what the package says of itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import soft_mask
from soft_mask import _native

native = pytest.mark.skipif(_native.backend() != "native", reason="SOFT_MASK_BACKEND asks for another backend")


def python(code: str, cwd: Path, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh process; an environment variable given as None is unset."""
    merged = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=merged, capture_output=True, text=True)


@native
def test_native_library_describes_itself() -> None:
    info = soft_mask.build_info()
    assert info["version"] == soft_mask.__version__
    assert info["torch"] == torch.__version__
    assert "portable" in info["isas_built"]
    assert info["isa"] in info["isas_built"]
    assert info["build_type"] == "Release"
    assert info["compiler"].split()[1][0].isdigit()
    assert Path(info["library"]).samefile(_native.LIBRARY)
    assert info["emulation"] is False
    assert all(re.fullmatch(r"\d+[af]?(\+PTX)?", arch) for arch in info["cuda_archs"])
    assert bool(info["cuda_archs"]) == (info["why"] == "")
    assert info["cuda_archs"] or "CUDA" in info["why"]
    assert json.loads(json.dumps(info)) == info


def test_build_info_is_a_new_dict() -> None:
    soft_mask.build_info().clear()
    assert soft_mask.build_info()["backend"] == _native.backend()


def test_absent_library_warns_once_and_gives_the_reference(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="not built.*To build them: pip install") as caught:
        chosen = _native.select(None, tmp_path / "libsoft_mask.so")
    assert len(caught) == 1
    assert chosen.backend == "reference" and chosen.library is None
    assert str(tmp_path) in chosen.why and torch.__version__ in chosen.why


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        ("native", RuntimeError, "SOFT_MASK_BACKEND=native was asked for.*not built.*pip install"),
        ("emulated-cuda", RuntimeError, "only a development build has it.*not built.*SOFT_MASK_DEV=1 pip install"),
        ("cuda", ValueError, "'cuda' is no backend; expected one of native, reference, emulated-cuda"),
    ],
)
def test_asking_for_what_is_not_there_is_an_error(wanted: str, error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        _native.select(wanted, tmp_path / "libsoft_mask.so", tmp_path / "libsoft_mask_emulated.so")


def test_asking_for_the_reference_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _native.select("reference").backend == "reference"


def test_damaged_library(tmp_path: Path) -> None:
    (damaged := tmp_path / "libsoft_mask.so").write_bytes(b"\x7fELF but no more")
    with pytest.raises(_native.NotLoaded, match="does not load under torch"):
        _native.load(damaged)


def test_torch_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (library := tmp_path / "libsoft_mask.so").touch()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(_native.NotLoaded, match=r"built for torch >= 2.10, here is torch 2.9.1\+cpu"):
        _native.load(library)


@native
def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "__version__", "99.0")
    with pytest.raises(_native.NotLoaded, match=f"built for soft_mask {soft_mask.__version__}, here is soft_mask 99.0"):
        _native.load(_native.LIBRARY)


CODE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import soft_mask, torch
    ids, table = torch.tensor([3, 1]), torch.arange(8.0).reshape(4, 2)
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]] * 2)
    for _ in range(2):
        out = soft_mask.soft_mask_embed(
            logits, ids, table, mask_token_id=3, k=1, ban=3, scale=1.0, steepness=0.0, centre=-1.0)
ours = [w for w in caught if "soft_mask" in str(w.message)]
print(soft_mask.build_info()["backend"], len(ours), out.tolist())
"""


def test_package_without_library_works_after_one_warning(tmp_path: Path) -> None:
    shutil.copytree(
        Path(soft_mask.__file__).parent, tmp_path / "soft_mask", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    ran = python(CODE, tmp_path, SOFT_MASK_BACKEND=None, PYTHONPATH=None)
    # half of E[mask] = (6, 7) and half of the best that is not banned, E[2] = (4, 5); the unmasked row is E[1]
    assert ran.stdout.split(maxsplit=2) == ["reference", "1", "[[5.0, 6.0], [2.0, 3.0]]\n"], ran.stderr

    ran = python("import soft_mask", tmp_path, SOFT_MASK_BACKEND="native", PYTHONPATH=None)
    assert ran.returncode != 0
    assert "RuntimeError: SOFT_MASK_BACKEND=native was asked for" in ran.stderr


@native
@pytest.mark.parametrize("isa", ["portable", "nonsense"])
def test_choosing_the_instruction_set(isa: str, tmp_path: Path) -> None:
    root = str(Path(soft_mask.__file__).parents[1])
    ran = python("import soft_mask; print(soft_mask.build_info()['isa'])", tmp_path, SOFT_MASK_CPU=isa, PYTHONPATH=root)
    if isa == "portable":
        assert ran.stdout == "portable\n", ran.stderr
    else:
        assert ran.returncode != 0 and "SOFT_MASK_CPU=nonsense" in ran.stderr


def test_import_needs_torch_alone(tmp_path: Path) -> None:
    others = ["transformers", "accelerate", "safetensors", "matplotlib", "rich", "typer"]
    code = f"import sys; sys.modules.update(dict.fromkeys({others})); import soft_mask; print(soft_mask.__version__)"
    ran = python(code, tmp_path, PYTHONPATH=str(Path(soft_mask.__file__).parents[1]))
    assert ran.stdout.strip() == soft_mask.__version__, ran.stderr
