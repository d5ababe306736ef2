"""The samplers of MDLM and ReMDM as one policy: a kernel, and how its random numbers are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soft_mask.diffusion.losses import default_chunk_rows
from soft_mask.sampling import kernels
from soft_mask.sampling.kernels import Transition
from soft_mask.sampling.loop import State
from soft_mask.sampling.noise import choose_tokens, nucleus, race, uniform

__all__ = ["ALGORITHMS", "PRESETS", "Sampler"]

#: Algorithms, and the options beyond the common ones that each takes, with their published values.
ALGORITHMS: dict[str, dict[str, float]] = {
    "ancestral": {},
    "analytic": {},
    "remdm-cap": {"eta": 0.008},
    "remdm-rescale": {"eta": 0.015},
    "remdm-conf": {},
    "remdm-loop": {"eta": 0.02, "t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9},
}

#: Published settings by name, as keywords of ``generate``; ReMDM's own are for 1024 steps, the paper's for 128 to 1024.
PRESETS: dict[str, dict[str, Any]] = {
    "mdlm": {"alg": "ancestral"},
    "mdlm-float32": {"alg": "ancestral", "noise": "race", "noise_dtype": torch.float32},  # kuleshov-group/mdlm as it is
    "sm-mdlm": {"alg": "ancestral", "top_p": 0.9},
    "sm-remdm-cap": {"alg": "remdm-cap", "eta": 0.04, "top_p": 0.9},
    "sm-remdm-loop": {"alg": "remdm-loop", **ALGORITHMS["remdm-loop"], "top_p": 0.9},
    "remdm-cap": {"alg": "remdm-cap", **ALGORITHMS["remdm-cap"], "top_p": 0.9},
    "remdm-rescale": {"alg": "remdm-rescale", **ALGORITHMS["remdm-rescale"], "top_p": 0.9},
    "remdm-conf": {"alg": "remdm-conf", "top_p": 0.9, "confidence_dtype": torch.bfloat16},
    "remdm-loop": {"alg": "remdm-loop", **ALGORITHMS["remdm-loop"], "top_p": 0.9},
}

KERNELS: dict[str, Callable[..., Transition]] = {
    "ancestral": kernels.ancestral,
    "analytic": kernels.analytic,
    "remdm-cap": kernels.remdm_cap,
    "remdm-rescale": kernels.remdm_rescale,
    "remdm-loop": kernels.remdm_loop,
}


@dataclass(frozen=True)
class Sampler:
    """Meets ``loop.Policy``. Arguments are taken as checked (see :func:`soft_mask.generate`).

    Times are ``steps + 1`` points evenly from 1 to ``eps``.

    Args:
        alg: one of ``ALGORITHMS``.
        steps: denoising steps.
        temperature: divides the logits of the token's choice; 0 takes the likeliest. No coin depends on it.
        eps: time at which the closing pass takes over.
        top_p: nucleus of the choice of tokens, by the reference's rule (see ``noise.nucleus``); never of the feedback.
        noise: "coin" draws a number for every position and V numbers for revealed rows only; "race" lets all V ids, the
            mask's among them, race at every position, as the originals do: the same law, V numbers a position and a step,
            and the same tokens as theirs from the same numbers.
        noise_dtype: of the random numbers of tokens; float64 as in ReMDM and the reference (MDLM: its probabilities').
        confidence_dtype: of "remdm-conf"; bfloat16 as in the original (see ``kernels.remdm_conf``).
        options: of the algorithm, by name.
    """

    alg: str
    steps: int
    temperature: float = 1.0
    eps: float = 1e-5
    top_p: float = 1.0
    noise: str = "coin"
    noise_dtype: torch.dtype = torch.float64
    confidence_dtype: torch.dtype = torch.float32
    options: tuple[tuple[str, float], ...] = ()

    @property
    def holds(self) -> bool:
        """The analytic sampler runs the model at every step, the others only after something has changed."""
        return self.alg != "analytic"

    @property
    def remasks(self) -> bool:
        return self.alg.startswith("remdm")

    @property
    def goes_on(self) -> bool:
        """A sequence without masks is not finished: tokens may be masked again, or numbers are still to be drawn."""
        return self.remasks or self.noise == "race"

    @property
    def refines(self) -> bool:
        """Skip = hold: the feedback does not refine itself while nothing is revealed, as in the reference."""
        return False

    @property
    def closes(self) -> bool:
        return True

    @property
    def whole(self) -> bool:
        return False

    def time(self, step: int) -> float:
        return 1.0 + (self.eps - 1.0) * step / self.steps

    def transition(self, step: int, confidence: Tensor | None = None) -> Transition:
        """The kernel at step 0 .. steps - 1; ``confidence [B, L]`` for "remdm-conf" alone."""
        t, s = self.time(step), self.time(step + 1)
        if self.alg == "remdm-conf":
            assert confidence is not None
            return kernels.remdm_conf(t, s, confidence)
        return KERNELS[self.alg](t, s, **dict(self.options))

    def update(self, step: int, state: State, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        confidence = self._confidence(state) if self.alg == "remdm-conf" else None
        transition = self.transition(step, confidence)
        draw = self._race if self.noise == "race" else self._coin
        changed, tokens, chosen = draw(state, transition, generator)
        if confidence is not None and changed.numel():
            confidence.view(-1)[changed] = chosen.neg().to(confidence.dtype)
        return changed, tokens

    def close(self, state: State, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Every mask that is left: the likeliest token; with "analytic", as in the originals, a draw."""
        assert state.prediction is not None
        if self.alg != "analytic":
            return state.rows, state.prediction.tokens(state.rows, lambda logits: logits.argmax(-1))
        if self.noise == "coin":
            tokens, _ = self._draw(state, state.rows, generator)
            return state.rows, tokens
        changed, tokens, _ = self._race(state, Transition(1.0), generator)
        return changed, tokens

    def _confidence(self, state: State) -> Tensor:  # [B, L]
        if state.confidence is None:
            shape, device = state.x.shape, state.x.device
            state.confidence = torch.full(shape, float("-inf"), dtype=self.confidence_dtype, device=device)
        return state.confidence

    def _coin(
        self, state: State, transition: Transition, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor]:  # [R] flat positions, [R] tokens, [R] their probabilities
        # One coin for every position, so that a position's coins do not depend on which others are masked.
        coins = uniform((state.x.numel(),), generator, state.x.device)
        revealed = state.rows[coins[state.rows] < transition.reveal]
        tokens, probs = self._draw(state, revealed, generator)
        if not self.remasks:
            return revealed, tokens, probs
        written = state.written()
        erased = written[coins[written] < _at(transition.remask, written)]
        masks = torch.full_like(erased, state.mask_token_id)
        none = probs.new_full(erased.shape, float("inf"))
        return torch.cat([revealed, erased]), torch.cat([tokens, masks]), torch.cat([probs, none])

    def _draw(self, state: State, rows: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Tokens for rows, and the probability of each after nucleus and temperature (only "remdm-conf" reads it)."""
        tokens, probs = [rows[:0]], [torch.empty(0, device=rows.device)]
        if rows.numel():
            assert state.prediction is not None
            for logits in state.prediction.logits(rows):
                kept = self._filtered(logits)
                tokens.append(choose_tokens(kept, self.temperature, generator, self.noise_dtype))
                if self.alg == "remdm-conf":
                    probs.append(self._probabilities(kept).gather(-1, tokens[-1][:, None])[:, 0].float())
        if self.alg != "remdm-conf":
            probs = [torch.ones(rows.numel(), device=rows.device)]
        return torch.cat(tokens), torch.cat(probs)

    def _race(self, state: State, transition: Transition, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_coin`; the numbers are drawn row by row over all positions, whether they are needed or not."""
        vocab, mask = state.vocab_size, state.mask_token_id
        flat, device = state.x.flatten(), state.x.device
        written = state.written() if self.remasks else state.rows[:0]
        is_masked = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, state.rows, True)
        may_erase = torch.zeros_like(is_masked).index_fill_(0, written, True)
        everywhere = torch.arange(flat.numel(), device=device)
        changed, tokens, chosen = [everywhere[:0]], [everywhere[:0]], [torch.empty(0, device=device)]
        for part in everywhere.split(max(16, default_chunk_rows(vocab) // 4)):
            draws = uniform((part.numel(), vocab), generator, device, self.noise_dtype)
            masked, tokened = part[is_masked[part]], part[may_erase[part]]
            if masked.numel():
                assert state.prediction is not None
                p = torch.cat([self._probabilities(self._filtered(z)) for z in state.prediction.logits(masked)])
                weights = p * transition.reveal
                weights[:, mask] = 1.0 - transition.reveal if transition.reveal < 1.0 else 0.0
                won = race(weights, draws[is_masked[part]])
                shown = won != mask
                changed.append(masked[shown])
                tokens.append(won[shown])
                chosen.append(p[shown].gather(-1, won[shown][:, None])[:, 0].float())
            if tokened.numel():
                sigma = torch.as_tensor(_at(transition.remask, tokened), dtype=torch.float64, device=device)
                own = flat[tokened][:, None]
                racing = draws[may_erase[part]].gather(-1, torch.cat([own, torch.full_like(own, mask)], dim=-1))
                pair = torch.stack([1.0 - sigma.expand(len(tokened)), sigma.expand(len(tokened))], dim=-1)
                erased = tokened[race(pair, racing) == 1]
                changed.append(erased)
                tokens.append(torch.full_like(erased, mask))
                chosen.append(torch.full(erased.shape, float("inf"), device=device))
        return torch.cat(changed), torch.cat(tokens), torch.cat(chosen)

    def _filtered(self, logits: Tensor) -> Tensor:
        """Nucleus of the distribution at this temperature; the logits themselves are not divided yet."""
        if self.top_p >= 1.0 or self.temperature == 0.0:
            return logits
        kept = nucleus(logits / self.temperature if self.temperature != 1.0 else logits, self.top_p)
        return logits.masked_fill(torch.isneginf(kept), float("-inf"))

    def _probabilities(self, logits: Tensor) -> Tensor:  # [r, V]
        """In the logits' dtype, float32 at least."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.temperature == 0.0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        return (logits / self.temperature).softmax(-1)


def _at(value: float | Tensor, rows: Tensor) -> float | Tensor:
    return value.flatten()[rows] if isinstance(value, Tensor) else value
