"""``soft-mask evaluate``: perplexity on texts, and the quality of samples; every result a JSON file with its settings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, checkpoint file or hub id.")],
    data: Annotated[list[Path] | None, typer.Option(help="Text or jsonl file, also .gz; may be repeated.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Set by name: openwebtext (validation), ptb, lambada ...; repeatable.")
    ] = None,
    field: Annotated[str, typer.Option(help="Field of jsonl files that holds the text.")] = "text",
    blocks: Annotated[int | None, typer.Option(min=1, help="At most this many blocks of each text.")] = None,
    length: Annotated[int | None, typer.Option(min=3, help="Tokens a block or sample [the model's].")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Monte Carlo draws of times and masks; 2 or more give an error.")] = 1,
    times: Annotated[str, typer.Option(help="stratified, or antithetic as in the originals.")] = "stratified",
    samples: Annotated[int, typer.Option(min=0, help="Texts to sample and have judged by --scorer.")] = 0,
    scorer: Annotated[str, typer.Option(help="Causal LM that judges samples: folder or hub id.")] = "gpt2-large",
    mauve: Annotated[bool, typer.Option("--mauve", help="MAUVE of the samples against the first --data or --dataset.")] = False,
    drop_last: Annotated[
        bool, typer.Option("--drop-last", help="Leave out samples that do not fill a batch, as the originals.")
    ] = False,
    count_all: Annotated[bool, typer.Option("--count-all", help="Let the scorer count EOS too; the originals do not.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 128,
    preset: Annotated[str, typer.Option(help="Published sampler settings by name.")] = "mdlm",
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of masks, times and samples.")] = 1,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id [the model's own; gpt2 for MDLM].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="Of the weights [float32; Dream, LLaDA: the files'].")] = None,
    binary: Annotated[bool, typer.Option("--binary", help="Without the checkpoint's soft mask.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Of a Lightning checkpoint the raw weights, not the average.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results, made if absent.")] = Path("evaluation"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure perplexity on texts, and generative perplexity, entropy and MAUVE of samples.

    Code 0 when done, 2 for bad arguments or files, 130 when interrupted: results that were finished by then are kept.
    """
    from .models import GateOptions, errors, load

    with errors():
        if not data and not dataset and not samples:
            raise ValueError("nothing to measure: give --data, --dataset or --samples")
        if mauve and not (samples and (data or dataset)):
            raise ValueError("--mauve needs --samples and a text to compare with: --data or --dataset")
        loaded = load(model, tokenizer, device, dtype, GateOptions(soft=not binary), not raw)
        size = length or loaded.model.model_length
        if size > loaded.model.model_length:
            raise ValueError(f"--length must be at most the model's {loaded.model.model_length}, got {size}")
        try:
            real = None
            places: list[Path | str] = [*(data or []), *(dataset or [])]
            for place in places:
                found = measure_text(loaded, place, field, size, blocks, draws, times, batch_size, seed, out)
                real = found if real is None else real
            if samples:
                reference = real if mauve else None
                counting = {"drop_last": drop_last, "count_all": count_all}
                measure_samples(loaded, samples, size, steps, preset, batch_size, seed, scorer, counting, reference, out, quiet)
        except KeyboardInterrupt:
            kept = ", ".join(sorted(path.name for path in out.glob("*.json*"))) if out.is_dir() else ""
            typer.echo(f"\nInterrupted. In {out}: {kept or 'nothing was finished yet'}.", err=True)
            raise typer.Exit(130) from None


def measure_text(
    loaded: Any,
    place: Path | str,  # a file, or a name of evaluation.ZERO_SHOT
    field: str,
    length: int,
    limit: int | None,
    draws: int,
    times: str,
    batch_size: int,
    seed: int,
    out: Path,
) -> Any:  # [N, length] int64: the blocks
    """Perplexity of one text, to the screen and to ``perplexity-NAME.json``."""
    from soft_mask import evaluation
    from soft_mask.diffusion.denoiser import Denoiser

    began = time.perf_counter()
    texts = evaluation.read_texts(place, field) if isinstance(place, Path) else evaluation.zero_shot_texts(place)
    blocks = evaluation.wrap(texts, loaded.tokenizer, length, limit)
    denoiser = Denoiser(loaded.model, loaded.soft_mask)
    found = evaluation.perplexity(
        denoiser, blocks.to(loaded.device), seed=seed, draws=draws, times=times, batch_size=batch_size,
        n_bytes=evaluation.byte_count(blocks, loaded.tokenizer),
    )  # fmt: skip
    settings = {
        **loaded.settings, "text": str(place), "field": field, "length": length, "blocks": limit, "draws": draws,
        "times": times, "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    name = place.name.split(".")[0] if isinstance(place, Path) else place
    results = {**found.to_dict(), "seconds": time.perf_counter() - began}
    evaluation.write_record(out / f"perplexity-{name}.json", "perplexity", settings, results)
    error = found.perplexity * (found.error_sequences or 0.0)
    typer.echo(f"{name}: perplexity {found.perplexity:.3f} ± {error:.3f} over {found.sequences} sequences")
    return blocks


def measure_samples(
    loaded: Any,
    number: int,
    length: int,
    steps: int,
    preset: str,
    batch_size: int,
    seed: int,
    scorer: str,
    counting: dict[str, bool],  # which texts and tokens the scorer counts
    reference: Any,  # [N, L] int64: real text for MAUVE, or None
    out: Path,
    quiet: bool,
) -> None:
    """Samples to ``samples.jsonl``, also of an interrupted run; what the scorer says of them to ``samples.json``."""
    import torch

    from soft_mask import evaluation

    from . import generate as cli
    from .prompts import finished, start_of

    options = cli.sampler_options(loaded.hosted, preset, None, {})
    settings = {
        **loaded.settings, **options, "preset": preset, "samples": number, "length": length, "steps": steps,
        "batch_size": batch_size, "seed": seed, "scorer": scorer, "scorer_dtype": "float32", **counting,
    }  # fmt: skip
    judge = evaluation.Scorer.from_pretrained(scorer, loaded.device)
    start = start_of(loaded, "", "", "", None, length, None)
    made: list[dict[str, Any]] = []
    try:
        for part in cli.sample(loaded, start, number, batch_size, steps, seed, options, quiet):
            made += part
    finally:
        if made:
            cli.write(out / "samples.jsonl", made, settings)
    texts = [one["text"] for one in made]
    score = judge.perplexity(texts, batch_size=batch_size, **counting)
    entropy = evaluation.unigram_entropy(torch.tensor([one["ids"] for one in made]))
    nfe = sum(one["nfe"] for one in made) / len(made)
    results: dict[str, Any] = {"generative_perplexity": score.to_dict(), "entropy": entropy, "nfe": nfe}
    evaluation.write_record(out / "samples.json", "samples", settings, results)  # MAUVE may fail: keep what there is
    typer.echo(f"samples: generative perplexity {score.perplexity:.3f}, entropy {entropy:.3f} nats, NFE {nfe:.1f}")
    if reference is not None:
        chosen = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))[:number]
        real = judge.features(finished(loaded, start, reference[chosen].tolist()), batch_size=batch_size)
        results["mauve"] = evaluation.mauve_score(real, judge.features(texts, batch_size=batch_size), seed=seed)
        evaluation.write_record(out / "samples.json", "samples", settings, results)
        typer.echo(f"samples: MAUVE {results['mauve']['mauve']:.4f}")
