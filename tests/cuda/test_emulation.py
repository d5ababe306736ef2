"""The emulated GPU finds what a real one would hang on or be corrupted by."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

import soft_mask

WORDS = {
    "reads_out_of_bounds": "out of bounds: a read of 4 bytes at byte 256 of in, which has 256",
    "writes_out_of_bounds": "out of bounds: a write of 4 bytes at byte -4 of out",
    "writes_an_input": "a write into in, which is only read",
    "misaligned": "misaligned: 16 bytes at byte 4 of out",
    "divergent_barrier": "divergent barrier: 32 of 64 threads",
    "absent_lanes": "absent lanes: 1 lanes of warp",
    "different_exchanges": "absent lanes.*others are in another exchange",
    "race_between_blocks": "race: thread .* writes byte .* of out",
    "race_in_a_block": "race: thread .* writes byte .* of out",
    "shared_before_it_is_set": "never set",
    "shared_without_a_barrier": "before a barrier|never set",
    "shared_set_by_all": "since the last barrier",
    "no_fence": "has fenced and released",
    "no_ticket": "has fenced and released",
    "ticket_left": "ticket was not left as it was found",
}


def test_every_fault_has_its_words(emulation: ModuleType) -> None:
    assert emulation.faulty_kernels() == ["right", *WORDS]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("name", WORDS)
def test_a_faulty_kernel_is_found_in_any_order(emulation: ModuleType, name: str, seed: int) -> None:
    emulation.set_seed(seed)
    try:
        emulation.run_faulty("right")
        with pytest.raises(RuntimeError, match=f"({WORDS[name]}).*in kernel {name}"):
            emulation.run_faulty(name)
        emulation.run_faulty("right")
    finally:
        emulation.set_seed(0)


def test_the_same_bits_in_any_order(emulation: ModuleType) -> None:
    """Rows split over blocks or not, warps and blocks in random order: no result depends on who comes first."""
    logits = torch.randn(1, 40, 9001, generator=torch.Generator().manual_seed(0))
    found = []
    try:
        for seed in range(6):
            emulation.set_seed(seed)
            found.append([*soft_mask.feedback(logits, 5), *soft_mask.feedback(logits[:, :2], 40)])
    finally:
        emulation.set_seed(0)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("offset", [0.0, 500.0, -3e4])
def test_row_states_merge_in_any_parts(emulation: ModuleType, offset: float) -> None:
    """The state of csrc/common and that of csrc/cuda: cut anywhere, empty parts and -inf included."""
    g = torch.Generator().manual_seed(0)
    row = (3 * torch.randn(200, generator=g) + offset).float().double()
    row[::9] = float("-inf")
    log_p = torch.log_softmax(row, 0)
    true = row.logsumexp(0).item(), (log_p.exp() * log_p.clamp(min=-1e3)).sum().item()
    for cuts in ([], [0], [1, 1, 199], [50, 51, 100, 180], list(range(200))):
        edges = [0, *cuts, 200]
        parts = [row[a:b].tolist() for a, b in zip(edges, edges[1:], strict=False)]
        assert emulation.merge_cpu_states(parts) == pytest.approx(true, abs=1e-10)
        # a logsumexp of thousands is returned in float32
        assert emulation.merge_cuda_states(parts)[0] == pytest.approx(true[0], abs=2e-6, rel=1e-7)
        assert emulation.merge_cuda_states(parts)[1] == pytest.approx(true[1], abs=3e-6)
    assert emulation.merge_cuda_states([[], [-math.inf]]) == (-math.inf, -math.inf)
    assert all(map(math.isnan, emulation.merge_cuda_states([[1.0], [math.nan], [2.0]])))


def test_ordered_keys(emulation: ModuleType) -> None:
    values = [-math.inf, -3e38, -1.5, -1e-45, 0.0, 1e-45, 1.0, 3e38, math.inf]
    keys = [emulation.ordered(x) for x in values]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert emulation.ordered(-0.0) == emulation.ordered(0.0)
