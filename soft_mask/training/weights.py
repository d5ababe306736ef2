"""The weights of a denoiser in a checkpoint's folder: whole, or the adapter alone; also of a model spread over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soft_mask.models.adapters import ADAPTER_WEIGHTS, adapter_state, has_adapter, save_adapter, set_adapter_state
from soft_mask.models.checkpoint import read_safetensors
from soft_mask.models.soft_mask_files import TRANSPARENCY, write_transparency

from .sharded import load_whole, whole_model, whole_state

__all__ = ["gather", "read_weights", "write_weights"]


def gather(denoiser: Any, keep: bool) -> dict[str, Tensor]:
    """The denoiser's tensors, of an adapter's model those that are trained, whole on the CPU; for all ranks to call."""
    only = None
    if has_adapter(denoiser.model):
        only = {name for name, p in denoiser.named_parameters() if p.requires_grad}
    return whole_state(denoiser, keep, only)


def write_weights(folder: Path, denoiser: Any, gathered: dict[str, Tensor] | None) -> None:
    """The backbone (or its adapter) and the gate.

    Args:
        gathered: the denoiser's weights where they were spread over ranks, by :func:`gather`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone, gate = denoiser.model, denoiser.soft_mask
    own = None
    if gathered is not None:
        own = {name.removeprefix("model."): w for name, w in gathered.items() if name.startswith("model.")}
    if has_adapter(backbone):
        state = None
        if own is not None:
            state = adapter_state(backbone, {name.removeprefix("host."): w for name, w in own.items()})
        save_adapter(folder, backbone, gate, state)
        return
    if own is not None:
        backbone = whole_model(backbone, own)
    if hasattr(backbone, "save_pretrained"):
        backbone.save_pretrained(folder)
    else:
        from safetensors.torch import save_model

        save_model(backbone, str(folder / "model.safetensors"))
    if gate is not None:
        gate.save_pretrained(folder)
        write_transparency(folder / TRANSPARENCY, gate)


def read_weights(folder: Path, denoiser: Any, sharded: bool) -> None:
    """The backbone's weights (or its adapter's) out of ``folder``, not the gate's; for all ranks to call."""
    backbone = denoiser.model
    if has_adapter(backbone):
        _read_adapter(folder, denoiser, sharded)
        return
    if not hasattr(backbone, "save_pretrained"):
        from safetensors.torch import load_model

        load_model(backbone, str(folder / "model.safetensors"))
        return
    state = type(backbone).from_pretrained(folder).state_dict()
    if sharded:
        whole = {f"model.{name}": w for name, w in state.items()}
        if denoiser.soft_mask is not None:
            whole |= {f"soft_mask.{name}": p.detach() for name, p in denoiser.soft_mask.named_parameters()}
        load_whole(denoiser, whole)
    else:
        backbone.load_state_dict(state)


def _read_adapter(folder: Path, denoiser: Any, sharded: bool) -> None:
    tensors = read_safetensors(folder / ADAPTER_WEIGHTS)
    if not sharded:
        set_adapter_state(denoiser.model, tensors, str(folder))
        return
    names = [name for name, p in denoiser.model.host.named_parameters() if p.requires_grad]
    marks = {name: torch.tensor(place) for place, name in enumerate(names)}  # tell which of peft's names is which of ours
    places = {name: int(mark) for name, mark in adapter_state(denoiser.model, marks).items()}
    if set(places) != set(tensors):
        raise ValueError(f"the adapter in {folder} is not one of this model: {sorted(set(places) ^ set(tensors))[0]}")
    load_whole(denoiser, {f"model.host.{names[places[name]]}": w for name, w in tensors.items()}, strict=False)
