"""Guards against what goes wrong silently when weights meet a host: files, names, rotary numbers, the causal mask."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soft_mask.models.checkpoint import WEIGHTS

__all__ = ["check_buffers", "check_files", "check_host", "check_not_causal", "check_report", "default_frequencies"]


def check_files(folder: str | os.PathLike[str], kind: Any, config: Any, by_shape: bool = True) -> None:
    """Every tensor the host needs is in the folder's safetensors, and no other; only their headers are read.

    Args:
        kind: the ``HostedModel`` class; config: the host's configuration.
        by_shape: compare shapes too; quantised weights have their own, and names beside the host's.

    Raises:
        FileNotFoundError: there are no safetensors, or a shard is missing.
        ValueError: a file is truncated, or the tensors are not this model's.
    """
    import re

    shapes = _shapes(Path(folder))
    renamed: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        own = name
        for pattern, target in kind.key_mapping.items():
            own = re.sub(pattern, target, own)
        renamed[own] = shape
    if not by_shape:
        return
    with torch.device("meta"):
        expected = {name: list(tensor.shape) for name, tensor in kind.host_class()(config).state_dict().items()}
    if config.tie_word_embeddings and "lm_head.weight" not in renamed:
        expected.pop("lm_head.weight")
    faults = [
        *(f"missing: {name}" for name in expected if name not in renamed),
        *(f"unexpected: {name}" for name in renamed if name not in expected),
        *(
            f"{name}: shape {shape} in the file, {expected[name]} by the config"
            for name, shape in renamed.items()
            if name in expected and shape != expected[name]
        ),
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"the weights in {os.fspath(folder)!r} do not fit the config: {'; '.join(faults[:5])}{more}")


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of all tensors in the folder's safetensors, from the headers."""
    from safetensors import SafetensorError, safe_open

    index = folder / (WEIGHTS + ".index.json")
    if (folder / WEIGHTS).is_file():
        files, places = [WEIGHTS], {}
    elif index.is_file():
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{os.fspath(index)!r} is no index of shards: {error!r}") from None
    else:
        raise FileNotFoundError(f"no {WEIGHTS} in {os.fspath(folder)!r}, nor its shards")
    shapes: dict[str, list[int]] = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{os.fspath(index)!r} names {name!r}, which is no safetensors file of the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name}, which {index.name} names, is not in {os.fspath(folder)!r}")
        try:
            with safe_open(folder / name, framework="pt") as tensors:
                shapes |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{os.fspath(folder / name)!r} is not a whole safetensors file: {error}") from None
    if lost := sorted(set(places) - set(shapes)):
        raise ValueError(f"the shards in {os.fspath(folder)!r} do not hold {lost[0]!r}, which the index names")
    return shapes


def check_report(report: dict[str, Any], where: str) -> None:
    """``transformers`` matched every name: nothing missing (it would be random), nothing left over, no other shape.

    Raises:
        ValueError: naming the first few.
    """
    faults = [
        f"{what.removesuffix('_keys')}: {name}"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        for name in sorted(map(str, report.get(what) or ()))
    ]
    if faults:
        raise ValueError(f"the weights in {where!r} were not all taken over: {'; '.join(faults[:5])}")


def default_frequencies(config: Any) -> Tensor | None:  # [head_dim / 2] float32
    """theta^(-2i / head_dim), where the configuration scales nothing; None where it does."""
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.int64).float() / head)


def check_host(model: Any, frequencies: Tensor | None, probe: bool = True) -> None:
    """The rotary numbers are right, and attention reaches a later token.

    Buffers that no file holds are left as uninitialised memory by some ways of loading, and an attention kernel may be
    causal by its own flag; both give wrong logits and no error.

    Raises:
        RuntimeError: saying which.
    """
    check_buffers(model.host, frequencies)
    if probe and not model.host.get_input_embeddings().weight.is_meta:
        check_not_causal(model)


def check_buffers(module: nn.Module, frequencies: Tensor | None) -> None:
    """Every rotary buffer holds ``frequencies``, or at least a falling run of finite numbers from 1 where that is None.

    Raises:
        RuntimeError: naming the buffer.
    """
    for name, buffer in module.named_buffers():
        if not name.endswith("inv_freq") or buffer.is_meta:
            continue
        found = buffer.detach().float().cpu()
        if frequencies is not None:
            right = found.shape == frequencies.shape and torch.allclose(found, frequencies, rtol=1e-5, atol=0)
        else:
            right = bool(torch.isfinite(found).all()) and bool((found > 0).all()) and bool((found.diff() <= 0).all())
        if not right:
            raise RuntimeError(f"the rotary buffer {name} does not hold the formula's numbers: logits would be wrong")


@torch.no_grad()
def check_not_causal(model: Any) -> None:
    """A token after the first changes the first row.

    Raises:
        RuntimeError: it does not, or the model gives no numbers.
    """
    length = min(8, getattr(model, "model_length", None) or 8)
    ids = torch.arange(length, device=model.embedding.device)[None] % (model.vocab_size - 1)
    other = ids.clone()
    other[0, 1:] = ids[0, 1:].flip(0)  # the same first token, something else after it
    rows = [model.hidden(nn.functional.embedding(x, model.embedding))[0, 0].float() for x in (ids, other)]
    if not all(bool(torch.isfinite(row).all()) for row in rows):
        raise RuntimeError("the model gives NaN or infinity on a short sequence: broken weights, or a broken attention")
    if bool((rows[0] - rows[1]).abs().max() <= 1e-6 * rows[0].abs().max()):
        raise RuntimeError("a later token does not change the first row: attention is causal, a diffusion model's is not")
