"""``soft-mask generate``: text from a masked diffusion model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def generate(
    model: Annotated[str, typer.Argument(help="Folder, checkpoint file or hub id.")],
    prompt: Annotated[str, typer.Option(help="Text that every sample begins with.")] = "",
    infill: Annotated[str, typer.Option(help="Text with gaps written as [PAD], one for each token wanted.")] = "",
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Samples.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples side by side.")] = 8,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens a sample, prompt included [the model's].")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 128,
    preset: Annotated[str, typer.Option(help="Published sampler settings by name; see sampling.PRESETS.")] = "mdlm",
    alg: Annotated[str | None, typer.Option(help="Sampling algorithm, instead of the preset's.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the choice of tokens; 0 takes the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.")] = None,
    eta: Annotated[float | None, typer.Option(help="ReMDM's eta.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 1,
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id.")] = "gpt2",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16, float16, float64.")] = "float32",
    binary: Annotated[bool, typer.Option("--binary", help="Without the checkpoint's soft mask.")] = False,
    scale: Annotated[float | None, typer.Option(help="The gate's scale, instead of the checkpoint's.")] = None,
    steepness: Annotated[float | None, typer.Option(help="The gate's steepness.")] = None,
    centre: Annotated[float | None, typer.Option(help="The gate's centre, negative.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Predictions fed back.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of a Lightning checkpoint the raw weights, not the average.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; .jsonl has ids and settings too [screen].")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Sample text, continue a prompt, or fill gaps.

    Code 0 when done, 2 for bad arguments or files, 130 when interrupted: what was finished by then is written.
    """
    from .models import errors, load

    with errors():
        loaded = load(model, tokenizer, device, dtype, not binary, scale, steepness, centre, k, not raw)
        options = sampler_options(preset, alg, temperature, top_p, eta)
        start = first_ids(loaded, prompt, infill, length)
        settings = {**loaded.settings, **options, "preset": preset, "steps": steps, "seed": seed, "batch_size": batch_size}
        samples: list[dict[str, Any]] = []
        code = 0
        try:
            for part in sample(loaded, start, number, batch_size, steps, seed, options, quiet):
                samples += part
        except KeyboardInterrupt:
            code = 130
        write(out, samples, settings)
    if code:
        kept = f"written to {out}" if out else "above"
        typer.echo(f"Interrupted: {len(samples)} of {number} samples were finished; they are {kept}.", err=True)
        raise typer.Exit(code)


def sampler_options(
    preset: str, alg: str | None, temperature: float | None, top_p: float | None, eta: float | None
) -> dict[str, Any]:
    """Keywords of ``soft_mask.generate``; with an algorithm of its own, the preset's other settings are left out."""
    from soft_mask.sampling.sampler import PRESETS

    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    options = dict(PRESETS[preset]) if alg is None else {"alg": alg}
    given = {"temperature": temperature, "top_p": top_p, "eta": eta}
    return options | {name: value for name, value in given.items() if value is not None}


def first_ids(loaded: Any, prompt: str, infill: str, length: int | None) -> Any:  # -> [L] int64
    """The sequence to be filled; free samples begin with BOS only where the model puts it, as in the originals."""
    import torch

    if prompt and infill:
        raise ValueError("--prompt and --infill exclude each other: write gaps into --infill")
    mask, longest = loaded.model.mask_token_id, loaded.model.model_length
    ids = loaded.tokenizer(prompt or infill)["input_ids"] if prompt or infill else []
    if infill:
        if mask not in ids:
            raise ValueError("--infill has no gap: write [PAD] for each token that is wanted")
        if length is not None and length != len(ids):
            raise ValueError(f"--length must be left out with --infill, whose text has {len(ids)} tokens")
    size = len(ids) if infill else (length or longest)
    if size > longest or len(ids) > size or (prompt and len(ids) == size):
        raise ValueError(f"{len(ids)} tokens are given for a length of {size}; the model's longest is {longest}")
    return torch.tensor(ids + [mask] * (size - len(ids)), dtype=torch.int64)


def sample(
    loaded: Any, start: Any, number: int, batch_size: int, steps: int, seed: int, options: dict[str, Any], quiet: bool
) -> Any:  # -> iterator of lists of samples
    """Batches of ``{text, ids, nfe}``; each batch has its own seed, so that a part can be repeated."""
    import torch

    from soft_mask import generate as fill

    generator = torch.Generator(loaded.device)
    done = 0
    while done < number:
        size = min(batch_size, number - done)
        generator.manual_seed(seed * 1_000_003 + done)

        def show(info: Any, first: int = done, size: int = size) -> None:
            if not quiet and sys.stderr.isatty():
                sys.stderr.write(f"\rsamples {first + 1} to {first + size} of {number}: step {info.step} of {steps} ")

        ids = start.to(loaded.device).expand(size, -1).contiguous()
        out = fill(loaded.model, ids, steps=steps, soft_mask=loaded.soft_mask, generator=generator, callback=show, **options)
        rows = out.sequences.tolist()
        done += size
        yield [{"text": text, "ids": row, "nfe": out.nfe} for text, row in zip(texts(loaded, rows), rows, strict=True)]
    if not quiet and sys.stderr.isatty():
        sys.stderr.write("\n")


def texts(loaded: Any, rows: list[list[int]]) -> list[str]:
    """Decoded as they are: special tokens kept, spaces untouched."""
    return list(loaded.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def write(out: Path | None, samples: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """To the screen, or to a file whole: text parted by lines of dashes, or a JSON object a line with all settings."""
    if out is None:
        for one in samples:
            typer.echo(one["text"])
        return
    if out.suffix == ".jsonl":
        lines = [
            json.dumps({**one, "settings": {n: _json(v) for n, v in settings.items()}}, ensure_ascii=False) for one in samples
        ]
        text = "".join(line + "\n" for line in lines)
    else:
        text = "\n-----\n".join(one["text"] for one in samples) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)


def _json(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, dict, list, type(None))) else str(value)
