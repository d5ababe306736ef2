"""Everything that decides the small-scale study's numbers, in one place; it goes into the results as it is."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import soft_mask

# Forward pass 1, backward pass 2: an update costs 3; a share p_sm of the updates has one forward pass more.
UPDATE_COST = 3.0
FRESH_SEED = 101  # settings were chosen with seeds below and on the dev segments


@dataclass(frozen=True)
class Study:
    """One text in one tokenisation: a binary base trained until its learning rate is 0, and four branches from it.

    The branches: binary and soft at equal updates, binary with soft's compute ("binary_long"), soft with binary's
    ("soft_short").
    """

    name: str  # "characters" or "tokens"
    # the model: our own MDLM
    length: int = 64
    hidden_dim: int = 64
    n_heads: int = 4
    n_blocks: int = 1
    cond_dim: int = 16
    tie_word_embeddings: bool = True
    gate_init: float = 1.0
    embedding_std: float = 0.02
    # training: AdamW (0.9, 0.99), no weight decay, clip 1; the rates rise over the warm-up and fall linearly to 0 at the
    # end, of the base and again of the branches; that of omega is constant
    batch_size: int = 32
    warmup_updates: int = 100
    base_updates: int = 5000
    base_learning_rate: float = 3e-3
    updates: int = 2000
    learning_rate: float = 5e-3
    # soft masking
    p_sm: float = 0.8
    k: int = 3
    scale: float = 0.5
    steepness: float = 6.66
    centre: float = -3.0
    omega_learning_rate: float = 1e-2
    # what is measured
    test_blocks: int = 1024
    test_draws: int = 2
    samples: int = 64
    save_every: int = 500
    cost_of_update: float = 1.0  # against one of the characters: for the estimate of the time left alone

    @property
    def compute_ratio(self) -> float:
        """Cost of a soft update in binary updates, counted in passes: (3 + p_sm) / 3."""
        return (UPDATE_COST + self.p_sm) / UPDATE_COST

    @property
    def branches(self) -> dict[str, int]:
        """Updates of each branch; roundings are in binary's favour."""
        return {
            "binary": self.updates,
            "soft": self.updates,
            "binary_long": math.ceil(self.updates * self.compute_ratio),
            "soft_short": math.floor(self.updates / self.compute_ratio),
        }

    @property
    def steps(self) -> tuple[int, int, int]:
        """Denoising steps to generate with: a quarter of the tokens, half, all."""
        return self.length // 4, self.length // 2, self.length

    def total_updates(self) -> int:
        return self.base_updates + sum(self.branches.values())


CHARACTERS = Study(name="characters", k=8)
TOKENS = Study(
    name="tokens",
    length=32,
    batch_size=16,
    base_updates=1000,
    base_learning_rate=5e-3,
    updates=300,
    learning_rate=3e-3,
    centre=-4.0,
    test_blocks=512,
    samples=16,
    save_every=100,
    cost_of_update=2.5,
)


def quick(study: Study) -> Study:
    """The same study in a minute: enough to see that everything runs, not to conclude from."""
    return replace(
        study,
        length=16, hidden_dim=16, n_heads=2, cond_dim=4, batch_size=8, warmup_updates=2, base_updates=12, updates=8,
        test_blocks=16, test_draws=1, samples=4, save_every=4,
    )  # fmt: skip


#: The samplers by name: keywords of ``soft_mask.generate``. Nucleus 0.9 in all, as in the paper; ReMDM's numbers are the
#: published ones, made for 128 steps and more.
SAMPLERS: dict[str, dict[str, Any]] = {
    "ancestral": {"alg": "ancestral", "top_p": 0.9},
    "analytic": {"alg": "analytic", "top_p": 0.9},
    "semi-autoregressive": {"alg": "ancestral", "top_p": 0.9},
    "remdm-cap": {"alg": "remdm-cap", "eta": 0.04, "top_p": 0.9},
    "remdm-loop": {"alg": "remdm-loop", "top_p": 0.9},
    "remdm-rescale": {"alg": "remdm-rescale", "top_p": 0.9},
    "remdm-conf": {"alg": "remdm-conf", "top_p": 0.9},
}
SAMPLED = ("binary", "soft", "binary_long")  # the branches that write samples


def settings_hash(study: Study, seed: int, data: str) -> str:
    """What a finished stage must match to be used again: every setting, the seed, the text, the code's version."""
    content: dict[str, Any] = {
        "study": asdict(study),
        "samplers": SAMPLERS,
        "seed": seed,
        "data": data,
        "version": soft_mask.__version__,
        "backend": soft_mask.build_info().get("backend"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
