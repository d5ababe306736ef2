"""Fine-tuning Dream: the paper's numbers, the recipes, DoRA through the command, a kill, saving, merging."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("peft")
pytest.importorskip("yaml")

from soft_mask import SoftMask, SoftMaskConfig, generate
from soft_mask.cli.main import app
from soft_mask.data import Encoded, InstructionCollator, InstructionRows
from soft_mask.diffusion import Denoiser
from soft_mask.models import Dream, DreamConfig, load_model, load_soft_mask
from soft_mask.models.adapters import AdapterSettings, add_adapter, load_adapter
from soft_mask.training import SoftMaskTrainer, SoftMaskTrainingArguments
from soft_mask.training.checkpoints import last_complete_checkpoint
from soft_mask.training.recipe import read_recipe
from soft_mask.training.run import run_recipe
from tests.dream_cases import MASK, PAD, SIZES, batch, fill_adapter, reference, tiny_dream

RECIPES = Path(__file__).parents[2] / "recipes"


# ---- one step ----


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", ["soft", "binary"])
@pytest.mark.parametrize("chunk_rows", [None, 5])
def test_loss_and_gradients_are_those_of_the_papers_code(k: int, kind: str, chunk_rows: int | None) -> None:
    model = tiny_dream()
    add_adapter(model, AdapterSettings(r=4, alpha=8))
    fill_adapter(model)
    model.train()
    gate = SoftMask(SoftMaskConfig(MASK, k=k, scale=0.6, steepness=1.5, centre=-2.0, shift=1))
    clean, masked, answer = batch()
    denoiser = Denoiser(model, gate, chunk_rows, loss="dream")
    loss = denoiser(clean, clean.masked_fill(masked, MASK), torch.full((2,), 0.4), kind == "soft", answer=answer).loss
    loss.backward()
    expected = reference()[f"k={k}"][kind]
    assert loss.item() == pytest.approx(expected["loss"], rel=2e-6)
    for name, value in expected["raw"].items():
        # the original adds 1e-10 inside the logarithm
        assert getattr(gate, name).grad.item() == pytest.approx(value or 0.0, rel=2e-5, abs=2e-6), name
    found = {name.replace(".default", "").replace("vector.weight", "vector"): p for name, p in model.host.named_parameters()}
    for name, (norm, total) in expected["grads"].items():
        gradient = found[name].grad.double()
        assert gradient.norm().item() == pytest.approx(norm, rel=5e-6), name
        assert gradient.sum().item() == pytest.approx(total, abs=2e-5), name
    assert model.embedding.grad is None


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that is made; views of the weights are not."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.numbers, self.weights = 0, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(part, Tensor) and part.untyped_storage().data_ptr() not in self.weights:
                self.numbers = max(self.numbers, part.numel())
        return out


@pytest.mark.parametrize("trained", ["adapter", "all"])
def test_no_tensor_of_all_positions_by_the_vocabulary(trained: str) -> None:
    vocab, length, chunk = 4000, 96, 8
    model = tiny_dream(vocab_size=vocab, mask_token_id=vocab - 1, max_position_embeddings=length)
    if trained == "adapter":
        add_adapter(model)
    model.train()
    gate = SoftMask(SoftMaskConfig(vocab - 1, k=1, scale=0.6, centre=-8.0, shift=1))
    clean = torch.arange(length)[None]
    noisy = torch.where(clean % 2 == 0, vocab - 1, clean)
    with Largest(model) as largest:
        loss = Denoiser(model, gate, chunk, loss="dream")(clean, noisy, torch.full((1,), 0.5)).loss
        loss.backward()
    table = model.embedding.numel()  # its gradient is as large, where there is one
    assert largest.numbers <= (chunk * vocab if trained == "adapter" else table) < 48 * vocab
    assert (model.embedding.grad is None) == (trained == "adapter")


# ---- by the trainer ----


def rows(count: int = 24) -> InstructionRows:
    """Prompts of one to three tokens; the answer counts on from the last."""
    return InstructionRows.from_encoded(
        [Encoded([(i + j) % 50 for j in range(4 + i % 3 + i % 5)], 1 + i % 3) for i in range(count)]
    )


def make_trainer(folder: Path, kind: Any = SoftMaskTrainer, dora: bool = True, loss: str = "dream", **changes: Any) -> Any:
    torch.manual_seed(1)
    model = tiny_dream(max_position_embeddings=128)
    if dora:
        add_adapter(model, AdapterSettings(r=4, alpha=8))
    gate = SoftMask(SoftMaskConfig(MASK, k=1, scale=0.5, steepness=2.0, centre=-3.0, shift=1))
    settings: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "dataloader_pin_memory": False, "p_sm": 0.5, "min_time": 0.2, "max_time": 0.8, "learning_rate": 1e-2,
        "omega_constant_lr": True, **changes,
    }  # fmt: skip
    args = SoftMaskTrainingArguments(output_dir=str(folder), **settings)
    return kind(Denoiser(model.train(), gate, loss=loss), args, rows(), None, InstructionCollator(PAD, extra=9))


class OwnNoise(SoftMaskTrainer):
    """Masks that follow from the tokens alone, and one time, so that they do not depend on how a batch is cut."""

    def corrupt(self, clean: Tensor, update: Any, micro: int, answer: Any = None, t: Any = None) -> tuple[Tensor, Tensor]:
        hit = answer & ((clean * 7 + torch.arange(clean.shape[1])) % 2 == 0)
        hit[:, -1] = True
        return clean.masked_fill(hit, MASK), torch.full((len(clean),), 0.4)


@pytest.mark.parametrize("loss", ["per_token", "llada", "dream"])
def test_accumulated_micro_batches_are_one_batch(tmp_path: Path, loss: str) -> None:
    found = []
    for size, accumulate in ((6, 1), (2, 3)):
        trainer = make_trainer(
            tmp_path, OwnNoise, loss=loss, max_steps=2, optim="sgd", per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate, train_sampling_strategy="sequential", p_sm=1.0, learning_rate=0.1,
        )  # fmt: skip
        trainer.data_collator = InstructionCollator(PAD, extra=0, multiple=16)  # as long however it is cut
        trainer.train()
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((logged, {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}))
    (whole, one), (cut, many) = found
    if loss == "dream":  # a mean over the masked of each micro-batch: another number, of the same size
        assert cut != whole and cut == pytest.approx(whole, rel=0.2)
        return
    assert cut == pytest.approx(whole, rel=1e-5)
    for name in one:
        torch.testing.assert_close(many[name], one[name], rtol=1e-4, atol=2e-6, msg=name)


def test_dream_draws_one_time_a_batch_and_never_masks_a_prompt(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    items = InstructionCollator(PAD)([rows()[i] for i in range(6)])
    times = []
    for update in range(60):
        noisy, t = trainer.corrupt(items["input_ids"], update, 0, items["answer"])
        assert len(t.unique()) == 1 and not (noisy == MASK)[~items["answer"]].any()
        assert bool((noisy == MASK).any(1).all())
        times.append(t[0].item())
    assert 0.2 <= min(times) < 0.3 and 0.7 < max(times) <= 0.8 and sum(times) / 60 == pytest.approx(0.5, abs=0.08)
    given = trainer.corrupt(items["input_ids"], "evaluation", 0, items["answer"], torch.linspace(0.2, 0.6, 6))[1]
    torch.testing.assert_close(given, torch.full((6,), 0.4))


def losses_of_a_run(folder: Path, killed_at: int = -1, resume: bool = False) -> list[tuple[int, float, float]]:
    class Killed(SoftMaskTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if self.state.global_step == killed_at:  # the adapter and the optimizer are written, the rest is not
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_rng_state(output_dir)

    trainer = make_trainer(folder, Killed, max_steps=8, save_strategy="steps", save_steps=2, gradient_accumulation_steps=2)
    trainer.train(resume_from_checkpoint=resume)
    return [(e["step"], e["loss"], e["scale"]) for e in trainer.state.log_history if "loss" in e]


def test_killed_and_resumed_to_the_same_numbers(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = losses_of_a_run(tmp_path / "whole")
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, __file__, str(tmp_path / "killed"), "6"]
        code = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, timeout=120)
        assert code.returncode == -signal.SIGKILL
        names = {entry.name for entry in (tmp_path / "killed" / "checkpoint-6").iterdir()}
        assert "adapter_model.safetensors" in names and "model.safetensors" not in names
        assert last_complete_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoint-4")
        torch.rand(3)
        assert losses_of_a_run(tmp_path / "killed", resume=True) == whole
    finally:
        torch.set_num_threads(threads)
    assert [step for step, *_ in whole] == list(range(1, 9)) and len({scale for *_, scale in whole}) > 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_trained_is_saved_merged_and_generates_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    base = tiny_dream(max_position_embeddings=128).to(dtype)
    base.save_pretrained(tmp_path / "base")
    trainer = make_trainer(tmp_path / "run", max_steps=6, bf16=dtype == torch.bfloat16)
    trainer.model.model.to(dtype)  # the gate is not of the model and stays as it is
    trainer.train()
    trainer.save_model()
    gate = load_soft_mask(tmp_path / "run")
    assert gate is not None and gate.raw_scale.dtype == torch.float32
    assert torch.equal(gate.raw_scale, trainer.model.soft_mask.raw_scale) and gate.scale.item() != 0.5
    adapted, merged = load_model(tmp_path / "base"), load_model(tmp_path / "base", adapter=tmp_path / "run")
    load_adapter(adapted, tmp_path / "run")
    assert merged.embedding.dtype == dtype
    moved = (
        (merged.host.model.layers[0].self_attn.q_proj.weight - base.host.model.layers[0].self_attn.q_proj.weight).abs().max()
    )
    assert moved > 1e-3
    if dtype == torch.bfloat16:  # rounded once more by merging: near, and not the same tokens where two are as good
        a, b = (m(batch()[0]).float() for m in (adapted, merged))
        assert (a - b).norm() < 0.03 * a.norm()
        return
    prompt = torch.tensor([[3, 4, 5], [20, 21, 22]])
    for soft in (None, gate):
        out = [
            generate(m, prompt, max_new_tokens=12, steps=6, alg="entropy", soft_mask=soft).sequences for m in (adapted, merged)
        ]
        assert torch.equal(*out)


def test_full_fine_tuning_with_checkpointing_learns(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, dora=False, max_steps=60, per_device_train_batch_size=8, save_strategy="steps", save_steps=60
    )
    trainer.model.model.gradient_checkpointing_enable()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    again = load_model(tmp_path / "checkpoint-60")
    assert isinstance(again, Dream) and torch.equal(again.embedding, trainer.model.model.embedding)
    assert load_soft_mask(tmp_path / "checkpoint-60") is not None


# ---- by recipe ----


def test_the_papers_settings() -> None:
    for name, sources in (
        ("mix", [("allenai/tulu-3-sft-mixture", None), ("HuggingFaceTB/smoltalk", "all")]),
        ("coder", [("inclusionAI/Ling-Coder-SFT", None)]),
    ):
        soft, binary = (read_recipe(RECIPES / f"dream-{name}{kind}.yaml") for kind in ("", "-binary"))
        t, gate, data, adapter = soft.training, soft.soft_mask, soft.instructions, soft.adapter
        assert gate is not None and data is not None and adapter is not None
        assert [(s.hub, s.name) for s in data.sources] == sources and data.rows == 300_000 and data.validation_rows == 500
        assert (adapter.r, adapter.alpha, adapter.dropout, adapter.dora) == (16, 16, 0.0, True)
        assert adapter.targets == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert (t.learning_rate, t.schedule, t.warmup_ratio, t.omega_learning_rate) == (1e-5, "cosine", 0.03, 1e-2)
        assert (t.batch, t.micro_batch, t.clip, t.clip_omega, t.weight_decay) == (8, 1, 7.0, True, 0.0)
        assert (t.epochs, t.updates) == (1.0, None)
        assert (t.loss, t.p_sm, t.min_time, t.max_time, t.bf16, t.gradient_checkpointing) == (
            "dream",
            0.5,
            0.2,
            0.8,
            True,
            True,
        )
        assert (gate.k, gate.scale, gate.steepness, gate.centre) == (1, 0.0, 6.66, -0.75)
        assert (data.length, data.min_answer, data.drop_ids, data.pad_extra, data.pad_multiple) == (
            2048,
            5,
            [151657, 151658],
            50,
            8,
        )
        whole, twin = soft.to_dict(), binary.to_dict()
        assert {key for key in whole if twin[key] != whole[key]} == {"about", "output", "soft_mask"}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("instructions.sources=[{hub: a/b, colour: red}]", r"instructions.sources\[0\]: unknown setting colour"),
        ("instructions.sources=[{}]", "either hub or file"),
        ("instructions.sources=[]", "expected a list of mappings"),
        ("instructions.drop_ids=[a]", "expected a list of ints"),
        ("instructions=null", "give either data or instructions"),
        ("instructions.validation_rows=null", "instructions names no validation_rows"),
        ("training.loss=l2", "training.loss must be one of mdlm, per_token, dream, llada"),
        ("training.max_time=0.1", r"max_time must lie in \(min_time, 1\]"),
        ("training.save_every=150", "save_every must be a multiple of evaluate_every"),
        ("training.warmup_ratio=1.0", r"warmup_ratio must lie in \[0, 1\)"),
        ("adapter.r=0", "r and alpha must be at least 1"),
        ("adapter.targets=[1]", "expected a list of texts"),
        ("model.dtype=int8", "model.dtype must be float32 or bfloat16"),
    ],
)
def test_faults_are_named(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_recipe(RECIPES / "dream-mix.yaml", [override])


def short(tmp_path: Path, *more: str) -> list[str]:
    """Overrides for a tiny Dream with a tokenizer of characters, its questions in a file."""
    from tests.data.test_instructions import letters

    tokenizer = letters()
    folder = tmp_path / "base"
    if not folder.exists():
        tiny_dream(vocab_size=len(tokenizer) + 3, mask_token_id=2, max_position_embeddings=256).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        lines = [json.dumps({"q": f"count from {i}", "a": f"{i}, {i + 1}, {i + 2}"}) for i in range(60)]
        (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    source = f"[{{file: {tmp_path / 'talks.jsonl'}, prompt: q, response: a}}]"
    return [
        f"model.load={folder}", f"instructions.sources={source}", "instructions.validation_rows=6", "training.cpu=true",
        f"instructions.cache={tmp_path / 'cache'}", f"output={tmp_path / 'run'}", "training.updates=4", "training.batch=4",
        "training.evaluate_every=2", "training.save_every=2", "training.tensorboard=false", "training.log_every=1",
        "soft_mask.scale=0.5", "soft_mask.centre=-4.0", "training.learning_rate=0.001", *more,
    ]  # fmt: skip


@pytest.fixture
def letters_for_dream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dream's tokenizer is Qwen2's; for these tests it is one of characters."""
    from soft_mask.data import load_tokenizer
    from soft_mask.training import instructions

    monkeypatch.setattr(instructions, "model_tokenizer", lambda name, model: load_tokenizer(name))


