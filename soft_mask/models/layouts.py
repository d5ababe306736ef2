"""The layouts an MDLM is published in, each read into (config, named tensors, raw soft-mask numbers)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from soft_mask.models.checkpoint import CONFIG, WEIGHTS, read_config, read_safetensors
from soft_mask.models.mdlm_config import MDLMConfig
from soft_mask.models.safe_pickle import LazyTensor, TorchFile, plain

__all__ = ["Contents", "read_file", "read_folder"]

PREFIXES = ("backbone.", "model.", "module.", "_orig_mod.")
HEAD = "tran_head."  # the reference's soft mask inside a Lightning checkpoint
BUFFERS = ("rotary_emb.inv_freq",)  # what a state dict holds beside parameters
PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass
class Contents:
    """What a file or folder holds, before a model is made of it.

    Attributes:
        tensors: by the module's own names, prefixes taken off.
        config: of the file where it has one, else from the shapes.
        raw_soft_mask: the reference's raw numbers (``raw_scale`` ...), empty for a binary model.
        soft_mask_settings: of the reference's ``algo.tran_head``, as far as the file tells them.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    raw_soft_mask: dict[str, Tensor] = field(default_factory=dict)
    soft_mask_settings: dict[str, Any] = field(default_factory=dict)


def read_folder(folder: str | os.PathLike[str]) -> Contents:
    """The Hugging Face layout: ``config.json`` beside safetensors (whole or sharded), or a ``pytorch_model.bin``.

    Raises:
        FileNotFoundError: config or weights are not there. ValueError: a file is broken.
    """
    where = Path(folder)
    config = read_config(where)
    if (where / WEIGHTS).is_file():
        tensors = read_safetensors(where / WEIGHTS)
    elif (where / (WEIGHTS + ".index.json")).is_file():
        tensors = _read_shards(where)
    elif (where / "pytorch_model.bin").is_file():
        tensors = read_file(where / "pytorch_model.bin", config=config).tensors
    else:
        raise FileNotFoundError(f"no {WEIGHTS} in {os.fspath(folder)!r} (nor its shards, nor a pytorch_model.bin)")
    return Contents(_strip(tensors, os.fspath(folder)), config)


def read_file(path: str | os.PathLike[str], *, ema: bool = True, config: Mapping[str, Any] | None = None) -> Contents:
    """A Lightning checkpoint of MDLM or of the reference, or a bare state dict (a pickle or safetensors).

    Args:
        ema: of a Lightning checkpoint take the averaged weights, as evaluation does there; False: the raw ones. The soft
            mask's numbers are always the raw ones: the average does not hold them.
        config: fields that the file does not tell, or that shall win over what it tells.

    Raises:
        ValueError: the file is broken, of an unknown kind, or its tensors are not those of an MDLM.
    """
    name = os.fspath(path)
    settings: dict[str, Any] = {}
    shadow: list[Tensor] | None = None
    if name.endswith(".safetensors"):
        found: dict[str, Tensor] = read_safetensors(path)
        beside = Path(path).parent / CONFIG
        if config is None and beside.is_file() and Path(path).name == WEIGHTS:
            config = read_config(beside.parent)
    elif name.endswith(PICKLES):
        file = TorchFile(path)
        content = file.content
        if not isinstance(content, dict):
            raise ValueError(f"{name!r} holds a {type(content).__name__}, not a state dict or a checkpoint")
        state = content.get("state_dict", content)
        if not isinstance(state, dict):
            raise ValueError(f"state_dict in {name!r} is a {type(state).__name__}, not a dict of tensors")
        odd = [str(key) for key, value in state.items() if not isinstance(value, LazyTensor)]
        if odd or not state:
            raise ValueError(f"{name!r} is no dict of tensors: {odd[0]!r} is none" if odd else f"{name!r} holds no tensor")
        found = {str(key): file.tensor(value, str(key)) for key, value in state.items()}
        if "state_dict" in content:
            settings = _settings(content)
            if ema and content.get("ema") is not None:
                shadow = _shadow(file, content["ema"], name)
    else:
        raise ValueError(f"{name!r}: expected a folder, or a file ending in .safetensors, {', '.join(PICKLES)}")
    raw = {key.removeprefix(HEAD): tensor for key, tensor in found.items() if key.startswith(HEAD)}
    tensors = _strip({key: tensor for key, tensor in found.items() if not key.startswith(HEAD)}, name)
    if shadow is not None:
        _average(tensors, shadow, name)
    head = _part(_part(settings, "algo"), "tran_head")
    sizes = _sizes(tensors, name, _told(settings) | dict(config or {}))
    return Contents(tensors, sizes, raw, head)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = folder / (WEIGHTS + ".index.json")
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(index)!r} is no index of shards: {error!r}") from None
    tensors: dict[str, Tensor] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{os.fspath(index)!r} names {name!r}, which is no safetensors file of the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name}, which {index.name} names, is not in {os.fspath(folder)!r}")
        tensors |= read_safetensors(folder / name)
    if lost := sorted(set(places) - set(tensors)):
        raise ValueError(f"the shards in {os.fspath(folder)!r} do not hold {lost[0]!r}, which the index names")
    return tensors


