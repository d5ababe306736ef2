"""Dream's samplers: in each step the positions that the model is surest of become tokens, or ("origin") random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from soft_mask import functional
from soft_mask.sampling.loop import State
from soft_mask.sampling.noise import draw_tokens, exponential, keep_top_k, keep_top_p, uniform
from soft_mask.state import Feedback

__all__ = ["CONFIDENCE_ALGORITHMS", "TRANSFER_COUNTS", "ConfidenceSampler"]

CONFIDENCE_ALGORITHMS = ("origin", "maskgit_plus", "topk_margin", "entropy")
TRANSFER_COUNTS = ("row", "batch")
LEAST_K = 2  # predictions that the margin needs


@dataclass(frozen=True)
class ConfidenceSampler:
    """Meets ``loop.Policy``; upstream's ``diffusion_generate``. Arguments are taken as checked (:func:`soft_mask.generate`).

    Times are ``steps + 1`` float32 points evenly from 1 to ``eps``; step i goes from t to s and transfers
    ``int(masked * (1 - s / t))`` positions, the last one all. With "origin" each position is transferred by chance,
    ``1 - s / t``. Confidence and token are of the distribution after temperature, then nucleus, then top-k.

    Random numbers are drawn as upstream draws them: from the same seed come its coins, its tokens where the masked rows
    fit one chunk of logits, and its choice of positions.

    Args:
        alg: "origin"; or the confidence: "maskgit_plus" (probability of the token), "topk_margin" (of the likeliest less
            that of the next), "entropy" (sum p ln p).
        temperature: 0 takes the likeliest token.
        top_p, top_k: filters, on at any temperature, since confidence is of what they leave; None for none.
        alg_temp: positions are drawn by softmax(confidence / alg_temp) without replacement; None or 0 takes the surest.
        transfer_count: "row" counts in each sequence. "batch" is upstream's: one count, of the mean over the batch; where
            sequences have different numbers of masks it writes masks over tokens.
    """

    alg: str
    steps: int
    temperature: float = 0.0
    eps: float = 1e-3
    top_p: float | None = None
    top_k: int | None = None
    alg_temp: float | None = None
    transfer_count: str = "row"

    holds = True
    refines = True
    goes_on = True  # so that every step is shown, as upstream's history has it; an idle one costs no forward
    closes = False

    @property
    def whole(self) -> bool:
        return self.transfer_count == "batch"

    @cached_property
    def _times(self) -> Tensor:
        return torch.linspace(1, self.eps, self.steps + 1)

    def time(self, step: int) -> float:
        return float(self._times[step])

    def share(self, step: int) -> Tensor:  # 0-dim float32
        """Of the masked positions, what step 0 .. steps - 1 transfers."""
        return 1 - self._times[step + 1] / self._times[step] if step < self.steps - 1 else torch.ones(())

    def update(self, step: int, state: State, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        rows = state.rows
        if not rows.numel():
            return rows, rows
        assert state.prediction is not None
        if self.alg == "origin":
            coins = uniform(tuple(rows.shape), generator, rows.device, torch.float32)
            shown = rows[coins < self.share(step).to(rows.device)]
            return shown, state.prediction.tokens(shown, lambda logits: self._tokens(self._filtered(logits), generator))
        memory = state.memory
        shared = memory is not None and memory.shares() and not self._filters()
        tokens, confidence = state.prediction.scan(
            self._choice(shared, generator), None if memory is None else lambda logits: memory.summarise(logits, LEAST_K)
        )
        everywhere = confidence.new_full((state.x.numel(),), float("-inf")).index_copy(0, rows, confidence)
        become = torch.full_like(state.x.flatten(), state.mask_token_id).index_copy(0, rows, tokens)
        chosen = self._positions(step, state, everywhere.view(state.x.shape), generator)
        return chosen, become[chosen]

    def close(self, state: State, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        raise AssertionError("the last step takes all there is")

    # --- Tokens and their confidence ----------------------------------------------------------------------------------

    def _filters(self) -> bool:
        return self.temperature not in (0.0, 1.0) or self.top_p is not None or self.top_k is not None

    def _filtered(self, logits: Tensor) -> Tensor:  # [r, V]
        """In float32 at least: bfloat16 would make ties of confidences that differ."""
        if logits.dtype in (torch.bfloat16, torch.float16) and (self._filters() or self.temperature > 0):
            logits = logits.float()
        if self.temperature > 0:
            logits = logits / self.temperature
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return logits if self.top_k is None else keep_top_k(logits, self.top_k)

    def _tokens(self, kept: Tensor, generator: torch.Generator | None) -> Tensor:  # [r, V] -> [r]
        if self.temperature == 0.0 or not len(kept):
            return kept.argmax(-1)
        return draw_tokens(kept.softmax(-1), generator)

    def _choice(
        self, shared: bool, generator: torch.Generator | None
    ) -> Callable[[Tensor, Feedback | None], tuple[Tensor, Tensor]]:
        """Of a chunk of logits: the tokens, and how sure the model is, without a softmax where one read tells both."""

        def choose(logits: Tensor, fb: Feedback | None) -> tuple[Tensor, Tensor]:  # [r, V] -> [r], [r] float32
            kept = self._filtered(logits)
            if fb is None or not shared:
                fb = functional.feedback(kept, min(LEAST_K, kept.shape[-1]))
            best = fb.ids[:, 0].long()
            tokens = best if self.temperature == 0.0 else self._tokens(kept, generator)
            if self.alg == "entropy":
                return tokens, fb.neg_entropy.float()
            told = tokens if self.alg == "maskgit_plus" else best
            logit = kept.gather(-1, told[:, None])[:, 0].to(fb.logsumexp.dtype)
            sure = (logit - fb.logsumexp).exp()
            if self.alg == "topk_margin" and fb.k > 1:
                sure = sure * (1 - fb.probs[:, 1] / fb.probs[:, 0])
            return tokens, sure.float()

        return choose

    # --- Positions ----------------------------------------------------------------------------------------------------

    def _positions(self, step: int, state: State, confidence: Tensor, generator: torch.Generator | None) -> Tensor:
        """Flat positions that this step transfers, from confidence ``[B, L]``, -inf where nothing is masked."""
        batch, length = confidence.shape
        share = self.share(step)
        if self.transfer_count == "batch":
            # in float32, as upstream has it
            counts = [int(torch.tensor(float(state.rows.numel())) / batch * share)] * batch
        else:
            masked = torch.bincount(state.rows // length, minlength=batch).tolist()
            counts = [int(torch.tensor(float(count)) * share) for count in masked]
        most = max(counts)
        if most == 0:
            return state.rows[:0]
        keys = confidence
        if self.alg_temp:
            # The race behind a draw without replacement, p / q with q exponential, in logarithms: p may be too small.
            keys = confidence / self.alg_temp - exponential((batch, length), generator, confidence.device).log()
        if self.transfer_count == "batch":
            order = keys.topk(most, dim=-1).indices  # [B, most]; among equals whatever upstream's call takes
        else:  # certain predictions are all equal: the first of them, whatever else is in the batch
            order = keys.sort(dim=-1, descending=True, stable=True).indices[:, :most]
        taken = torch.arange(most, device=order.device) < torch.tensor(counts, device=order.device)[:, None]
        return (order + length * torch.arange(batch, device=order.device)[:, None])[taken]
