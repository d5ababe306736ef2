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

from soft_mask.data import InstructionSource
from soft_mask.diffusion import OBJECTIVES
from soft_mask.models.adapters import AdapterSettings

__all__ = ["DataSettings", "InstructionSettings", "ModelSettings", "Recipe", "TrainingSettings", "read_recipe"]


@dataclass
class ModelSettings:
    """``load``: a folder, file or hub id to continue from; or ``config``: the sizes of a model made anew (MDLMConfig's fields).

    ``average``: of a Lightning checkpoint continue from the averaged weights; the paper's code continues from the raw ones.
    ``dtype`` of the weights: float32, bfloat16; as they were saved when null.
    """

    load: str | None = None
    average: bool = False
    config: dict[str, Any] | None = None
    dtype: str | None = None


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
class InstructionSettings:
    """Instructions and answers, instead of ``data``; the rows of all ``sources`` shuffled together by ``seed``.

    The first ``validation_rows`` are held out, the next ``rows`` (all when null) are trained on, once through the filters:
    not more than ``length`` tokens, answers of ``min_answer`` at least, none of ``drop_ids``. ``tokenizer``: the model's own
    when null. ``pad_*``: see InstructionCollator. ``cache``: where the tokens are kept.
    """

    sources: list[InstructionSource]
    rows: int | None = None
    validation_rows: int | None = None
    seed: int = 1
    tokenizer: str | None = None
    length: int = 2048
    min_answer: int = 5
    drop_ids: list[int] | None = None
    pad_extra: int = 50
    pad_multiple: int = 8
    pad_in_loss: bool = True
    cache: str = "data_cache"


@dataclass
class TrainingSettings:
    """``batch``: sequences of an update over all ranks; ``micro_batch``: of one forward pass on one rank.

    ``updates`` null: as many as ``epochs`` need. ``warmup_ratio``, where given, stands for ``warmup_updates``. Times are
    drawn in [``min_time``, ``max_time``]. ``keep_best``: save at the end what evaluated best.
    """

    updates: int | None = 1000
    epochs: float = 1.0
    loss: str = "mdlm"
    batch: int = 512
    micro_batch: int = 32
    learning_rate: float = 3e-4
    omega_learning_rate: float = 1e-2
    omega_constant: bool = False
    schedule: str = "constant_with_warmup"
    warmup_updates: int = 2500
    warmup_ratio: float | None = None
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    clip_omega: bool = False
    ema: float = 0.9999
    p_sm: float = 0.8
    min_time: float = 1e-3
    max_time: float = 1.0
    omega_only: bool = False
    bf16: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    seed: int = 1
    log_every: int = 100
    evaluate_every: int = 0
    evaluate_first: bool = False
    keep_best: bool = False
    save_every: int = 5000
    keep: int = 2
    tensorboard: bool = True
    cpu: bool = False


POSITIVE = {
    "updates", "batch", "micro_batch", "length", "k", "log_every", "save_every", "keep", "steepness", "temperature",
    "adam_eps", "validation_blocks", "epochs", "rows", "validation_rows", "min_answer", "pad_multiple",
}  # fmt: skip
NOT_NEGATIVE = {
    "learning_rate",
    "omega_learning_rate",
    "warmup_updates",
    "weight_decay",
    "clip",
    "seed",
    "evaluate_every",
    "pad_extra",
}
SHARES = {"p_sm", "scale"}
BELOW_ONE = {"adam_beta1", "adam_beta2", "ema", "warmup_ratio"}
KINDS = {str: "texts", int: "ints"}
SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass
class Recipe:
    """A whole run. ``soft_mask`` None is binary masking: no feedback, one pass. ``adapter`` None trains all weights.

    Raises:
        ValueError: settings that do not go together.
    """

    output: str
    model: ModelSettings
    data: DataSettings | None = None
    instructions: InstructionSettings | None = None
    adapter: AdapterSettings | None = None
    training: TrainingSettings = field(default_factory=TrainingSettings)
    soft_mask: GateSettings | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if (self.model.load is None) == (self.model.config is None):
            raise ValueError("model: give either load or config")
        if (self.data is None) == (self.instructions is None):
            raise ValueError("recipe: give either data or instructions")
        if self.data is not None:
            self._check_data(self.data)
        has_validation = bool(self.instructions and self.instructions.validation_rows) or bool(
            self.data and (self.data.validation_split or self.data.validation_files or self.data.validation_tokens)
        )
        if self.training.evaluate_every and not has_validation:
            names = "validation_split, validation_files or validation_tokens" if self.data else "validation_rows"
            raise ValueError(f"training.evaluate_every: {'data' if self.data else 'instructions'} names no {names}")
        self._check_training(self.training)

    def _check_data(self, data: DataSettings) -> None:
        sources = [name for name in ("hub", "files", "tokens") if getattr(data, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"data: give one of hub, files, tokens; got {' and '.join(sources) or 'none'}")
        if data.stream and data.tokens is not None:
            raise ValueError("data.stream: a token file is not streamed, it is memory-mapped")

    def _check_training(self, training: TrainingSettings) -> None:
        if training.omega_only and self.soft_mask is None:
            raise ValueError("training.omega_only: there is no soft_mask to train")
        if training.schedule not in SCHEDULES:
            raise ValueError(f"training.schedule must be one of {', '.join(SCHEDULES)}, got {training.schedule!r}")
        if training.loss not in OBJECTIVES:
            raise ValueError(f"training.loss must be one of {', '.join(OBJECTIVES)}, got {training.loss!r}")
        if not training.min_time < training.max_time <= 1.0:
            raise ValueError(f"training.max_time must lie in (min_time, 1], got {training.max_time}")
        if training.keep_best and (not training.evaluate_every or training.save_every % training.evaluate_every):
            raise ValueError("training.keep_best: save_every must be a multiple of evaluate_every, which must not be 0")
        if self.adapter is not None and (self.model.load is None or training.omega_only):
            raise ValueError("adapter: it needs model.load, and goes without training.omega_only")
        if self.model.dtype not in (None, "float32", "bfloat16"):
            raise ValueError(f"model.dtype must be float32 or bfloat16, got {self.model.dtype!r}")

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
        (item_kind,) = typing.get_args(kind)
        if dataclasses.is_dataclass(item_kind) and isinstance(value, list) and value:
            return [_build(item_kind, item, f"{where}[{number}]") for number, item in enumerate(value)]
        if not isinstance(value, list) or not value or not all(type(item) is item_kind for item in value):
            raise ValueError(f"{where}: expected a list of {KINDS.get(item_kind, 'mappings')}, got {value!r}")
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
