"""Full scale: the paper's tables with its own figures beside, what each row needs, and the stages that measure them."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..jobs import JobError
from .paper import BASE, MODELS, PERPLEXITY, SAMPLES

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Plan:
    """Where everything is. ``overrides`` go to every recipe, as to ``soft-mask train``."""

    out: Path
    recipes: Path
    scorer: str = "gpt2-large"
    samples: int = 5000
    steps: int = 1024
    batch_size: int = 8
    limit: int | None = None  # validation blocks; None is all
    overrides: list[str] = field(default_factory=list)

    def recipe_file(self, model: str) -> Path | None:
        name = MODELS[model].recipe
        return None if name is None else self.recipes / f"{name}.yaml"

    def recipe(self, model: str) -> Any:
        """The model's recipe with its output in ``out``; the base's is that of what continues from it."""
        from soft_mask.training.recipe import read_recipe

        file = self.recipe_file("continue" if model == BASE else model)
        assert file is not None
        return read_recipe(file, [*self.overrides, f"output={self.out / 'runs' / model}"])

    def train_command(self, model: str) -> list[str]:
        """One process a GPU; the settings are the recipe's."""
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        start = ["-m", "torch.distributed.run", f"--nproc-per-node={gpus}"] if gpus > 1 else []
        where = f"output={self.out / 'runs' / model}"
        return [sys.executable, *start, "-m", "soft_mask", "train", str(self.recipe_file(model)), *self.overrides, where]

    def weights(self, model: str) -> str:
        """What is evaluated: averaged weights where the recipe keeps an average."""
        recipe = self.recipe(model)
        if model == BASE:
            if recipe.model.load is None:
                raise ValueError(f"{self.recipe_file('continue')}: model.load names no checkpoint to start from")
            return str(recipe.model.load)
        folder = Path(recipe.output)
        return str(folder / "ema" if recipe.training.ema and not recipe.training.omega_only else folder)

    def is_trained(self, model: str) -> bool:
        """``soft-mask train`` writes the final weights into the output folder itself, at its end."""
        return model == BASE or (self.out / "runs" / model / "model.safetensors").is_file()

    def record_file(self, kind: str, model: str, preset: str | None = None) -> Path:
        return self.out / f"{kind}-{model}{f'-{preset}' if preset else ''}.json"

    def settings(self, kind: str, model: str) -> dict[str, Any]:
        """What a finished measurement must match to be used again."""
        shared = {
            "weights": self.weights(model),
            "limit": self.limit,
            "batch_size": self.batch_size,
            "recipe": self.recipe(model).to_dict(),
        }
        if kind == "perplexity":
            return shared
        return {**shared, "scorer": self.scorer, "samples": self.samples, "steps": self.steps}

    def measured(self, kind: str, model: str, preset: str | None = None) -> dict[str, Any] | None:
        try:
            record = json.loads(self.record_file(kind, model, preset).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = isinstance(record, dict) and record.get("settings", {}).get("key") == self.settings(kind, model)
        return dict(record["results"]) if same else None


def check(plan: Plan) -> None:
    """Raises ValueError for recipes that are not there or cannot be read."""
    for file in map(plan.recipe_file, MODELS):
        if file is not None and not file.is_file():
            raise ValueError(f"--recipes: {plan.recipes} has no {file.name}; a checkout of the repository has them in recipes/")
    for model in MODELS:
        plan.recipe(model)


def run_full(plan: Plan, console: Any, tables: tuple[str, ...], allow_cpu: bool) -> None:
    """Train and measure what is not finished, the cheap table first; every measurement is kept as a file of its own.

    Raises:
        ValueError: there is no GPU. JobError: a training run failed.
    """
    import torch

    if not torch.cuda.is_available() and not allow_cpu:
        raise ValueError(
            "--run: no GPU here, and at this scale a CPU takes years; --cpu runs it all the same, --scale small takes an hour"
        )
    plan.out.mkdir(parents=True, exist_ok=True)
    if "perplexity" in tables:
        for row in PERPLEXITY:
            _train(plan, row.model, console)
            if plan.measured("perplexity", row.model) is None:
                console.print(f"validation perplexity of {row.model}", highlight=False)
                _measure_perplexity(plan, row.model)
    if "samples" in tables:
        for sample_row in SAMPLES:
            if sample_row.model is None or sample_row.preset is None:
                continue
            _train(plan, sample_row.model, console)
            if plan.measured("samples", sample_row.model, sample_row.preset) is None:
                console.print(f"{plan.samples} samples of {sample_row.model} by {sample_row.preset}", highlight=False)
                _measure_samples(plan, sample_row.model, sample_row.preset)


def _train(plan: Plan, model: str, console: Any) -> None:
    if plan.is_trained(model):
        return
    command = plan.train_command(model)
    console.print(shlex.join(command), markup=False, highlight=False)
    code = subprocess.run(command, check=False).returncode
    if code:
        raise JobError(f"training {model} stopped with code {code}; the same command goes on from its last whole checkpoint")


def _load(plan: Plan, model: str) -> tuple[Any, Any, Any]:
    """Model, gate and the validation blocks of its recipe, packed once."""
    import torch

    from soft_mask import load_model, load_soft_mask
    from soft_mask.training.run import make_data, training_arguments

    recipe = plan.recipe(model)
    where = "cuda" if torch.cuda.is_available() and not recipe.training.cpu else "cpu"
    weights = plan.weights(model)
    network = load_model(weights).to(where)
    gate = load_soft_mask(weights)
    _, held_out = make_data(recipe.data, network, training_arguments(recipe))
    if held_out is None:
        raise ValueError(f"{plan.recipe_file(model)}: data names no validation_split, validation_files or validation_tokens")
    count = len(held_out) if plan.limit is None else min(plan.limit, len(held_out))  # type: ignore[arg-type]
    blocks = torch.stack([held_out[i]["input_ids"] for i in range(count)])
    return network, None if gate is None else gate.to(where), blocks


def _measure_perplexity(plan: Plan, model: str) -> None:
    """The paper's protocol: one time and mask a block, times antithetic within the batch; two passes with a gate."""
    from soft_mask import evaluation
    from soft_mask.diffusion import Denoiser

    network, gate, blocks = _load(plan, model)
    found = evaluation.perplexity(Denoiser(network, gate), blocks, seed=1, times="antithetic", batch_size=plan.batch_size)
    settings = {"key": plan.settings("perplexity", model), "seed": 1, "times": "antithetic", "dtype": "float32"}
    evaluation.write_record(plan.record_file("perplexity", model), "perplexity", settings, found.to_dict())


def _measure_samples(plan: Plan, model: str, preset: str) -> None:
    """Generative perplexity, entropy and MAUVE; the samples themselves beside them. Finished batches are kept."""
    import torch

    from soft_mask import evaluation, generate
    from soft_mask.data import ByteTokenizer
    from soft_mask.models.tokenizer import mdlm_tokenizer
    from soft_mask.sampling.sampler import PRESETS

    network, gate, blocks = _load(plan, model)
    device = network.embedding.device
    name = plan.recipe(model).data.tokenizer
    tokenizer: Any = ByteTokenizer() if name == "bytes" else mdlm_tokenizer(name, network.mask_token_id)
    kept = plan.record_file("samples", model, preset).with_suffix(".jsonl")
    key = json.dumps(plan.settings("samples", model), sort_keys=True)
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    made: list[dict[str, Any]] = []
    if lines and lines[0] == key:
        for line in lines[1:]:
            try:
                made.append(json.loads(line))
            except ValueError:
                break  # cut off by a kill
    made = made[: len(made) // plan.batch_size * plan.batch_size]
    with open(kept, "w", encoding="utf-8") as file:
        file.write("\n".join([key, *map(json.dumps, made)]) + "\n")
        generator = torch.Generator(device)
        while len(made) < plan.samples:
            generator.manual_seed(1_000_003 + len(made))  # each batch its own seed: it can be made again alone
            size = min(plan.batch_size, plan.samples - len(made))
            masks = torch.full((size, blocks.shape[1]), network.mask_token_id, device=device)
            out = generate(network, masks, steps=plan.steps, soft_mask=gate, generator=generator, **PRESETS[preset])
            fresh = [{"ids": row, "nfe": out.nfe} for row in out.sequences.tolist()]
            file.writelines(json.dumps(one) + "\n" for one in fresh)
            file.flush()
            made += fresh
            print(f"{len(made)} of {plan.samples} samples", flush=True)
    ids = torch.tensor([one["ids"] for one in made])
    judge = evaluation.Scorer.from_pretrained(plan.scorer, str(device))
    texts = tokenizer.batch_decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    real = tokenizer.batch_decode(
        blocks[: plan.samples].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    results: dict[str, Any] = {
        "generative_perplexity": judge.perplexity(texts, batch_size=plan.batch_size).to_dict(),
        "entropy": evaluation.unigram_entropy(ids),
        "nfe": sum(one["nfe"] for one in made) / len(made),
        "mauve": None,
    }
    try:
        features = [judge.features(some, batch_size=plan.batch_size) for some in (real, texts)]
        results["mauve"] = evaluation.mauve_score(*features)
    except ImportError as error:
        results["mauve_absent"] = str(error)
    settings = {"key": plan.settings("samples", model), "preset": preset, **PRESETS[preset], "dtype": "float32"}
    evaluation.write_record(plan.record_file("samples", model, preset), "samples", settings, results)
