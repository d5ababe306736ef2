"""Speed and memory of the operators on this machine: ``python -m bench.operators [--quick] [--json FILE]``.

All ratios are of medians taken in one run. Each contender's numbers are checked before it is timed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import soft_mask
from bench import baselines, measure
from bench.measure import Contenders, Record, record
from soft_mask import reference

WIDTH, K = 768, 3  # MDLM
VOCAB = 50_258
VOCABS = (126_464, 152_064)  # LLaDA, Dream


class Inputs:
    """Masked rows of normal logits, an embedding, the calls on them."""

    def __init__(self, rows: int, vocab: int = VOCAB, dtype: torch.dtype = torch.float32) -> None:
        g = torch.Generator().manual_seed(0)
        self.logits = torch.randn(1, rows, vocab, generator=g).to(dtype)
        self.embedding = torch.randn(vocab, WIDTH, generator=g).to(dtype)
        self.mask = vocab - 1
        self.ids = torch.full((1, rows), self.mask)
        self.case = f"{str(dtype).removeprefix('torch.')}, V={vocab}, {rows} masked rows"

    def ours(self, logits: Tensor | None = None, k: int = K, ids: Tensor | None = None) -> Tensor:
        return soft_mask.soft_mask_embed(
            self.logits if logits is None else logits, self.ids if ids is None else ids, self.embedding,
            mask_token_id=self.mask, k=k, **baselines.GATE,
        )  # fmt: skip

    def other(self, run: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: run(self.logits, self.ids, self.embedding, self.mask, K)

    def check(self, contenders: Contenders) -> None:
        """A few rows against the float64 oracle; bfloat16 contenders as exactly as the eager one can be expected to be."""
        few = slice(0, 8)
        oracle = reference.soft_mask_embed(
            self.logits[:, few].double(), self.ids[:, few], self.embedding.double(), mask_token_id=self.mask, k=K,
            **baselines.GATE,
        )  # fmt: skip
        for name, run in contenders.items():
            found = run()
            assert isinstance(found, Tensor)
            exact = self.logits.dtype == torch.float32
            atol = 5e-5 if exact else 2**-7 * oracle.abs().max().item() if name == "ours" else 1.0
            torch.testing.assert_close(found[:, few].double(), oracle, rtol=0, atol=atol)


def forward(rows: int, rounds: int, dtype: torch.dtype, bars: dict[str, str]) -> list[Record]:
    inputs = Inputs(rows, dtype=dtype)
    contenders: Contenders = {"ours": inputs.ours, "eager": inputs.other(baselines.eager)}
    if "torch.compile" in bars:
        contenders["torch.compile"] = inputs.other(torch.compile(baselines.eager))
        contenders["topk + embedding_bag"] = inputs.other(baselines.topk_embedding_bag)
    inputs.check(contenders)
    contenders["bare read"] = lambda: baselines.bare_read(inputs.logits)
    seconds = measure.medians(contenders, rounds)
    case = f"forward {inputs.case} ({soft_mask.build_info()['isa']})"
    mine = seconds["ours"]
    size = inputs.logits.numel() * inputs.logits.element_size() / 1e9
    lines = [record(f"{case}: ours", mine * 1e3, "ms"), record(f"{case}: ours, logits read", size / mine, "GB/s")]
    for name, other in list(seconds.items())[1:]:
        ratio = mine / other if name == "bare read" else other / mine
        lines.append(record(f"{case}: {name}", other * 1e3, "ms", name, ratio, bars.get(name, "")))
    return lines


def with_avx2(quick: bool, threads: int) -> list[Record]:
    """The forward of a process that is told to use AVX2."""
    if "avx2" not in soft_mask.build_info()["isas_built"]:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "records.json")
        command = [sys.executable, "-m", "bench.operators", "--only-avx2", "--json", str(file), "--threads", str(threads)]
        subprocess.run(
            [*command, *["--quick"] * quick], check=True, env={**os.environ, "SOFT_MASK_CPU": "avx2"}, stdout=subprocess.DEVNULL
        )
        return list(json.loads(file.read_text())["records"])


def backward(rows: int, rounds: int) -> list[Record]:
    """Forward and backward, gradients taken afresh each time."""
    inputs = Inputs(rows)
    upstream = torch.randn(1, rows, WIDTH, generator=torch.Generator().manual_seed(1))
    numbers = {name: torch.tensor(value, requires_grad=True) for name, value in baselines.GATE.items()}
    table = inputs.embedding.clone().requires_grad_()

    def ours(embedding: Tensor, sparse: bool = False) -> Tensor:
        return soft_mask.soft_mask_embed(
            inputs.logits, inputs.ids, embedding, mask_token_id=inputs.mask, k=K, sparse_grad=sparse, **numbers
        )

    def eager(embedding: Tensor) -> Tensor:
        return baselines.eager(inputs.logits, inputs.ids, embedding, inputs.mask, K, **numbers)

    def both(run: Callable[[], Tensor], *wanted: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: torch.autograd.grad(run(), (*numbers.values(), *wanted), upstream)

    contenders: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "ours": both(lambda: ours(table), table),
        "eager": both(lambda: eager(table), table),
        "ours, sparse_grad": both(lambda: ours(table, True), table),
        "ours, embedding frozen": both(lambda: ours(inputs.embedding)),
        "eager, embedding frozen": both(lambda: eager(inputs.embedding)),
    }
    true = contenders["eager"]()
    for run in contenders.values():
        for mine, other in zip(run(), true, strict=False):
            torch.testing.assert_close(mine.to_dense(), other, rtol=2e-3, atol=1e-3)
    del true, mine, other
    seconds = measure.medians(dict(contenders), rounds)
    case = f"forward + backward {inputs.case}"
    lines = [record(f"{case}: {name}", value * 1e3, "ms") for name, value in seconds.items()]
    for name, against, bar in (
        ("ours", "eager", ">= 5"),
        ("ours, sparse_grad", "eager", ""),
        ("ours, embedding frozen", "eager, embedding frozen", ">= 25"),
    ):
        ratio = seconds[against] / seconds[name]
        lines.append(record(f"{case}: {name}", seconds[name] * 1e3, "ms", against, ratio, bar))
    return lines


def kinds_of_rows(rows: int, rounds: int) -> list[Record]:
    """Orders and values that a threshold for the k best could stumble over, other k, half of the rows unmasked."""
    inputs = Inputs(rows)
    normal = inputs.logits
    peaked, half = normal.clone(), normal.clone()
    peaked[..., VOCAB // 3] = 60.0
    half[..., ::2] = float("-inf")
    kinds = {
        "sorted": normal.sort(-1).values, "reversed": normal.sort(-1, descending=True).values,
        "all equal": torch.zeros_like(normal), "peaked": peaked, "half -inf": half,
    }  # fmt: skip
    unmasked = inputs.ids.clone()
    unmasked[:, ::2] = 5
    contenders: Contenders = {"normal": inputs.ours}
    contenders |= {name: functools.partial(inputs.ours, logits=logits) for name, logits in kinds.items()}
    contenders |= {f"k={k}": functools.partial(inputs.ours, k=k) for k in (1, 8, 64)}
    contenders["half the rows unmasked"] = functools.partial(inputs.ours, ids=unmasked)
    bars = {**dict.fromkeys(kinds, "<= 2"), "k=8": "<= 1.3", "k=64": "<= 3", "half the rows unmasked": "<= 0.6"}
    seconds = measure.medians(contenders, rounds)
    case = f"forward {inputs.case}"
    return [
        record(f"{case}: {name}", value * 1e3, "ms", "normal, k=3", value / seconds["normal"], bars.get(name, ""))
        for name, value in seconds.items()
    ]


def vocabularies(rows: int, rounds: int) -> list[Record]:
    """Time by the byte at other models' vocabularies, against MDLM's."""
    all_inputs = {vocab: Inputs(rows, vocab) for vocab in (VOCAB, *VOCABS)}
    seconds = measure.medians({str(vocab): inputs.ours for vocab, inputs in all_inputs.items()}, rounds, cold=False)
    by_the_byte = {vocab: seconds[str(vocab)] / vocab for vocab in all_inputs}
    return [
        record(f"forward {all_inputs[vocab].case}: time by the byte", seconds[str(vocab)] * 1e3, "ms", f"V={VOCAB}",
               by_the_byte[vocab] / by_the_byte[VOCAB], "<= 1.15")
        for vocab in VOCABS
    ]  # fmt: skip


def logits_gradient(rows: int, rounds: int) -> list[Record]:
    inputs = Inputs(rows)
    logits = inputs.logits.clone().requires_grad_()
    temperature = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    fb = soft_mask.feedback(logits, K, temperature, logits_grad=True)
    g = torch.Generator().manual_seed(1)
    upstream = [torch.randn(part.shape, generator=g) for part in fb[1:]]

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(fb[1:], (logits, temperature), upstream, retain_graph=True)

    few = logits.detach()[:, :4].double().requires_grad_()
    true = torch.autograd.grad(reference.feedback(few, K)[1:], few, [u[:, :4].double() for u in upstream])[0]
    torch.testing.assert_close(ours()[0][:, :4].double(), true, rtol=1e-4, atol=1e-6)
    out = torch.empty_like(inputs.logits)
    bare = {
        "read and write of fresh memory, as a gradient is": lambda: torch.neg(inputs.logits),
        "read and write of memory in use": lambda: baselines.bare_read_write(inputs.logits, out),
    }
    seconds = measure.medians({"ours": ours, **bare}, rounds)
    name = f"gradient into logits and temperature, {inputs.case}"
    return [
        line
        for against in bare
        for line in (
            record(f"{name}: bare {against}", seconds[against] * 1e3, "ms"),
            record(name, seconds["ours"] * 1e3, "ms", against, seconds["ours"] / seconds[against], "<= 3"),
        )
    ]


def from_hidden_states(rows: int, rounds: int) -> list[Record]:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, rows, WIDTH, generator=g), torch.randn(VOCAB, WIDTH, generator=g) / 28
    pieces = lambda: soft_mask.linear_feedback(hidden, weight, K)  # noqa: E731
    whole = lambda: soft_mask.feedback(hidden @ weight.T, K)  # noqa: E731
    torch.testing.assert_close(pieces().neg_entropy, whole().neg_entropy, rtol=0, atol=2e-5)
    seconds = measure.medians({"pieces": pieces, "whole": whole, "product": lambda: hidden @ weight.T}, rounds)
    case = f"linear_feedback, V={VOCAB}, {rows} rows"
    lines = [record(f"{case}: {n}", seconds[n] * 1e3, "ms") for n in ("whole", "product")]
    lines.append(record(case, seconds["pieces"] * 1e3, "ms", "matrix product alone", seconds["pieces"] / seconds["product"]))
    if measure.can_measure_memory():
        for name, run in (("pieces", pieces), ("whole", whole)):
            lines.append(record(f"{case}: memory, {name}", measure.peak_beyond(lambda run=run: run().neg_entropy), "MiB"))  # type: ignore[misc]
    return lines


def memory(rows: int) -> list[Record]:
    """Peak of the process during a call, beyond its result."""
    if not measure.can_measure_memory():
        return []
    inputs = Inputs(rows)
    limit = f"<= {(2**20 + 64 * rows) / 2**20:.3f}"
    return [
        record(f"memory beyond the result, {rows} masked rows: ours", measure.peak_beyond(inputs.ours), "MiB", bar=limit),
        record(
            f"memory beyond the result, {rows} masked rows: eager", measure.peak_beyond(inputs.other(baselines.eager)), "MiB"
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows and rounds: shows that it runs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-avx2", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, rounds = (64, 3) if options.quick else (512, 15)
    if options.only_avx2:
        measure.report(forward(rows, rounds, torch.float32, {"eager": ">= 25", "bare read": "<= 1.8"}), options.json)
        return
    # Memory first: what compiling leaves behind would blur it.
    records = memory(rows)
    records += from_hidden_states(rows, min(rounds, 5))
    records += forward(rows, rounds, torch.float32, {"eager": ">= 30", "torch.compile": ">= 6", "bare read": "<= 1.5"})
    records += forward(rows, rounds, torch.bfloat16, {"eager": ">= 25", "torch.compile": ">= 6", "bare read": "<= 4.5"})
    records += with_avx2(options.quick, options.threads)
    records += backward(rows, rounds)
    records += kinds_of_rows(rows, rounds)
    records += vocabularies(rows, rounds)
    records += logits_gradient(rows, rounds)
    if options.quick:  # the bars are for 512 rows; fewer lie in the cache, where a bare read costs next to nothing
        records = [measure.without_bar(r) for r in records]
    measure.report(records, options.json)


if __name__ == "__main__":
    main()
