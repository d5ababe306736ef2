"""Soft masking in plain PyTorch: the oracle of the tests, and what runs where nothing is compiled.

The same names and arguments as :mod:`soft_mask.functional`, written for reading. Float32 arithmetic for float32 and
narrower inputs with sums over the vocabulary in float64, and float64 for float64. It makes ``[rows, V]`` temporaries; the
compiled operators do not. Arguments are checked by :mod:`soft_mask.functional`; here only values are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from .state import Feedback


def gate(neg_entropy: Tensor, scale: float | Tensor, steepness: float | Tensor, centre: float | Tensor) -> Tensor:
    """lambda = scale * sigmoid(steepness * (neg_entropy - centre)), and 0 where there is no feedback (section 3)."""
    empty = neg_entropy == float("-inf")
    # Replaced before the sigmoid, not after: a gradient of 0 * inf would be NaN.
    u = steepness * (neg_entropy.masked_fill(empty, 0.0) - centre)
    return (scale * torch.sigmoid(u)).masked_fill(empty, 0.0)


def feedback(
    logits: Tensor,  # [.., V]
    k: int = 3,
    temperature: float | Tensor = 1.0,
    ban: tuple[int, ...] = (),
    check: bool = True,
) -> Feedback:
    """The twin of :func:`soft_mask.feedback`; differentiable to whatever asks for a gradient."""
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    checks.refuse_temperature(temperature)
    z = logits.to(compute)
    if ban:
        z = z.index_fill(-1, torch.tensor(ban, device=z.device), float("-inf"))
    if check:
        checks.refuse_rows(z, None)
    # A stable sort keeps equal logits in the order of their ids: ties go to the lower id.
    values, ids = torch.sort(z, dim=-1, descending=True, stable=True)
    values, ids = values[..., :k], ids[..., :k].to(torch.int32)
    absent = values == float("-inf")
    values = (values.masked_fill(absent, 0.0) / temperature).masked_fill(absent, float("-inf"))
    # A logit of -inf adds nothing; it is replaced before anything is computed of it, for 0 * -inf has no gradient either.
    nothing = z == float("-inf")
    x = z.masked_fill(nothing, 0.0) / temperature
    top = x.detach().masked_fill(nothing, float("-inf")).amax(-1, keepdim=True)
    none = top == float("-inf")  # only where check is off
    gap = (x - top.masked_fill(none, 0.0)).masked_fill(nothing, 0.0)
    e = gap.exp().masked_fill(nothing, 0.0)
    total = e.sum(-1, dtype=torch.float64)
    weighted = (e * gap).sum(-1, dtype=torch.float64)
    return Feedback(
        ids=ids.masked_fill(absent, 0),
        probs=torch.softmax(values, -1).masked_fill(absent, 0.0),
        neg_entropy=(weighted / total - total.log()).masked_fill(none.squeeze(-1), float("-inf")).to(compute),
        logsumexp=(top.squeeze(-1) + total.log()).to(compute),
    )


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
) -> Tensor:  # [.., L, d], dtype of embedding
    """The twin of :func:`soft_mask.mix_embed`."""
    compute = torch.float64 if torch.float64 in (embedding.dtype, fb.probs.dtype) else torch.float32
    mixed = input_ids == mask_token_id if where is None else where
    checks.refuse_ids(input_ids, embedding, "input_ids")
    # In `compute` throughout and rounded once, which leaves plain rows as they are; so is the gradient on its way back.
    table = embedding.to(compute)
    plain = table[input_ids]
    if shift:
        fb = Feedback(*(_shift_rows(part, fb.ids.dim() - 2) for part in fb))
    neg_entropy = fb.neg_entropy.to(compute).masked_fill(~mixed, float("-inf"))
    lam = gate(neg_entropy, scale, steepness, centre).unsqueeze(-1)
    ids = fb.ids.long().masked_fill((neg_entropy == float("-inf")).unsqueeze(-1), 0)
    checks.refuse_ids(ids, embedding, "fb.ids")
    believed = (fb.probs.to(compute).unsqueeze(-1) * table[ids]).sum(-2)
    soft = (1 - lam) * plain + lam * believed
    return torch.where((neg_entropy == float("-inf")).unsqueeze(-1), plain, soft).to(embedding.dtype)


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
    ban: tuple[int, ...] = (),
    shift: int = 0,
    where: Tensor | None = None,  # [.., L] bool
    check: bool = True,
) -> Tensor:  # [.., L, d], dtype of embedding
    """The twin of :func:`soft_mask.soft_mask_embed`."""
    mixed = input_ids == mask_token_id if where is None else where
    rows = _shift_rows(logits, logits.dim() - 2) if shift else logits
    if check:
        # Here, where a row still has its place; a shifted row is named by where its logits lie.
        read = mixed if not shift else mixed | torch.nn.functional.pad(mixed[..., 1:], (0, 1))
        z = logits.to(torch.float64)
        if ban:
            z = z.index_fill(-1, torch.tensor(ban, device=z.device), float("-inf"))
        checks.refuse_rows(z, read)
    found = feedback(rows[mixed], k, temperature, ban, check=False)
    store = Feedback.empty(input_ids.shape, k, logits.device)
    # Out of place: a gradient may have to find its way back through the rows.
    store = Feedback(*(part.to(new.dtype).index_put((mixed,), new) for part, new in zip(store, found, strict=True)))
    return mix_embed(
        input_ids,
        store,
        embedding,
        mask_token_id=mask_token_id,
        scale=scale,
        steepness=steepness,
        centre=centre,
        where=where,
    )


def linear_feedback(
    hidden: Tensor,  # [.., d]
    head_weight: Tensor,  # [V, d]
    k: int = 3,
    temperature: float | Tensor = 1.0,
    ban: tuple[int, ...] = (),
    bias: Tensor | None = None,  # [V]
    check: bool = True,
) -> Feedback:
    """The twin of :func:`soft_mask.linear_feedback`."""
    return feedback(torch.nn.functional.linear(hidden, head_weight, bias), k, temperature, ban, check)


def expectation_embed(
    logits: Tensor,  # [.., L, V]
    input_ids: Tensor,  # [.., L] int64
    embedding: Tensor,  # [V_e, d], V_e >= V
    *,
    mask_token_id: int,
    scale: float | Tensor,
    steepness: float | Tensor,
    centre: float | Tensor,
    temperature: float | Tensor = 1.0,
    ban: tuple[int, ...] = (),
    shift: int = 0,
    where: Tensor | None = None,  # [.., L] bool
) -> Tensor:  # [.., L, d], dtype of embedding
    """The twin of ``soft_mask_embed(algorithm="expectation")``; all of ``[.., L, V]`` at once."""
    compute = torch.float64 if torch.float64 in (logits.dtype, embedding.dtype) else torch.float32
    mixed = (input_ids == mask_token_id if where is None else where).unsqueeze(-1)
    neg_entropy = feedback(logits.to(compute), 1, temperature, ban, check=False).neg_entropy
    z = logits.to(compute).index_fill(-1, torch.tensor(ban, dtype=torch.long, device=logits.device), float("-inf"))
    p = torch.softmax(z / temperature, -1)
    if shift:
        p, neg_entropy = _shift_rows(p, p.dim() - 2), _shift_rows(neg_entropy, neg_entropy.dim() - 1)
    lam = gate(neg_entropy, scale, steepness, centre).unsqueeze(-1)
    table = embedding.to(compute)
    plain = table[input_ids]
    soft = (1 - lam) * plain + lam * (p @ table[: p.shape[-1]])
    return torch.where(mixed, soft, plain).to(embedding.dtype)


def _shift_rows(x: Tensor, axis: int) -> Tensor:
    """Row t becomes row max(t - 1, 0) along ``axis``."""
    length = x.shape[axis]
    return torch.cat([x.narrow(axis, 0, min(1, length)), x.narrow(axis, 0, max(length - 1, 0))], axis)
