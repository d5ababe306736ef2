"""SoftMaskTrainer: Hugging Face's Trainer around a :class:`soft_mask.diffusion.Denoiser`.

Everything random in a step follows from counters, not from what was drawn before: the coin "soft or binary" from (seed,
update, micro-step), alike on all ranks, since a rank that skips the first pass would hang the others; times and masks
from (seed, update, place in the update's batch). So a resumed run, another model on the same data, and the same batch cut
into other micro-batches or spread over other ranks see the same corruption.
"""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from soft_mask.data import StreamedBlocks
from soft_mask.diffusion import Denoiser, Objective, count_weight

from .arguments import SoftMaskTrainingArguments
from .blocks import block_class
from .checkpoints import STATE_FILE, last_complete_checkpoint, what_is_missing
from .data import collate_blocks
from .ema import WeightAverage
from .meters import GateMeter, Pace
from .noise import Place, corrupt_batch, counter_seed
from .sharded import AverageGateGradient, clip_sharded
from .stream import StreamPlace
from .weights import gather, read_weights, write_weights

_log = logging.getLogger(__name__)

EMA_FOLDER = "ema"


class SoftMaskTrainer(Trainer):
    """Trains a ``Denoiser(model, soft_mask)``; with ``soft_mask=None`` it is plain binary masked-diffusion training.

    - The loss is the denoiser's, by name. Under gradient accumulation every micro-batch is weighted by its share of the
      update (of the tokens, the answers' tokens or the sequences, as the loss has it), so that 4 x 2 sequences give the
      gradient of 8 (with one t each, where the loss "dream" has one t a batch).
    - A batch may hold ``answer`` (what may be masked), ``attention_mask`` and ``t``: see ``InstructionCollator``. A model
      with an adapter is saved as its adapter, in ``peft``'s layout.
    - The gate's parameters (omega) are their own optimizer group: ``omega_learning_rate``, no weight decay, and outside
      the gradient clipping, so that a steep gate cannot shrink the model's step (nor the model the gate's);
      ``clip_omega`` clips them along with the model, as the reference does.
    - ``evaluate()`` always uses feedback (two passes) where there is a soft mask, on masks fixed by the seed.
    - With ``ema_decay`` the backbone's moving average is kept, evaluated, and saved under ``ema/`` (never the gate's).
    - FSDP2 (``fsdp=True``): the gate is left whole and its gradient averaged; checkpoints are gathered.
    - Logged: loss, grad_norm (the model's), lambda (mean over masked rows of soft micro-batches), soft_share, scale,
      steepness, centre, learning_rate, omega_learning_rate,
      omega_grad_norm, ms_per_update, tokens_per_second, eta_seconds.
    - A checkpoint is a folder that ``load_model`` and ``SoftMask.from_pretrained`` read (safetensors, full precision),
      and that ``train(resume_from_checkpoint=True)`` resumes to the same numbers. A checkpoint that was cut off by a
      kill is never picked up.

    Raises TypeError or ValueError in words for a model that is not a Denoiser, other arguments than
    :class:`SoftMaskTrainingArguments`, an empty dataset.
    """

    # compute_loss weighs micro-batches itself
    loss_is_scaled_for_ga = True

    args: SoftMaskTrainingArguments
    model: Any  # a Denoiser; under FSDP what wraps it
    objective: Objective
    optimizer: Any  # a torch optimizer, as accelerate prepared it

    def __init__(
        self,
        model: Denoiser,
        args: SoftMaskTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, Denoiser):
            raise TypeError(f"model: expected a soft_mask.diffusion.Denoiser, got {type(model).__name__}")
        if args is None:
            args = SoftMaskTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, SoftMaskTrainingArguments):
            raise TypeError(f"args: expected SoftMaskTrainingArguments, got {type(args).__name__}")
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            if hasattr(dataset, "__len__") and not isinstance(dataset, dict) and len(dataset) == 0:
                raise ValueError(f"{name}: expected at least one block of tokens, got an empty dataset")
        if model.soft_mask is None and args.p_sm > 0.0:
            _log.warning("the denoiser has no soft_mask: p_sm=%g has no effect, this is binary training", args.p_sm)
        self.objective = model.objective
        self.omega = [] if model.soft_mask is None else [p for p in model.soft_mask.parameters() if p.requires_grad]
        self.pace = Pace()
        self._micro = (-1, -1)  # (update, micro-step) of the batch in hand
        self._eval_batch = 0
        self._meter = GateMeter()
        self._logged_pace = (0, 0.0)
        self._tokens = self._logged_tokens = 0
        self._omega_norm: Tensor | None = None
        self.ema: WeightAverage | None = None
        self.resumed_from: str | None = None
        self._average_gate: AverageGateGradient | None = None
        self._reload_random_state = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator or collate_blocks,
            **kwargs,
        )
        self.add_callback(self.pace)
        self._stream: StreamPlace | None = None
        if isinstance(train_dataset, StreamedBlocks):
            self._stream = StreamPlace(train_dataset, self.sequences_of_an_update)
        if self.is_fsdp_enabled:
            self._keep_gate_whole()
        elif args.fsdp and args.world_size > 1:
            raise ValueError("fsdp: accelerate shards on accelerators alone and would run this as DDP; leave it off on CPUs")
        if args.ema_decay:
            self.add_callback(_Average(self))

    def _keep_gate_whole(self) -> None:
        plugin = self.accelerator.state.fsdp_plugin
        if not self.accelerator.is_fsdp2:
            raise ValueError("fsdp_config: version 2 is needed (FSDP1 cannot leave the gate's parameters whole)")
        if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise ValueError(f"fsdp_config: state_dict_type must be FULL_STATE_DICT, got {plugin.state_dict_type}")
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = [block_class(self.model.model)]
        if self.omega:
            plugin.ignored_modules = "soft_mask"
            self._average_gate = AverageGateGradient(self.omega)
            self.add_callback(self._average_gate)

    # ---- one micro-batch ----

    @property
    def sequences_of_an_update(self) -> int:
        """Over all ranks and micro-batches."""
        return self.args.train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, int | None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._reload_random_state:  # reading began anew, and that drew numbers
            self._load_rng_state(self.resumed_from)
            self._reload_random_state = False
        self._tokens += sum(batch["input_ids"].numel() for batch in batches)
        weight: Any = 0
        for batch in batches:
            weight = weight + count_weight(self.objective, batch["input_ids"], batch.get("answer"))
        if self.objective.weighed_by == "answers" and self.args.world_size > 1:  # not as many on every rank
            weight = torch.as_tensor(weight, device=self.args.device)
            weight = self.accelerator.reduce(weight, "sum") / self.args.world_size
        return batches, weight

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        update, micro = self._micro
        self._micro = (update, micro + 1) if update == self.state.global_step else (self.state.global_step, 0)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        clean, answer = inputs["input_ids"], inputs.get("answer")
        given = {name: inputs[name] for name in ("answer", "t") if name in inputs}
        if model.training:
            update, micro = self._micro
            noisy, t = self.corrupt(clean, update, micro, **given)
            soft = self.is_soft(update, micro)
        else:
            noisy, t = self.corrupt(clean, "evaluation", self._eval_batch, **given)
            soft = self.model.soft_mask is not None
        output = model(clean, noisy, t, soft=soft, attention_mask=inputs.get("attention_mask"), answer=answer)
        self._meter.add(output, soft)
        loss = output.loss
        if num_items_in_batch is not None:
            loss = loss * (count_weight(self.objective, clean, answer) / num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def is_soft(self, update: int, micro: int) -> bool:
        """The coin of a micro-batch, the same on every rank: True with probability ``p_sm``."""
        if self.model.soft_mask is None:
            return False
        return counter_seed("coin", self.args.seed, update, micro) < self.args.p_sm * 2**63

    def corrupt(
        self, clean: Tensor, update: int | str, micro: int, answer: Tensor | None = None, t: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``clean`` int64 ``[B, L]`` -> (the same with masks, times float32 ``[B]``), from counters and this rank's place."""
        args = self.args
        size = args.eval_batch_size if isinstance(update, str) else args.train_batch_size
        first = (micro * args.world_size + args.process_index) * size
        place = Place(args.seed, update, first, self.sequences_of_an_update)
        times = (args.min_time, args.max_time)
        return corrupt_batch(clean, self.objective, self.model.model.mask_token_id, place, times, answer, t)

    # ---- optimizer ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer: Any = super().create_optimizer(model)
            gate = {id(p) for p in self.omega}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in gate]
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
            if self.omega:
                optimizer.add_param_group({"params": self.omega, "lr": self.args.omega_learning_rate, "weight_decay": 0.0})
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            if self.omega and self.args.omega_constant_lr:
                if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                    raise ValueError(
                        f"omega_constant_lr: not possible with lr_scheduler_type={self.args.lr_scheduler_type}, "
                        "which is not made of one factor per group"
                    )
                *others, _ = scheduler.lr_lambdas
                self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(scheduler.optimizer, [*others, lambda _: 1.0])
        return self.lr_scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if not self.omega or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        if self._average_gate is not None:
            self._average_gate.average(self.state.global_step)
        gate = {id(p) for p in self.omega}
        rest = [p for p in model.parameters() if id(p) not in gate]
        found = [p.grad for p in self.omega if p.grad is not None]
        self._omega_norm = torch.stack([g.detach().float() for g in found]).norm() if found else None
        along = self.omega if self.args.clip_omega else []
        if self.is_fsdp_enabled:
            return clip_sharded(rest, along, self.args.max_grad_norm)
        return self.accelerator.clip_grad_norm_([*rest, *along], self.args.max_grad_norm)

    # ---- evaluation and log ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loop on masks that depend on the seed and the place in the data alone."""
        training_meter, self._meter, self._eval_batch = self._meter, GateMeter(), 0
        try:
            with self.ema.swapped() if self.ema is not None else nullcontext():
                output = super().evaluation_loop(*args, **kwargs)
            if self._meter.rows and output.metrics is not None:
                output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_lambda"] = self._meter.mean_lambda
        finally:
            self._meter = training_meter
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        self._eval_batch += 1
        return loss.detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs.update(self._gate_log())
        super().log(logs, *args, **kwargs)

    def _gate_log(self) -> dict[str, float]:
        """What Trainer does not know: the gate, its learning rate, the pace. One sync per log, none per step."""
        extra: dict[str, float] = {}
        gate = self.model.soft_mask
        if gate is not None:
            if self._meter.rows:
                extra["lambda"] = self._meter.mean_lambda
            extra["soft_share"] = self._meter.soft / max(self._meter.batches, 1)
            for name in ("scale", "steepness", "centre"):
                extra[name] = getattr(gate, name).item()
        if self.omega and self.lr_scheduler is not None:
            extra["omega_learning_rate"] = float(self.optimizer.param_groups[-1]["lr"])
        updates, seconds = self._logged_pace
        if self.pace.updates > updates:
            spent = self.pace.seconds - seconds
            extra["ms_per_update"] = 1e3 * spent / (self.pace.updates - updates)
            tokens = self._tokens - self._logged_tokens
            extra["tokens_per_second"] = tokens * self.args.world_size / max(spent, 1e-9)
            extra["eta_seconds"] = spent / (self.pace.updates - updates) * (self.state.max_steps - self.state.global_step)
        if self._omega_norm is not None:
            extra["omega_grad_norm"] = float(self._omega_norm)
        self._logged_tokens = self._tokens
        self._logged_pace = (self.pace.updates, self.pace.seconds)
        self._meter = GateMeter()
        return extra

    # ---- checkpoints ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; ``True`` resumes the last checkpoint of ``output_dir`` that was written to its end."""
        if self.train_dataset is None:
            raise ValueError("train_dataset: there is nothing to train on; pass one to SoftMaskTrainer")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir), self.args.world_size)
            if resume_from_checkpoint is None:
                raise ValueError(f"resume_from_checkpoint: no complete checkpoint in {self.args.output_dir}")
        elif resume_from_checkpoint:
            missing = what_is_missing(resume_from_checkpoint, self.args.world_size)
            if missing:
                raise ValueError(f"resume_from_checkpoint: {resume_from_checkpoint} is not complete: {missing}")
        self.resumed_from = resume_from_checkpoint or None
        if self._stream is not None:
            found = self.resumed_from is not None and self._stream.read(self.resumed_from)
            self._reload_random_state = self.args.ignore_data_skip = found
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # A folder of an older run may be written over: without its state file it is incomplete until the end.
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            (folder / STATE_FILE).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._stream is not None and self.args.should_save:
            self._stream.write(output_dir, self.state.global_step)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights and gate as they are, and under ``ema/`` the averaged weights with the gate as it is."""
        if self.is_fsdp_enabled:
            self._save(output_dir, gather(self.model, self.args.should_save))
        else:
            super().save_model(output_dir, _internal_call)
        if self.ema is not None:
            with self.ema.swapped():  # gathering is for all ranks
                state = gather(self.model, self.args.should_save) if self.is_fsdp_enabled else None
                if self.args.should_save:
                    folder = Path(output_dir or str(self.args.output_dir)) / EMA_FOLDER
                    write_weights(folder, self.accelerator.unwrap_model(self.model), state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        write_weights(folder, self.accelerator.unwrap_model(self.model), state_dict)
        settings = json.loads(self.args.to_json_string())
        (folder / "training_args.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        denoiser = self.accelerator.unwrap_model(model or self.model)
        read_weights(Path(resume_from_checkpoint), denoiser, self.is_fsdp_enabled)
        gate = denoiser.soft_mask
        if gate is not None:
            gate.load_state_dict(type(gate).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class _Average(TrainerCallback):
    """Keeps the trainer's weight average: made when the weights are where they will be trained, so after wrapping."""

    def __init__(self, trainer: SoftMaskTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        denoiser = trainer.accelerator.unwrap_model(trainer.model)
        trainer.ema = WeightAverage(denoiser.model, args.ema_decay)
        if trainer.resumed_from is None:
            return
        with trainer.ema.swapped():  # what is loaded now becomes the average, and the weights stay
            read_weights(Path(trainer.resumed_from) / EMA_FOLDER, denoiser, trainer.is_fsdp_enabled)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ema is not None:
            self.trainer.ema.update(state.global_step)
