"""The settings of soft masking that are not learned, and where the learned ones start."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

PAPER_STEEPNESS = 10 / 1.5
PAPER_CENTRE = -0.75
SCHEDULES = ("none", "linear", "stepwise")


@dataclasses.dataclass
class SoftMaskConfig:
    """Settings of :class:`soft_mask.SoftMask` (arXiv 2510.17206, section 3; omega_s, omega_a, omega_b there).

    Args:
        mask_token_id: the id whose rows are mixed.
        k: how many predicted tokens are fed back (3 in the paper's language and math runs, 1 for Dream).
        scale: where the learned scale (omega_s) starts, in [0, 1]. The paper starts at 0.0, which is held at 1e-6:
            the gate then needs about a thousand updates at a learning rate of 1e-2 to 3e-2 before it opens.
            Short runs want 0.3 to 0.5 (see :meth:`for_short_runs`).
        steepness: where omega_a starts, positive.
        centre: where omega_b starts, negative, in nats of negative entropy.
        temperature: divides the logits before everything; positive.
        ban: ids left out of the distribution that is fed back (MDLM bans the mask id, Dream does not).
        shift: 1 where row t-1 of the logits predicts token t (Dream), else 0.
        schedule: what multiplies the scale while generating, by the share tau of the masks that are left: "none",
            "linear" (tau), or "stepwise" (1 above tau = 0.5, then 0). The reference's ablation; never trained with.
    """

    mask_token_id: int
    k: int = 3
    scale: float = 0.0
    steepness: float = PAPER_STEEPNESS
    centre: float = PAPER_CENTRE
    temperature: float = 1.0
    ban: tuple[int, ...] | None = None
    shift: int = 0
    schedule: str = "none"

    def __post_init__(self) -> None:
        if self.ban is not None:
            self.ban = tuple(int(i) for i in self.ban)  # JSON gives a list
        if not isinstance(self.mask_token_id, int) or self.mask_token_id < 0:
            raise ValueError(f"mask_token_id must be an int >= 0, got {self.mask_token_id!r}")
        if not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be an int >= 1, got {self.k!r}")
        if not 0.0 <= self.scale <= 1.0:
            raise ValueError(f"scale must lie in [0, 1], got {self.scale!r}")
        if not (self.steepness > 0.0 and math.isfinite(self.steepness)):
            raise ValueError(f"steepness must be positive and finite, got {self.steepness!r}")
        if not (self.centre < 0.0 and math.isfinite(self.centre)):
            raise ValueError(f"centre must be negative and finite (nats of negative entropy), got {self.centre!r}")
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature!r}")
        if self.shift not in (0, 1):
            raise ValueError(f"shift must be 0 or 1, got {self.shift!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {self.schedule!r}")

    @classmethod
    def for_short_runs(cls, mask_token_id: int, **changes: Any) -> SoftMaskConfig:
        """A start that moves within hundreds of updates: scale 0.5, centre -3 (measured at small scale)."""
        return cls(mask_token_id=mask_token_id, **{"scale": 0.5, "centre": -3.0, **changes})

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["ban"] = None if self.ban is None else list(self.ban)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SoftMaskConfig:
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown settings for SoftMaskConfig: {', '.join(unknown)}")
        if "mask_token_id" not in values:
            raise ValueError("SoftMaskConfig needs mask_token_id")
        return cls(**values)
