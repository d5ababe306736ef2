"""Times of the operators on a GPU: cold L2, medians of events, each against contenders in the same run.

A flush of L2 precedes every timed call and keeps the GPU busy while the call is being launched, so that what is timed is the
GPU's time. On the emulated GPU the same code runs at small sizes and times the emulation, which says nothing of a GPU.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import soft_mask
from bench import baselines
from bench.gpu_checks import GPU
from bench.measure import Record, record

EMULATED = GPU == "cpu"
FLUSH_BYTES = 512 * 2**20  # several times any L2


class Plan(NamedTuple):
    vocabs: tuple[int, ...]
    rows: tuple[int, ...]
    most_bytes: int  # of logits
    rounds: int
    width: dict[int, int]


FULL = Plan(
    (50_258, 152_064, 126_464), (256, 1, 32, 1024, 8192, 8, 64), 6 * 2**30, 20, {50_258: 768, 126_464: 4096, 152_064: 3584}
)
SMALL = Plan((1009,), (5, 40), 2**30, 2, {1009: 64})


class Clock:
    """Median seconds of calls, with the caches flushed before each."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.other = torch.empty(1024 if EMULATED else FLUSH_BYTES, dtype=torch.int8, device=GPU)

    def __call__(self, run: Callable[[], object]) -> float:
        for _ in range(2):
            run()
        if EMULATED:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        times = []
        for _ in range(self.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.other.zero_()
            start.record()
            run()
            end.record()
            times.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in times) / 1e3


class ReadReduce:
    """A bare read of some bytes, by a kernel of its own: the bandwidth that can be had."""

    def __init__(self) -> None:
        self.call: Callable[[Tensor], object] = lambda x: x.sum()
        if EMULATED:
            return
        folder = Path(tempfile.mkdtemp(prefix="read-reduce-"))
        major, minor = torch.cuda.get_device_capability()
        source = Path(__file__).with_name("read_reduce.cu")
        command = [
            "nvcc",
            "-O3",
            "-shared",
            "-Xcompiler",
            "-fPIC",
            f"-arch=sm_{major}{minor}",
            str(source),
            "-o",
            str(folder / "lib.so"),
        ]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(folder / "lib.so"))
        sink = torch.zeros(1, dtype=torch.int32, device=GPU)
        blocks = 8 * torch.cuda.get_device_properties(0).multi_processor_count

        def call(x: Tensor) -> None:
            size = ctypes.c_longlong(x.numel() * x.element_size())
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            error = library.read_reduce(ctypes.c_void_p(x.data_ptr()), size, ctypes.c_void_p(sink.data_ptr()), blocks, stream)
            assert error == 0, f"CUDA error {error}"

        self.call = call


def peak_bytes(run: Callable[[], object]) -> int:
    """What a call allocates at its peak, its result included."""
    if EMULATED:
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


class Case:
    """Masked rows of logits and the calls on them."""

    def __init__(self, rows: int, vocab: int, width: int, dtype: torch.dtype, k: int) -> None:
        self.logits = torch.randn(1, rows, vocab, device=GPU, dtype=dtype)
        self.table = torch.randn(vocab, width, device=GPU, dtype=dtype)
        self.mask, self.k = vocab - 1, k
        self.ids = torch.full((1, rows), self.mask, device=GPU)
        size = self.logits.element_size()
        self.model_bytes = rows * size * (vocab + (k + 2) * width)
        self.name = f"{str(dtype).removeprefix('torch.')}, V={vocab}, {rows} rows, k={k}"

    def ours(self, **arguments: Any) -> Tensor:
        return soft_mask.soft_mask_embed(
            self.logits, self.ids, self.table, mask_token_id=self.mask, k=self.k, check=False, **baselines.GATE, **arguments
        )

    def other(self, run: Callable[..., Tensor]) -> Tensor:
        return run(self.logits, self.ids, self.table, self.mask, self.k)


def forward(plan: Plan, clock: Clock, read: ReadReduce) -> Iterator[Record]:
    one = torch.zeros(1, device=GPU)
    launch = clock(lambda: one.copy_(one))
    yield record("a copy of 4 bytes", launch * 1e6, "us")
    compiled = torch.compile(baselines.eager, dynamic=False)
    for k in (3, 1, 8):
        for dtype in (torch.bfloat16, torch.float32):
            for vocab in plan.vocabs:
                for rows in plan.rows:
                    size = torch.empty((), dtype=dtype).element_size()
                    if rows * vocab * size > plan.most_bytes:
                        continue
                    yield from _forward(Case(rows, vocab, plan.width[vocab], dtype, k), rows, clock, read, launch, compiled)


