"""The bytes and sectors that the kernels move, counted by the emulated GPU, against those that the work needs."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import soft_mask
from tests.operator_cases import GATE

DTYPES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}
SHAPES = {"MDLM": (50_258, 768), "Dream": (152_064, 3584), "LLaDA": (126_464, 4096)}
SECTOR = 32


def total(traffic: dict[str, dict[str, int]], unit: str) -> int:
    return sum(t[f"read_{unit}"] + t[f"written_{unit}"] for t in traffic.values())


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("rows", [3, 40])  # a row over several blocks, and a block a row
def test_masked_rows(
    emulation: ModuleType, model: str, dtype: torch.dtype, k: int, rows: int, request: pytest.FixtureRequest
) -> None:
    """At most 1.02 of the model's bytes; of sectors 1.05, though no two rows of 50,258 begin at the same place in one."""
    if rows > 3 and model != "MDLM" and not request.config.getoption("--all"):
        pytest.skip("thorough: make test-all runs it")
    vocab, width = SHAPES[model]
    table = torch.zeros(vocab, width, dtype=dtype)  # gigabytes that no one writes to
    logits = torch.randn(1, rows, vocab).to(dtype)
    ids = torch.full((1, rows), vocab - 1)
    soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=vocab - 1, k=k, **GATE)
    model_bytes = rows * DTYPES[dtype] * (vocab + (k + 2) * width)
    found = emulation.traffic()
    assert found["logits"]["read_bytes"] == rows * vocab * DTYPES[dtype]
    assert model_bytes <= total(found, "bytes") <= 1.02 * model_bytes
    assert total(found, "sectors") * SECTOR <= 1.05 * model_bytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40])
def test_unmasked_rows(emulation: ModuleType, dtype: torch.dtype, rows: int) -> None:
    """Their logits are not touched: 2 d s bytes, and at most 64 for the token and an empty feedback."""
    vocab, width = 1000, 768
    logits = torch.full((1, rows, vocab), float("nan"), dtype=dtype)
    ids = torch.randint(0, vocab - 1, (1, rows))
    soft_mask.soft_mask_embed(logits, ids, torch.randn(vocab, width).to(dtype), mask_token_id=vocab - 1, k=3, **GATE)
    found = emulation.traffic()
    assert "logits" not in found
    assert total(found, "bytes") <= rows * (2 * width * DTYPES[dtype] + 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_mix(emulation: ModuleType, dtype: torch.dtype) -> None:
    vocab, width, rows, k = 1000, 768, 40, 3
    fb = soft_mask.feedback(torch.randn(1, rows, vocab), k)
    table, ids = torch.randn(vocab, width).to(dtype), torch.full((1, rows), vocab - 1)
    emulation.reset_traffic()
    soft_mask.mix_embed(ids, fb, table, mask_token_id=vocab - 1, **GATE)
    assert total(emulation.traffic(), "bytes") <= rows * ((k + 2) * width * DTYPES[dtype] + 64)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_gradient(emulation: ModuleType, dtype: torch.dtype, deterministic: bool) -> None:
    """Each row of the gradient is written once, and nothing of its size is held or read beside."""
    vocab, width, rows, k = 20_011, 256, 600, 3
    table = torch.randn(vocab, width).to(dtype).requires_grad_()
    out = soft_mask.soft_mask_embed(
        torch.randn(1, rows, vocab), torch.full((1, rows), vocab - 1), table, mask_token_id=vocab - 1, k=k,
        deterministic=deterministic, **GATE,
    )  # fmt: skip
    emulation.reset_traffic()
    out.float().square().sum().backward()
    found = emulation.traffic()
    size = DTYPES[dtype]
    assert found["grad_embedding"] == {
        "read_bytes": 0, "read_sectors": 0, "written_bytes": vocab * width * size,
        "written_sectors": vocab * width * size // SECTOR, "atomics": 0,
    }  # fmt: skip
    others = total(found, "bytes") - vocab * width * size
    gradients = rows * (2 * (k + 1) + (k + 1)) * width * size  # for the dots and for the sums, and the rows dotted with
    assert others <= gradients + 2 * (rows * (k + 1) // 64 + 1) * 2 * width * 4 + 24 * vocab + 64 * rows * (k + 1)
    assert found["start"]["atomics"] <= rows * k + rows // 32 + 1  # the mask's row: once a warp, not once a position


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_gradient(emulation: ModuleType, dtype: torch.dtype) -> None:
    """One read and one write of the row; the few best are looked at once more."""
    vocab, rows = 50_258, 3
    logits = torch.randn(1, rows, vocab).to(dtype).requires_grad_()
    fb = soft_mask.feedback(logits, 3, logits_grad=True)
    emulation.reset_traffic()
    (fb.neg_entropy.sum() + fb.probs[..., 0].sum()).backward()
    found = emulation.traffic()
    row = rows * vocab * DTYPES[dtype]
    assert row <= found["logits"]["read_bytes"] <= row + rows * 3 * DTYPES[dtype]
    assert row <= found["grad_logits"]["written_bytes"] <= row + rows * 3 * DTYPES[dtype]
    assert total(found, "sectors") * SECTOR <= 1.05 * 2 * row
