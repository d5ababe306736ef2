"""A run that is killed, also in the middle of writing a checkpoint, and resumed: the same losses and weights to the bit."""

from __future__ import annotations

import json
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
from soft_mask.data import ByteTokenizer, HubDocuments, StreamedBlocks
from soft_mask.diffusion import Denoiser
from soft_mask.models import MDLM, MDLMConfig
from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments, TokenBlocks
from soft_mask.training.checkpoints import last_complete_checkpoint


class Killed(SoftMaskTrainer):
    """Dies by SIGKILL where ``kill`` says ("weights 12"), with the file in hand half written."""

    kill = ""

    def _at(self, place: str) -> bool:
        return self.kill == f"{place} {self.state.global_step}"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._at("weights"):
            assert output_dir is not None
            die_over(Path(output_dir) / "model.safetensors")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._at("optimizer"):
            die_over(Path(output_dir) / "optimizer.pt")

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._at("random state"):
            die_over(Path(output_dir) / "rng_state.pth")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self._at("trainer state"):
            die_over(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}" / "trainer_state.json")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._at("update"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)


def die_over(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])
    os.kill(os.getpid(), signal.SIGKILL)


def losses_of_a_run(folder: Path, kill: str = "", resume: bool = False) -> list[tuple[int, float]]:
    """16 updates of a tiny model with dropout, a moving average and shuffling, a checkpoint every 4; (step, loss) as logged.

    In a folder with a ``hub`` beside it the data are streamed from that.
    """
    torch.manual_seed(1)
    hub = folder.parent / "hub"
    vocab = 258 if hub.is_dir() else 12
    config = MDLMConfig(
        vocab_size=vocab, model_length=10, hidden_dim=16, cond_dim=4, n_blocks=1, n_heads=2, dropout=0.2, gate_init=1.0
    )
    denoiser = Denoiser(MDLM(config), SoftMask(SoftMaskConfig.for_short_runs(vocab - 1)))
    blocks: Any = TokenBlocks(torch.randint(0, 11, (50, 10), generator=torch.Generator().manual_seed(3)))
    if hub.is_dir():
        blocks = StreamedBlocks(HubDocuments(str(hub)), ByteTokenizer(), 10, key="of this test")
    args = SoftMaskTrainingArguments(
        output_dir=str(folder), max_steps=16, per_device_train_batch_size=4, gradient_accumulation_steps=2, logging_steps=1,
        save_steps=4, learning_rate=1e-2, omega_constant_lr=True, disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, ema_decay=0.9,
    )  # fmt: skip
    trainer = Killed(denoiser, args, blocks)
    trainer.kill = kill
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def run_in_child(*arguments: Any) -> int:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.DEVNULL,
        timeout=120,
    ).returncode


@pytest.mark.parametrize(
    ("streamed", "kills"),
    [(False, {"weights 8": 4, "update 6": 4, "trainer state 12": 8}), (True, {"optimizer 12": 8, "random state 16": 12})],
    ids=["in memory", "streamed"],
)
def test_killed_and_resumed_to_the_same_losses(tmp_path: Path, streamed: bool, kills: dict[str, int]) -> None:
    if streamed:
        pytest.importorskip("datasets")
        (tmp_path / "hub").mkdir()
        for shard in range(2):
            rows = [json.dumps({"text": f"a story of {shard} and {row}, " + "on " * (row % 4)}) for row in range(8)]
            (tmp_path / "hub" / f"train-{shard}.jsonl").write_text("\n".join(rows))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cut = tmp_path / "cut"
    try:
        whole = losses_of_a_run(tmp_path / "whole")
        for number, (kill, complete) in enumerate(kills.items()):
            assert run_in_child(cut, kill, number) == -signal.SIGKILL
            assert last_complete_checkpoint(cut) == str(cut / f"checkpoint-{complete}"), kill
        torch.rand(3)  # whatever happened in this process before must not matter
        resumed = losses_of_a_run(cut, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert [step for step, _ in whole] == list(range(1, 17))
    # the log of a resumed run holds the first part too, from the checkpoint's state
    assert resumed == whole
    assert len({loss for _, loss in whole}) == 16
    for name in ("model.safetensors", "soft_mask.safetensors", "ema/model.safetensors"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (cut / "checkpoint-12" / "stream.json").is_file() == streamed


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses_of_a_run(Path(sys.argv[1]), kill=sys.argv[2], resume=sys.argv[3] != "0")
