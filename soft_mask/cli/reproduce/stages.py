"""One job of the small-scale study, (study, seed), in stages that are kept: base, branches, bounds, samples.

Runs as a process of its own, on one thread: ``python -m soft_mask.cli.reproduce.stages JOB.json``. A stage that is
finished is a JSON file with the hash of all settings; training goes on from its last whole checkpoint. All random numbers
follow from the seed and the stage's name, so a job that was killed at any time gives the numbers of one that was not.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import soft_mask
from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.evaluation import nelbo
from soft_mask.models import MDLM, MDLMConfig
from soft_mask.sampling import generate_semi_autoregressive

from ..jobs import Reporter, own_events, write_whole
from .corpora import Corpus, HeldOut, Source
from .settings import SAMPLED, SAMPLERS, Study

TEST_SEED = 1234  # of the test masks: the same for every branch and seed
BASE, FINAL = "base", "final"


class Stages:
    """The job's folder, and what is finished in it.

    Args:
        folder: of this job alone.
        key: hash of the settings; a folder of other settings is emptied.
        report: where progress goes.
    """

    def __init__(self, study: Study, seed: int, corpus: Corpus, folder: Path, key: str, report: Reporter) -> None:
        self.study, self.seed, self.corpus, self.folder, self.report = study, seed, corpus, folder, report
        stamp = folder / "key"
        if folder.is_dir() and (not stamp.is_file() or stamp.read_text() != key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(key)

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stage's result from its file, or made and written, whole or not at all."""
        file = self.folder / f"{name}.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            pass
        result = make()
        write_whole(file, result)
        return result

    def run(self) -> dict[str, Any]:
        study = self.study
        result: dict[str, Any] = {"study": study.name, "seed": self.seed, "branches": {}}
        result["base"] = self.trained(BASE, study.base_updates)
        for branch, updates in study.branches.items():
            result["branches"][branch] = self.trained(branch, updates)
        held = self.corpus.held_out("test", study.test_blocks)
        result["base"] |= self.kept("base-bound", lambda: self.bound(BASE, held))
        for branch in study.branches:
            result["branches"][branch] |= self.kept(f"{branch}-bound", partial(self.bound, branch, held))
        for branch in SAMPLED:
            cells: dict[str, Any] = {}
            result["branches"][branch]["samples"] = cells
            for sampler in SAMPLERS:
                for steps in study.steps:
                    name = f"{sampler}-{steps}"
                    done = len(cells) + SAMPLED.index(branch) * len(SAMPLERS) * len(study.steps)
                    share = done / (len(SAMPLED) * len(SAMPLERS) * len(study.steps))
                    self.report.update("samples", 0, note=f"{branch}, {sampler}, {steps} steps", measured=share)
                    make = partial(self.sampled, branch, sampler, steps)
                    cells[name] = self.kept(f"{branch}-samples-{name}", make)
        result["data"] = self.corpus.facts
        result["real_text"] = self.corpus.judge(held.blocks[: study.samples])
        result["backend"] = soft_mask.build_info().get("backend")
        return result

    # ---- training ----

    def trained(self, stage: str, updates: int) -> dict[str, Any]:
        result = self.kept(stage, lambda: self.train(stage, updates))
        for checkpoint in (self.folder / stage).glob("checkpoint-*"):  # only now: the result is written
            shutil.rmtree(checkpoint)
        self.report.finished += updates
        self.report.update(stage, 0)
        return result

    def train(self, stage: str, updates: int) -> dict[str, Any]:
        """Train with :class:`SoftMaskTrainer` from where it was; the weights go to the folder ``STAGE/final``."""
        from transformers import TrainerCallback
        from transformers.trainer_callback import PrinterCallback

        from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments, TokenBlocks
        from soft_mask.training.checkpoints import last_complete_checkpoint

        study, report = self.study, self.report

        class Progress(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
                facts = {name: logs[name] for name in ("loss", "lambda") if logs and name in logs}
                report.update(stage, state.global_step, **facts)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                report.update(stage, state.global_step, saved=state.global_step)

        is_base = stage == BASE
        denoiser = self.denoiser(stage)
        folder = self.folder / stage
        args = SoftMaskTrainingArguments(
            output_dir=str(folder),
            max_steps=updates,
            per_device_train_batch_size=study.batch_size,
            train_sampling_strategy="sequential",
            learning_rate=study.base_learning_rate if is_base else study.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=study.warmup_updates,
            adam_beta2=0.99,
            weight_decay=0.0,
            max_grad_norm=1.0,
            p_sm=0.0 if denoiser.soft_mask is None else study.p_sm,
            omega_learning_rate=study.omega_learning_rate,
            omega_constant_lr=True,
            seed=self.seed,
            logging_steps=25,
            save_steps=study.save_every,
            save_total_limit=1,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = SoftMaskTrainer(denoiser, args, TokenBlocks(self.blocks(is_base)[: updates * study.batch_size]))
        trainer.add_callback(Progress())
        trainer.remove_callback(PrinterCallback)
        last = last_complete_checkpoint(folder)
        trainer.train(resume_from_checkpoint=last)
        trainer.save_model(str(folder / FINAL))
        history = trainer.state.log_history
        record: dict[str, Any] = {
            "updates": updates,
            "resumed": Path(last).name if last else None,
            "parameters": sum(p.numel() for name, p in denoiser.named_parameters() if name.startswith("model.")),
            "cpu_ms_per_update": 1e3 * trainer.pace.cpu_seconds / max(trainer.pace.updates, 1),  # of what this process did
            "loss": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
        }
        if denoiser.soft_mask is not None:
            gate = denoiser.soft_mask
            record["gate"] = {name: float(getattr(gate, name).detach()) for name in ("scale", "steepness", "centre")}
            opened = [entry["lambda"] for entry in history if "lambda" in entry]
            record["mean_lambda"] = opened[-1] if opened else 0.0
        return record

    def blocks(self, is_base: bool) -> torch.Tensor:
        """The training blocks in order: the branches see the same ones, a short branch the first of them."""
        study = self.study
        generator = torch.Generator().manual_seed(self.seed * 2 + (0 if is_base else 1))
        count = study.base_updates if is_base else max(study.branches.values())
        return self.corpus.training_blocks(count * study.batch_size, generator)

    def denoiser(self, stage: str) -> Denoiser:
        """What a stage starts from: new weights for the base, else the base's, with a gate for the soft branches."""
        study = self.study
        if stage != BASE:
            model = MDLM.from_pretrained(self.folder / BASE / FINAL).train()
            return Denoiser(model, self.gate(model) if stage.startswith("soft") else None)
        config = MDLMConfig(
            vocab_size=self.corpus.vocab_size,
            model_length=study.length,
            hidden_dim=study.hidden_dim,
            cond_dim=study.cond_dim,
            n_blocks=study.n_blocks,
            n_heads=study.n_heads,
            dropout=0.0,
            tie_word_embeddings=study.tie_word_embeddings,
            gate_init=study.gate_init,
        )
        torch.manual_seed(self.seed)
        model = MDLM(config)
        nn.init.normal_(model.vocab_embed.embedding, std=study.embedding_std)
        return Denoiser(model, None)

    def gate(self, model: MDLM) -> SoftMask:
        s = self.study
        return SoftMask(
            SoftMaskConfig(mask_token_id=model.mask_token_id, k=s.k, scale=s.scale, steepness=s.steepness, centre=s.centre)
        )

    def final(self, stage: str) -> tuple[MDLM, SoftMask | None]:
        folder = self.folder / stage / FINAL
        return MDLM.from_pretrained(folder), SoftMask.from_pretrained(folder) if stage.startswith("soft") else None

    # ---- measuring ----

    def bound(self, stage: str, held: HeldOut) -> dict[str, Any]:
        """The NELBO of the test blocks: nats a token, perplexity and bits a byte; soft ones with two passes, and with one."""
        self.report.update(stage, 0, note="scoring the held-out text")
        study = self.study
        model, gate = self.final(stage)
        denoiser = Denoiser(model, gate)

        def measure(soft: bool) -> dict[str, float]:
            each = nelbo(denoiser, held.blocks, TEST_SEED, study.test_draws, soft) / study.length
            nats = float(each.mean())
            error = float(each.std()) / len(each) ** 0.5
            return {"nats": nats, "bits_per_byte": held.bits_per_byte(nats), "se_sequences": error}

        record: dict[str, Any] = measure(gate is not None)
        if gate is not None:
            record["nats_one_pass"] = measure(False)["nats"]
        return record

    def sampled(self, stage: str, sampler: str, steps: int) -> dict[str, Any]:
        """Samples of one sampler in ``steps`` steps, judged; the same random numbers for all branches."""
        study = self.study
        model, gate = self.final(stage)
        generator = torch.Generator().manual_seed(self.seed)
        began = time.process_time()
        options = dict(SAMPLERS[sampler], soft_mask=gate, generator=generator, steps=steps)
        if sampler == "semi-autoregressive":
            out = generate_semi_autoregressive(
                model, study.samples, study.length, stride=study.length // 2, num_strides=1, **options
            )
        else:
            masks = torch.full((study.samples, study.length), model.mask_token_id)
            out = soft_mask.generate(model, masks, **options)
        return {
            **self.corpus.judge(out.sequences),
            "nfe": out.nfe,
            "tokens": out.sequences.shape[1],
            "cpu_seconds": time.process_time() - began,
            "example": self.corpus.spell(out.sequences[0]),
        }


def main(job_file: str) -> None:
    """The process's body; see the module's text."""
    events = own_events()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    study = Study(**job["study"])
    report = Reporter(events, study.total_updates())
    try:
        report.update("preparing", 0)
        source = Source(*(Path(job[name]) if job[name] else None for name in ("text", "tokenizer")))
        stages = Stages(study, job["seed"], Corpus(source, study.length), Path(job["folder"]), job["hash"], report)
        result = stages.run() | {"hash": job["hash"]}
        write_whole(Path(job["result"]), result)
        Reporter(events, 0)(finished=True)
    except BrokenPipeError:
        os._exit(1)  # the parent is gone: nobody is waiting


if __name__ == "__main__":
    main(sys.argv[1])
