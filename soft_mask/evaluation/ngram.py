"""A judge that knows nothing of diffusion: an n-gram model with Witten-Bell smoothing, fitted on the training text.

It reads samples as a reader who has seen only the training text would, one token after the other. Low is good, but a
sampler that repeats one frequent word scores well too: always read it with :func:`unigram_entropy` beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# One n-gram is one int64 key, a number in base `vocab_size`.
_LARGEST_KEY = 2**63 - 1


def _check_ids(name: str, ids: Tensor, dims: int, vocab_size: int | None = None) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise TypeError(f"{name}: expected an int64 tensor, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, got shape {tuple(ids.shape)}")
    if vocab_size is not None and ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise ValueError(f"{name}: ids must lie in [0, {vocab_size}), got {int(ids.min())} to {int(ids.max())}")


class NGram:
    """Witten-Bell n-gram model over token ids, all orders from 1 to ``order`` interpolated.

    With c(hw) the count of token w after history h, c(h) their sum, T(h) the number of different tokens seen after h:
    p(w | h) = (c(hw) + T(h) p(w | h')) / (c(h) + T(h)), where h' is h without its oldest token, and p is uniform
    (1 / vocab_size) below order 1. A history never seen hands over to the shorter one.

    Parameters
    ----------
    vocab_size: number of token ids; ``vocab_size ** order`` must fit 63 bits.
    order: longest n-gram, ≥ 1 (a history of ``order - 1`` tokens).

    Raises ValueError for sizes out of range.
    """

    def __init__(self, vocab_size: int, order: int = 6) -> None:
        if order < 1:
            raise ValueError(f"order: expected at least 1, got {order}")
        if vocab_size < 1:
            raise ValueError(f"vocab_size: expected at least 1, got {vocab_size}")
        if vocab_size**order > _LARGEST_KEY:
            raise ValueError(f"order: {vocab_size} ** {order} n-grams do not fit 63 bits; use a smaller order")
        self.vocab_size = vocab_size
        self.order = order
        # per order, sorted keys and their counts: n-grams hw, histories h with (c(h), T(h))
        self._grams: list[tuple[Tensor, Tensor]] = []
        self._histories: list[tuple[Tensor, Tensor, Tensor]] = []

    def fit(self, *texts: Tensor) -> NGram:
        """Count the n-grams of each ``text`` (int64 ``[T]``); none reaches over from one text into the next."""
        if not texts or not any(text.numel() for text in texts):
            raise ValueError("texts: nothing to count; expected at least one text with at least one token")
        for text in texts:
            _check_ids("texts", text, 1, self.vocab_size)
        self._grams, self._histories = [], []
        for n in range(1, self.order + 1):
            keys, counts = torch.cat([self._keys(text[None], n)[0] for text in texts]).unique(return_counts=True)
            histories, kinds = torch.div(keys, self.vocab_size, rounding_mode="floor").unique_consecutive(return_counts=True)
            # counts of one history lie side by side: their sums are differences of the running sum
            ends = counts.cumsum(0)[kinds.cumsum(0) - 1]
            self._grams.append((keys, counts))
            self._histories.append((histories, ends.diff(prepend=ends.new_zeros(1)), kinds))
        return self

    def nll(self, ids: Tensor) -> Tensor:
        """Nats of every token: ``ids`` int64 ``[N, L]`` -> float64 ``[N, L]``; early tokens have shorter histories."""
        if not self._grams:
            raise RuntimeError("fit the n-gram model before scoring with it")
        _check_ids("ids", ids, 2, self.vocab_size)
        probability = torch.full(ids.shape, 1.0 / self.vocab_size, dtype=torch.float64)
        for n in range(1, min(self.order, ids.shape[1]) + 1):
            keys = self._keys(ids, n)  # [N, L-n+1]: the n-gram that ends at column n-1, n, ...
            (grams, counts), (histories, totals, kinds) = self._grams[n - 1], self._histories[n - 1]
            at, seen = _find(histories, torch.div(keys, self.vocab_size, rounding_mode="floor"))
            total, kind = totals[at].double(), kinds[at].double()
            at, hit = _find(grams, keys)
            count = torch.where(hit, counts[at], 0).double()
            shorter = probability[:, n - 1 :]
            probability[:, n - 1 :] = torch.where(seen, (count + kind * shorter) / (total + kind), shorter)
        return -probability.log()

    def _keys(self, ids: Tensor, n: int) -> Tensor:
        """int64 ``[N, L]`` -> ``[N, L-n+1]``: every run of n tokens as one number, the newest token its last digit."""
        if ids.shape[1] < n:
            return ids.new_zeros((ids.shape[0], 0))
        width = ids.shape[1] - n + 1
        keys = torch.zeros_like(ids[:, :width])
        for i in range(n):
            keys = keys * self.vocab_size + ids[:, i : i + width]
        return keys


def _find(keys: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where each wanted key stands in the sorted ``keys`` [K], and whether it is there at all."""
    at = torch.searchsorted(keys, wanted).clamp_(max=keys.numel() - 1)
    return at, keys[at] == wanted


def unigram_entropy(ids: Tensor, pooled: bool = False) -> float:
    """Entropy of the tokens used, in nats: the check against samples that are likely because they repeat themselves.

    ``ids`` int64 ``[N, L]``. By default the mean over the N samples of each one's own entropy (the usual figure beside
    generative perplexity; at most ln L); ``pooled=True`` takes all N·L tokens together.
    """
    _check_ids("ids", ids, 2)
    if ids.numel() == 0:
        raise ValueError("ids: expected at least one token")
    rows = ids.reshape(1, -1) if pooled else ids
    entropies = []
    for row in rows:
        share = row.unique(return_counts=True)[1].double() / row.numel()
        entropies.append(float(-(share * share.log()).sum()))
    return sum(entropies) / len(entropies)
