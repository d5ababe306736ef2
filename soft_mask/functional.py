"""The operators as functions: arguments are checked here, in words, and handed to the backend of this process.

A call costs one read of the masked rows of the logits; nothing of size ``[rows, V]`` is made. Shapes, dtypes and
devices raise ``ValueError`` or ``TypeError`` here, before anything is computed. Values that only the data can show (NaN,
+inf or all -inf in logits, an id without an embedding) raise ``RuntimeError`` from the operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _native, reference
from .state import Feedback

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def feedback(
    logits: Tensor,  # [.., V]
    k: int = 3,
    temperature: float | Tensor = 1.0,
    ban: int | Sequence[int] | Tensor | None = None,
    check: bool | None = None,
) -> Feedback:
    """Summarise each row of logits in one read: top-k, their probabilities, negative entropy, logsumexp.

    Args:
        logits: ``[.., V]`` float32, bfloat16, float16, or float64; any strides. One feedback a row, whatever it is for.
        k: how many predictions to keep, 1 <= k <= V less the bans. Ties go to the lower id.
        temperature: divides the logits once, before everything; a positive float or 0-dim tensor.
        ban: id or ids left out of the distribution (MDLM bans its mask id, Dream bans none).
        check: raise on NaN, +inf, or a row that is -inf throughout. Default: yes on the CPU. Unchecked, such a row gives
            NaN or "no feedback", never a crash.

    Returns:
        :class:`soft_mask.Feedback` of leading shape ``[..]``. It carries no gradient to the logits: the paper detaches it
        (arXiv 2510.17206, section 3; pi and H there).

    Raises:
        ValueError, TypeError: naming the argument.
        RuntimeError: values in the logits that make no distribution.
    """
    _need_float(logits, "logits")
    _need_rank(logits, "logits", 1, "[.., V]")
    bans = _bans(ban, logits.shape[-1])
    _need_k(k, logits.shape[-1], bans)
    _need_temperature(temperature)
    check = _checked(check, logits)
    if _native.backend() == "reference":
        return reference.feedback(logits.detach(), k, temperature, bans, check)
    from . import ops

    lead = logits.shape[:-1]
    found = ops.feedback(_rows3(logits.detach()), k, _optional(temperature, logits), bans, check)
    return Feedback(*(part.reshape(lead + part.shape[2:]) for part in found))


def mix_embed(
    input_ids: Tensor,  # [.., L] int64
    fb: Feedback,  # leading shape [.., L]
    embedding: Tensor,  # [V_e, d]
    *,
    mask_token_id: int,
    scale: float | Tensor,
    steepness: float | Tensor,
    centre: float | Tensor,
    shift: int = 0,
    where: Tensor | None = None,  # [.., L] bool
) -> Tensor:
    """Embed tokens; rows to be mixed become (1 - lambda) E[input_id] + lambda sum_j probs_j E[ids_j].

    Any other row, and a row without feedback, is ``embedding[input_id]`` bit for bit (arXiv 2510.17206, eq. of section 3).

    Args:
        input_ids: ``[.., L]`` int64.
        fb: feedback of leading shape ``[.., L]``, one a position (with ``shift=1``: one a row of logits).
        embedding: ``[V_e, d]``, with a row for every id that is used.
        mask_token_id: rows where ``input_ids`` equals it are mixed, unless ``where`` says otherwise.
        scale, steepness, centre: the gate, floats or 0-dim tensors; differentiable.
        shift: 1 if position t reads feedback row max(t-1, 0) of the last leading axis (Dream).
        where: ``[.., L]`` bool, the rows to mix instead of the masked ones.

    Returns:
        ``[.., L, d]`` of embedding's dtype. Gradients go to ``embedding``, ``scale``, ``steepness``, ``centre``, and to
        ``fb.probs`` and ``fb.neg_entropy`` where those ask for one.

    Raises:
        ValueError, TypeError: naming the argument. RuntimeError: an id without a row in ``embedding``.
    """
    _need_tokens(input_ids, embedding, mask_token_id, shift, where)
    if not isinstance(fb, tuple) or len(fb) != 4:
        raise TypeError(f"fb must be a soft_mask.Feedback, got {type(fb).__name__}")
    fb = Feedback(*fb)
    _need_feedback(fb, input_ids)
    _need_gate(scale, steepness, centre)
    if _native.backend() == "reference":
        return reference.mix_embed(
            input_ids, fb, embedding, mask_token_id=mask_token_id, scale=scale, steepness=steepness, centre=centre,
            shift=shift, where=where,
        )  # fmt: skip
    from . import ops

    compute = torch.float64 if torch.float64 in (embedding.dtype, fb.probs.dtype) else torch.float32
    lead = input_ids.shape
    rows = _lead2(lead)
    out = ops.mix_embed(
        input_ids.reshape(rows).contiguous(),
        fb.ids.reshape(*rows, fb.k).contiguous(),
        fb.probs.to(compute).reshape(*rows, fb.k).contiguous(),
        fb.neg_entropy.to(compute).reshape(rows).contiguous(),
        _table(embedding),
        _gate_tensor(scale, steepness, centre, compute, embedding.device),
        mask_token_id,
        shift,
        None if where is None else where.reshape(rows).contiguous(),
    )
    return out.reshape((*lead, embedding.shape[1]))


def soft_mask_embed(
    logits: Tensor,  # [.., L, V]
    input_ids: Tensor,  # [.., L] int64
    embedding: Tensor,  # [V_e, d]
    *,
    mask_token_id: int,
    k: int = 3,
    scale: float | Tensor,
    steepness: float | Tensor,
    centre: float | Tensor,
    temperature: float | Tensor = 1.0,
    ban: int | Sequence[int] | Tensor | None = None,
    shift: int = 0,
    where: Tensor | None = None,  # [.., L] bool
    check: bool | None = None,
) -> Tensor:
    """Soft masking in one call: read each masked row's logits once and embed the tokens with what they predict.

    The same as ``mix_embed(input_ids, feedback(logits), embedding)``, but the logits of rows that are not mixed are never
    touched. Arguments as in :func:`feedback` and :func:`mix_embed`; ``logits`` is ``[.., L, V]`` with the leading shape of
    ``input_ids``, and with ``shift=1`` position t reads logits row max(t-1, 0), without a copy.

    Returns:
        ``[.., L, d]`` of embedding's dtype. Gradients go to ``embedding``, ``scale``, ``steepness`` and ``centre``; the
        feedback is detached from the logits, as in the paper (arXiv 2510.17206, section 3).

    Raises:
        ValueError, TypeError: naming the argument. RuntimeError: bad values, see :func:`feedback`.
    """
    _need_tokens(input_ids, embedding, mask_token_id, shift, where)
    _need_float(logits, "logits")
    if logits.shape[:-1] != input_ids.shape or logits.dim() < 1:
        raise ValueError(
            f"logits must be [.., L, V] with the leading shape of input_ids {tuple(input_ids.shape)}, got {tuple(logits.shape)}"
        )
    _need_device(logits, "logits", input_ids)
    bans = _bans(ban, logits.shape[-1])
    _need_k(k, logits.shape[-1], bans)
    _need_temperature(temperature)
    _need_gate(scale, steepness, centre)
    check = _checked(check, logits)
    if _native.backend() == "reference":
        return reference.soft_mask_embed(
            logits.detach(), input_ids, embedding, mask_token_id=mask_token_id, k=k, scale=scale, steepness=steepness,
            centre=centre, temperature=temperature, ban=bans, shift=shift, where=where, check=check,
        )  # fmt: skip
    from . import ops

    compute = torch.float64 if torch.float64 in (embedding.dtype, logits.dtype) else torch.float32
    lead = input_ids.shape
    rows = _lead2(lead)
    out = ops.soft_mask_embed(
        _rows3(logits.detach()),
        input_ids.reshape(rows).contiguous(),
        _table(embedding),
        _gate_tensor(scale, steepness, centre, compute, embedding.device),
        mask_token_id,
        k,
        _optional(temperature, logits),
        bans,
        shift,
        None if where is None else where.reshape(rows).contiguous(),
        check,
    )
    return out.reshape((*lead, embedding.shape[1]))


def gate(
    neg_entropy: Tensor,  # [..]
    scale: float | Tensor,
    steepness: float | Tensor,
    centre: float | Tensor,
) -> Tensor:
    """lambda = scale * sigmoid(steepness * (neg_entropy - centre)), 0 where there is no feedback; ``[..]``."""
    _need_float(neg_entropy, "neg_entropy")
    return reference.gate(neg_entropy, scale, steepness, centre)


# --- Shapes that the operators take: logits [B, L, V], ids [B, L] -----------------------------------------------------


def _lead2(lead: torch.Size) -> tuple[int, int]:
    """[.., L] as [B, L]; a single row is [1, 1]."""
    length = lead[-1] if len(lead) else 1
    count = 1
    for size in lead[:-1]:
        count *= size
    return count, length


def _rows3(x: Tensor) -> Tensor:
    """``[.., L, V]`` as ``[B, L, V]`` with neighbouring columns; a view wherever strides allow."""
    if x.dim() != 3:
        x = x.reshape(*_lead2(x.shape[:-1]), x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _table(embedding: Tensor) -> Tensor:
    return embedding if embedding.stride(-1) == 1 or embedding.shape[-1] <= 1 else embedding.contiguous()


def _gate_tensor(
    scale: float | Tensor, steepness: float | Tensor, centre: float | Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The gate's three numbers as one tensor [3], so that they stay on the device and keep their gradients."""
    values = (scale, steepness, centre)
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.stack([torch.as_tensor(v).to(device=device, dtype=dtype) for v in values])


