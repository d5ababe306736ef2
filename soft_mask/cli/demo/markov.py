"""Act 1's language: a sparse Markov chain, whose entropy, and so the best possible model, is known in closed form.

Every token may be followed by two others only. A masked model must carry that knowledge across gaps, from both sides;
one shallow pass carries it one message far, and fed-back beliefs carry it one further at every step.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

ALPHABET = "abcdefghijklmnopqrstuvwxyz012345"


class MarkovLanguage:
    """A stationary Markov chain over ``vocab_size`` tokens with ``successors`` legal next tokens each.

    The successors are distinct random permutations, so every token is as often allowed as any other; the weights of a
    token's successors are Dirichlet(4); the chain is drawn again until every token can be reached from every other.

    ``matrix`` is float64 ``[V, V]``, row = this token, column = the next; ``start`` float64 ``[V]`` its stationary law.
    """

    def __init__(self, seed: int, vocab_size: int = 32, successors: int = 2, concentration: float = 4.0) -> None:
        if not 1 < successors < vocab_size:
            raise ValueError(f"successors: expected between 2 and {vocab_size - 1}, got {successors}")
        self.vocab_size = vocab_size
        generator = torch.Generator().manual_seed(seed)
        while True:
            matrix = torch.zeros(vocab_size, vocab_size, dtype=torch.float64)
            weights = _dirichlet(vocab_size, successors, concentration, generator)
            targets = _disjoint_permutations(vocab_size, successors, generator)
            matrix.scatter_(1, targets, weights)
            # (I + P)^(V-1) has no zero exactly when every token reaches every other
            if (torch.linalg.matrix_power(torch.eye(vocab_size, dtype=torch.float64) + matrix, vocab_size - 1) > 0).all():
                break
        self.matrix = matrix

    @cached_property
    def start(self) -> Tensor:
        # pi P = pi with sum 1, as one solvable system: the last equation of (P^T - I) pi = 0 is replaced by the sum
        system = self.matrix.T - torch.eye(self.vocab_size, dtype=torch.float64)
        system[-1] = 1.0
        right = torch.zeros(self.vocab_size, dtype=torch.float64)
        right[-1] = 1.0
        return torch.linalg.solve(system, right)

    def floor(self, length: int) -> float:
        """Entropy of a sequence in nats per token: no NELBO can be lower, and the true conditionals reach it."""
        per_step = float((self.start * _entropy(self.matrix)).sum())
        return (float(_entropy(self.start)) + (length - 1) * per_step) / length

    def sample(self, count: int, length: int, generator: torch.Generator) -> Tensor:
        """int64 ``[count, length]`` of fresh sequences."""
        cumulative = self.matrix.cumsum(1)
        cumulative /= cumulative[:, -1:].clone()
        u = torch.rand(length, count, generator=generator, dtype=torch.float64)
        ids = torch.empty(length, count, dtype=torch.int64)
        ids[0] = torch.searchsorted(self.start.cumsum(0), u[0]).clamp_(max=self.vocab_size - 1)
        for i in range(1, length):
            ids[i] = torch.searchsorted(cumulative[ids[i - 1]], u[i, :, None])[:, 0]
        return ids.T.contiguous()

    def legal(self, ids: Tensor) -> Tensor:
        """bool ``[N, L-1]``: is the step from each token of ``ids`` [N, L] to the next one allowed?"""
        return self.matrix[ids[:, :-1], ids[:, 1:]] > 0

    def nll(self, ids: Tensor, illegal: float = 1e-4) -> Tensor:
        """Nats of whole sequences under the chain, float64 ``[N]``; an illegal step has probability ``illegal``."""
        steps = self.matrix[ids[:, :-1], ids[:, 1:]].clamp(min=illegal)
        return -(self.start[ids[:, 0]].log() + steps.log().sum(1))

    @staticmethod
    def spell(ids: Tensor) -> str:
        """One row of tokens as characters; the mask is a middle dot."""
        return "".join(ALPHABET[i] if i < len(ALPHABET) else "·" for i in ids.tolist())


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def _dirichlet(rows: int, width: int, concentration: float, generator: torch.Generator) -> Tensor:
    # A Gamma(n) variable with whole n is a sum of n exponentials: torch's own sampler takes no generator.
    n = round(concentration)
    gamma = -torch.rand(rows, width, n, generator=generator, dtype=torch.float64).clamp_(min=math.ulp(0.0)).log().sum(-1)
    return gamma / gamma.sum(1, keepdim=True)


def _disjoint_permutations(size: int, count: int, generator: torch.Generator) -> Tensor:
    """int64 ``[size, count]``: columns are permutations of 0 .. size-1, and no row holds one value twice."""
    columns: list[Tensor] = []
    while len(columns) < count:
        column = torch.randperm(size, generator=generator)
        if all((column != other).all() for other in columns):
            columns.append(column)
    return torch.stack(columns, 1)
