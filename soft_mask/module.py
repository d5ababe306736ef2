"""Soft masking as a module: three learned numbers, held in the paper's parametrisation."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import functional
from .config import SoftMaskConfig
from .state import Feedback

SCALE_FLOOR = 1e-6  # the paper's clip: a scale of 0 starts here, where its gradient is not yet exactly 0
CONFIG_NAME = "soft_mask_config.json"
WEIGHTS_NAME = "soft_mask.safetensors"


class SoftMask(nn.Module):
    """Mixes predictions into the embeddings of masked positions, with a learned gate (arXiv 2510.17206, section 3).

    ``scale = sigmoid(raw_scale)``, ``steepness = softplus(raw_steepness) + 1e-6``,
    ``centre = -softplus(raw_centre) - 1e-6``: omega_s, omega_a and omega_b of the paper. The three raw parameters are 0-dim
    and stay float32 whatever the model is cast to.

    Args:
        config: see :class:`soft_mask.SoftMaskConfig`.
    """

    def __init__(self, config: SoftMaskConfig) -> None:
        super().__init__()
        self.config = config
        start = min(max(config.scale, SCALE_FLOOR), 1.0 - SCALE_FLOOR)
        self.raw_scale = _scalar(math.log(start) - math.log1p(-start))
        self.raw_steepness = _scalar(_inverse_softplus(config.steepness - 1e-6))
        self.raw_centre = _scalar(_inverse_softplus(-config.centre - 1e-6))

    @property
    def scale(self) -> Tensor:
        """omega_s, 0-dim float32 in (0, 1)."""
        return torch.sigmoid(self.raw_scale)

    @property
    def steepness(self) -> Tensor:
        """omega_a, 0-dim float32, positive."""
        return F.softplus(self.raw_steepness) + 1e-6

    @property
    def centre(self) -> Tensor:
        """omega_b, 0-dim float32, negative, in nats."""
        return -F.softplus(self.raw_centre) - 1e-6

    def forward(
        self,
        input_ids: Tensor,  # [.., L] int64
        logits_or_feedback: Tensor | Feedback | None,  # [.., L, V], or feedback of leading shape [.., L]
        embedding: Tensor,  # [V_e, d]
    ) -> Tensor:
        """Embed ``input_ids``; ``None`` instead of logits or feedback gives the plain embedding.

        Returns:
            ``[.., L, d]`` of embedding's dtype. Errors as :func:`soft_mask.soft_mask_embed`.
        """
        c = self.config
        if logits_or_feedback is None:
            return F.embedding(input_ids, embedding)
        if isinstance(logits_or_feedback, Tensor):
            return functional.soft_mask_embed(
                logits_or_feedback, input_ids, embedding, mask_token_id=c.mask_token_id, k=c.k, scale=self.scale,
                steepness=self.steepness, centre=self.centre, temperature=c.temperature, ban=c.ban, shift=c.shift,
            )  # fmt: skip
        return functional.mix_embed(
            input_ids, logits_or_feedback, embedding, mask_token_id=c.mask_token_id, scale=self.scale,
            steepness=self.steepness, centre=self.centre, shift=c.shift,
        )  # fmt: skip

    def feedback(self, logits: Tensor) -> Feedback:
        """Feedback of ``logits [.., V]`` with this module's k, temperature and bans."""
        return functional.feedback(logits, self.config.k, self.config.temperature, self.config.ban)

    def gate(self, neg_entropy: Tensor) -> Tensor:
        """lambda of ``neg_entropy [..]``; 0 where there is no feedback."""
        return functional.gate(neg_entropy, self.scale, self.steepness, self.centre)

    def extra_repr(self) -> str:
        c = self.config
        learned = f"scale={self.scale.item():.4g}, steepness={self.steepness.item():.4g}, centre={self.centre.item():.4g}"
        more = "".join(
            f", {name}={value}"
            for name, value, usual in (
                ("temperature", c.temperature, 1.0),
                ("ban", c.ban, None),
                ("shift", c.shift, 0),
            )
            if value != usual
        )
        return f"mask_token_id={c.mask_token_id}, k={c.k}, {learned}{more}"

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        # model.to(bfloat16) would round three numbers that learn in steps far below bfloat16's: move them, never narrow them.
        raw = {name: p.detach().clone() for name, p in self._parameters.items() if p is not None}
        super()._apply(fn, recurse)
        for name, p in self._parameters.items():
            if p is not None and p.dtype in (torch.bfloat16, torch.float16):
                p.data = raw[name].to(p.device)
                if p.grad is not None:
                    p.grad = p.grad.to(p.dtype)
        return self

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``soft_mask_config.json`` and ``soft_mask.safetensors`` (raw parameters, full precision)."""
        from safetensors.torch import save_file

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        learned = {f"learned_{n}": getattr(self, n).item() for n in ("scale", "steepness", "centre")}
        # The learned values are there for people; the raw ones in the weights file are what is read back.
        text = json.dumps({**self.config.to_dict(), **learned}, indent=2) + "\n"
        (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
        save_file({name: p.detach().contiguous() for name, p in self.named_parameters()}, folder / WEIGHTS_NAME)

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> SoftMask:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: a file is truncated or holds something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(directory)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}: it was not written by SoftMask.save_pretrained")
        try:
            values = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG_NAME} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{folder / CONFIG_NAME} must hold a JSON object, got {type(values).__name__}")
        module = cls(SoftMaskConfig.from_dict({n: v for n, v in values.items() if not n.startswith("learned_")}))
        try:
            raw = load_file(folder / WEIGHTS_NAME)
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS_NAME} is not a whole safetensors file: {error}") from None
        expected = {name: tuple(p.shape) for name, p in module.named_parameters()}
        if {name: tuple(t.shape) for name, t in raw.items()} != expected:
            raise ValueError(f"{folder / WEIGHTS_NAME} holds {sorted(raw)}, expected 0-dim {sorted(expected)}")
        module.load_state_dict(raw)
        return module


def _scalar(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float32))


def _inverse_softplus(y: float) -> float:
    """x with ln(1 + e^x) = y, for y > 0 (computed in double)."""
    y = max(y, 1e-12)
    return y + math.log(-math.expm1(-y))
