"""``load_model`` and ``load_soft_mask``: a folder, a file or a hub id in, a model and its soft mask out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from soft_mask.models.checkpoint import read_config
from soft_mask.models.layouts import read_file, read_folder
from soft_mask.models.mdlm import MDLM
from soft_mask.models.mdlm_config import MDLMConfig
from soft_mask.models.soft_mask_files import TRANSPARENCY, from_reference, read_transparency
from soft_mask.module import CONFIG_NAME, WEIGHTS_NAME, SoftMask

__all__ = ["load_model", "load_soft_mask", "local_folder"]

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: What is fetched of a hub id: no code, no pickle.
HUB_FILES = ["config.json", "*.safetensors", "model.safetensors.index.json", CONFIG_NAME, TRANSPARENCY]
#: Of a hosted model also what its tokenizer and its generation need.
HOSTED_FILES = ["generation_config.json", "tokenizer*.json", "vocab.json", "merges.txt", "*token*.json", "*.jinja"]
ADAPTER_FILES = ["adapter_config.json"]  # its weights are safetensors


def _dream() -> Any:
    from soft_mask.models.dream import Dream

    return Dream


def _llada() -> Any:
    from soft_mask.models.llada import LLaDA

    return LLaDA


#: Models on a decoder of ``transformers``, by the ``model_type`` of their ``config.json``.
HOSTED: dict[str, Callable[[], Any]] = {"Dream": _dream, "llada": _llada}


def load_model(
    path_or_hub_id: str | os.PathLike[str],
    *,
    ema: bool = True,
    config: Mapping[str, Any] | None = None,
    mask_token_id: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Any:
    """Load a masked diffusion model, told from its ``config.json``; in eval mode, every name accounted for.

    MDLM, from any of the layouts it is published in, on the CPU:

    - the Hugging Face layout: a folder, or a hub id such as ``"kuleshov-group/mdlm-owt"`` (safetensors, whole or sharded;
      of a local folder also ``pytorch_model.bin``);
    - a Lightning ``.ckpt`` of MDLM's own code or of soft masking's reference code;
    - a bare state dict: ``.safetensors``, ``.pt``, ``.pth``, ``.bin``, with or without ``backbone.``, ``model.``,
      ``module.``, ``_orig_mod.`` before the names. Sizes come from the shapes.

    Dream, Dream-Coder (base and instruct) and LLaDA, from a folder or a hub id with safetensors, on ``transformers``'
    own decoders. What goes wrong silently elsewhere is an error here: a tensor missing or left over, a mask id on which
    config, generation config, tokenizer and argument do not agree, rotary buffers that do not hold their numbers, an
    attention kernel that stayed causal.

    A folder or hub id that holds an adapter (LoRA or DoRA, of this package, of ``peft`` or of the reference) gives its base
    model with the adapter merged into the weights; so does ``adapter`` with a base that is named.

    Nothing in a file is executed: pickles are read by a reader that knows tensors and nothing else, and no remote code is
    imported. The soft mask of the same checkpoint is read by :func:`load_soft_mask`.

    Args:
        path_or_hub_id: the folder, file or name.
        ema: of a Lightning checkpoint take the averaged weights, as evaluation does there; False: the raw ones.
        config: ``MDLMConfig`` fields for files without a config, such as ``model_length`` (1024 where nothing tells it).
        mask_token_id: must be the model's; needed where no file tells it.
        adapter: of a hosted model: a folder or hub id with an adapter for it. ``models.adapters.load_adapter`` puts one into
            a loaded model without merging it.
        options: of ``transformers``' ``from_pretrained``, for a hosted model: ``dtype`` (the files' when left out),
            ``device_map``, ``attn_implementation``, ``quantization_config`` and so on.

    Raises:
        FileNotFoundError: there is no such folder or file and the text is no hub id, or a file is missing.
        ValueError: the model's type is not one of those known, or its files are broken or do not fit each other.
        RuntimeError: the loaded model does not compute what it should.
    """
    name = os.fspath(path_or_hub_id)
    if os.path.isfile(name):
        _need_none(options)
        found = read_file(name, ema=ema, config=config)
        return _agreeing(MDLM.from_tensors(found.config, found.tensors, name), mask_token_id)
    folder = local_folder(path_or_hub_id)
    if adapter is None and _is_adapter(folder):
        return load_model(adapter_base(folder), mask_token_id=mask_token_id, adapter=folder, **options)
    kind = read_config(folder).get("model_type")
    if kind in HOSTED:
        model = HOSTED[kind]().from_pretrained(folder, mask_token_id=mask_token_id, **options)
        if adapter is not None:
            from soft_mask.models.adapters import load_adapter, merge_adapter

            load_adapter(model, adapter)
            merge_adapter(model)
        return model
    if adapter is not None:
        raise TypeError(f"adapter: adapters are for hosted models ({', '.join(sorted(HOSTED))}), not for {kind!r}")
    if kind != "mdlm":
        known = ", ".join(sorted((*HOSTED, "mdlm"), key=str.lower))
        raise ValueError(f"model_type {kind!r} in {name!r} is not known; known: {known}")
    _need_none(options)
    found = read_folder(folder)
    model = MDLM.from_tensors({**found.config, **(config or {})}, found.tensors, folder)
    return _agreeing(model, mask_token_id)


def _is_adapter(folder: str) -> bool:
    names = set(os.listdir(folder))
    return "adapter_config.json" in names and "config.json" not in names


def adapter_base(folder: str | os.PathLike[str]) -> str:
    """The model that an adapter's folder names as its base.

    Raises:
        ValueError: it names none.
    """
    from soft_mask.models.adapters import read_adapter_config

    base = read_adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"the adapter in {os.fspath(folder)!r} names no base model: load_model(base, adapter=...) says it")
    return base


def base_folder(path_or_hub_id: str | os.PathLike[str]) -> str | None:
    """Where the config and the tokenizer of a hosted model lie, its base's for an adapter; None for an MDLM.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or no config in it.
    """
    if os.path.isfile(path_or_hub_id):
        return None
    folder = local_folder(path_or_hub_id)
    if _is_adapter(folder):
        return base_folder(adapter_base(folder))
    return folder if read_config(folder).get("model_type") in HOSTED else None


def _need_none(options: Mapping[str, Any]) -> None:
    if options:
        raise TypeError(f"{next(iter(options))} is no option of an MDLM: move the loaded model with .to(device, dtype)")


def _agreeing(model: MDLM, mask_token_id: int | None) -> MDLM:
    if mask_token_id is not None and mask_token_id != model.mask_token_id:
        raise ValueError(f"mask_token_id is {mask_token_id}, and the model's is {model.mask_token_id}")
    return model


def load_soft_mask(path_or_hub_id: str | os.PathLike[str], mask_token_id: int | None = None) -> SoftMask | None:
    """The soft mask that belongs to a checkpoint of :func:`load_model`, or None where it is a binary model.

    Read from, in this order: ``soft_mask.safetensors`` with its config (full precision), the reference's
    ``transparency_config.json`` (rounded to bfloat16 by the reference), or the ``tran_head`` of a Lightning checkpoint.
    None can be given on as it is: ``generate(model, ..., soft_mask=load_soft_mask(path))``. A folder of an adapter does as
    well, and a ``transparency_config.json`` itself.

    Args:
        mask_token_id: where ``transparency_config.json`` lies in a folder without a ``config.json`` that tells it, and
            without an adapter whose base model's does.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_model`; or settings that are not supported.
    """
    name = os.fspath(path_or_hub_id)
    if os.path.isfile(name) and name.endswith(".json"):
        return _transparency(Path(name), mask_token_id)
    if os.path.isfile(name):
        found = read_file(name, ema=False)
        if not found.raw_soft_mask:
            return None
        mask = MDLMConfig.from_dict(found.config).mask_token_id
        assert mask is not None
        return from_reference(found.raw_soft_mask, found.soft_mask_settings, mask, name)
    folder = Path(local_folder(path_or_hub_id))
    if (folder / CONFIG_NAME).is_file() or (folder / WEIGHTS_NAME).is_file():
        return SoftMask.from_pretrained(folder)
    return _transparency(folder / TRANSPARENCY, mask_token_id) if (folder / TRANSPARENCY).is_file() else None


def _transparency(path: Path, mask_token_id: int | None) -> SoftMask | None:
    """The gate of the reference's JSON file, for the model that the configuration beside it, or the mask's id, tells."""
    config = _config_beside(path.parent)
    kind = config.get("model_type")
    bans = kind == "mdlm"
    told = MDLMConfig.from_dict(config).mask_token_id if bans else config.get("mask_token_id")
    if mask_token_id is not None and told is not None and told != mask_token_id:
        raise ValueError(f"mask_token_id is {mask_token_id}, and {told} by the config.json of {os.fspath(path.parent)!r}")
    mask = told if mask_token_id is None else mask_token_id
    if mask is None:
        raise ValueError(f"mask_token_id must be given: {os.fspath(path)!r} lies beside no config.json that tells it")
    return read_transparency(path, mask, (mask,) if bans else None, HOSTED[kind]().shift if kind in HOSTED else 0)


def _config_beside(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``: that of the folder, or of an adapter's base; empty where there is none."""
    if (folder / "config.json").is_file():
        return read_config(folder)
    if not _is_adapter(os.fspath(folder)):
        return {}
    base = adapter_base(folder)
    if os.path.isdir(base):
        return read_config(base)
    from huggingface_hub import hf_hub_download

    return read_config(Path(hf_hub_download(base, "config.json")).parent)


def local_folder(path_or_hub_id: str | os.PathLike[str]) -> str:
    """The folder itself, or where the files of a hub id have been fetched to; no code and no pickle among them.

    Raises:
        FileNotFoundError: it is neither.
    """
    name = os.fspath(path_or_hub_id)
    if os.path.isdir(name):
        return name
    if isinstance(path_or_hub_id, str) and HUB_ID.fullmatch(name):
        from huggingface_hub import snapshot_download

        return snapshot_download(name, allow_patterns=[*HUB_FILES, *HOSTED_FILES, *ADAPTER_FILES])
    raise FileNotFoundError(f"path_or_hub_id: there is no folder or file {name!r}, and it is no hub id (owner/name)")
