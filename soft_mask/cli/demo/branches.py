"""One job of the demo, (act, seed): pretrain with binary masks, continue as three branches, measure them.

Runs as a process of its own, on one thread: ``python -m soft_mask.cli.demo.branches JOB.json``. Standard output carries
one JSON event a line (see :class:`Reporter`); the result is written, whole or not at all, to the file that the job names.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import soft_mask
from soft_mask import Feedback, SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.evaluation import nelbo
from soft_mask.models import MDLM, MDLMConfig

from ..jobs import Reporter, own_events, write_whole
from .settings import Act
from .tasks import Task, make_task

TEST_SEED = 1234  # of the test masks: the same for every branch
WARMUP = 50


def run(act: Act, seed: int, text: Path | None = None, report: Reporter | None = None, scratch: str = ".") -> dict[str, Any]:
    """The whole job; returns what goes into the result file."""
    report = report or Reporter(None, act.total_updates())
    began = time.perf_counter(), time.process_time()
    report.update("preparing", 0)
    task = make_task(act, seed, text)
    config = MDLMConfig(
        vocab_size=task.vocab_size,
        model_length=act.length,
        hidden_dim=act.hidden_dim,
        cond_dim=act.cond_dim,
        n_blocks=act.n_blocks,
        n_heads=act.n_heads,
        dropout=0.0,
        tie_word_embeddings=act.tie_word_embeddings,
        gate_init=act.gate_init,
    )
    generator = torch.Generator().manual_seed(seed)
    base_blocks = task.training_blocks(act.base_updates * act.batch_size, generator)
    blocks = task.training_blocks(act.long_updates * act.batch_size, generator)
    test = task.test_blocks(act.test_sequences)

    torch.manual_seed(seed)
    base = MDLM(config)
    nn.init.normal_(base.vocab_embed.embedding, std=act.embedding_std)
    denoiser = Denoiser(base, None)
    train(denoiser, base_blocks, act.base_updates, act, seed, "base", report, scratch)
    result: dict[str, Any] = {
        "act": act.name,
        "seed": seed,
        "floor": task.floor,
        "parameters": sum(p.numel() for p in base.parameters()),
        "base": {"nelbo": float(_nelbo(denoiser, test, act).mean())},
        "branches": {},
    }
    report(frames=trace(base, None, task, act, seed, "the binary base"))
    state = copy.deepcopy(base.state_dict())
    per_sequence: dict[str, Tensor] = {}
    for branch, updates in act.branches.items():
        model = MDLM(config)
        model.load_state_dict(state)
        gate = _soft_mask(act, model) if branch == "soft" else None
        denoiser = Denoiser(model, gate)
        record = train(denoiser, blocks[: updates * act.batch_size], updates, act, seed, branch, report, scratch)
        report.update(branch, 0, note="scoring the held-out tokens")
        per_sequence[branch] = _nelbo(denoiser, test, act)
        record["nelbo"] = float(per_sequence[branch].mean())
        if gate is not None:
            record["nelbo_one_pass"] = float(_nelbo(denoiser, test, act, soft=False).mean())
        report.update(branch, 0, note="writing samples")
        record["generation"] = generate_and_judge(model, gate, task, act, seed)
        if gate is not None:
            result["trace"] = trace(model, gate, task, act, seed, "soft masking")
            report(frames=result["trace"])
        result["branches"][branch] = record
    result["differences"] = {other: _paired(per_sequence["soft"] - per_sequence[other]) for other in ("binary", "binary_long")}
    result["wall_seconds"] = time.perf_counter() - began[0]
    result["cpu_seconds"] = time.process_time() - began[1]
    result["backend"] = soft_mask.build_info().get("backend")
    return result


def _soft_mask(act: Act, model: MDLM) -> SoftMask:
    return SoftMask(
        SoftMaskConfig(mask_token_id=model.mask_token_id, k=act.k, scale=act.scale, steepness=act.steepness, centre=act.centre)
    )


def train(
    denoiser: Denoiser, blocks: Tensor, updates: int, act: Act, seed: int, stage: str, report: Reporter, scratch: str
) -> dict[str, Any]:
    """Train in place with :class:`SoftMaskTrainer`; the blocks are used in their order, each once."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments, TokenBlocks

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            facts = {name: logs[name] for name in ("loss", "lambda") if logs and name in logs}
            report.update(stage, state.global_step, **facts)

    is_base = stage == "base"
    args = SoftMaskTrainingArguments(
        output_dir=scratch,
        max_steps=updates,
        per_device_train_batch_size=act.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=act.base_learning_rate if is_base else act.learning_rate,
        lr_scheduler_type="constant_with_warmup" if is_base else "linear",
        warmup_steps=WARMUP,
        adam_beta2=0.99,
        weight_decay=0.0,
        max_grad_norm=1.0,
        p_sm=0.0 if denoiser.soft_mask is None else act.p_sm,
        omega_learning_rate=act.omega_learning_rate,
        omega_constant_lr=True,
        seed=seed,
        logging_steps=25,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = SoftMaskTrainer(denoiser, args, TokenBlocks(blocks), callbacks=[Progress()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    report.finished += updates
    record: dict[str, Any] = {
        "updates": updates,
        "ms_per_update": 1e3 * trainer.pace.seconds / updates,
        "cpu_ms_per_update": 1e3 * trainer.pace.cpu_seconds / updates,
        "loss": [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry],
    }
    if denoiser.soft_mask is not None:
        gate = denoiser.soft_mask
        record["gate"] = {name: float(getattr(gate, name).detach()) for name in ("scale", "steepness", "centre")}
        record["lambda"] = [[entry["step"], entry["lambda"]] for entry in trainer.state.log_history if "lambda" in entry]
        record["mean_lambda"] = record["lambda"][-1][1] if record["lambda"] else 0.0
    return record


def _nelbo(denoiser: Denoiser, test: Tensor, act: Act, soft: bool = True) -> Tensor:
    """Nats per token of every test sequence."""
    return nelbo(denoiser, test, seed=TEST_SEED, draws=act.test_draws, soft=soft) / act.length


def _paired(difference: Tensor) -> dict[str, float]:
    """Mean over test sequences under identical masks and its standard error (which knows nothing of training noise)."""
    return {"mean": float(difference.mean()), "paired_se": float(difference.std() / len(difference) ** 0.5)}


def generate_and_judge(model: MDLM, gate: SoftMask | None, task: Task, act: Act, seed: int) -> dict[str, dict[str, float]]:
    """Samples from all masks at each number of steps, scored; keys are the number of steps."""
    scores: dict[str, dict[str, float]] = {}
    for steps in act.nfes:
        ids = torch.full((act.samples, act.length), model.mask_token_id)
        generator = torch.Generator().manual_seed(seed * 1000 + steps)
        output = soft_mask.generate(model, ids, steps=steps, soft_mask=gate, generator=generator)
        scores[str(steps)] = {**task.judge(output.sequences), "nfe": float(output.nfe)}
    return scores


def trace(model: MDLM, gate: SoftMask | None, task: Task, act: Act, seed: int, label: str) -> dict[str, Any]:
    """One sequence from all masks to text in L/2 steps, with all that is fed back: for the screen and the picture.

    A frame per step: the sequence as it stands after the step, which positions are still masked, and for each position
    the gate, the k tokens fed back and their shares (zeros where there is no feedback).
    """
    from soft_mask.sampling import StepInfo

    frames: list[dict[str, Any]] = []

    def keep(info: StepInfo) -> None:
        feedback = info.feedback if info.feedback is not None else Feedback.empty((1, act.length), act.k)
        open_by = torch.zeros(act.length) if gate is None else gate.gate(feedback.neg_entropy[0])
        frames.append(
            {
                "step": info.step,
                "text": task.spell(info.input_ids[0]),
                "masked": (info.input_ids[0] == model.mask_token_id).tolist(),
                "gate": [round(x, 4) for x in open_by.tolist()],
                "tokens": [task.spell(row) for row in feedback.ids[0]],
                "shares": [[round(x, 4) for x in row] for row in feedback.probs[0].tolist()],
            }
        )

    ids = torch.full((1, act.length), model.mask_token_id)
    generator = torch.Generator().manual_seed(seed)
    soft_mask.generate(model, ids, steps=act.nfes[1], soft_mask=gate, generator=generator, callback=keep)
    return {"length": act.length, "label": label, "frames": frames}


def main(job_file: str) -> None:
    """The process's body; see the module's text."""
    events = own_events()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    act = Act(**job["settings"])
    result_file = Path(job["result"])
    text = Path(job["text"]) if job["text"] else None
    try:
        result = run(act, job["seed"], text, Reporter(events, act.total_updates()), scratch=str(result_file.parent))
        result["hash"] = job["hash"]
        write_whole(result_file, result)
        Reporter(events, 0)(finished=True)
    except BrokenPipeError:
        # the parent is gone: nobody is waiting
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
