"""A run that is killed in the middle of writing a checkpoint, and resumed: the same losses to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.models import MDLM, MDLMConfig
from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments, TokenBlocks
from soft_mask.training.checkpoints import last_complete_checkpoint


def losses_of_a_run(folder: Path, killed_at: int | None = None, resume: bool = False) -> list[tuple[int, float]]:
    """16 updates of a tiny model with dropout and shuffling, a checkpoint every 4; (step, loss) as logged."""
    torch.manual_seed(1)
    config = MDLMConfig(
        vocab_size=12, model_length=10, hidden_dim=16, cond_dim=4, n_blocks=1, n_heads=2, dropout=0.2, gate_init=1.0
    )
    denoiser = Denoiser(MDLM(config), SoftMask(SoftMaskConfig.for_short_runs(11)))
    blocks = torch.randint(0, 11, (50, 10), generator=torch.Generator().manual_seed(3))

    class Killed(SoftMaskTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if self.state.global_step == killed_at:  # weights and optimizer are written, the rest is not
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_rng_state(output_dir)

    args = SoftMaskTrainingArguments(
        output_dir=str(folder), max_steps=16, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1,
        save_steps=4, learning_rate=1e-2, omega_constant_lr=True, disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Killed(denoiser, args, TokenBlocks(blocks))
    trainer.train(resume_from_checkpoint=resume)
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def run_in_child(*arguments: Any) -> int:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.DEVNULL,
        timeout=120,
    ).returncode


def test_killed_and_resumed_to_the_same_losses(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = losses_of_a_run(tmp_path / "whole")
        code = run_in_child(tmp_path / "killed", 12)
        assert code == -signal.SIGKILL
        assert (tmp_path / "killed" / "checkpoint-12" / "model.safetensors").is_file()
        assert last_complete_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoint-8")
        torch.rand(3)  # whatever happened in this process before must not matter
        resumed = losses_of_a_run(tmp_path / "killed", resume=True)
    finally:
        torch.set_num_threads(threads)
    assert [step for step, _ in whole] == list(range(1, 17))
    # the log of a resumed run holds the first part too, from the checkpoint's state
    assert resumed == whole
    assert len({loss for _, loss in whole}) == 16


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses_of_a_run(Path(sys.argv[1]), killed_at=int(sys.argv[2]))
