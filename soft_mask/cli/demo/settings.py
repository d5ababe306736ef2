"""Everything that decides the demo's numbers, in one place; it goes into the results as it is."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import soft_mask

# Forward pass 1, backward pass 2: an update costs 3; a share p_sm of the updates has one forward pass more.
UPDATE_COST = 3.0


@dataclass(frozen=True)
class Act:
    """One language, one model, three branches from one binary checkpoint: binary, soft, binary with soft's compute."""

    name: str
    # the model: our own MDLM
    length: int
    hidden_dim: int
    n_heads: int = 4
    n_blocks: int = 1
    cond_dim: int = 16
    tie_word_embeddings: bool = True
    gate_init: float = 1.0
    embedding_std: float = 0.02
    # training: AdamW (0.9, 0.99), no weight decay, clip 1, warm-up 50; the base at a constant rate, branches decay to 0
    batch_size: int = 32
    base_updates: int = 1000
    base_learning_rate: float = 2e-3
    updates: int = 600
    learning_rate: float = 2e-3
    # soft masking
    p_sm: float = 0.8
    k: int = 3
    scale: float = 0.5
    steepness: float = 6.66
    centre: float = -3.0
    omega_learning_rate: float = 1e-2
    # what is measured
    test_sequences: int = 1024
    test_draws: int = 2
    samples: int = 256

    @property
    def compute_ratio(self) -> float:
        """Cost of a soft update in binary updates, counted in passes: (3 + p_sm) / 3."""
        return (UPDATE_COST + self.p_sm) / UPDATE_COST

    @property
    def long_updates(self) -> int:
        """Updates of the binary branch that may spend what soft spends, rounded in its favour."""
        return math.ceil(self.updates * self.compute_ratio)

    @property
    def nfes(self) -> tuple[int, int, int]:
        """Steps to generate with: a quarter of the tokens, half, all."""
        return self.length // 4, self.length // 2, self.length

    @property
    def branches(self) -> dict[str, int]:
        return {"binary": self.updates, "soft": self.updates, "binary_long": self.long_updates}

    def total_updates(self) -> int:
        return self.base_updates + sum(self.branches.values())


MARKOV = Act(name="markov", length=32, hidden_dim=64)
TEXT = Act(
    name="text",
    length=64,
    hidden_dim=128,
    batch_size=16,
    base_updates=1200,
    base_learning_rate=3e-3,
    updates=700,
    test_sequences=512,
    samples=96,
)


def quick(act: Act) -> Act:
    """The same act in a fraction of the time: enough to see that everything runs, not to conclude from."""
    if act.name == "markov":
        return replace(act, base_updates=350, updates=220, test_sequences=256, samples=64)
    return replace(act, hidden_dim=64, base_updates=120, updates=60, test_sequences=64, test_draws=1, samples=16)


def settings_hash(act: Act, seed: int, data: str = "") -> str:
    """What a finished part must match to be used again: every setting, the seed, the text, the code's version."""
    content: dict[str, Any] = {
        "act": asdict(act),
        "seed": seed,
        "data": data,
        "version": soft_mask.__version__,
        "backend": soft_mask.build_info().get("backend"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
