"""The operators as functions: arguments are checked here, in words, and handed to the backend of this process.

A call costs one read of the masked rows of the logits; nothing of size ``[rows, V]`` is made. Shapes, dtypes and
devices raise ``ValueError`` or ``TypeError`` here, before anything is computed. Values that only the data can show (NaN,
+inf or all -inf in logits, an id without an embedding) raise ``RuntimeError`` from the operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _native, checks, expectation, reference
from .state import Feedback


def feedback(
    logits: Tensor,  # [.., V]
    k: int = 3,
    temperature: float | Tensor = 1.0,
    ban: int | Sequence[int] | Tensor | None = None,
    check: bool | None = None,
    logits_grad: bool = False,
) -> Feedback:
    """Summarise each row of logits in one read: top-k, their probabilities, negative entropy, logsumexp.

    Args:
        logits: ``[.., V]`` float32, bfloat16, float16, or float64; any strides. One feedback a row, whatever it is for.
        k: how many predictions to keep, 1 <= k <= V less the bans. Ties go to the lower id.
        temperature: divides the logits once, before everything; a positive float or 0-dim tensor.
        ban: id or ids left out of the distribution (MDLM bans its mask id, Dream bans none).
        check: raise on NaN, +inf, or a row that is -inf throughout. Default: yes on the CPU. Unchecked, such a row gives
            NaN or "no feedback", never a crash.
        logits_grad: let gradients of ``probs``, ``neg_entropy`` and ``logsumexp`` go on into the logits: dense and exact,
            one read and one write of ``[.., V]`` in backward. The paper detaches the feedback (arXiv 2510.17206, section 3).

    Returns:
        :class:`soft_mask.Feedback` of leading shape ``[..]`` (pi and H of the paper). It carries a gradient to the logits
        only with ``logits_grad``, and to ``temperature`` where that is a tensor which asks for one.

    Raises:
        ValueError, TypeError: naming the argument.
        RuntimeError: values in the logits that make no distribution.
    """
    checks.need_float(logits, "logits")
    checks.need_rank(logits, "logits", 1, "[.., V]")
    bans = checks.ban_ids(ban, logits.shape[-1])
    checks.need_k(k, logits.shape[-1], bans)
    checks.need_temperature(temperature)
    check = checks.checked(check, logits)
    if not _native.serves(logits, k=k, bans=len(bans)):
        return reference.feedback(logits if logits_grad else logits.detach(), k, temperature, bans, check)
    from . import ops

    lead = logits.shape[:-1]
    found = ops.feedback(_rows3(logits if logits_grad else logits.detach()), k, _optional(temperature, logits), bans, check)
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
    sparse_grad: bool = False,
    deterministic: bool = False,
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
        sparse_grad: the gradient to ``embedding`` is a sparse tensor of the rows in use, as ``nn.Embedding(sparse=True)``
            gives it, each row once.
        deterministic: sum the embedding's gradient in one fixed order. The CPU always does;
            ``torch.use_deterministic_algorithms`` asks for it everywhere.

    Returns:
        ``[.., L, d]`` of embedding's dtype. Gradients go to ``embedding``, ``scale``, ``steepness``, ``centre``, and to
        ``fb.probs`` and ``fb.neg_entropy`` where those ask for one.

    Raises:
        ValueError, TypeError: naming the argument. RuntimeError: an id without a row in ``embedding``.
    """
    checks.need_tokens(input_ids, embedding, mask_token_id, shift, where)
    if not isinstance(fb, tuple) or len(fb) != 4:
        raise TypeError(f"fb must be a soft_mask.Feedback, got {type(fb).__name__}")
    fb = Feedback(*fb)
    checks.need_feedback(fb, input_ids)
    checks.need_gate(scale, steepness, centre)
    if not _native.serves(embedding, fb.probs, fb.neg_entropy, k=fb.k):
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
        sparse_grad,
        deterministic,
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
    algorithm: str = "top_k",
    logits_grad: bool = False,
    sparse_grad: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """Soft masking in one call: read each masked row's logits once and embed the tokens with what they predict.

    The same as ``mix_embed(input_ids, feedback(logits), embedding)``, but the logits of rows that are not mixed are never
    touched. Arguments as in :func:`feedback` and :func:`mix_embed`; ``logits`` is ``[.., L, V]`` with the leading shape of
    ``input_ids``, and with ``shift=1`` position t reads logits row max(t-1, 0), without a copy.

    Args:
        algorithm: ``"top_k"``, or ``"expectation"``: the mean embedding under the whole distribution instead of its k best
            (the paper's full-vocabulary variant). That costs a matrix product with the embedding each way, done in blocks
            of rows; ``k`` is then not used, nor ``sparse_grad``: every row of the embedding is.

    Returns:
        ``[.., L, d]`` of embedding's dtype. Gradients go to ``embedding``, ``scale``, ``steepness`` and ``centre``, to
        ``temperature`` where that is a tensor which asks for one, and to the logits with ``logits_grad`` only: the paper
        detaches the feedback (arXiv 2510.17206, section 3).

    Raises:
        ValueError, TypeError: naming the argument. RuntimeError: bad values, see :func:`feedback`.
    """
    checks.need_tokens(input_ids, embedding, mask_token_id, shift, where)
    checks.need_logits_of(logits, input_ids)
    bans = checks.ban_ids(ban, logits.shape[-1])
    checks.need_k(k, logits.shape[-1], bans)
    checks.need_temperature(temperature)
    checks.need_gate(scale, steepness, centre)
    checks.need_algorithm(algorithm)
    check = checks.checked(check, logits)
    if not logits_grad:
        logits = logits.detach()
    compute = torch.float64 if torch.float64 in (embedding.dtype, logits.dtype) else torch.float32
    if algorithm == "expectation":
        return expectation.soft_mask_embed(
            logits, input_ids, embedding,
            gate=_gate_tensor(scale, steepness, centre, compute, embedding.device).to(embedding.device),
            mask_token_id=mask_token_id, temperature=temperature, ban=bans, shift=shift, where=where, check=check,
        )  # fmt: skip
    if not _native.serves(logits, embedding, k=k, bans=len(bans)):
        return reference.soft_mask_embed(
            logits, input_ids, embedding, mask_token_id=mask_token_id, k=k, scale=scale, steepness=steepness,
            centre=centre, temperature=temperature, ban=bans, shift=shift, where=where, check=check,
        )  # fmt: skip
    from . import ops

    lead = input_ids.shape
    rows = _lead2(lead)
    out = ops.soft_mask_embed(
        _rows3(logits),
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
        sparse_grad,
        deterministic,
    )
    return out.reshape((*lead, embedding.shape[1]))


def gate(
    neg_entropy: Tensor,  # [..]
    scale: float | Tensor,
    steepness: float | Tensor,
    centre: float | Tensor,
) -> Tensor:
    """lambda = scale * sigmoid(steepness * (neg_entropy - centre)), 0 where there is no feedback; ``[..]``."""
    checks.need_float(neg_entropy, "neg_entropy")
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
    """The gate's three numbers as one tensor [3]: tensors stay on the device and keep their gradients, floats on the host."""
    values = (scale, steepness, centre)
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=dtype)  # copying them to a GPU would make the host wait for it
    return torch.stack([torch.as_tensor(v).to(device=device, dtype=dtype) for v in values])


def _optional(temperature: float | Tensor, logits: Tensor) -> Tensor | None:
    """None for 1, so that the usual case costs nothing."""
    if isinstance(temperature, Tensor):
        return temperature.to(device=logits.device, dtype=torch.float64)
    return None if temperature == 1.0 else torch.tensor(temperature, dtype=torch.float64)
