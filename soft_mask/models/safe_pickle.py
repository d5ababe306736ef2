"""Reading ``torch.save`` files without running them: tensors come out, everything else becomes an inert stand-in.

A pickle is a program, and Lightning's checkpoints name classes of many packages (omegaconf, tokenizers). This reader knows
three things: ordered dicts, storages and the functions that make tensors of them. Every other name, whatever it is, becomes
a :class:`Placeholder`, which remembers what it was given and does nothing. Nothing is imported because a file asks for it.
"""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LazyTensor", "Placeholder", "TorchFile", "plain"]

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Placeholder:
    """Stands where a file named something this reader does not know. Holds data, runs nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **_: Any) -> Placeholder:
        made = object.__new__(cls)
        made.args = args
        return made

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> Placeholder:
        return Placeholder()

    def __hash__(self) -> int:
        return id(self)


def plain(value: Any) -> Any:
    """A value out of omegaconf's nodes, as far as they can be told without omegaconf: dicts, lists and their leaves."""
    if isinstance(value, Placeholder) and isinstance(value.state, dict):
        if "_val" in value.state:
            return value.state["_val"]
        value = value.state.get("_content")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, Placeholder) else value


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor still in its file; :meth:`TorchFile.tensor` reads it (so optimizer states cost nothing)."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchFile:
    """A file of ``torch.save`` (the zip format, torch 1.6 and later): its object tree, with tensors read on demand.

    Attributes:
        content: the object, with :class:`LazyTensor` for tensors and :class:`Placeholder` for what is not known.

    Raises:
        ValueError: truncated, damaged, or not of this format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._zip = zipfile.ZipFile(self.path)
            names = [name for name in self._zip.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(names) != 1:
                raise ValueError(f"{self.path!r} is a zip file, but none of torch.save (no data.pkl in it)")
            self._root = names[0].removesuffix("data.pkl")
            order = self._root + "byteorder"
            if order in self._zip.namelist() and self._zip.read(order) != b"little":
                raise ValueError(f"{self.path!r} was written on a big-endian machine, which is not read")
            self._check_stored(names[0])
            with self._zip.open(names[0]) as stream:
                self.content = self._read(stream)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{self.path!r} is not a whole file of torch.save: {error} (cut off, damaged, or written before torch 1.6)"
            ) from None

    def _check_stored(self, entry: str) -> None:
        """torch.save never compresses, and what is compressed can be a thousand times as large as its file."""
        if self._zip.getinfo(entry).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{self.path!r} is a zip file, but none of torch.save ({entry} in it is compressed)")

    def _read(self, stream: Any) -> Any:
        try:
            return _Reader(stream).load()
        except zipfile.BadZipFile:
            raise
        except Exception as error:  # whatever a broken pickle makes the unpickler raise
            raise ValueError(f"the pickle in {self.path!r} is broken or refused: {type(error).__name__}: {error}") from None

    def tensor(self, lazy: LazyTensor, name: str) -> Tensor:
        """Read one tensor, contiguous, on the CPU. ValueError: its bytes are not all there."""
        entry = f"{self._root}data/{lazy.storage.key}"
        try:
            self._check_stored(entry)
            data = self._zip.read(entry)
        except (KeyError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(f"{name!r} in {self.path!r} cannot be read: {error}") from None
        dtype = lazy.storage.dtype
        if len(data) != lazy.storage.numel * dtype.itemsize:
            raise ValueError(f"{name!r} in {self.path!r}: {len(data)} bytes, not {lazy.storage.numel} numbers of {dtype}")
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        try:
            return torch.as_strided(flat, lazy.shape, lazy.stride, lazy.offset).clone(memory_format=torch.contiguous_format)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{name!r} in {self.path!r} does not fit its storage: {error}") from None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers) or len(size) != len(stride):
        raise ValueError("a tensor is not made of a storage, an offset, a shape and a stride")
    if math.prod(size) > storage.numel:  # an expanded tensor may be any size: a small file must not fill the memory
        raise ValueError(f"a tensor of shape {list(size)} is larger than its storage of {storage.numel}")
    return LazyTensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered(*items: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*items)


class _Sealed:
    """A function that a pickle may call but not write to (pickle's BUILD sets attributes of whatever it is given)."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a pickle that changes what rebuilds its tensors")


_KNOWN = {
    ("collections", "OrderedDict"): _Sealed(_ordered),
    ("torch._utils", "_rebuild_tensor_v2"): _Sealed(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Sealed(_parameter),
}


class _Reader(pickle.Unpickler):
    """Looks names up in a table; getattr and import are never reached."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return type("Placeholder", (Placeholder,), {"named": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise ValueError("a persistent id that is no storage")
        _, dtype, key, _, numel = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise ValueError(f"a storage of a kind that is not read: {getattr(dtype, 'named', dtype)}")
        return _Storage(key, dtype, numel)
