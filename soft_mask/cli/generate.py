"""``soft-mask generate``: text from a masked diffusion model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def generate(
    model: Annotated[str | None, typer.Argument(help="Folder, checkpoint file or hub id; --model says the same.")] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", help="The model, by name instead of by place.")] = None,
    prompt: Annotated[str, typer.Option(help="What is asked of a chat model; else text that every sample begins with.")] = "",
    system: Annotated[str, typer.Option(help="System message, instead of the chat template's own.")] = "",
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template [where there is one].")] = None,
    infill: Annotated[str, typer.Option(help="Text with gaps: [PAD] (MDLM), <|mask|> (Dream) for each token wanted.")] = "",
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Samples.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples side by side.")] = 8,
    length: Annotated[int | None, typer.Option(min=2, help="Tokens a sample, prompt included [the model's].")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens after the prompt [128 for Dream, LLaDA].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps [128; Dream, LLaDA: as many as tokens].")] = None,
    preset: Annotated[str | None, typer.Option(help="Published sampler settings by name; see sampling.PRESETS.")] = None,
    alg: Annotated[
        str | None, typer.Option(help="Sampling algorithm, instead of the preset's [Dream, LLaDA: entropy].")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the choice of tokens; 0 takes the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of Dream's algorithms: the k likeliest tokens alone.")] = None,
    alg_temp: Annotated[float | None, typer.Option(help="Of Dream's algorithms: draw positions at this temperature.")] = None,
    eta: Annotated[float | None, typer.Option(help="ReMDM's eta.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 1,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id [the model's own; gpt2 for MDLM].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="Of the weights: float32, bfloat16, float16, float64 [the files'].")] = None,
    attention: Annotated[str | None, typer.Option(help="Of Dream, LLaDA: sdpa, eager, flash_attention_2 ...")] = None,
    binary: Annotated[bool, typer.Option("--binary", help="Without the checkpoint's soft mask.")] = False,
    soft_mask: Annotated[str | None, typer.Option(help="Folder, hub id or transparency_config.json [the model's].")] = None,
    scale: Annotated[float | None, typer.Option(help="The gate's scale, instead of the checkpoint's.")] = None,
    steepness: Annotated[float | None, typer.Option(help="The gate's steepness.")] = None,
    centre: Annotated[float | None, typer.Option(help="The gate's centre, negative.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Predictions fed back.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the scale as masks are filled: none, linear, stepwise.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Of a Lightning checkpoint the raw weights, not the average.")] = False,
    out: Annotated[Path | None, typer.Option(help="File to write; .jsonl has ids and settings too [screen].")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Sample text, answer or continue a prompt, or fill gaps; a single sample is shown in the terminal as it is denoised.

    Code 0 when done, 2 for bad arguments or files, 130 when interrupted: what was finished by then is written.
    """
    from .models import GateOptions, errors, load
    from .prompts import start_of

    with errors():
        gate = GateOptions(not binary, soft_mask, scale, steepness, centre, k, schedule)
        loaded = load(_the_model(model, model_option), tokenizer, device, dtype, gate, not raw, attention)
        given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "alg_temp": alg_temp, "eta": eta}
        start = start_of(loaded, prompt, infill, system, chat, length, max_new_tokens)
        options = sampler_options(loaded.hosted, preset, alg, given)
        if steps is None:
            steps = max(1, start.masks) if loaded.hosted else 128
        settings = {**loaded.settings, **options, "preset": preset, "steps": steps, "seed": seed, "batch_size": batch_size}
        settings |= {"chat": start.chat}
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


def _the_model(argument: str | None, option: str | None) -> str:
    if argument is not None and option is not None and argument != option:
        raise ValueError(f"the model is named twice: {argument!r} and --model {option!r}")
    name = option if argument is None else argument
    if name is None:
        raise ValueError("a model must be named: soft-mask generate MODEL, or --model MODEL")
    return name


def sampler_options(hosted: bool, preset: str | None, alg: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``soft_mask.generate``; with an algorithm of its own, the preset's other settings are left out."""
    from soft_mask.sampling.sampler import PRESETS

    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if alg is not None:
        options: dict[str, Any] = {"alg": alg}
    elif preset is None and hosted:
        options = {"alg": "entropy"}
    else:
        options = dict(PRESETS[preset or "mdlm"])
    return options | {name: value for name, value in given.items() if value is not None}


def sample(
    loaded: Any, start: Any, number: int, batch_size: int, steps: int, seed: int, options: dict[str, Any], quiet: bool
) -> Any:  # -> iterator of lists of samples
    """Batches of ``{text, ids, nfe}``; each batch has its own seed, so that a part can be repeated."""
    import torch

    from soft_mask import generate as fill

    from .prompts import finished
    from .screen import Screen

    generator = torch.Generator(loaded.device)
    done = 0
    with Screen(loaded, start, number, steps, quiet) as screen:
        while done < number:
            size = min(batch_size, number - done)
            generator.manual_seed(seed * 1_000_003 + done)
            ids = start.ids.to(loaded.device).expand(size, -1).contiguous()
            screen.batch(done, size)
            out = fill(
                loaded.model,
                ids,
                steps=steps,
                soft_mask=loaded.soft_mask,
                generator=generator,
                callback=screen.show,
                **options,
            )
            rows = out.sequences.tolist()
            done += size
            texts = finished(loaded, start, rows)
            yield [{"text": text, "ids": row, "nfe": out.nfe} for text, row in zip(texts, rows, strict=True)]


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
