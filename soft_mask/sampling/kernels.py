"""One step of every sampler as two numbers: the chance to reveal a mask, and the chance to re-mask a token.

A kernel is a small function of the step's beginning ``t`` and end ``s`` (``t > s``). In all of them a masked position
becomes a draw from the prediction p with the chance ``reveal`` and stays masked otherwise; a token that was written
before becomes a mask again with the chance ``remask`` and stays otherwise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Transition", "ancestral", "analytic", "remdm_cap", "remdm_conf", "remdm_loop", "remdm_rescale"]

NOISE_EPS = 1e-3  # of the log-linear schedule; only the analytic sampler uses it, as in the originals


class Transition(NamedTuple):
    """What a step does.

    Attributes:
        reveal: chance that a masked position becomes a token.
        remask: chance that a written token becomes a mask: one number, or float64 ``[B, L]``.
    """

    reveal: float
    remask: float | Tensor = 0.0


def ancestral(t: float, s: float) -> Transition:
    """MDLM's posterior with alpha_t = 1 - t (arXiv 2406.07524, eq. 6): a mask stays with s / t."""
    return Transition(1.0 if t <= 0.0 else _chance(1.0 - s / t))


def analytic(t: float, s: float) -> Transition:
    """SEDD's analytic sampler on the SUBS score, alpha_t = 1 - (1 - 1e-3) t.

    Multiplying the staggered score by the transition leaves ``p k (e^d - 1)`` for a token and one minus that for the
    mask, with k = alpha_t / (1 - alpha_t) and e^d = alpha_s / alpha_t: the posterior again, on the schedule's own alpha.
    """
    alpha_t, alpha_s = (1.0 - (1.0 - NOISE_EPS) * time for time in (t, s))
    return Transition(_chance((alpha_s - alpha_t) / (1.0 - alpha_t)))


def remdm(alpha_t: float, alpha_s: float, sigma: float) -> Transition:
    """ReMDM's posterior (arXiv 2503.00307): tokens are masked again with sigma."""
    return Transition(_chance((alpha_s - (1.0 - sigma) * alpha_t) / (1.0 - alpha_t)), sigma)


def remdm_cap(t: float, s: float, eta: float) -> Transition:
    """Re-mask with ``min(eta, (1 - alpha_s) / alpha_t)``."""
    return remdm(1.0 - t, 1.0 - s, min(eta, sigma_max(t, s)))


def remdm_rescale(t: float, s: float, eta: float) -> Transition:
    """Re-mask with ``eta sigma_max``, sigma_max = min(1, (1 - alpha_s) / alpha_t)."""
    return remdm(1.0 - t, 1.0 - s, eta * sigma_max(t, s))


def remdm_conf(t: float, s: float, confidence: Tensor) -> Transition:
    """Re-mask with ``sigma_max softmax(confidence)`` along each sequence: unsure tokens more often.

    The original keeps confidences in bfloat16, and with them every number of this kernel: at many steps alpha_s - alpha_t
    is then mostly rounding. Given bfloat16, the same operations are done here in the same order; given float32, the
    posterior comes out as it was meant.

    Args:
        confidence: ``[B, L]``, minus the probability each token was drawn with; -inf at masks and at what was given.
    """
    share = confidence.softmax(-1).nan_to_num(0.0)  # NaN: a sequence in which nothing is written yet
    share = share.masked_fill(torch.isneginf(confidence), 0.0)
    sigma = share * sigma_max(t, s)
    stays = (1 - sigma).double()
    none = confidence.new_zeros(())  # sigma of a masked position
    alpha_t, alpha_s = 1.0 - t, 1.0 - s
    token = float((alpha_s - (1 - none) * alpha_t) / (1 - alpha_t))
    mask = float((1 - alpha_s - none * alpha_t) / (1 - alpha_t))
    token = max(token, 0.0)  # a negative weight never wins
    return Transition(token / (token + mask) if token + mask > 0.0 else 1.0, sigma.double() / (sigma.double() + stays))


def remdm_loop(t: float, s: float, eta: float, t_on: float, t_off: float, alpha_on: float) -> Transition:
    """MDLM up to ``alpha_on``, reached at ``t_on``; then re-masking at that constant alpha; from ``t_off`` MDLM to the end."""
    if t > t_on:
        return ancestral(*(1.0 - (1.0 - time) * alpha_on / (1.0 - t_on) for time in (t, s)))
    if t <= t_off:
        return ancestral(*(time * (1.0 - alpha_on) / t_off for time in (t, s)))
    return remdm(alpha_on, alpha_on, eta)


def sigma_max(t: float, s: float) -> float:
    """The largest sigma that leaves a posterior."""
    return min(1.0, s / (1.0 - t)) if t < 1.0 else 1.0


def _chance(value: float) -> float:
    return min(max(value, 0.0), 1.0)  # rounding, and the step that ends below 0 in semi-autoregressive sampling
