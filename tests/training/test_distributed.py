"""Two processes (gloo), DDP and FSDP2: the numbers of one, resumed after a kill. A hang ends by a time limit."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from soft_mask import SoftMask, SoftMaskConfig
from soft_mask.diffusion import Denoiser
from soft_mask.models import MDLM, MDLMConfig, load_model
from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments, TokenBlocks

UPDATES, LIMIT_S = 6, 400


class Mortal(SoftMaskTrainer):
    killed_at = -1

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.state.global_step == self.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(*args, **kwargs)


def shard_on_cpus_too() -> None:
    """accelerate takes FSDP up on accelerators only, though torch's FSDP2 runs on gloo: let it, for this test."""
    from accelerate import DistributedType
    from accelerate.state import AcceleratorState

    usual = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        usual(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def train(folder: Path, kind: str, batch: int, killed_at: int = -1, resume: bool = False) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    more: dict[str, Any] = {}
    if kind == "fsdp":
        shard_on_cpus_too()
        more = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Block"]}}
    args = SoftMaskTrainingArguments(
        output_dir=str(folder), max_steps=UPDATES, per_device_train_batch_size=batch, logging_steps=1, save_steps=2,
        learning_rate=1e-2, omega_constant_lr=True, disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        p_sm=0.6, ema_decay=0.9, seed=4, ddp_timeout=60, ddp_find_unused_parameters=False, adam_epsilon=1e-3, **more,
    )  # fmt: skip
    config = MDLMConfig(
        vocab_size=12, model_length=10, hidden_dim=16, cond_dim=4, n_blocks=2, n_heads=2, dropout=0.0, gate_init=1.0
    )
    model = MDLM(config)
    torch.nn.init.normal_(model.output_layer.linear.weight, std=0.3)
    blocks = torch.randint(0, 11, (80, 10), generator=torch.Generator().manual_seed(3))
    trainer = Mortal(Denoiser(model, SoftMask(SoftMaskConfig.for_short_runs(11))), args, TokenBlocks(blocks))
    trainer.killed_at = killed_at
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    weights = [type(p).__name__ for p in trainer.model.model.parameters()]
    assert (set(weights) == {"DTensor"}) == (kind == "fsdp"), weights  # what is tested is what runs
    assert {type(p).__name__ for p in trainer.model.soft_mask.parameters()} == {"Parameter"}
    if trainer.is_world_process_zero():
        coins = {trainer.is_soft(update, 0) for update in range(UPDATES)}
        assert coins == {True, False}
        (folder / "history.json").write_text(json.dumps([e for e in trainer.state.log_history if "loss" in e]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launch(ranks: int, *arguments: Any, file: str = __file__) -> list[int]:
    """Exit codes of ``ranks`` processes of a file, this one; all are ended when one has died or time is up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    running = []
    for rank in range(ranks):
        env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, file, *map(str, arguments)]
        running.append(subprocess.Popen(command, env=env if ranks > 1 else common, stdout=subprocess.DEVNULL))
    try:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end and any(process.poll() is None for process in running):
            if any(process.poll() for process in running):  # the others wait for it, for as long as the backend lets them
                end = min(end, time.monotonic() + 5)
            time.sleep(0.1)
        return [process.poll() if process.poll() is not None else -signal.SIGKILL for process in running]
    finally:
        for process in running:
            process.kill()


def history(folder: Path, name: str) -> list[float]:
    return [entry[name] for entry in json.loads((folder / "history.json").read_text())]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_numbers_of_one_also_after_a_kill(tmp_path: Path, kind: str) -> None:
    one, two, cut = tmp_path / "one", tmp_path / "two", tmp_path / "cut"
    train(one, "ddp", 8)
    assert launch(2, two, kind, 4) == [0, 0]
    for name in ("loss", "grad_norm", "omega_grad_norm", "scale", "steepness", "centre"):
        assert history(two, name) == pytest.approx(history(one, name), rel=2e-4, abs=1e-6), name
    assert len(set(history(one, "scale"))) > 2  # it moved
    for where in (".", "ema"):
        theirs = dict(load_model(two / where).named_parameters())
        for name, p in load_model(one / where).named_parameters():
            torch.testing.assert_close(theirs[name], p, rtol=1e-3, atol=1e-5, msg=name)
        gates = [SoftMask.from_pretrained(folder / where).state_dict() for folder in (one, two)]
        torch.testing.assert_close(gates[1], gates[0], rtol=1e-4, atol=1e-5)
    average, own = load_model(two / "ema").embedding, load_model(two).embedding
    assert not torch.equal(average, own)
    assert all(launch(2, cut, kind, 4, 3))  # both die in the fourth update
    assert not (cut / "history.json").exists() and (cut / "checkpoint-2").is_dir()
    assert launch(2, cut, kind, 4, -1, "resume") == [0, 0]
    assert history(cut, "loss") == pytest.approx(history(two, "loss"), rel=1e-5)
    torch.testing.assert_close(load_model(cut / "ema").embedding, average, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int((sys.argv[4:5] or [-1])[0]), "resume" in sys.argv)
