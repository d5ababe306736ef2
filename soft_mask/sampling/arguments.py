"""The arguments of ``generate`` that say how to sample, checked in words and made into a policy."""

from __future__ import annotations

import math
from typing import Any

import torch

from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.sampling.confidence import CONFIDENCE_ALGORITHMS, TRANSFER_COUNTS, ConfidenceSampler
from soft_mask.sampling.loop import Policy
from soft_mask.sampling.sampler import ALGORITHMS, Sampler

__all__ = ["check_int", "make_policy", "make_sampler"]

NOISES = ("coin", "race")


def make_policy(
    model: MaskedDiffusionModel,
    alg: str | None,
    steps: int | None,
    common: dict[str, Any],
    own: dict[str, Any],
    numbers: dict[str, float | None],
) -> Policy:
    """The policy that arguments of :func:`soft_mask.generate` describe, every one of them checked.

    Args:
        common: ``temperature``, ``eps``, ``top_p``.
        own: what one family of algorithms takes, by name; None where it was not given.
        numbers: options of single algorithms (ReMDM's).
    """
    alg = alg if alg is not None else getattr(model, "default_alg", "ancestral")
    if alg not in ALGORITHMS and alg not in CONFIDENCE_ALGORITHMS:
        known = ", ".join(sorted((*ALGORITHMS, *CONFIDENCE_ALGORITHMS)))
        raise ValueError(f"alg must be one of {known}, got {alg!r}")
    if steps is None:
        steps = getattr(model, "default_steps", None)
        if steps is None:
            raise TypeError("steps must be given: this model has no number of its own")
    check_int("steps", steps, 1)
    here = (
        ("top_k", "alg_temp", "transfer_count")
        if alg in CONFIDENCE_ALGORITHMS
        else ("noise", "noise_dtype", "confidence_dtype")
    )
    for name, value in {**own, **(numbers if alg in CONFIDENCE_ALGORITHMS else {})}.items():
        if value is not None and name not in here:
            raise ValueError(f"{name} is no option of alg={alg!r}")
    given = {name: value for name, value in own.items() if value is not None}
    if alg in CONFIDENCE_ALGORITHMS:
        return make_confidence_sampler(alg, steps, **common, **given)
    return make_sampler(model, alg, steps, **common, **given, options=numbers)


def make_confidence_sampler(
    alg: str,
    steps: int,
    temperature: float | None = None,
    eps: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    alg_temp: float | None = None,
    transfer_count: str = "row",
) -> ConfidenceSampler:
    """Dream's, from checked ``alg`` and ``steps``."""
    temperature, eps = check_temperature(temperature, 0.0), check_eps(eps, 1e-3)
    top_p = check_top_p(top_p)
    if top_k is not None:
        check_int("top_k", top_k, 1)
    if alg_temp is not None and (not _is_number(alg_temp) or alg_temp < 0):
        raise ValueError(f"alg_temp must be a finite number of at least 0, or None, got {alg_temp!r}")
    if alg_temp and alg == "origin":
        raise ValueError("alg_temp is no option of alg='origin': its positions are drawn by chance")
    if transfer_count not in TRANSFER_COUNTS:
        raise ValueError(f"transfer_count must be one of {', '.join(TRANSFER_COUNTS)}, got {transfer_count!r}")
    return ConfidenceSampler(
        alg, steps, temperature, eps, None if top_p is None or top_p >= 1.0 else top_p, top_k, alg_temp, transfer_count
    )


def make_sampler(
    model: MaskedDiffusionModel,
    alg: str | None,
    steps: int,
    temperature: float | None = None,
    eps: float | None = None,
    top_p: float | None = None,
    noise: str = "coin",
    noise_dtype: torch.dtype = torch.float64,
    confidence_dtype: torch.dtype = torch.float32,
    options: dict[str, float | None] | None = None,
) -> Sampler:
    """The sampler that arguments of :func:`generate` describe, every one of them checked."""
    alg = alg if alg is not None else getattr(model, "default_alg", "ancestral")
    if alg not in ALGORITHMS:
        raise ValueError(f"alg must be one of {', '.join(sorted(ALGORITHMS))}, got {alg!r}")
    check_int("steps", steps, 1)
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    if noise_dtype not in (torch.float64, torch.float32):
        raise ValueError(f"noise_dtype must be torch.float64 or torch.float32, got {noise_dtype!r}")
    if confidence_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"confidence_dtype must be torch.float32 or torch.bfloat16, got {confidence_dtype!r}")
    numbers: dict[str, float] = {}
    if temperature is not None:
        numbers["temperature"] = check_temperature(temperature, 1.0)
    if eps is not None:
        numbers["eps"] = check_eps(eps, 1e-5)
    if (nucleus := check_top_p(top_p)) is not None:
        numbers["top_p"] = nucleus
    own = dict(ALGORITHMS[alg])
    for name, value in (options or {}).items():
        if value is None:
            continue
        if name not in own:
            raise ValueError(f"{name} is no option of alg={alg!r}" + (f", which takes {', '.join(own)}" if own else ""))
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
        own[name] = float(value)
    if alg == "remdm-loop":
        if not 0 < own["t_off"] < own["t_on"] < 1:
            raise ValueError(f"t_off and t_on must satisfy 0 < t_off < t_on < 1, got {own['t_off']} and {own['t_on']}")
        if not 0 < own["alpha_on"] < 1 or own["eta"] > (1 - own["alpha_on"]) / own["alpha_on"]:
            raise ValueError(
                f"alpha_on must lie in (0, 1) and eta be at most (1 - alpha_on) / alpha_on, "
                f"got alpha_on={own['alpha_on']} and eta={own['eta']}"
            )
    return Sampler(
        alg,
        steps,
        noise=noise,
        noise_dtype=noise_dtype,
        confidence_dtype=confidence_dtype,
        options=tuple(sorted(own.items())),
        **numbers,  # type: ignore[arg-type]  # mypy takes the values for those of the dtypes too
    )


def check_temperature(value: float | None, default: float) -> float:
    if value is None:
        return default
    if not _is_number(value) or value < 0:
        raise ValueError(f"temperature must be a finite number of at least 0, or None, got {value!r}")
    return float(value)


def check_eps(value: float | None, default: float) -> float:
    if value is None:
        return default
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"eps must lie in [0, 1), or be None, got {value!r}")
    return float(value)


def check_top_p(value: float | None) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"top_p must lie in (0, 1], or be None, got {value!r}")
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
