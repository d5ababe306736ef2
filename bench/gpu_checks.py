"""The operators on a GPU against the float64 oracle on the CPU: ``python -m bench.gpu_checks [--small]``.

Needs nothing but torch: for a machine without pytest, and small enough for compute-sanitizer with ``--small``. Under
``SOFT_MASK_BACKEND=emulated-cuda`` the same runs on the emulated GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import soft_mask
from soft_mask import reference

GATE = {"scale": 0.7, "steepness": 1.3, "centre": -2.5}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
GPU = "cpu" if soft_mask.build_info()["emulation"] else "cuda"


class Check(NamedTuple):
    name: str
    run: Callable[[], None]


def close(found: Tensor, true: Tensor, tolerance: float) -> None:
    found, true = found.detach().cpu().double(), true.detach().double()
    worst = (found - true).abs().max().item() if found.numel() else 0.0
    limit = tolerance * max(1.0, true.abs().max().item() if true.numel() else 0.0)
    assert worst <= limit, f"off by {worst:.3g}, allowed {limit:.3g}"


def check_feedback(logits: Tensor, k: int, **arguments: Any) -> None:  # logits on the CPU
    found = soft_mask.feedback(logits.to(GPU), k, **arguments)
    oracle = reference.feedback(logits.double(), k, arguments.get("temperature", 1.0), tuple(arguments.get("ban", ())))
    assert torch.equal(found.ids.cpu(), oracle.ids), "other ids"
    for name in ("probs", "neg_entropy", "logsumexp"):
        close(getattr(found, name), getattr(oracle, name), 2e-5)


def inputs(rows: int, vocab: int, width: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, rows, vocab, generator=g)).to(dtype)
    ids = torch.randint(0, vocab - 1, (2, rows), generator=g)
    ids[torch.rand(2, rows, generator=g) < 0.6] = vocab - 1
    ids[:, : min(2, rows)] = vocab - 1
    return logits, ids, torch.randn(vocab, width, generator=g).to(dtype)


def check_embed(rows: int, vocab: int, width: int, dtype: torch.dtype, **arguments: Any) -> None:
    """Forward and every gradient, the logits' included."""
    logits, ids, table = inputs(rows, vocab, width, dtype)
    upstream = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(device: str, kind: torch.dtype | None, run: Callable[..., Tensor], **more: Any) -> list[Tensor]:
        leaves = [x.to(device, kind or x.dtype).requires_grad_() for x in (table, logits)]
        scale = torch.tensor(0.7, device=device, dtype=kind or torch.float32, requires_grad=True)
        out = run(
            leaves[1], ids.to(device), leaves[0], mask_token_id=vocab - 1, scale=scale, steepness=1.3, centre=-2.5,
            **arguments, **more,
        )  # fmt: skip
        return [out, *torch.autograd.grad(out, (leaves[0], leaves[1], scale), upstream.to(device, out.dtype))]

    found = gradients(GPU, None, soft_mask.soft_mask_embed, logits_grad=True)
    oracle = gradients("cpu", torch.float64, reference.soft_mask_embed)
    plain = ids != vocab - 1
    assert torch.equal(found[0].cpu()[plain], table[ids[plain]]), "an unmasked row is not its embedding"
    for mine, true, name in zip(found, oracle, ("out", "embedding", "logits", "scale"), strict=True):
        try:
            close(mine, true, 2e-4 if name == "scale" else 2 * ROUNDING[dtype])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def check_determinism() -> None:
    logits, ids, table = (x.to(GPU) for x in inputs(700, 97, 16, torch.float32))

    def run() -> Tensor:
        leaf = table.clone().requires_grad_()
        out = soft_mask.soft_mask_embed(logits, ids, leaf, mask_token_id=96, deterministic=True, **GATE)
        return torch.autograd.grad(out.square().sum(), leaf)[0]

    first = run()
    assert all(torch.equal(first, run()) for _ in range(5)), "not the same bits"


def check_bad_values() -> None:
    logits, ids, table = (x.to(GPU) for x in inputs(5, 97, 16, torch.float32))
    logits[1, 0, 3] = float("nan")
    out = soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=96, check=False, **GATE)
    assert out[1, 0].isnan().all() and out[0].isfinite().all(), "a bad row is NaN, the others are not"
    try:
        soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=96, check=True, **GATE)
    except RuntimeError as error:
        assert "row 5 (flattened) holds NaN" in str(error), str(error)
    else:
        raise AssertionError("NaN was not reported")


