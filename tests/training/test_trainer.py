"""SoftMaskTrainer: the coin, the weights of micro-batches, the gate's optimizer group, evaluation, log, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soft_mask import SoftMask, SoftMaskConfig

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from soft_mask.diffusion import Denoiser
from soft_mask.models import MDLM, MDLMConfig, load_model
from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments, TokenBlocks
from soft_mask.training.checkpoints import last_complete_checkpoint, what_is_missing

VOCAB, LENGTH = 12, 10


def make_denoiser(soft: bool = True, **changes: Any) -> Denoiser:
    torch.manual_seed(0)
    config = MDLMConfig(
        vocab_size=VOCAB, model_length=LENGTH, hidden_dim=16, cond_dim=4, n_blocks=1, n_heads=2, dropout=0.0, gate_init=1.0
    )
    model = MDLM(config)
    torch.nn.init.normal_(model.output_layer.linear.weight, std=0.3)
    gate = SoftMaskConfig.for_short_runs(VOCAB - 1, **changes)
    return Denoiser(model, SoftMask(gate) if soft else None)


def make_blocks(count: int) -> TokenBlocks:
    return TokenBlocks(torch.randint(0, VOCAB - 1, (count, LENGTH), generator=torch.Generator().manual_seed(3)))


def make_trainer(folder: Path, denoiser: Denoiser, blocks: TokenBlocks | None, **changes: Any) -> SoftMaskTrainer:
    kind = changes.pop("kind", SoftMaskTrainer)
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "weight_decay": 0.1,
        **changes,
    }
    eval_blocks = settings.pop("eval_blocks", None)
    args = SoftMaskTrainingArguments(output_dir=str(folder), **settings)
    return kind(denoiser, args, blocks, eval_blocks)


class OwnNoise(SoftMaskTrainer):
    """Times and masks that follow from the tokens alone, so that they do not depend on how a batch is cut."""

    def corrupt(self, clean: Tensor, update: int | str, micro: int) -> tuple[Tensor, Tensor]:
        t, noisy = [], []
        for row in clean:
            generator = torch.Generator().manual_seed(int((row * torch.arange(1, LENGTH + 1) ** 2).sum()))
            t.append(0.2 + 0.7 * torch.rand((), generator=generator))
            noisy.append(torch.where(torch.rand(LENGTH, generator=generator) < t[-1], VOCAB - 1, row))
        return torch.stack(noisy), torch.stack(t)


class Watching:
    """Mixed into a trainer: keeps the gradients of every update as they were before clipping."""

    def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
        self.seen = [*getattr(self, "seen", []), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}]
        return super()._clip_grad_norm(model)  # type: ignore[misc]


@pytest.mark.parametrize("cut", [(8, 2, 4), (7, 3, 3)], ids=["4 x 2 is 8", "3 + 3 + 1 is 7"])
@pytest.mark.parametrize("p_sm", [0.0, 1.0])
def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, cut: tuple[int, int, int], p_sm: float) -> None:
    whole, part, times = cut
    kind = type("Watched", (Watching, SoftMaskTrainer if whole == 8 else OwnNoise), {})  # 3 x 3 asks for 9: other times than 7
    found = []
    for batch, accumulate in ((whole, 1), (part, times)):
        denoiser = make_denoiser()
        trainer = make_trainer(
            tmp_path, denoiser, make_blocks(whole), kind=kind, p_sm=p_sm, max_steps=2, optim="sgd",
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, learning_rate=0.5,
            omega_learning_rate=0.5,
        )  # fmt: skip
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, trainer.seen[0], {name: p.detach().clone() for name, p in denoiser.named_parameters()}))
    (losses, gradients, one), (losses_cut, gradients_cut, many) = found
    assert losses_cut[0] == pytest.approx(losses[0], rel=0, abs=1e-6)
    assert losses_cut == pytest.approx(losses, rel=1e-5)
    assert gradients.keys() == gradients_cut.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_cut[name], gradient, rtol=0, atol=1e-6, msg=name)
    start = dict(make_denoiser().named_parameters())
    moved = 0.0
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-4, atol=2e-6, msg=name)
        moved = max(moved, float((one[name] - start[name].detach()).abs().max()))
    assert moved > 1e-2  # a wrong factor would have shown


def test_omega_is_clipped_along_with_the_model_on_request(tmp_path: Path) -> None:
    norms = {}
    for along in (False, True):
        denoiser = make_denoiser()

        class After(SoftMaskTrainer):
            def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
                before = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
                said = super()._clip_grad_norm(model)
                after = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
                self.norms = (float(before), float(said), float(after), float(torch.stack([p.grad for p in self.omega]).norm()))
                return said

        trainer = make_trainer(
            tmp_path, denoiser, make_blocks(8), kind=After, p_sm=1.0, max_steps=1, max_grad_norm=1e-3, clip_omega=along
        )
        trainer.train()
        norms[along] = trainer.norms
    (whole, model_norm, _, omega), (whole_again, said, after, omega_clipped) = norms[False], norms[True]
    assert whole == pytest.approx(whole_again) == pytest.approx(said) and model_norm < whole
    assert after == pytest.approx(1e-3, rel=1e-3) and omega_clipped == pytest.approx(omega * 1e-3 / whole, rel=1e-3)


def test_the_coin_follows_from_counters_and_is_the_same_on_every_rank(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_denoiser(), make_blocks(8), p_sm=0.8)
    tosses = [trainer.is_soft(update, micro) for update in range(500) for micro in range(4)]
    assert sum(tosses) / len(tosses) == pytest.approx(0.8, abs=0.03)
    clean = make_blocks(8).blocks
    noisy, t = trainer.corrupt(clean, 5, 1)
    again, t_again = trainer.corrupt(clean, 5, 1)
    assert torch.equal(noisy, again) and torch.equal(t, t_again)
    assert not torch.equal(noisy, trainer.corrupt(clean, 5, 2)[0])
    assert not torch.equal(noisy, trainer.corrupt(clean, 6, 1)[0])
    type(trainer.args).process_index = property(lambda self: 1)  # another rank
    try:
        assert tosses == [trainer.is_soft(update, micro) for update in range(500) for micro in range(4)]
        assert not torch.equal(noisy, trainer.corrupt(clean, 5, 1)[0])
    finally:
        del type(trainer.args).process_index
    assert ((noisy == clean) | (noisy == VOCAB - 1)).all() and (noisy == VOCAB - 1).any()
    assert t.min() >= 1e-3 and t.max() <= 1.0


def test_the_noise_does_not_depend_on_how_an_update_is_cut(tmp_path: Path) -> None:
    clean = torch.zeros(64, LENGTH, dtype=torch.int64)
    whole = make_trainer(tmp_path, make_denoiser(), make_blocks(8), per_device_train_batch_size=64)
    noisy, t = whole.corrupt(clean, 3, 0)
    u = (t.sort().values - 1e-3) / (1 - 1e-3) * 64
    assert torch.equal((u + 1e-4).floor().clamp(max=63), torch.arange(64.0))  # one time in each 64th: antithetic
    assert not torch.equal(t, t.sort().values)
    cut = make_trainer(
        tmp_path, make_denoiser(), make_blocks(8), per_device_train_batch_size=16, gradient_accumulation_steps=4,
        per_device_eval_batch_size=5,
    )  # fmt: skip
    for micro in range(4):
        part = slice(16 * micro, 16 * micro + 16)
        for mine, expected in zip(cut.corrupt(clean[part], 3, micro), (noisy[part], t[part]), strict=True):
            assert torch.equal(mine, expected)
    whole.args.per_device_eval_batch_size = 64
    held, times = whole.corrupt(clean, "evaluation", 0)
    parts = [cut.corrupt(clean[5 * i : 5 * i + 5], "evaluation", i) for i in range(12)]
    assert torch.equal(torch.cat([part[0] for part in parts]), held[:60])
    assert torch.equal(torch.cat([part[1] for part in parts]), times[:60])
    assert (times.sort().values - torch.linspace(0, 1, 64)).abs().max() < 0.05


@pytest.mark.parametrize("p_sm", [0.0, 1.0])
def test_the_coin_at_its_ends(tmp_path: Path, p_sm: float) -> None:
    trainer = make_trainer(tmp_path, make_denoiser(), make_blocks(8), p_sm=p_sm)
    assert {trainer.is_soft(update, 0) for update in range(300)} == {bool(p_sm)}


def test_the_gate_has_its_own_group_schedule_and_no_clipping(tmp_path: Path) -> None:
    denoiser = make_denoiser()
    seen: list[float] = []

    class Watch(SoftMaskTrainer):
        def _clip_grad_norm(self, model: torch.nn.Module) -> Any:
            before = [p.grad.clone() for p in self.omega]
            norm = super()._clip_grad_norm(model)
            assert all(torch.equal(p.grad, b) for p, b in zip(self.omega, before, strict=True))
            rest = [p.grad for n, p in model.named_parameters() if "soft_mask" not in n and p.grad is not None]
            seen.append(float(torch.stack([g.norm() for g in rest]).norm()))
            return norm

    trainer = make_trainer(
        tmp_path, denoiser, make_blocks(32), kind=Watch, p_sm=1.0, max_grad_norm=1e-3, omega_learning_rate=3e-3,
        omega_constant_lr=True, lr_scheduler_type="linear", warmup_steps=0,
    )  # fmt: skip
    trainer.train()
    *others, omega = trainer.optimizer.param_groups
    assert {id(p) for p in omega["params"]} == {id(p) for p in denoiser.soft_mask.parameters()}
    assert omega["weight_decay"] == 0.0
    held = [id(p) for group in others for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(denoiser.model.parameters()))
    assert seen and max(seen) <= 1.01e-3
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["omega_learning_rate"] for entry in logs] == [3e-3] * 4
    assert logs[0]["learning_rate"] == pytest.approx(1e-2) and logs[-1]["learning_rate"] < 3e-3
    for name in ("lambda", "soft_share", "scale", "steepness", "centre", "ms_per_update", "grad_norm"):
        assert all(entry[name] >= 0 or name == "centre" for entry in logs), name
    assert logs[0]["soft_share"] == 1.0 and 0.0 < logs[0]["lambda"] < 0.5
    assert logs[-1]["scale"] != logs[0]["scale"]


def test_training_learns_with_and_without_a_soft_mask(tmp_path: Path) -> None:
    blocks = TokenBlocks((torch.arange(LENGTH)[None] + torch.arange(256)[:, None]) % (VOCAB - 1))
    for soft in (False, True):
        trainer = make_trainer(tmp_path, make_denoiser(soft), blocks, max_steps=100, logging_steps=20)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses[-1] < 0.7 * losses[0], losses


def test_evaluation_is_two_passes_on_fixed_masks(tmp_path: Path) -> None:
    denoiser = make_denoiser(scale=0.9, centre=-5.0)
    trainer = make_trainer(tmp_path, denoiser, None, eval_blocks=make_blocks(24), per_device_eval_batch_size=8)
    first = trainer.evaluate()
    torch.manual_seed(99)
    trainer.state.global_step = 7
    second = trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    assert first["eval_lambda"] > 0.05
    binary = make_denoiser()
    binary.soft_mask = None
    plain = make_trainer(tmp_path, binary, None, eval_blocks=make_blocks(24), per_device_eval_batch_size=8).evaluate()
    assert plain["eval_loss"] != first["eval_loss"] and "eval_lambda" not in plain
    assert plain["eval_loss"] == pytest.approx(first["eval_loss"], rel=0.2)  # same masks


def test_a_checkpoint_can_be_loaded_and_holds_no_pickle_of_ours(tmp_path: Path) -> None:
    denoiser = make_denoiser()
    make_trainer(tmp_path, denoiser, make_blocks(32), save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "checkpoint-4"
    assert last_complete_checkpoint(tmp_path) == str(folder)
    names = {entry.name for entry in folder.iterdir()}
    assert "training_args.bin" not in names and "training_args.json" in names
    model, gate = load_model(folder), SoftMask.from_pretrained(folder)
    for (name, ours), theirs in zip(denoiser.model.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(gate.raw_scale, denoiser.soft_mask.raw_scale)
    # killed while writing: each of these is what is left at some moment
    for name in ("trainer_state.json", "rng_state.pth", "optimizer.pt", "model.safetensors"):
        (folder / name).unlink()
        assert name in str(what_is_missing(folder))
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text()[:-40])
    assert "cut off" in str(what_is_missing(state.parent))
    trainer = make_trainer(tmp_path, make_denoiser(), make_blocks(32))
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="cut off"):
        trainer.train(resume_from_checkpoint=str(state.parent))


def test_bad_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="p_sm"):
        SoftMaskTrainingArguments(output_dir=str(tmp_path), p_sm=1.5)
    with pytest.raises(ValueError, match="omega_learning_rate"):
        SoftMaskTrainingArguments(output_dir=str(tmp_path), omega_learning_rate=float("nan"))
    with pytest.raises(ValueError, match="min_time"):
        SoftMaskTrainingArguments(output_dir=str(tmp_path), min_time=0.0)
    with pytest.raises(TypeError, match="Denoiser"):
        make_trainer(tmp_path, torch.nn.Linear(2, 2), make_blocks(8))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="SoftMaskTrainingArguments"):
        SoftMaskTrainer(make_denoiser(), object())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="train_dataset.*empty"):
        make_trainer(tmp_path, make_denoiser(), [])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to train on"):
        make_trainer(tmp_path, make_denoiser(), None).train()
    with pytest.raises(ValueError, match="one factor per group"):
        make_trainer(
            tmp_path, make_denoiser(), make_blocks(8), omega_constant_lr=True, lr_scheduler_type="reduce_lr_on_plateau",
            eval_blocks=make_blocks(8), eval_strategy="steps",
        ).train()  # fmt: skip
    with pytest.raises(TypeError, match="int64"):
        TokenBlocks(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="at least one token"):
        TokenBlocks(torch.zeros(0, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fill"):
        TokenBlocks.from_tokens(torch.zeros(3, dtype=torch.int64), 4)
    caplog.clear()
    make_trainer(tmp_path, make_denoiser(soft=False), make_blocks(8), p_sm=0.5)
    assert "binary training" in caplog.text
