"""``save_checkpoint`` and ``push_to_hub``: a model, its soft mask and a model card in the Hugging Face layout."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soft_mask.models.mdlm import MDLM
from soft_mask.models.soft_mask_files import TRANSPARENCY, write_transparency
from soft_mask.module import CONFIG_NAME, WEIGHTS_NAME, SoftMask

__all__ = ["model_card", "push_to_hub", "save_checkpoint"]


def save_checkpoint(folder: str | os.PathLike[str], model: MDLM, soft_mask: SoftMask | None = None) -> None:
    """Write what ``load_model`` and ``load_soft_mask`` read: weights under the public names, the gate in full precision.

    ``config.json`` and ``model.safetensors``; with a soft mask also ``soft_mask_config.json``, ``soft_mask.safetensors``
    (float32, raw) and the reference's ``transparency_config.json`` (bfloat16). Without one, files of a soft mask that lay
    there before are removed.

    Raises:
        NotADirectoryError: ``folder`` is a file.
    """
    target = Path(folder)
    model.save_pretrained(target)
    if soft_mask is None:
        for name in (CONFIG_NAME, WEIGHTS_NAME, TRANSPARENCY):
            (target / name).unlink(missing_ok=True)
        return
    soft_mask.save_pretrained(target)
    write_transparency(target / TRANSPARENCY, soft_mask)


def model_card(
    name: str, model: MDLM, soft_mask: SoftMask | None = None, results: Mapping[str, Any] | None = None, licence: str = ""
) -> str:
    """A README for the hub: what the model is, its sizes and gate, how to load it, and results that were measured.

    Args:
        results: figure by name, as a table; none are made up.
        licence: SPDX-like id for the card's header; left out when empty.
    """
    c = model.config
    head = ["---", "library_name: soft-mask", "pipeline_tag: text-generation", "tags:", "- masked-diffusion", "- mdlm"]
    head += ["- soft-masking"] if soft_mask is not None else []
    head += [f"license: {licence}"] if licence else []
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [*head, "---", "", f"# {name}", ""]
    lines.append(
        "A masked diffusion language model (MDLM, [arXiv 2406.07524](https://arxiv.org/abs/2406.07524))"
        + (" with soft masking ([arXiv 2510.17206](https://arxiv.org/abs/2510.17206))." if soft_mask is not None else ".")
    )
    lines += ["", "| | |", "|---|---|", f"| parameters | {count:,} |", f"| vocabulary | {c.vocab_size:,} |"]
    lines += [f"| mask token | {c.mask_token_id} |", f"| length | {c.model_length} |"]
    lines += [f"| width, blocks, heads | {c.hidden_dim}, {c.n_blocks}, {c.n_heads} |"]
    lines += [f"| weights | {str(model.embedding.dtype).removeprefix('torch.')} |"]
    if soft_mask is not None:
        gate = (soft_mask.scale.item(), soft_mask.steepness.item(), soft_mask.centre.item())
        lines.append(
            f"| gate: scale, steepness, centre; k | {gate[0]:.6g}, {gate[1]:.6g}, {gate[2]:.6g}; {soft_mask.config.k} |"
        )
    lines += ["", "```python", "import torch", "import soft_mask", "", f'model = soft_mask.load_model("{name}")']
    lines += [f'sm = soft_mask.load_soft_mask("{name}")' + ("" if soft_mask is not None else "  # None: no soft mask")]
    lines += [f"masks = torch.full((1, {c.model_length}), model.mask_token_id)"]
    lines += ["out = soft_mask.generate(model, masks, steps=128, soft_mask=sm)", "```", ""]
    if results:
        lines += ["## Results", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in results.items()), ""]
    return "\n".join(lines)


def push_to_hub(
    repo_id: str,
    model: MDLM,
    soft_mask: SoftMask | None = None,
    *,
    results: Mapping[str, Any] | None = None,
    licence: str = "",
    private: bool = True,
    token: str | None = None,
    commit_message: str = "Model written by soft_mask",
) -> str:
    """Upload :func:`save_checkpoint`'s files with a :func:`model_card` as one commit; returns the commit's address.

    Args:
        repo_id: ``owner/name``; made if it is not there, private unless asked otherwise.
        token: of the hub; the one that ``hf auth login`` stored when None.

    Raises:
        ImportError: ``huggingface_hub`` is missing. What ``huggingface_hub`` raises when the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, model, soft_mask)
        Path(folder, "README.md").write_text(model_card(repo_id, model, soft_mask, results, licence), encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    return str(commit)
