"""The reference's two ways to keep the gate: ``transparency_config.json``, and raw numbers in a Lightning checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soft_mask.config import SoftMaskConfig
from soft_mask.models.checkpoint import read_json
from soft_mask.module import SoftMask

__all__ = ["TRANSPARENCY", "fixed_gate", "from_reference", "read_transparency", "write_transparency"]

TRANSPARENCY = "transparency_config.json"
TOPK = "mixinputs_with_topk"  # the one variant of the paper; the reference's others mix the whole distribution
RAW = {"raw_scale": "raw_scale", "raw_steep": "raw_steepness", "raw_centre_neg": "raw_centre", "raw_temperature": None}


def read_transparency(path: Path, mask_token_id: int, ban: tuple[int, ...] | None = None, shift: int = 0) -> SoftMask | None:
    """The gate of a ``transparency_config.json``; None where it says there is none. A scale of 0 stays exactly 0.

    Raises:
        ValueError: no such JSON, a field is missing or out of range, or another variant than the paper's top-k mixture.
    """
    where = os.fspath(path)
    values = read_json(path)
    if not isinstance(values, dict) or "transparency_alg" not in values:
        raise ValueError(f"{where!r} is no transparency_config.json: it has no transparency_alg")
    alg = values["transparency_alg"]
    if alg == "none":
        return None
    if alg != TOPK:
        raise ValueError(f"{where!r}: transparency_alg {alg!r} is not supported, only {TOPK!r}")
    try:
        config = SoftMaskConfig(
            mask_token_id=mask_token_id,
            k=int(values["mixinputs_k"]),
            scale=float(values["transparency_scale"]),
            steepness=float(values["transparency_steepness"]),
            centre=float(values["transparency_centre"]),
            ban=ban,
            shift=shift,
            schedule=values.get("transparency_scheduling", "none"),
        )
    except KeyError as error:
        raise ValueError(f"{where!r} has no {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where!r}: {error}") from None
    return fixed_gate(config)


def fixed_gate(config: SoftMaskConfig) -> SoftMask:
    """A gate that holds what its config says: a scale of exactly 0 is "off" and 1 is 1, not a start of training."""
    module = SoftMask(config)
    if config.scale in (0.0, 1.0):  # the sigmoid of infinity is exact
        module.raw_scale.data.fill_(float("inf") if config.scale else float("-inf"))
    return module


def write_transparency(path: Path, soft_mask: SoftMask | None) -> None:
    """Write the reference's seven fields, rounded to bfloat16 as it does; without a soft mask its "none"."""
    values: dict[str, Any] = {"transparency_alg": "none"}
    if soft_mask is not None:
        values = {
            "transparency_alg": TOPK,
            "transparency_scale": _bfloat16(soft_mask.scale),
            "transparency_centre": _bfloat16(soft_mask.centre),
            "transparency_steepness": _bfloat16(soft_mask.steepness),
            "mixinputs_k": soft_mask.config.k,
            "mixture_temp": _bfloat16(torch.tensor(soft_mask.config.temperature)),
            "transparency_scheduling": soft_mask.config.schedule,
        }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def from_reference(raw: Mapping[str, Tensor], settings: Mapping[str, Any], mask_token_id: int, where: str) -> SoftMask:
    """The gate from the reference's ``tran_head`` parameters, taken over raw (to the bit in float32).

    Its temperature acts only in a variant that is not the paper's, and is left out.

    Raises:
        ValueError: other names or shapes, or another variant in the settings.
    """
    if set(raw) != set(RAW) or any(tensor.dim() or not tensor.is_floating_point() for tensor in raw.values()):
        raise ValueError(f"tran_head in {where!r} holds {sorted(raw)}, expected 0-dim {sorted(RAW)}")
    alg = settings.get("transparency_alg", TOPK)
    if alg != TOPK:
        raise ValueError(f"{where!r}: transparency_alg {alg!r} is not supported, only {TOPK!r}")
    k = settings.get("mixinputs_k", 3)
    module = SoftMask(SoftMaskConfig(mask_token_id=mask_token_id, k=k, ban=(mask_token_id,)))
    for theirs, ours in RAW.items():
        if ours is not None:
            getattr(module, ours).data.copy_(raw[theirs])
    return module


def _bfloat16(value: Tensor) -> float:
    return float(value.detach().to(torch.bfloat16))
