"""``load_model``: a folder or a hub id in, a model out, told from its ``config.json``."""

from __future__ import annotations

import os
import re

from soft_mask.models.checkpoint import read_config
from soft_mask.models.mdlm import MDLM

__all__ = ["load_model"]

MODELS = {"mdlm": MDLM}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_model(path_or_hub_id: str | os.PathLike[str]) -> MDLM:
    """Load a model from a local folder, or from the Hugging Face hub; weights on the CPU, in eval mode.

    Reads ``config.json`` and ``model.safetensors`` alone: no tokenizer, no pickle, no remote code.

    Args:
        path_or_hub_id: a folder, or a name such as ``"kuleshov-group/mdlm-owt"``.

    Raises:
        FileNotFoundError: there is no such folder and the text is no hub id, or a file is missing.
        ValueError: the model's type is not one of those known, or its files are broken or do not fit each other.
    """
    name = os.fspath(path_or_hub_id)
    if os.path.isdir(name):
        folder = name
    elif os.path.exists(name):
        raise ValueError(f"path_or_hub_id must be a folder or a hub id, got the file {name!r}")
    elif isinstance(path_or_hub_id, str) and HUB_ID.fullmatch(name):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(name, allow_patterns=["config.json", "*.safetensors"])
    else:
        raise FileNotFoundError(f"path_or_hub_id: there is no folder {name!r}, and it is no hub id (owner/name)")
    kind = read_config(folder).get("model_type")
    if kind not in MODELS:
        raise ValueError(f"model_type {kind!r} in {name!r} is not known; known: {', '.join(sorted(MODELS))}")
    return MODELS[kind].from_pretrained(folder)