def test_the_command_fine_tunes_logs_and_goes_on(tmp_path: Path, letters_for_dream: None) -> None:
    recipe, run = str(RECIPES / "dream-mix.yaml"), tmp_path / "run"
    result = CliRunner().invoke(app, ["train", recipe, *short(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "update 4/4" in result.output and "ETA" in result.output and "60 rows" in result.output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [0, 2, 4]
    for name in ("grad_norm", "omega_grad_norm", "scale", "lambda", "eta_seconds", "tokens_per_second", "learning_rate"):
        assert any(name in entry for entry in log), name
    assert {"adapter_config.json", "adapter_model.safetensors", "transparency_config.json", "soft_mask.safetensors"} <= {
        entry.name for entry in run.iterdir()
    }
    assert isinstance(load_model(run), Dream)  # the base it names, with the adapter merged
    more = CliRunner().invoke(app, ["train", recipe, *short(tmp_path, "training.updates=6")])
    assert more.exit_code == 0 and "update 5/6" in more.output and "update 4/6  loss" not in more.output
    assert "60 rows" not in more.output  # tokenised once


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ValueError, match="instructions.cache: .* is a file"):
        run_recipe(read_recipe(RECIPES / "dream-mix.yaml", short(tmp_path)))


def test_full_fine_tuning_and_binary_by_recipe(tmp_path: Path, letters_for_dream: None) -> None:
    changes = short(tmp_path, "adapter=null", "model.dtype=float32", "training.evaluate_first=false", "training.updates=2")
    changes = [change for change in changes if not change.startswith("soft_mask")]
    trainer = run_recipe(read_recipe(RECIPES / "dream-mix-binary.yaml", changes))
    assert trainer.model.soft_mask is None and all(p.requires_grad for p in trainer.model.parameters())
    assert (tmp_path / "run" / "tokenizer.json").is_file()
    assert (tmp_path / "run" / "model.safetensors").is_file() and load_soft_mask(tmp_path / "run") is None


@pytest.mark.thorough
def test_mbpp_at_dreams_vocabulary_in_the_real_layout(tmp_path: Path, data_dir: Path) -> None:
    """Shards, V = 152,064, Qwen2.5's tokenizer files, real problems and solutions, by the command."""
    base = tmp_path / "base"
    sizes = {"vocab_size": 152_064, "hidden_size": 16, "mask_token_id": 151_666, "max_position_embeddings": 1024}
    ends = {"pad_token_id": 151_643, "bos_token_id": 151_643, "eos_token_id": 151_643}
    Dream(DreamConfig(**{**SIZES, **sizes, **ends})).save_pretrained(base, max_shard_size="6MB")
    assert (base / "model.safetensors.index.json").is_file()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(data_dir / "qwen2.5" / name, base)
    source = f"[{{file: {data_dir / 'mbpp' / 'mbpp.jsonl'}, prompt: text, response: code}}]"
    changes = short(tmp_path, f"model.load={base}", f"instructions.sources={source}", "instructions.rows=40")
    changes += ["training.bf16=false", "model.dtype=float32", "training.gradient_checkpointing=false"]
    result = CliRunner().invoke(app, ["train", str(RECIPES / "dream-mix.yaml"), *changes])
    assert result.exit_code == 0 and "974 rows, of these 46 taken" in result.output, result.output
    assert isinstance(load_model(tmp_path / "run"), Dream)


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses_of_a_run(Path(sys.argv[1]), int(sys.argv[2]))
