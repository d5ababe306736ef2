"""The words that a wrong argument gets: shapes, dtypes and devices, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .state import Feedback

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ALGORITHMS = ("top_k", "expectation")


def need_float(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")


def need_rank(x: Tensor, name: str, least: int, shape: str) -> None:
    if x.dim() < least:
        raise ValueError(f"{name} must be {shape}, got shape {tuple(x.shape)}")


def need_device(x: Tensor, name: str, like: Tensor, like_name: str = "input_ids") -> None:
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, {like_name} on {like.device}: they must be on one device")


def need_k(k: int, vocab: int, bans: tuple[int, ...]) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if not 1 <= k <= vocab - len(bans):
        less = f" less {len(bans)} banned" if bans else ""
        raise ValueError(f"k must lie between 1 and the {vocab} logits of a row{less}, got {k}")


def ban_ids(ban: int | Sequence[int] | Tensor | None, vocab: int) -> tuple[int, ...]:
    if ban is None:
        return ()
    if isinstance(ban, Tensor):
        ban = ban.tolist()
    ids = [ban] if isinstance(ban, int) else list(ban)
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int):
            raise TypeError(f"ban must be an id or ids (int), got {i!r}")
        if not 0 <= i < vocab:
            raise ValueError(f"ban: id {i} lies outside the {vocab} logits of a row")
    return tuple(sorted(set(ids)))


def need_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.dim() != 0:
            raise ValueError(f"temperature must be a float or a 0-dim tensor, got shape {tuple(temperature.shape)}")
    elif isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature must be a float or a 0-dim tensor, got {type(temperature).__name__}")
    elif not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def need_gate(scale: float | Tensor, steepness: float | Tensor, centre: float | Tensor) -> None:
    for name, value in (("scale", scale), ("steepness", steepness), ("centre", centre)):
        if isinstance(value, Tensor):
            if value.dim() != 0:
                raise ValueError(f"{name} must be a float or a 0-dim tensor, got shape {tuple(value.shape)}")
        elif not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a float or a 0-dim tensor, got {type(value).__name__}")


def checked(check: bool | None, logits: Tensor) -> bool:
    # On a GPU reading the verdict would make the host wait; there it is read on request only.
    return logits.device.type == "cpu" if check is None else bool(check)


def need_tokens(input_ids: Tensor, embedding: Tensor, mask_token_id: int, shift: int, where: Tensor | None) -> None:
    need_float(embedding, "embedding")
    if embedding.dim() != 2:
        raise ValueError(f"embedding must be [V_e, d], got shape {tuple(embedding.shape)}")
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.dtype != torch.int64:
        raise TypeError(f"input_ids must be int64, got {input_ids.dtype}")
    need_device(embedding, "embedding", input_ids)
    if isinstance(mask_token_id, bool) or not isinstance(mask_token_id, int):
        raise TypeError(f"mask_token_id must be an int, got {type(mask_token_id).__name__}")
    if not 0 <= mask_token_id < embedding.shape[0]:
        raise ValueError(
            f"mask_token_id {mask_token_id} has no row in the embedding of {embedding.shape[0]} rows: "
            "pass the model's own mask id, or extend its embedding"
        )
    if shift not in (0, 1):
        raise ValueError(f"shift must be 0 or 1, got {shift!r}")
    if shift and input_ids.dim() < 1:
        raise ValueError("shift=1 needs input_ids of shape [.., L]")
    if where is not None:
        if not isinstance(where, Tensor) or where.dtype != torch.bool:
            raise TypeError(f"where must be a bool tensor, got {getattr(where, 'dtype', type(where).__name__)}")
        if where.shape != input_ids.shape:
            raise ValueError(f"where must have the shape of input_ids {tuple(input_ids.shape)}, got {tuple(where.shape)}")
        need_device(where, "where", input_ids)


def need_feedback(fb: Feedback, input_ids: Tensor) -> None:
    lead = input_ids.shape
    for name, part, depth in (("ids", fb.ids, 1), ("probs", fb.probs, 1), ("neg_entropy", fb.neg_entropy, 0)):
        if not isinstance(part, Tensor):
            raise TypeError(f"fb.{name} must be a tensor, got {type(part).__name__}")
        if part.dim() != len(lead) + depth or part.shape[: len(lead)] != lead:
            raise ValueError(f"fb.{name} must have the leading shape of input_ids {tuple(lead)}, got {tuple(part.shape)}")
        need_device(part, f"fb.{name}", input_ids)
    if fb.ids.dtype != torch.int32:
        raise TypeError(f"fb.ids must be int32, got {fb.ids.dtype}")
    if fb.ids.shape[-1] < 1 or fb.probs.shape != fb.ids.shape:
        raise ValueError(f"fb.probs {tuple(fb.probs.shape)} must have the shape of fb.ids {tuple(fb.ids.shape)}, k >= 1")
    for name, part in (("probs", fb.probs), ("neg_entropy", fb.neg_entropy)):
        if part.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"fb.{name} must be float32 or float64, got {part.dtype}")


def need_logits_of(logits: Tensor, input_ids: Tensor) -> None:
    """One row of logits a token."""
    need_float(logits, "logits")
    if logits.dim() < 1 or logits.shape[:-1] != input_ids.shape:
        raise ValueError(
            f"logits must be [.., L, V] with the leading shape of input_ids {tuple(input_ids.shape)}, got {tuple(logits.shape)}"
        )
    need_device(logits, "logits", input_ids)


def need_algorithm(algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm!r}")


def need_head(hidden: Tensor, head_weight: Tensor, bias: Tensor | None) -> None:
    need_float(hidden, "hidden")
    need_float(head_weight, "head_weight")
    need_rank(hidden, "hidden", 1, "[.., d]")
    if head_weight.dim() != 2 or head_weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"head_weight must be [V, {hidden.shape[-1]}] as hidden is [.., d], got {tuple(head_weight.shape)}")
    if hidden.dtype != head_weight.dtype:
        raise TypeError(f"hidden is {hidden.dtype}, head_weight {head_weight.dtype}: they must have one dtype")
    need_device(head_weight, "head_weight", hidden, "hidden")
    if bias is not None:
        need_float(bias, "bias")
        if bias.shape != head_weight.shape[:1] or bias.dtype != hidden.dtype:
            raise ValueError(
                f"bias must be [{head_weight.shape[0]}] of {hidden.dtype}, got {tuple(bias.shape)} of {bias.dtype}"
            )
        need_device(bias, "bias", hidden, "hidden")


# --- Values, which only the data can show; where the compiled operators look, they say the same -----------------------


def refuse_rows(z: Tensor, read: Tensor | None = None, names: Tensor | None = None) -> None:
    """Raise for the first row of z ``[.., V]`` (where ``read [..]``) that is no distribution, by its name or place."""
    if not z.numel():
        return
    top = z.amax(-1)  # NaN and +inf both come through a maximum
    none = top == float("-inf")
    for bad, what in (
        (~(top < float("inf")), "holds NaN or +inf"),
        (none, "is -inf throughout, which is no distribution"),
    ):
        rows = (bad if read is None else bad & read).flatten().nonzero()
        if len(rows):
            row = int(rows[0] if names is None else names[rows[0]])
            raise RuntimeError(f"soft_mask: logits: row {row} (flattened) {what}; check=False turns this check off")


def refuse_temperature(temperature: float | Tensor) -> None:
    value = float(temperature.detach() if isinstance(temperature, Tensor) else temperature)
    if not 0.0 < value < float("inf"):
        raise RuntimeError(f"soft_mask: temperature must be positive and finite, got {value}")


def refuse_ids(ids: Tensor, embedding: Tensor, name: str) -> None:
    bad = (ids < 0) | (ids >= embedding.shape[0])
    if bool(bad.any()):
        worst = int(ids[bad][0])
        raise RuntimeError(f"soft_mask: {name}: id {worst} has no row in the embedding of {embedding.shape[0]} rows")