def _optional(temperature: float | Tensor, logits: Tensor) -> Tensor | None:
    """None for 1, so that the usual case costs nothing."""
    if isinstance(temperature, Tensor):
        return temperature.detach().to(device=logits.device, dtype=torch.float64)
    return None if temperature == 1.0 else torch.tensor(temperature, dtype=torch.float64, device=logits.device)


# --- Checks -----------------------------------------------------------------------------------------------------------


def _need_float(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")


def _need_rank(x: Tensor, name: str, least: int, shape: str) -> None:
    if x.dim() < least:
        raise ValueError(f"{name} must be {shape}, got shape {tuple(x.shape)}")


def _need_device(x: Tensor, name: str, like: Tensor) -> None:
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, input_ids on {like.device}: they must be on one device")


def _need_k(k: int, vocab: int, bans: tuple[int, ...]) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {type(k).__name__}")
    if not 1 <= k <= vocab - len(bans):
        less = f" less {len(bans)} banned" if bans else ""
        raise ValueError(f"k must lie between 1 and the {vocab} logits of a row{less}, got {k}")


def _bans(ban: int | Sequence[int] | Tensor | None, vocab: int) -> tuple[int, ...]:
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


def _need_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        if temperature.dim() != 0:
            raise ValueError(f"temperature must be a float or a 0-dim tensor, got shape {tuple(temperature.shape)}")
        if temperature.requires_grad:
            raise NotImplementedError("temperature: no gradient reaches it in this release; pass temperature.detach()")
    elif isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature must be a float or a 0-dim tensor, got {type(temperature).__name__}")
    elif not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _need_gate(scale: float | Tensor, steepness: float | Tensor, centre: float | Tensor) -> None:
    for name, value in (("scale", scale), ("steepness", steepness), ("centre", centre)):
        if isinstance(value, Tensor):
            if value.dim() != 0:
                raise ValueError(f"{name} must be a float or a 0-dim tensor, got shape {tuple(value.shape)}")
        elif not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a float or a 0-dim tensor, got {type(value).__name__}")


def _checked(check: bool | None, logits: Tensor) -> bool:
    # On a GPU reading the verdict would make the host wait; there it is read on request only.
    return logits.device.type == "cpu" if check is None else bool(check)


def _need_tokens(input_ids: Tensor, embedding: Tensor, mask_token_id: int, shift: int, where: Tensor | None) -> None:
    _need_float(embedding, "embedding")
    if embedding.dim() != 2:
        raise ValueError(f"embedding must be [V_e, d], got shape {tuple(embedding.shape)}")
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor, got {type(input_ids).__name__}")
    if input_ids.dtype != torch.int64:
        raise TypeError(f"input_ids must be int64, got {input_ids.dtype}")
    _need_device(embedding, "embedding", input_ids)
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
        _need_device(where, "where", input_ids)


def _need_feedback(fb: Feedback, input_ids: Tensor) -> None:
    lead = input_ids.shape
    for name, part, depth in (("ids", fb.ids, 1), ("probs", fb.probs, 1), ("neg_entropy", fb.neg_entropy, 0)):
        if not isinstance(part, Tensor):
            raise TypeError(f"fb.{name} must be a tensor, got {type(part).__name__}")
        if part.dim() != len(lead) + depth or part.shape[: len(lead)] != lead:
            raise ValueError(f"fb.{name} must have the leading shape of input_ids {tuple(lead)}, got {tuple(part.shape)}")
        _need_device(part, f"fb.{name}", input_ids)
    if fb.ids.dtype != torch.int32:
        raise TypeError(f"fb.ids must be int32, got {fb.ids.dtype}")
    if fb.ids.shape[-1] < 1 or fb.probs.shape != fb.ids.shape:
        raise ValueError(f"fb.probs {tuple(fb.probs.shape)} must have the shape of fb.ids {tuple(fb.ids.shape)}, k >= 1")
    for name, part in (("probs", fb.probs), ("neg_entropy", fb.neg_entropy)):
        if part.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"fb.{name} must be float32 or float64, got {part.dtype}")
