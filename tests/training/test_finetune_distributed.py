"""Dream with DoRA in two processes (gloo), DDP and FSDP2: the numbers of one process, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")

from safetensors.torch import load_file

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.data import Encoded, InstructionCollator, InstructionRows
from soft_mask.diffusion import Denoiser
from soft_mask.models.adapters import AdapterSettings, add_adapter
from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments
from tests.dream_cases import MASK, PAD, tiny_dream
from tests.training.test_distributed import launch, shard_on_cpus_too

UPDATES = 5


class OwnNoise(SoftMaskTrainer):
    """Masks that follow from the tokens, and a coin of the update alone: no matter how a batch is spread."""

    killed_at = -1

    def corrupt(self, clean: Tensor, update: Any, micro: int, answer: Any = None, t: Any = None) -> tuple[Tensor, Tensor]:
        hit = answer & ((clean * 7 + torch.arange(clean.shape[1])) % 2 == 0)
        hit[:, -1] = True
        return clean.masked_fill(hit, MASK), torch.full((len(clean),), 0.4)

    def is_soft(self, update: int, micro: int) -> bool:
        return update % 3 != 1

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)


def train(folder: Path, kind: str, loss: str, accumulate: int, killed_at: int = -1, resume: bool = False) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    more: dict[str, Any] = {}
    if kind == "fsdp":
        shard_on_cpus_too()
        more = {"fsdp": True, "fsdp_config": {"version": 2}}  # what to shard by is told from the model
    args = SoftMaskTrainingArguments(
        output_dir=str(folder), max_steps=UPDATES, per_device_train_batch_size=2, gradient_accumulation_steps=accumulate,
        logging_steps=1, save_steps=2, learning_rate=1e-2, omega_constant_lr=True, disable_tqdm=True, use_cpu=True, seed=4,
        dataloader_pin_memory=False, p_sm=0.6, ddp_timeout=60, ddp_find_unused_parameters=False, adam_epsilon=1e-3, **more,
    )  # fmt: skip
    model = tiny_dream()
    add_adapter(model, AdapterSettings(r=2, alpha=4), "base")
    model.gradient_checkpointing_enable()
    gate = SoftMask(SoftMaskConfig(MASK, k=1, scale=0.5, steepness=2.0, centre=-3.0, shift=1))
    rows = [Encoded([(i + j) % 50 for j in range(4 + i % 3 + i % 5)], 1 + i % 3) for i in range(48)]
    collator = InstructionCollator(PAD, extra=9)
    trainer = OwnNoise(Denoiser(model.train(), gate, loss=loss), args, InstructionRows.from_encoded(rows), None, collator)
    trainer.killed_at = killed_at
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    weights = {type(p).__name__ for p in trainer.model.model.parameters()}
    assert (weights == {"DTensor"}) == (kind == "fsdp"), weights
    assert {type(p).__name__ for p in trainer.model.soft_mask.parameters()} == {"Parameter"}
    if trainer.is_world_process_zero():
        (folder / "history.json").write_text(json.dumps([e for e in trainer.state.log_history if "loss" in e]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def history(folder: Path, name: str) -> list[float]:
    return [entry[name] for entry in json.loads((folder / "history.json").read_text())]


@pytest.mark.parametrize(("kind", "loss"), [("ddp", "per_token"), ("fsdp", "dream")])
def test_two_processes_give_the_numbers_of_one_also_after_a_kill(tmp_path: Path, kind: str, loss: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, "ddp", loss, 2)
    if kind == "fsdp":
        assert all(launch(2, two, kind, loss, 1, 3, file=__file__))  # both die in the fourth update
        assert not (two / "history.json").exists() and (two / "checkpoint-2" / "adapter_model.safetensors").is_file()
        assert launch(2, two, kind, loss, 1, -1, "resume", file=__file__) == [0, 0]
    else:
        assert launch(2, two, kind, loss, 1, file=__file__) == [0, 0]
    for name in ("loss", "grad_norm", "omega_grad_norm", "scale", "steepness", "centre"):
        assert history(two, name) == pytest.approx(history(one, name), rel=5e-4, abs=1e-6), name
    assert len(set(history(one, "scale"))) > 2  # it moved
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert mine.keys() == theirs.keys() and len(mine) == 2 * 4 * 3
    for name in mine:
        torch.testing.assert_close(theirs[name], mine[name], rtol=1e-3, atol=1e-5, msg=name)
    gates = [SoftMask.from_pretrained(folder).state_dict() for folder in (one, two)]
    torch.testing.assert_close(gates[1], gates[0], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    folder, kind, loss, accumulate = sys.argv[1:5]
    train(Path(folder), kind, loss, int(accumulate), int((sys.argv[5:6] or [-1])[0]), "resume" in sys.argv)