def _strip(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names without their prefixes (of Lightning, DDP, torch.compile), in the file's order."""
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = name
        while prefix := next((p for p in PREFIXES if own.startswith(p)), ""):
            own = own.removeprefix(prefix)
        own = own.replace("._orig_mod.", ".")
        if own in stripped:
            raise ValueError(f"{where!r} holds {own!r} twice, under different prefixes")
        stripped[own] = tensor
    return stripped


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    values = content.get("hyper_parameters")
    config = plain(values.get("config")) if isinstance(values, dict) else None
    return config if isinstance(config, dict) else {}


def _part(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not tell, from the original's settings (interpolations, which are strings there, are passed over)."""
    model, algo = _part(settings, "model"), _part(settings, "algo")
    told = {"model_length": model.get("length"), "dropout": model.get("dropout")}
    told["time_conditioning"] = settings.get("time_conditioning", algo.get("time_conditioning"))
    return {name: value for name, value in told.items() if isinstance(value, (bool, int, float))}


def _shadow(file: TorchFile, ema: Any, where: str) -> list[Tensor]:
    values = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(values, list) or not all(isinstance(value, LazyTensor) for value in values):
        raise ValueError(f"ema in {where!r} holds no list shadow_params of tensors")
    return [file.tensor(value, f"ema.shadow_params[{i}]") for i, value in enumerate(values)]


def _average(tensors: dict[str, Tensor], shadow: list[Tensor], where: str) -> None:
    """Put the averages in the places of the parameters: they have no names, their order is the parameters'."""
    names = [name for name in tensors if name not in BUFFERS]
    if len(names) != len(shadow):
        raise ValueError(f"ema in {where!r} holds {len(shadow)} tensors for {len(names)} parameters")
    for name, value in zip(names, shadow, strict=True):
        if value.shape != tensors[name].shape:
            raise ValueError(f"ema in {where!r}: shape {list(value.shape)} for {name}, which has {list(tensors[name].shape)}")
        tensors[name] = value


def _sizes(tensors: Mapping[str, Tensor], where: str, told: dict[str, Any]) -> dict[str, Any]:
    """Sizes from shapes; what is told wins (and is checked against the shapes when the tensors are loaded)."""

    def shape(name: str, dims: int) -> list[int]:
        if name not in tensors or tensors[name].dim() != dims:
            raise ValueError(f"{where!r} is no MDLM: it has no {dims}-dimensional {name!r}")
        return list(tensors[name].shape)

    vocab_size, hidden_dim = shape("vocab_embed.embedding", 2)
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_dim": hidden_dim,
        "cond_dim": shape("sigma_map.mlp.0.weight", 2)[0],
        "n_blocks": len(blocks),
        "tie_word_embeddings": "output_layer.linear.weight" not in tensors,
    }
    if "n_heads" not in told:
        head_dim = 2 * shape("rotary_emb.inv_freq", 1)[0]
        if not head_dim or hidden_dim % head_dim:
            raise ValueError(f"{where!r} is no MDLM: heads of {head_dim} do not divide a width of {hidden_dim}")
        sizes["n_heads"] = hidden_dim // head_dim
    return MDLMConfig.from_dict(sizes | told).to_dict()
