"""From a recipe to a trained model: model, gate, data and trainer, alike on one machine and under torchrun."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import PrinterCallback

from soft_mask.config import SoftMaskConfig
from soft_mask.data import (
    ByteTokenizer,
    HubDocuments,
    PackedBlocks,
    StreamedBlocks,
    iterate_blocks,
    load_tokenizer,
    pack,
    read_documents,
)
from soft_mask.diffusion import Denoiser
from soft_mask.models import MDLM, MDLMConfig, load_model
from soft_mask.models.adapters import add_adapter
from soft_mask.module import SoftMask

from .arguments import SoftMaskTrainingArguments
from .blocks import checkpoint_blocks, compile_blocks
from .checkpoints import last_complete_checkpoint
from .instructions import make_instructions
from .progress import JsonLog, ProgressLine
from .recipe import DataSettings, Recipe
from .trainer import SoftMaskTrainer

__all__ = ["build_trainer", "run_recipe"]


def run_recipe(recipe: Recipe, resume: bool = True) -> SoftMaskTrainer:
    """Train by the recipe, from the last whole checkpoint of its output folder where there is one; save at the end.

    Raises:
        ValueError: ``resume`` is False and there are checkpoints; what :func:`build_trainer` raises.
    """
    trainer = build_trainer(recipe)
    last = last_complete_checkpoint(recipe.output, trainer.args.world_size)
    if last is not None and not resume:
        raise ValueError(f"output: {recipe.output} holds checkpoints already; resume them or name another folder")
    if trainer.is_world_process_zero():
        Path(recipe.output).mkdir(parents=True, exist_ok=True)
        text = json.dumps(recipe.to_dict(), indent=2) + "\n"
        (Path(recipe.output) / "recipe.json").write_text(text, encoding="utf-8")
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    if trainer.processing_class is not None and trainer.is_world_process_zero():  # the folder is whole by itself
        trainer.processing_class.save_pretrained(recipe.output)
    return trainer


def build_trainer(recipe: Recipe) -> SoftMaskTrainer:
    """The trainer of a recipe, with its data packed.

    Raises:
        ValueError: the batch is no multiple of ``micro_batch`` x ranks, the tokenizer is not the model's, and what
            reading the model and the data raises.
    """
    folders = {"output": recipe.output}
    for name, source in (("data", recipe.data), ("instructions", recipe.instructions)):
        if source is not None:
            folders[f"{name}.cache"] = source.cache
    for name, folder in folders.items():
        if Path(folder).exists() and not Path(folder).is_dir():
            raise ValueError(f"{name}: {folder} is a file; a folder to write into was expected")
    args = training_arguments(recipe)  # first: it starts the process group
    torch.manual_seed(recipe.training.seed)
    model = make_model(recipe)
    gate = None
    if recipe.soft_mask is not None:
        ban = (model.mask_token_id,) if model.bans_mask else None
        settings = vars(recipe.soft_mask)
        gate = SoftMask(SoftMaskConfig(model.mask_token_id, ban=ban, shift=model.shift, **settings))
    if recipe.training.omega_only:
        model.requires_grad_(False)
    if recipe.adapter is not None:
        add_adapter(model, recipe.adapter, recipe.model.load)
    if recipe.training.gradient_checkpointing:
        checkpoint_blocks(model)
    if recipe.training.compile:
        compile_blocks(model)
    collator = tokenizer = None
    if recipe.instructions is not None:
        train, validation, collator, tokenizer = make_instructions(recipe, model, args)
    else:
        assert recipe.data is not None  # a recipe has one of them
        train, validation = make_data(recipe.data, model, args)
    denoiser = Denoiser(model, gate, loss=recipe.training.loss)
    trainer = SoftMaskTrainer(denoiser, args, train, validation, collator, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressLine())
    trainer.add_callback(JsonLog())
    return trainer


def training_arguments(recipe: Recipe) -> SoftMaskTrainingArguments:
    """The recipe's training settings in Trainer's words."""
    t = recipe.training
    more: dict[str, Any] = {}
    if t.fsdp:
        more = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    args = SoftMaskTrainingArguments(
        output_dir=recipe.output,
        max_steps=t.updates or -1,
        num_train_epochs=t.epochs,
        per_device_train_batch_size=t.micro_batch,
        per_device_eval_batch_size=t.micro_batch,
        learning_rate=t.learning_rate,
        omega_learning_rate=t.omega_learning_rate,
        omega_constant_lr=t.omega_constant,
        lr_scheduler_type=t.schedule,
        warmup_steps=t.warmup_updates if t.warmup_ratio is None else t.warmup_ratio,
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        adam_epsilon=t.adam_eps,
        weight_decay=t.weight_decay,
        max_grad_norm=t.clip,
        clip_omega=t.clip_omega,
        ema_decay=0.0 if t.omega_only else t.ema,
        p_sm=t.p_sm if recipe.soft_mask is not None else 0.0,
        min_time=t.min_time,
        max_time=t.max_time,
        bf16=t.bf16,
        seed=t.seed,
        logging_steps=t.log_every,
        eval_strategy="steps" if t.evaluate_every else "no",
        eval_steps=t.evaluate_every or None,
        eval_on_start=t.evaluate_first,
        load_best_model_at_end=t.keep_best,
        save_steps=t.save_every,
        save_total_limit=t.keep,
        report_to="tensorboard" if t.tensorboard else "none",
        disable_tqdm=True,
        use_cpu=t.cpu,
        dataloader_pin_memory=not t.cpu and torch.cuda.is_available(),
        dataloader_drop_last=True,
        ddp_find_unused_parameters=False,
        **more,
    )
    each = t.micro_batch * args.world_size
    if t.batch % each:
        raise ValueError(
            f"training.batch: {t.batch} is no multiple of micro_batch x ranks = {t.micro_batch} x {args.world_size}"
        )
    args.gradient_accumulation_steps = t.batch // each
    return args


def make_model(recipe: Recipe) -> Any:
    """The model to start from, in training mode."""
    if recipe.model.load is not None:
        model = load_model(recipe.model.load, ema=recipe.model.average).train()
        return model if recipe.model.dtype is None else model.to(getattr(torch, recipe.model.dtype))
    known = set(MDLMConfig.__dataclass_fields__)
    if unknown := set(recipe.model.config or {}) - known:
        raise ValueError(f"model.config: unknown setting {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    return MDLM(MDLMConfig(**(recipe.model.config or {}))).train()


def make_data(data: DataSettings, model: nn.Module, args: Any) -> tuple[Dataset[Any], Dataset[Any] | None]:
    """Training and validation blocks."""
    vocab_size: int = model.vocab_size  # type: ignore[assignment]
    if data.tokens is not None:
        length = data.length if data.token_type else None
        train: Dataset[Any] = PackedBlocks(Path(data.tokens), length, data.token_type, vocab_size)
        held_out: Any = data.validation_tokens
        if held_out:
            held_out = PackedBlocks(Path(held_out), length, data.token_type, vocab_size)
    else:
        tokenizer = ByteTokenizer() if data.tokenizer == "bytes" else load_tokenizer(data.tokenizer)
        if len(tokenizer) > vocab_size:
            raise ValueError(f"data.tokenizer: {data.tokenizer!r} has {len(tokenizer)} tokens, the model {vocab_size}")
        texts = Texts(data, data.split, data.files)
        if data.stream:
            train = StreamedBlocks(texts.documents, tokenizer, data.length, texts.key())
        else:
            train = packed(texts, tokenizer, data, vocab_size, args)
        held_out = None
        if data.validation_split or data.validation_files:
            texts = Texts(data, data.validation_split or "", data.validation_files)
            held_out = packed(texts, tokenizer, data, vocab_size, args)
    if held_out and data.validation_blocks:
        held_out = Subset(held_out, range(min(data.validation_blocks, len(held_out))))
    return train, held_out or None


class Texts:
    """The documents that a recipe names, and a key that tells whether packed blocks are of them."""

    def __init__(self, data: DataSettings, split: str, files: list[str] | None) -> None:
        self.data, self.split, self.files = data, split, files

    @property
    def documents(self) -> Iterable[str]:
        """Can be read again and again."""
        if self.data.hub is not None:
            return HubDocuments(self.data.hub, self.split, self.data.hub_name, self.data.field)
        return self

    def __iter__(self) -> Iterator[str]:
        if self.data.hub is not None:
            yield from self.documents
        for name in self.files or ():
            yield from read_documents(Path(name), self.data.field, self.data.whole_files)

    def key(self) -> str:
        d, parts = self.data, []
        for name in self.files or ():
            if not Path(name).is_file():
                raise ValueError(f"data.files: there is no file {name}")
            status = Path(name).stat()
            parts += [str(Path(name).resolve()), status.st_size, status.st_mtime_ns]
        parts += [d.hub, d.hub_name, self.split if d.hub else "", d.field, d.whole_files, d.tokenizer, d.length]
        return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def packed(texts: Texts, tokenizer: Any, data: DataSettings, vocab_size: int, args: Any) -> PackedBlocks:
    """The texts as a token file in the cache folder, made by the first rank where it is not there yet."""
    path = Path(data.cache) / f"{texts.key()}.tokens"
    with args.main_process_first(desc="packing"):
        if not path.with_name(path.name + ".json").is_file():
            pack(path, iterate_blocks(texts, tokenizer, data.length), data.length, vocab_size)
    return PackedBlocks(path, data.length)
