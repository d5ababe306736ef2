"""``generate``: fill the masks of a batch of sequences. Checks everything in words, then runs the loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soft_mask.diffusion.denoiser import check_soft_mask
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.sampling.loop import Callback, denoise
from soft_mask.sampling.memory import REMASK_FEEDBACK
from soft_mask.sampling.sampler import ALGORITHMS, Sampler

__all__ = ["GenerateOutput", "generate"]

NOISES = ("coin", "race")


@dataclass(frozen=True)
class GenerateOutput:
    """Result of :func:`generate`.

    Attributes:
        sequences: ``[B, L]`` int64, the prompt included.
        nfe: forward passes truly spent; at most ``steps + 1``.
        history: ``[B, L]`` after every step, if it was asked for.
    """

    sequences: Tensor
    nfe: int
    history: tuple[Tensor, ...] | None = None


@torch.no_grad()
def generate(
    model: MaskedDiffusionModel,
    input_ids: Tensor,  # [B, L] int64, the mask id where a token is wanted
    attention_mask: Tensor | None = None,  # [B, L] bool or 0/1: False is padding, neither seen nor filled
    max_new_tokens: int = 0,
    *,
    steps: int,
    alg: str | None = None,
    temperature: float | None = None,
    eps: float | None = None,
    top_p: float | None = None,
    eta: float | None = None,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
    noise: str = "coin",
    noise_dtype: torch.dtype = torch.float64,
    confidence_dtype: torch.dtype = torch.float32,
    remask_feedback: str = "erased",
    soft_mask: SoftMask | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    history: bool = False,
) -> GenerateOutput:
    """Fill every mask of ``input_ids``; tokens that are not masks are never changed (nor masked by ReMDM).

    With a soft mask every forward but the first mixes, at positions still masked, what the last executed forward
    predicted for them (arXiv 2510.17206, section 3). Without one, or at a scale of exactly 0, the same seed gives the
    same tokens. The model is put into eval mode for the call and back after it; no gradient is recorded.

    Args:
        model: meets ``MaskedDiffusionModel``.
        max_new_tokens: this many masks are appended to every sequence.
        steps: denoising steps T. A step in which nothing was revealed spends no forward in the next; a closing forward
            fills what is left, and is skipped when nothing is: ``nfe <= T + 1``.
        alg: "ancestral" (MDLM, arXiv 2406.07524), "analytic", or ReMDM's (arXiv 2503.00307) "remdm-cap",
            "remdm-rescale", "remdm-conf" and "remdm-loop"; None is the model's default. ``sampling.PRESETS`` has published
            settings by name.
        temperature: of the choice of tokens, never of the feedback; 0 takes the likeliest; None is the algorithm's own.
        eps: last time of the schedule; None is the algorithm's own (1e-5).
        top_p: nucleus of the choice of tokens, by the reference's rule (what sums to at most this, and the likeliest);
            None or 1 for none.
        eta, t_on, t_off, alpha_on: of ReMDM's algorithms; None is the published value (for 1024 steps).
        noise: "coin", or "race": the originals' draw over all V ids at every position, which gives their tokens from
            their random numbers and costs V of them a position and a step.
        noise_dtype: float64, or float32 as in MDLM's own code, whose samples have less entropy for it.
        confidence_dtype: of "remdm-conf"; torch.bfloat16 rounds as the original does.
        remask_feedback: what a position that ReMDM masked again feeds back: "erased" (the reference's), "last" or "none";
            see ``sampling.memory.Memory``.
        soft_mask: None for plain binary masking.
        generator: source of all random numbers; torch's global one when None.
        callback: called with a ``StepInfo`` after every step; returning ``False`` (and nothing else) stops there, with
            the remaining masks left in place.
        history: keep the sequences after every step.

    Raises:
        TypeError, ValueError: naming the argument, before anything is computed.
    """
    x, mask = _check_inputs(model, input_ids, attention_mask, max_new_tokens)
    check_soft_mask(model, soft_mask)
    options = {"eta": eta, "t_on": t_on, "t_off": t_off, "alpha_on": alpha_on}
    policy = make_sampler(model, alg, steps, temperature, eps, top_p, noise, noise_dtype, confidence_dtype, options)
    if remask_feedback not in REMASK_FEEDBACK:
        raise ValueError(f"remask_feedback must be one of {', '.join(REMASK_FEEDBACK)}, got {remask_feedback!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable or None, got {type(callback).__name__}")
    states: list[Tensor] | None = [] if history else None
    with _evaluating(model, soft_mask):
        sequences, nfe = denoise(
            model,
            x,
            policy,
            attention_mask=mask,
            soft_mask=soft_mask,
            generator=generator,
            callback=callback,
            history=states,
            remask_feedback=remask_feedback,
        )
    return GenerateOutput(sequences, nfe, None if states is None else tuple(states))


def _check_inputs(
    model: MaskedDiffusionModel, input_ids: Tensor, attention_mask: Tensor | None, max_new_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """The sequences with their new masks, a copy, and the attention mask that belongs to them."""
    for name in ("mask_token_id", "vocab_size", "embedding", "hidden", "head"):
        if not hasattr(model, name):
            raise TypeError(f"model must meet MaskedDiffusionModel, but {type(model).__name__} has no {name!r}")
    if not isinstance(input_ids, Tensor) or input_ids.dtype != torch.int64:
        kind = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids must be an int64 tensor, got {kind}")
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [B, L], got shape {list(input_ids.shape)}")
    device = model.embedding.device
    if input_ids.device != device:
        raise ValueError(f"input_ids is on {input_ids.device}, the model on {device}: move one of them")
    if input_ids.numel():
        low, high = (int(value) for value in input_ids.aminmax())
        if low < 0 or high >= model.embedding.shape[0]:
            raise ValueError(f"input_ids must lie in [0, {model.embedding.shape[0]}), got ids from {low} to {high}")
    check_int("max_new_tokens", max_new_tokens, 0)
    length = input_ids.shape[1] + max_new_tokens
    longest = getattr(model, "model_length", None)
    if longest is not None and length > longest:
        raise ValueError(
            f"input_ids has {input_ids.shape[1]} tokens and max_new_tokens is {max_new_tokens}: "
            f"together more than the model's model_length of {longest}"
        )
    new = input_ids.new_full((input_ids.shape[0], max_new_tokens), model.mask_token_id)
    x = torch.cat([input_ids, new], dim=1)
    if attention_mask is None:
        return x, None
    if not isinstance(attention_mask, Tensor) or attention_mask.is_floating_point():
        raise TypeError("attention_mask must be a bool or integer tensor, 0 where there is padding")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids {list(input_ids.shape)}, got {list(attention_mask.shape)}"
        )
    mask = torch.cat([attention_mask.to(device, torch.bool), torch.ones_like(new, dtype=torch.bool)], dim=1)
    if not bool(mask.any(1).all()):
        raise ValueError("attention_mask has a sequence without a single True: nothing there can be attended to")
    return x, mask


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
        if not _is_number(temperature) or temperature < 0:
            raise ValueError(f"temperature must be a finite number of at least 0, or None, got {temperature!r}")
        numbers["temperature"] = float(temperature)
    if eps is not None:
        if not _is_number(eps) or not 0 <= eps < 1:
            raise ValueError(f"eps must lie in [0, 1), or be None, got {eps!r}")
        numbers["eps"] = float(eps)
    if top_p is not None:
        if not _is_number(top_p) or not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], or be None, got {top_p!r}")
        numbers["top_p"] = float(top_p)
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


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


@contextmanager
def _evaluating(*modules: object) -> Iterator[None]:
    """Eval mode inside, every submodule's own training flag back afterwards, whatever happens."""
    flags = [(part, part.training) for module in modules if isinstance(module, nn.Module) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training
