"""Peak memory of one training step of Dream with soft masking, beside the reference algorithm's on the same model.

    python -m bench.training_memory [--quick] [--json FILE]

The model is small and the vocabulary Dream's, so that what is measured is the step: both passes, the mixture, the loss and
the backward. Frozen weights in bfloat16, DoRA on the attention, bfloat16 autocast, non-reentrant checkpointing, k = 1.
The reference algorithm (written anew from the paper's code) holds whole ``[B, T, V]`` tensors: logits of both passes, the
one-hot of the tokens, probabilities, their logarithms, the mixture.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import measure
from bench.measure import Record, record
from soft_mask import Dream, DreamConfig, SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.models.adapters import add_adapter

WIDTH, LAYERS, K, TIME, PROMPT = 16, 2, 1, 0.5, 64


def reference_step(model: Dream, gate: SoftMask, clean: Tensor, noisy: Tensor, t: float) -> Tensor:
    """The loss as the paper's code computes it: everything over the whole vocabulary, at every position."""
    masked = noisy == model.mask_token_id
    host = model.host
    with torch.no_grad():
        logits = host(input_ids=noisy, use_cache=False).logits
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
    own = F.one_hot(noisy, logits.shape[-1]).to(logits.dtype)
    p = torch.softmax(logits, -1)
    log_p = torch.log(p + 1e-10)
    neg_entropy = (p * log_p).sum(-1)
    lam = torch.where(masked, gate.scale * torch.sigmoid(gate.steepness * (neg_entropy - gate.centre)), 0.0).unsqueeze(-1)
    values, ids = logits.topk(K, -1)
    kept = torch.zeros_like(logits).scatter_(-1, ids, torch.softmax(values, -1).to(logits.dtype))
    mixture = (1 - lam) * own + lam * kept
    weight = model.embedding
    embeds = mixture.to(weight.dtype) @ weight
    labels = clean.masked_fill(~masked, -100)
    logits = host(inputs_embeds=embeds, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100) / t


def steps(vocab: int, length: int) -> dict[str, Callable[[], Tensor]]:
    """One training step of each on the same weights and masks: a function that leaves gradients and gives the loss."""
    torch.manual_seed(0)
    mask = vocab - 398 if vocab > 1000 else vocab - 1  # Dream's place in Dream's vocabulary
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": max(length, 8)}
    special = {"mask_token_id": mask, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    model = Dream(DreamConfig(vocab_size=vocab, initializer_range=0.2, **sizes, **heads, **special)).bfloat16()
    add_adapter(model)
    model.gradient_checkpointing_enable()
    model.train()
    gate = SoftMask(SoftMaskConfig(mask, k=K, scale=0.5, steepness=2.0, centre=-6.0, shift=1))
    clean = torch.randint(0, mask, (1, length))
    noisy = torch.where((torch.rand(1, length) < TIME) & (torch.arange(length) >= PROMPT), mask, clean)
    denoiser = Denoiser(model, gate, loss="dream")

    def ours() -> Tensor:
        return denoiser(clean, noisy, torch.full((1,), TIME)).loss

    def reference() -> Tensor:
        return reference_step(model, gate, clean, noisy, TIME)

    def step(loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            denoiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of()
            loss.backward()
            return loss.detach()

        return run

    return {"ours": step(ours), "reference": step(reference), "omega": lambda: gate.raw_scale.grad}  # type: ignore[dict-item,return-value]


def memory(vocab: int, length: int, bar: str) -> list[Record]:
    """Peaks beyond what the model itself holds, and their ratio; the two are asserted to compute the same."""
    steps(1024, 128)["ours"]()  # a warm-up: code and threads are not what is measured
    run = steps(vocab, length)
    found: dict[str, tuple[float, Tensor, Tensor]] = {}
    for name in ("ours", "reference"):  # ours first: what the reference leaves behind would hide its peak
        peak, loss = measure.peak_of(run[name])
        found[name] = (peak, loss, run["omega"]().clone())
    (mine, own, omega), (theirs, other, other_omega) = found["ours"], found["reference"]
    torch.testing.assert_close(own, other, rtol=2e-2, atol=0, msg=lambda m: f"losses differ: {m}")
    torch.testing.assert_close(omega, other_omega, rtol=0.2, atol=1e-3, msg=lambda m: f"omega's gradients differ: {m}")
    case = f"peak memory of a training step, T={length}, V={vocab}, d={WIDTH}"
    return [
        record(f"{case}: reference", theirs, "MiB"),
        record(f"{case}: ours", mine, "MiB", "reference", mine / theirs, bar),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short sequence and a small vocabulary: shows that it runs")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not measure.can_measure_memory():
        raise SystemExit("peaks of memory are read from /proc/self, which is not here")
    vocab, length = (16_384, 512) if options.quick else (152_064, 2048)
    records = memory(vocab, length, "<= 0.25")
    if options.quick:  # the bar is for the whole size: here one chunk of logits is all of them
        records = [measure.without_bar(r) for r in records]
    measure.report(records, options.json)


if __name__ == "__main__":
    main()
