"""A denoiser whose parameters are spread over ranks (FSDP2): the gate stays whole, weights are gathered to be saved."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback

__all__ = ["AverageGateGradient", "clip_sharded", "load_whole", "whole_model", "whole_state"]


class AverageGateGradient(TrainerCallback):
    """FSDP leaves parameters alone that it does not shard: their gradients are averaged over the ranks here.

    Once an update: before the clipping, which wants the averaged gradient, or before the step where nothing is clipped.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.done_for = -1

    def average(self, update: int) -> None:
        if self.done_for == update:
            return
        self.done_for = update
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        together = torch.stack([g.reshape(()) for g in gradients])
        dist.all_reduce(together)
        together /= dist.get_world_size()
        for p, g in zip(self.parameters, together.unbind(), strict=True):
            p.grad = g.clone()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.average(state.global_step)


def clip_sharded(sharded: list[nn.Parameter], whole: list[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradients of both together, which accelerate does for all of a model or nothing; returns their norm."""
    norm: Any = nn.utils.get_total_norm([p.grad for p in sharded if p.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if found := [p.grad for p in whole if p.grad is not None]:
        norm = torch.hypot(norm, nn.utils.get_total_norm(found).to(norm.dtype))
    for parameters in (sharded, whole):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def whole_state(denoiser: nn.Module, keep: bool, only: set[str] | None = None) -> dict[str, Tensor]:
    """All weights on the CPU, gathered one after the other; for all ranks to call, and ``keep`` on the one that saves.

    Args:
        only: names to gather; all when None.
    """
    from torch.distributed.tensor import DTensor

    state = {}
    for name, weight in denoiser.state_dict().items():
        if only is not None and name not in only:
            continue
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if keep:
            state[name] = whole.detach().cpu().clone()
    return state


def whole_model(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A model of ``model``'s class and config with the gathered weights ``state``, on the CPU, to be saved.

    Raises:
        RuntimeError: names or shapes do not fit.
    """
    with torch.device("meta"):
        copy = type(model)(model.config)  # type: ignore[arg-type]
    copy.load_state_dict(state, strict=True, assign=True)
    return copy


def load_whole(denoiser: nn.Module, state: dict[str, Any], strict: bool = True) -> None:
    """Give each rank its shards of the weights ``state``, which every rank has read; not ``strict``: of those alone."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(denoiser, state, options=StateDictOptions(full_state_dict=True, strict=strict))