def _forward(
    case: Case, rows: int, clock: Clock, read: ReadReduce, launch: float, compiled: Callable[..., Tensor]
) -> Iterator[Record]:
    limit = clock(lambda: read.call(case.logits)) * case.model_bytes / (case.logits.numel() * case.logits.element_size())
    ours = clock(case.ours)
    name = f"forward, {case.name}"
    bar = ">= 0.9" if rows >= 256 else ""
    yield record(name, case.model_bytes / ours / 1e9, "GB/s", "read-reduce of the same bytes", limit / ours, bar)
    if rows <= 32:
        # Against the longer of a launch and the bare read: neither can be beaten.
        least = max(launch, limit)
        yield record(name, ours * 1e6, "us", "a copy launch, or the read where that takes longer", ours / least, "<= 2")
    if case.k != 3:
        return
    versus = {
        "eager": (baselines.eager, ">= 10"),
        "torch.compile": (compiled, ">= 3"),
        "topk + embedding_bag": (baselines.topk_embedding_bag, ""),
    }
    for who, (run, wanted) in versus.items():
        if EMULATED and who == "torch.compile":
            continue
        theirs = clock(lambda run=run: case.other(run))  # type: ignore[misc]
        yield record(f"{name}, {who}", theirs * 1e6, "us", "ours", theirs / ours, wanted if rows >= 256 else "")
    if rows >= 256 and not EMULATED:
        eager, mine = (peak_bytes(run) / 2**20 for run in (lambda: case.other(baselines.eager), case.ours))
        yield record(f"{name}, peak memory", mine, "MiB", "eager", eager / mine)


def backward(plan: Plan, clock: Clock) -> Iterator[Record]:
    for dtype in (torch.bfloat16, torch.float32):
        for vocab in plan.vocabs:
            for rows in (1024, 8192) if not EMULATED else plan.rows:
                case = Case(rows, vocab, plan.width[vocab], dtype, 3)
                yield from _backward(case, clock)


def _backward(case: Case, clock: Clock) -> Iterator[Record]:
    fb = soft_mask.feedback(case.logits, case.k, check=False)
    gate = torch.tensor(list(baselines.GATE.values()))
    grad = torch.randn(1, case.ids.shape[1], case.table.shape[1], device=GPU, dtype=case.table.dtype)
    arguments = (grad, case.ids, fb.ids, fb.probs, fb.neg_entropy, case.table, gate, case.mask, 0, None, True)
    run = torch.ops.soft_mask.mix_embed_backward
    write = clock(lambda: torch.zeros_like(case.table))
    loose, sure = clock(lambda: run(*arguments, False)), clock(lambda: run(*arguments, True))
    name = f"backward, {case.name}"
    yield record(name, loose * 1e6, "us", "writing the dense gradient", loose / write, "<= 1.4")
    yield record(f"{name}, deterministic", sure * 1e6, "us", "the other order", sure / loose, "<= 1.5")
    if case.logits.numel() * case.logits.element_size() > 2**31:
        return
    ones = [torch.ones_like(x) for x in fb[1:]]
    into = clock(lambda: torch.ops.soft_mask.feedback_backward(*ones, case.logits, *fb, None, [], True))
    copy = clock(lambda: torch.neg(case.logits))
    yield record(f"gradient of the logits, {case.name}", into * 1e6, "us", "reading and writing them", into / copy)


def decode_steps(clock: Clock) -> Iterator[Record]:
    """One whole decoding step of random weights: binary, with soft masking, and with soft masking as its authors write it."""
    yield from _decode("MDLM", *_mdlm(), clock)
    try:
        import transformers  # noqa: F401
    except ImportError:
        return
    yield from _decode("Dream", *_dream(), clock)


def _decode(name: str, model: Callable[[Tensor], Tensor], table: Tensor, length: int, clock: Clock) -> Iterator[Record]:
    mask = table.shape[0] - 1
    ids = torch.randint(0, mask, (1, length), device=GPU)
    ids[:, length // 2 :] = mask
    with torch.no_grad():
        logits = model(table[ids])

        def ours() -> Tensor:
            return model(soft_mask.soft_mask_embed(logits, ids, table, mask_token_id=mask, k=3, check=False, **baselines.GATE))

        binary = clock(lambda: model(table[ids]))
        soft, eager = clock(ours), clock(lambda: model(baselines.eager(logits, ids, table, mask, 3)))
    case = f"decode step, {name}-shaped, 1 x {length}, half masked"
    yield record(f"{case}, binary", binary * 1e3, "ms")
    yield record(f"{case}, soft_mask", soft * 1e3, "ms", "binary", soft / binary)
    yield record(f"{case}, eager soft masking", eager * 1e3, "ms", "binary", eager / binary)


def _mdlm() -> tuple[Callable[[Tensor], Tensor], Tensor, int]:
    from soft_mask import MDLM, MDLMConfig

    small = {"vocab_size": 1009, "model_length": 64, "hidden_dim": 64, "n_blocks": 1, "n_heads": 4} if EMULATED else {}
    model = MDLM(MDLMConfig(**small)).to(GPU, torch.float32 if EMULATED else torch.bfloat16)  # type: ignore[arg-type]
    return lambda x: model.head(model.hidden(x)), model.embedding.detach(), 64 if EMULATED else 1024


def _dream() -> tuple[Callable[[Tensor], Tensor], Tensor, int]:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = {
        "vocab_size": 1009,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    full = {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if EMULATED else torch.bfloat16)
    try:
        with torch.device(GPU):
            model = Qwen2ForCausalLM(Qwen2Config(**(small if EMULATED else full))).eval()
    finally:
        torch.set_default_dtype(before)
    return (
        lambda x: model(inputs_embeds=x, is_causal=False).logits,
        model.get_input_embeddings().weight.detach(),
        64 if EMULATED else 512,
    )
