"""The PEP 517/660 build backend: setuptools' own, except that it asks only for what is not already there.

A plain ``requires = ["torch"]`` makes pip download a second torch into its isolated build environment, hundreds of
megabytes, often of another version. Our operators need only headers and libraries of any torch >= 2.10, so the one
of the environment is used where there is one; setup.py finds it by the same rules in every hook.
"""

from __future__ import annotations

from typing import Any

from discover import OLDEST_CMAKE, OLDEST_TORCH, find_tool, find_torch
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def missing() -> list[str]:
    """Requirements for what the build needs and this machine does not have."""
    wanted = []
    if find_torch() is None:
        wanted.append("torch>={}.{}".format(*OLDEST_TORCH))
    if find_tool("cmake") is None:
        wanted.append("cmake>={}.{}".format(*OLDEST_CMAKE))
    if find_tool("ninja") is None:
        wanted.append("ninja")
    return wanted


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + missing()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + missing()
