"""Windows that follow one another (against the original: test_originals.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from soft_mask import SoftMask
from soft_mask.models import MDLM
from soft_mask.sampling import StepInfo, generate_semi_autoregressive

MASK = 10


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_windows_overlap_and_feedback_starts_anew(model: MDLM, sm: SoftMask) -> None:
    seen: list[StepInfo] = []
    prefix = torch.tensor([[1, 2], [3, 4]])
    out = generate_semi_autoregressive(
        model, 2, 8, stride=3, num_strides=2, steps=6, prefix=prefix, soft_mask=sm, generator=seeded(0), callback=seen.append
    )
    assert out.sequences.shape == (2, 14) and not (out.sequences == MASK).any()
    assert out.sequences[:, :2].equal(prefix)
    starts = [i for i, info in enumerate(seen) if info.t == 1.0]
    assert len(starts) == 3
    for window, start in enumerate(starts):
        info = seen[start]
        assert info.nfe == 1 and info.feedback is not None
        if window:  # what stands at the beginning is the end of the window before, and carries no feedback
            assert info.input_ids[:, :5].equal(out.sequences[:, 3 * window : 3 * window + 5])
            assert bool(torch.isneginf(info.feedback.neg_entropy[:, :5]).all())
    assert out.nfe == sum(seen[end - 1].nfe for end in [*starts[1:], len(seen)])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"stride": 8}, ValueError, "stride must be below length=8"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"num_strides": 1.5}, TypeError, "num_strides must be an int, got 1.5"),
        ({"prefix": torch.zeros(2, 8, dtype=torch.int64)}, ValueError, r"prefix must be \[2, at most 7\]"),
        ({"prefix": [[1]]}, TypeError, "prefix must be an int64 tensor"),
        ({"history": True}, ValueError, "history must be False"),
        ({"top_p": 2.0}, ValueError, "top_p must lie in"),
    ],
)
def test_bad_input_is_told_in_words(model: MDLM, change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {"stride": 2, "num_strides": 1, "steps": 2, **change}
    with pytest.raises(error, match=words):
        generate_semi_autoregressive(model, 2, 8, **arguments)
