"""``generate``: fill the masks of a batch of sequences. Checks everything in words, then runs the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soft_mask.diffusion.denoiser import check_soft_mask
from soft_mask.models.protocol import MaskedDiffusionModel
from soft_mask.module import SoftMask
from soft_mask.sampling.arguments import check_int, make_policy
from soft_mask.sampling.loop import Callback, Hooks, LogitsHook, TokensHook, denoise
from soft_mask.sampling.memory import REMASK_FEEDBACK

__all__ = ["GenerateOutput", "generate"]


@dataclass(frozen=True)
class GenerateOutput:
    """Result of :func:`generate`.

    Attributes:
        sequences: ``[B, L]`` int64, the prompt included; ``[B * num_return_sequences, L]``.
        nfe: forward passes truly spent; at most ``steps + 1`` (Dream's algorithms: ``steps``).
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
    steps: int | None = None,
    alg: str | None = None,
    temperature: float | None = None,
    eps: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    alg_temp: float | None = None,
    transfer_count: str | None = None,
    eta: float | None = None,
    t_on: float | None = None,
    t_off: float | None = None,
    alpha_on: float | None = None,
    noise: str | None = None,
    noise_dtype: torch.dtype | None = None,
    confidence_dtype: torch.dtype | None = None,
    remask_feedback: str = "erased",
    soft_mask: SoftMask | None = None,
    num_return_sequences: int = 1,
    generator: torch.Generator | None = None,
    generation_tokens_hook_func: TokensHook | None = None,
    generation_logits_hook_func: LogitsHook | None = None,
    callback: Callback | None = None,
    history: bool = False,
) -> GenerateOutput:
    """Fill every mask of ``input_ids``; tokens that are not masks are never changed (nor masked by ReMDM).

    One loop, two families of algorithms, for any model. MDLM's reveal masks by chance: "ancestral" and its relatives.
    Dream's, "origin", "maskgit_plus", "topk_margin" and "entropy", are upstream's ``diffusion_generate`` under its names
    and defaults: float32 times from 1 to ``eps``, and in each step the positions that the model is surest of.

    With a soft mask every forward but the first mixes, at positions still masked, what the last executed forward
    predicted for them (arXiv 2510.17206, section 3). Without one, or at a scale of exactly 0, the same seed gives the
    same tokens. The model is put into eval mode for the call and back after it; no gradient is recorded.

    Args:
        model: meets ``MaskedDiffusionModel``.
        max_new_tokens: this many masks are appended to every sequence.
        steps: denoising steps T; None is the model's own (Dream: 512). A step in which nothing was revealed spends no
            forward in the next (in Dream's algorithms without feedback only: with it the step refines what is fed back).
            MDLM's have a closing forward that fills what is left, skipped when nothing is: ``nfe <= T + 1``; Dream's take
            all that is left in the last step.
        alg: "ancestral" (MDLM, arXiv 2406.07524), "analytic", ReMDM's (arXiv 2503.00307) "remdm-cap", "remdm-rescale",
            "remdm-conf" and "remdm-loop"; or Dream's four. None is the model's default. ``sampling.PRESETS`` has
            published settings by name.
        temperature: of the choice of tokens, never of the feedback; 0 takes the likeliest; None is the algorithm's own
            (MDLM's 1, Dream's 0).
        eps: last time of the schedule; None is the algorithm's own (MDLM's 1e-5, Dream's 1e-3).
        top_p: nucleus of the choice of tokens; None or 1 for none. In MDLM's by the reference's rule (what sums to at
            most this, and the likeliest); in Dream's the token that crosses it is taken too.
        top_k, alg_temp, transfer_count: of Dream's algorithms: the k likeliest tokens alone; positions drawn by
            softmax(confidence / alg_temp) instead of the surest; and "row", which counts each sequence's transfers by its
            own masks, or "batch", which is upstream's mean over the batch. Where sequences have different numbers of
            masks, upstream's writes masks over tokens, the prompt's among them: it is there to compare with.
        eta, t_on, t_off, alpha_on: of ReMDM's algorithms; None is the published value (for 1024 steps).
        noise: of MDLM's algorithms: "coin" (None), or "race": the originals' draw over all V ids at every position, which
            gives their tokens from their random numbers and costs V of them a position and a step.
        noise_dtype: of MDLM's: float64 (None), or float32 as in MDLM's own code, whose samples have less entropy for it.
        confidence_dtype: of "remdm-conf", float32 (None); torch.bfloat16 rounds as the original does.
        remask_feedback: what a position that ReMDM masked again feeds back: "erased" (the reference's), "last" or "none";
            see ``sampling.memory.Memory``.
        soft_mask: None for plain binary masking. A schedule in its config lowers the scale as masks are filled.
        num_return_sequences: so many of each sequence, side by side.
        generation_tokens_hook_func: ``(step, x, logits) -> x`` after each step's transfers, and once with ``(None, x,
            None)`` before the first; it may change any token and mask any again.
        generation_logits_hook_func: ``(step, x, logits) -> logits`` on the shifted ``[B, L, V]`` logits, before anything
            is made of them, feedback included. With a hook the head runs on every position, and every step runs.
        generator: source of all random numbers; torch's global one when None.
        callback: called with a ``StepInfo`` after every step; returning ``False`` (and nothing else) stops there, with
            the remaining masks left in place.
        history: keep the sequences after every step.

    Raises:
        TypeError, ValueError: naming the argument, before anything is computed.
    """
    x, mask = _check_inputs(model, input_ids, attention_mask, max_new_tokens)
    check_soft_mask(model, soft_mask)
    policy = make_policy(
        model,
        alg,
        steps,
        {"temperature": temperature, "eps": eps, "top_p": top_p},
        {
            "top_k": top_k, "alg_temp": alg_temp, "transfer_count": transfer_count,
            "noise": noise, "noise_dtype": noise_dtype, "confidence_dtype": confidence_dtype,
        },
        {"eta": eta, "t_on": t_on, "t_off": t_off, "alpha_on": alpha_on},
    )  # fmt: skip
    check_int("num_return_sequences", num_return_sequences, 1)
    if remask_feedback not in REMASK_FEEDBACK:
        raise ValueError(f"remask_feedback must be one of {', '.join(REMASK_FEEDBACK)}, got {remask_feedback!r}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    for name, function in (
        ("callback", callback),
        ("generation_tokens_hook_func", generation_tokens_hook_func),
        ("generation_logits_hook_func", generation_logits_hook_func),
    ):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable or None, got {type(function).__name__}")
    if num_return_sequences > 1:
        x = x.repeat_interleave(num_return_sequences, dim=0)
        mask = None if mask is None else mask.repeat_interleave(num_return_sequences, dim=0)
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
            hooks=Hooks(generation_tokens_hook_func, generation_logits_hook_func),
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
    return x, None if bool(mask.all()) else mask  # no padding: the same numbers as without a mask


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