def check_other_stream() -> None:
    logits = torch.randn(1, 40, 20_011)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_gpu = logits.to(GPU)
        torch.cuda._sleep(10_000_000)
        on_gpu.add_(1.0)  # seen only by what is on the same stream
        found = soft_mask.feedback(on_gpu, 3)
    stream.synchronize()
    close(found.logsumexp, reference.feedback((logits + 1.0).double(), 3).logsumexp, 2e-5)


def check_graph() -> None:
    """Captured and replayed with other numbers in the same memory; rows split over blocks, so the tickets are used."""
    for rows in (2, 600):
        logits, ids, table = (x.to(GPU) for x in inputs(rows, 20_011, 64, torch.bfloat16))
        other = inputs(rows, 20_011, 64, torch.bfloat16, seed=5)[0]
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        gate = {name: torch.tensor(value, device=GPU) for name, value in GATE.items()}
        with torch.cuda.stream(warm):
            soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=20_010, **gate)
        torch.cuda.current_stream().wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=20_010, **gate)
        logits.copy_(other)
        for _ in range(3):
            graph.replay()
        torch.cuda.synchronize()
        true = soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=20_010, **gate)
        assert torch.equal(out, true), "the replayed graph's result differs"


def check_second_device() -> None:
    logits = torch.randn(1, 40, 20_011)
    found = soft_mask.feedback(logits.to("cuda:1"), 3)
    assert found.ids.device.index == 1 and torch.cuda.current_device() == 0
    close(found.logsumexp, reference.feedback(logits.double(), 3).logsumexp, 2e-5)


def check_large_offsets() -> None:
    """More than 2^31 logits in one call."""
    rows, vocab = 14_500, 152_064
    logits = torch.zeros(1, rows, vocab, dtype=torch.bfloat16, device=GPU)
    last = torch.randn(1, 3, vocab).bfloat16()
    logits[:, -3:] = last.to(GPU)
    found = soft_mask.feedback(logits, 3)
    assert torch.equal(found.ids[:, -3:].cpu(), reference.feedback(last.double(), 3).ids)


def checks(small: bool) -> Iterator[Check]:
    for dtype in FLOATS:
        for vocab, k in ((50_258, 3), (152_064, 8), (1025, 64), (33, 5), (1, 1)):
            logits = 3 * torch.randn(
                1, 5 if small or GPU == "cpu" else 700, vocab, generator=torch.Generator().manual_seed(vocab)
            )
            yield Check(f"feedback {dtype} V={vocab} k={k}", partial(check_feedback, logits.to(dtype), k))
        for width in (64, 123):
            for shift in (0, 1):
                rows = 9 if small else 70
                yield Check(
                    f"embed and gradients {dtype} d={width} shift={shift}",
                    partial(check_embed, rows, 1031, width, dtype, shift=shift, ban=(3, 1030)),
                )
    ties = torch.randn(1, 3, 60_001)
    ties[..., ::1000] = 12.0
    yield Check("ties and temperature", lambda: check_feedback(ties, 64, temperature=0.7, ban=(0, 5000)))
    yield Check("sorted rows", lambda: check_feedback(torch.randn(1, 3, 50_258).sort(-1).values, 8))
    yield Check("deterministic", check_determinism)
    yield Check("bad values", check_bad_values)
    if GPU == "cuda" and not small:
        yield Check("another stream", check_other_stream)
        yield Check("CUDA graph", check_graph)
        if torch.cuda.device_count() > 1:
            yield Check("second device", check_second_device)
        if torch.cuda.get_device_properties(0).total_memory > 10e9:
            yield Check("more than 2^31 logits", check_large_offsets)


def run(small: bool = False) -> list[dict[str, Any]]:
    """Every check's name, whether it holds, and what went wrong; prints a line each."""
    found = []
    for name, check in checks(small):
        began = time.perf_counter()
        try:
            check()
            error = ""
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
            if not isinstance(failure, AssertionError):
                traceback.print_exc()
        found.append({"check": name, "holds": not error, "error": error, "seconds": round(time.perf_counter() - began, 2)})
        print(f"{'ok  ' if not error else 'FAIL'} {name} {error}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="few rows, for compute-sanitizer")
    sys.exit(not all(line["holds"] for line in run(parser.parse_args().small)))
