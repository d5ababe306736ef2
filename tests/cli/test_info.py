"""``soft-mask info`` and ``--version``."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

import soft_mask
from soft_mask.cli import run
from soft_mask.cli.info import in_words
from soft_mask.cli.main import app


def invoke(*arguments: str) -> str:
    ran = CliRunner().invoke(app, list(arguments))
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_version() -> None:
    assert invoke("--version") == f"soft-mask {soft_mask.__version__}\n"


def test_json_is_build_info() -> None:
    assert json.loads(invoke("info", "--json")) == soft_mask.build_info()


def test_words_are_of_build_info() -> None:
    assert invoke("info").rstrip("\n") == in_words(soft_mask.build_info())


NATIVE = {
    "version": "1.2.3",
    "backend": "native",
    "isa": "avx2",
    "isas_built": ["portable", "avx2"],
    "cuda_archs": ["80", "90"],
    "emulation": False,
    "torch": "2.14.1",
    "torch_built": "2.13.0+cpu",
    "compiler": "GNU 12.2.0",
    "build_type": "Release",
    "library": "/somewhere/libsoft_mask.so",
    "why": "",
}


def test_words_native() -> None:
    assert in_words(NATIVE).splitlines() == [
        "soft_mask 1.2.3",
        "  torch        2.14.1",
        "  backend      native: the compiled operators",
        "  CPU kernels  avx2 (the library holds: portable, avx2)",
        "  CUDA kernels sm_80, sm_90",
        "  built with   GNU 12.2.0, Release, torch 2.13.0+cpu",
        "  library      /somewhere/libsoft_mask.so",
    ]


def test_words_reference() -> None:
    found = {**dict.fromkeys(NATIVE), "version": "1.2.3", "backend": "reference", "torch": "2.14.1", "why": "Because."}
    assert in_words(found).splitlines() == [
        "soft_mask 1.2.3",
        "  torch        2.14.1",
        "  backend      reference: plain PyTorch, no compiled operators",
        "  not here     Because.",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["info", "--help"], ["demo", "--help"]])
def test_help_has_an_example(arguments: list[str]) -> None:
    assert "Example: soft-mask" in " ".join(invoke(*arguments).split())


def test_without_typer_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "soft_mask.cli.main")
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match="needs typer: pip install typer rich"):
        run()
