"""A training run as a YAML file, read strictly: every setting is named, has one type and a range."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["DataSettings", "ModelSettings", "Recipe", "TrainingSettings", "read_recipe"]


@dataclass
class ModelSettings:
    """``load``: a folder, file or hub id to continue from; or ``config``: the sizes of a model made anew (MDLMConfig's fields).

    ``average``: of a Lightning checkpoint continue from the averaged weights; the paper's code continues from the raw ones.
    """

    load: str | None = None
    average: bool = False
    config: dict[str, Any] | None = None


@dataclass
class GateSettings:
    """Where omega starts, and k; see SoftMaskConfig."""

    k: int = 3
    scale: float = 0.0
    steepness: float = 6.66
    centre: float = -0.75
    temperature: float = 1.0


@dataclass
class DataSettings:
    """One of ``hub``, ``files``, ``tokens``; a relative path is that of the working directory.

    ``stream``: tokenise while training, nothing is written; otherwise the texts are packed once, into ``cache``.
    """

    hub: str | None = None
    hub_name: str | None = None
    split: str = "train"
    validation_split: str | None = None
    files: list[str] | None = None
    validation_files: list[str] | None = None
    whole_files: bool = False
    field: str = "text"
    tokens: str | None = None
    validation_tokens: str | None = None
    token_type: str | None = None
    tokenizer: str = "gpt2"
    length: int = 1024
    stream: bool = False
    cache: str = "data_cache"
    validation_blocks: int | None = None


@dataclass
class TrainingSettings:
    """``batch``: sequences of an update over all ranks; ``micro_batch``: of one forward pass on one rank."""

    updates: int = 1000
    batch: int = 512
    micro_batch: int = 32
    learning_rate: float = 3e-4
    omega_learning_rate: float = 1e-2
    omega_constant: bool = False
    schedule: str = "constant_with_warmup"
    warmup_updates: int = 2500
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    clip_omega: bool = False
    ema: float = 0.9999
    p_sm: float = 0.8
    min_time: float = 1e-3
    omega_only: bool = False
    bf16: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    seed: int = 1
    log_every: int = 100
    evaluate_every: int = 0
    save_every: int = 5000
    keep: int = 2
    tensorboard: bool = True
    cpu: bool = False


POSITIVE = {
    "updates", "batch", "micro_batch", "length", "k", "log_every", "save_every", "keep", "steepness", "temperature",
    "adam_eps", "validation_blocks",
}  # fmt: skip
NOT_NEGATIVE = {"learning_rate", "omega_learning_rate", "warmup_updates", "weight_decay", "clip", "seed", "evaluate_every"}
SHARES = {"p_sm", "scale"}
BELOW_ONE = {"adam_beta1", "adam_beta2", "ema"}
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass
class Recipe:
    """A whole run. ``soft_mask`` None is binary masking: no feedback, one pass.

    Raises:
        ValueError: settings that do not go together.
    """

    output: str
    model: ModelSettings
    data: DataSettings
    training: TrainingSettings = field(default_factory=TrainingSettings)
    soft_mask: GateSettings | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if (self.model.load is None) == (self.model.config is None):
            raise ValueError("model: give either load or config")
        sources = [name for name in ("hub", "files", "tokens") if getattr(self.data, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"data: give one of hub, files, tokens; got {' and '.join(sources) or 'none'}")
        if self.data.stream and self.data.tokens is not None:
            raise ValueError("data.stream: a token file is not streamed, it is memory-mapped")
        if self.training.omega_only and self.soft_mask is None:
            raise ValueError("training.omega_only: there is no soft_mask to train")
        if self.training.schedule not in SCHEDULES:
            raise ValueError(f"training.schedule must be one of {', '.join(SCHEDULES)}, got {self.training.schedule!r}")
        has_validation = any((self.data.validation_split, self.data.validation_files, self.data.validation_tokens))
        if self.training.evaluate_every and not has_validation:
            raise ValueError("training.evaluate_every: data names no validation_split, validation_files or validation_tokens")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``extends: other.yaml`` (beside it) is read first, ``overrides`` such as ``training.seed=2`` last.

    A mapping adds to the one it extends; anything else replaces it.

    Raises:
        ValueError: the file cannot be read or is not YAML; a setting is unknown, of the wrong type or out of its range, or
            missing; an override is not ``name=value``.
    """
    values = _read(path, ())
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise ValueError(f"override {override!r}: expected name=value, for example training.seed=2")
        at, parts = values, name.split(".")
        for part in parts[:-1]:
            at[part] = dict(at[part]) if isinstance(at.get(part), dict) else {}
            at = at[part]
        at[parts[-1]] = _yaml(text, f"override {override!r}")
    return _build(Recipe, values, "")


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from None


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the recipe {path}: {error}") from None
    values = _yaml(text, str(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of names to values, got {type(values).__name__}")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: extends must name one file, got {base!r}")
    if path.resolve() in seen:
        raise ValueError(f"{path}: extends goes round in a circle")
    return _merge(_read(path.parent / base, (*seen, path.resolve())), values)


def _merge(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'recipe'}: expected a mapping, got {values!r}")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if unknown := [str(name) for name in values if name not in fields]:
        raise ValueError(f"{where or 'recipe'}: unknown setting {', '.join(unknown)}; known: {', '.join(fields)}")
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where or 'recipe'}: {name} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}".lstrip("."), name) for name, value in values.items()})


def _value(hint: Any, value: Any, where: str, name: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(k for k in kinds if k is not type(None))
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if typing.get_origin(kind) is list:
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{where}: expected a list of texts, got {value!r}")
        return value
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return value
    if kind is float and isinstance(value, str):  # YAML reads 3e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}")
    return _in_range(value, where, name)


def _in_range(value: Any, where: str, name: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value}")
    if name in POSITIVE and value <= 0:
        raise ValueError(f"{where} must be above 0, got {value}")
    if name in NOT_NEGATIVE and value < 0:
        raise ValueError(f"{where} must not be negative, got {value}")
    if name in SHARES and not 0 <= value <= 1:
        raise ValueError(f"{where} must lie in [0, 1], got {value}")
    if name in BELOW_ONE and not 0 <= value < 1:
        raise ValueError(f"{where} must lie in [0, 1), got {value}")
    if name == "min_time" and not 0 < value < 1:
        raise ValueError(f"{where} must lie in (0, 1), got {value}")
    if name == "centre" and value >= 0:
        raise ValueError(f"{where} must be negative, got {value}")
    return value
