"""Adapters (LoRA, DoRA) of a hosted model by ``peft``: added, written, read and merged, in the layout of the reference.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` as ``peft`` writes them, under the names of the
published model (``base_model.model.model.layers...``), so that plain ``peft`` reads ours and we read those of the paper's
code; and beside them the soft mask, in full precision and as the reference's ``transparency_config.json``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from soft_mask.models.checkpoint import read_object, read_safetensors
from soft_mask.models.soft_mask_files import TRANSPARENCY, write_transparency
from soft_mask.module import SoftMask

__all__ = [
    "ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "AdapterSettings", "adapter_state", "add_adapter", "has_adapter", "load_adapter",
    "merge_adapter", "read_adapter_config", "save_adapter",
]  # fmt: skip

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HELD = "_peft"  # where a model keeps peft's wrapper: outside of its modules, which would list the host twice


@dataclass
class AdapterSettings:
    """DoRA on the attention's projections, as the paper fine-tunes Dream; ``dora=False`` is LoRA.

    Raises:
        ValueError: a number is out of its range, or there are no targets.
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    dora: bool = True
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise ValueError(f"adapter: r and alpha must be at least 1, got {self.r} and {self.alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"adapter: dropout must lie in [0, 1), got {self.dropout}")
        if not self.targets:
            raise ValueError("adapter: targets must name at least one kind of layer")


def add_adapter(model: Any, settings: AdapterSettings | None = None, base: str | None = None) -> None:
    """Freeze the model and put a trainable adapter (float32) into its host.

    Args:
        model: hosted, such as ``Dream``.
        base: the folder or hub id of the model, written into ``adapter_config.json``.

    Raises:
        TypeError: the model has no host. ValueError: it has an adapter, or no such layers. ImportError: no ``peft``.
    """
    peft, s = _peft(model), settings or AdapterSettings()
    config = peft.LoraConfig(
        r=s.r, lora_alpha=s.alpha, lora_dropout=s.dropout, use_dora=s.dora, target_modules=s.targets, bias="none",
        task_type="CAUSAL_LM", base_model_name_or_path=base,
    )  # fmt: skip
    _wrap(model, config)


def load_adapter(model: Any, path_or_hub_id: str | os.PathLike[str], *, trainable: bool = False) -> None:
    """Put the adapter of a folder or hub id, written by this package, by ``peft`` or by the reference, into the model.

    Raises:
        FileNotFoundError: a file is missing. ValueError: the files are broken, or the adapter is of another model.
        TypeError, ImportError: as :func:`add_adapter`.
    """
    from soft_mask.models.load import local_folder

    peft = _peft(model)
    folder = Path(local_folder(path_or_hub_id))
    values = read_adapter_config(folder)
    if values.get("peft_type") != "LORA":
        raise ValueError(f"{os.fspath(folder)!r} holds an adapter of type {values.get('peft_type')!r}; LORA is supported")
    if values.get("modules_to_save"):
        raise ValueError(f"{os.fspath(folder)!r}: modules_to_save {values['modules_to_save']} is not supported")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(f"no {ADAPTER_WEIGHTS} in {os.fspath(folder)!r}")
    tensors = read_safetensors(folder / ADAPTER_WEIGHTS)
    config = peft.LoraConfig.from_pretrained(os.fspath(folder))
    config.inference_mode = not trainable
    _wrap(model, config)
    try:
        set_adapter_state(model, tensors, os.fspath(folder))
    except ValueError:
        getattr(model, HELD).unload()
        delattr(model, HELD)
        raise
    if not trainable:
        model.requires_grad_(False)
        model.eval()


def save_adapter(
    folder: str | os.PathLike[str], model: Any, soft_mask: SoftMask | None = None, state: dict[str, Tensor] | None = None
) -> None:
    """Write the adapter and the soft mask: ``adapter_config.json``, ``adapter_model.safetensors``, the soft mask's files.

    ``transparency_config.json`` says "none" without a soft mask, as the reference's does.

    Args:
        state: the adapter's tensors where they were gathered from ranks; the model's when None.

    Raises:
        ValueError: the model has no adapter. NotADirectoryError: ``folder`` is a file.
    """
    from safetensors.torch import save_file

    if not has_adapter(model):
        raise ValueError("model: it has no adapter to save; add_adapter puts one in")
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{os.fspath(target)!r} is a file; a folder to write into was expected")
    target.mkdir(parents=True, exist_ok=True)
    tensors = adapter_state(model) if state is None else state
    part = target / (ADAPTER_WEIGHTS + ".part")
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata={"format": "pt"})
    os.replace(part, target / ADAPTER_WEIGHTS)
    config = getattr(model, HELD).peft_config["default"]
    training, config.inference_mode = config.inference_mode, True  # as peft itself writes it
    try:
        config.save_pretrained(os.fspath(target))
    finally:
        config.inference_mode = training
    if soft_mask is not None:
        soft_mask.save_pretrained(target)
    write_transparency(target / TRANSPARENCY, soft_mask)


def merge_adapter(model: Any) -> None:
    """Add the adapter to the weights, in place; then the model is an ordinary one, to be saved whole.

    Raises:
        ValueError: the model has no adapter.
    """
    if not has_adapter(model):
        raise ValueError("model: it has no adapter to merge")
    getattr(model, HELD).merge_and_unload()
    delattr(model, HELD)


def has_adapter(model: Any) -> bool:
    """Whether the model holds an adapter of this module."""
    return getattr(model, HELD, None) is not None


def adapter_state(model: Any, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The adapter's tensors under ``peft``'s names in files.

    Args:
        state: the host's tensors by name, where they are not those the model holds (gathered, averaged).
    """
    from peft import get_peft_model_state_dict

    wrapper = getattr(model, HELD)
    if state is not None:
        state = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    return get_peft_model_state_dict(wrapper, state_dict=state, save_embedding_layers=False)


def set_adapter_state(model: Any, tensors: dict[str, Tensor], where: str) -> None:
    """Give the adapter these tensors, by their names in files; every name and shape must match.

    Raises:
        ValueError: they do not.
    """
    from peft import set_peft_model_state_dict

    wrapper = getattr(model, HELD)
    expected = {name: tuple(t.shape) for name, t in adapter_state(model).items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        odd = sorted(expected.items() ^ found.items())[0][0]
        raise ValueError(
            f"the adapter in {where!r} is not one of this model: {odd} is {found.get(odd, 'not there')}, "
            f"the model's {expected.get(odd, 'not there')}"
        )
    set_peft_model_state_dict(wrapper, tensors)


def read_adapter_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in ``adapter_config.json``.

    Raises:
        FileNotFoundError: there is none. ValueError: it is not a JSON object.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {ADAPTER_CONFIG} in {os.fspath(folder)!r}")
    return read_object(path)


def _peft(model: Any) -> Any:
    if not hasattr(model, "host"):
        raise TypeError(f"model: {type(model).__name__} is not hosted by transformers; adapters are for Dream and its like")
    if has_adapter(model):
        raise ValueError("model: it has an adapter already; merge it first")
    try:
        import peft
    except ImportError:
        raise ImportError("adapters need the package peft: pip install peft") from None
    return peft


def _wrap(model: Any, config: Any) -> None:
    from peft import get_peft_model

    model.host.name_or_path = config.base_model_name_or_path  # peft writes the host's name into the config
    model.requires_grad_(False)
    wrapper = get_peft_model(model.host, config)
    object.__setattr__(model, HELD, wrapper)
