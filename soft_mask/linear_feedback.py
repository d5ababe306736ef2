"""Feedback straight from hidden states: the head's logits exist a piece at a time, never as ``[rows, V]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _native, checks, functional, reference
from .state import Feedback

ROWS = 512  # of hidden states in a piece: the head's weight is read once for so many
PIECE_BYTES = 2 * 2**20  # of logits: stays in the cache between the matrix product and its summary


@torch.no_grad()
def linear_feedback(
    hidden: Tensor,  # [.., d]
    head_weight: Tensor,  # [V, d]
    k: int = 3,
    temperature: float | Tensor = 1.0,
    ban: int | Sequence[int] | Tensor | None = None,
    bias: Tensor | None = None,  # [V]
    check: bool | None = None,
) -> Feedback:
    """``feedback(hidden @ head_weight.T + bias)`` without those logits ever being held together.

    The vocabulary is gone through in pieces of a few megabytes of logits, each summarised at once, and the summaries of a
    row are merged (design: the state of a row merges). Logits have the dtype that the matrix product gives them.

    Args:
        hidden: ``[.., d]`` float32, bfloat16, float16 or float64.
        head_weight: ``[V, d]`` of the same dtype, as ``nn.Linear.weight`` has it.
        k, temperature, ban, check: as in :func:`soft_mask.feedback`.
        bias: ``[V]`` or None.

    Returns:
        :class:`soft_mask.Feedback` of leading shape ``[..]``. No gradient goes through it: the paper detaches the feedback
        (arXiv 2510.17206, section 3). Beyond logits of about a hundred, ``neg_entropy`` is as exact as a float32
        ``logsumexp`` of that size.

    Raises:
        ValueError, TypeError: naming the argument. RuntimeError: the logits hold NaN or +inf (with ``check``).
    """
    checks.need_head(hidden, head_weight, bias)
    vocab = head_weight.shape[0]
    bans = checks.ban_ids(ban, vocab)
    checks.need_k(k, vocab, bans)
    checks.need_temperature(temperature)
    check = checks.checked(check, hidden)
    if _native.backend() == "reference":
        return reference.linear_feedback(hidden, head_weight, k, temperature, bans, bias, check)
    lead = hidden.shape[:-1]
    rows = hidden.reshape(-1, hidden.shape[-1])
    parts = [_summarise(rows[i : i + ROWS], head_weight, k, temperature, bans, bias) for i in range(0, max(1, len(rows)), ROWS)]
    ids, probs, neg_entropy, logsumexp = (torch.cat(part) for part in zip(*parts, strict=True))
    if check:
        bad = neg_entropy.isnan().nonzero()
        if len(bad):
            raise RuntimeError(
                f"soft_mask: hidden: the logits of row {int(bad[0])} (flattened) hold NaN or +inf; "
                "check=False turns this check off"
            )
    return Feedback(
        ids.reshape(*lead, k), probs.reshape(*lead, k), neg_entropy.reshape(lead), logsumexp.reshape(lead)
    )  # fmt: skip


def _summarise(
    rows: Tensor, weight: Tensor, k: int, temperature: float | Tensor, bans: tuple[int, ...], bias: Tensor | None
) -> Feedback:  # rows [n, d] -> leading shape [n]
    vocab = len(weight)
    columns = max(PIECE_BYTES // (max(1, len(rows)) * rows.element_size()), 2 * k, 256)
    pieces = -(-vocab // columns)
    best: Tensor | None = None  # [n, <= k] logits
    ids = torch.empty(0)
    states = []  # of each piece: neg_entropy and logsumexp, [n]
    for i in range(pieces):
        first, last = vocab * i // pieces, vocab * (i + 1) // pieces
        banned = [b - first for b in bans if first <= b < last]
        some = min(k, last - first - len(banned))
        if some == 0:
            continue
        logits = F.linear(rows, weight[first:last], None if bias is None else bias[first:last])
        fb = functional.feedback(logits, some, temperature, banned, check=False)
        states.append((fb.neg_entropy.double(), fb.logsumexp.double()))
        absent = (fb.ids == 0) & (fb.probs == 0)  # fewer than k logits above -inf
        new = logits.gather(1, fb.ids.long()).masked_fill_(absent, float("-inf"))
        if best is None:
            best, ids = new, fb.ids + first
        else:
            # What came before has the lower ids, and a stable sort leaves equals as they are: ties go to the lower id.
            best, order = torch.cat([best, new], 1).sort(dim=1, descending=True, stable=True)
            best, ids = best[:, :k], torch.cat([ids, fb.ids + first], 1).gather(1, order[:, :k])
    assert best is not None  # k >= 1 ids are not banned
    real = torch.float64 if rows.dtype == torch.float64 else torch.float32
    neg_entropy, logsumexp = _merged(*(torch.stack(part) for part in zip(*states, strict=True)))
    absent = best == float("-inf")
    probs = torch.softmax(best.to(real) / temperature, 1).masked_fill(absent, 0.0)
    return Feedback(ids.masked_fill(absent, 0), probs, neg_entropy.to(real), logsumexp.to(real))


def _merged(neg_entropy: Tensor, logsumexp: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the whole from those of its parts ``[parts, n]``: sum p ln p = sum_i w_i (h_i + l_i) - l, w_i = e^(l_i - l)."""
    whole = logsumexp.logsumexp(0)
    empty = logsumexp == float("-inf")
    terms = (neg_entropy + logsumexp).masked_fill(empty, 0.0) * (logsumexp - whole).masked_fill(empty, float("-inf")).exp()
    return torch.where(whole == float("-inf"), whole, (terms.sum(0) - whole).clamp(max=0.0)), whole
