"""Dream on Qwen2: folders written and read, guards against what goes wrong silently, the tokenizer, the adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("transformers")

from soft_mask import adapt_model, generate, load_model, load_soft_mask  # noqa: E402
from soft_mask.models import Dream, DreamConfig, MaskedDiffusionModel  # noqa: E402
from soft_mask.models.host_guards import check_buffers, check_host, default_frequencies  # noqa: E402
from soft_mask.models.tokenizer import dream_tokenizer, model_tokenizer  # noqa: E402
from tests.hosts import tiny_dream  # noqa: E402

IDS = torch.tensor([[3, 9, 38, 0, 7, 38, 11], [35, 35, 1, 38, 38, 2, 30]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_dream().save_pretrained(tmp_path / "model", max_shard_size=3000)
    return tmp_path / "model"


def change_config(folder: Path, **changes: Any) -> None:
    values = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({name: v for name, v in values.items() if v is not ...}))


def test_round_trip_in_shards_under_the_published_names(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    names = {name for shard in shards for name in load_file(shard)}
    assert len(shards) > 3 and len(names) == 3 + 2 * 12
    assert {"model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.bias", "lm_head.weight"} < names
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "Dream" and values["rope_theta"] == 1e6 and "auto_map" not in values
    assert json.loads((folder / "generation_config.json").read_text())["mask_token_id"] == 38
    model, expected = load_model(folder), tiny_dream()
    assert isinstance(model, Dream) and isinstance(model, MaskedDiffusionModel) and not model.training
    assert model.config == expected.config and (model.shift, model.bans_mask) == (1, False)
    with torch.no_grad():
        assert model(IDS).equal(expected(IDS)) and model(IDS, MASK).equal(expected(IDS, MASK))


def test_attention_sees_both_sides_and_no_padding() -> None:
    model = tiny_dream()
    with torch.no_grad():
        full = model(IDS[1:], MASK[1:])[0, 2:]
        assert (full - model(IDS[1:, 2:])[0]).abs().max() < 5e-6
        other = IDS.clone()
        other[:, -1] = 4
        assert (model(other)[:, 0] - model(IDS)[:, 0]).abs().max() > 1e-3
        pairs = MASK.bool()[:, None, None, :] & MASK.bool()[:, None, :, None]
        four = model(IDS, pairs, model.positions(MASK))
        assert (four - model(IDS, MASK))[MASK.bool()].abs().max() < 5e-6


def test_options_go_on_to_transformers(folder: Path) -> None:
    with torch.no_grad():
        eager = load_model(folder, attn_implementation="eager")
        assert eager.host.config._attn_implementation == "eager"
        expected = tiny_dream()(IDS, MASK)
        assert (eager(IDS, MASK) - expected)[MASK.bool()].abs().max() < 5e-6
    half = load_model(folder, dtype=torch.bfloat16)
    assert half.embedding.dtype == torch.bfloat16 and half(IDS).dtype == torch.bfloat16
    half.save_pretrained(folder / "half")
    assert load_model(folder / "half").embedding.dtype == torch.bfloat16  # the files' dtype, when none is said
    with pytest.raises(ValueError, match="trust_remote_code can not be given"):
        load_model(folder, trust_remote_code=True)


def test_remote_code_is_never_imported(folder: Path) -> None:
    (folder / "modeling_dream.py").write_text("raise SystemExit('imported')")
    change_config(folder, auto_map={"AutoModel": "modeling_dream.DreamModel", "AutoConfig": "modeling_dream.DreamConfig"})
    assert isinstance(load_model(folder), Dream)


def test_config_as_transformers_5_writes_it(folder: Path) -> None:
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    change_config(folder, rope_theta=..., rope_scaling=..., rope_parameters=rope)
    assert load_model(folder).config.rope_theta == 1e6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2' in .* is not known; known: Dream"),
        ({"is_causal": True}, "this is a causal checkpoint"),
        ({"mask_token_id": 37}, "not agreed on: 37 by config.json, 38 by generation_config.json"),
        ({"num_hidden_layers": 3}, "missing: model.layers.2"),
        ({"num_hidden_layers": 1}, "unexpected: model.layers.1"),
        ({"intermediate_size": 32}, r"shape \[24, 16\] in the file, \[32, 16\] by the config"),
        ({"hidden_size": ...}, "must hold vocab_size, hidden_size|must hold hidden_size"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"num_attention_heads": 3}, "hidden_size / num_attention_heads must be even"),
    ],
)
def test_what_is_no_dream_folder_is_refused(folder: Path, changes: dict[str, Any], words: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


def test_files_that_are_missing_or_cut_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or file 'nowhere'"):
        load_model("nowhere")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_model(tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=f"{shard.name}' is not a whole safetensors file"):
        load_model(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name}, which model.safetensors.index.json names, is not in"):
        load_model(folder)


def test_the_mask_id_is_agreed_on(folder: Path) -> None:
    assert load_model(folder, mask_token_id=38).mask_token_id == 38
    with pytest.raises(ValueError, match="not agreed on: 37 by the argument mask_token_id, 38 by config.json"):
        load_model(folder, mask_token_id=37)
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"36": {"content": "<|mask|>"}}}))
    with pytest.raises(ValueError, match="38 by config.json, 38 by generation_config.json, 36 by the tokenizer's files"):
        load_model(folder)
    (folder / "tokenizer_config.json").unlink()
    for name in ("config.json", "generation_config.json"):  # the 7B's generation config may say null
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "mask_token_id": None}))
    with pytest.raises(ValueError, match="mask_token_id must be given: no file in"):
        load_model(folder)
    assert load_model(folder, mask_token_id=38).config.mask_token_id == 38


def test_a_host_that_is_causal_or_has_no_rotary_numbers_is_refused() -> None:
    model = tiny_dream()
    frequencies = default_frequencies(model.host.config)
    check_host(model, frequencies)
    buffer = model.host.model.rotary_emb.inv_freq
    kept = buffer.clone()
    for value in (float("nan"), 0.5):
        buffer[1] = value
        with pytest.raises(RuntimeError, match="inv_freq does not hold the formula's numbers"):
            check_host(model, frequencies, probe=False)
    buffer.copy_(kept)
    check_buffers(model.host, None)
    model.host.config.is_causal = True
    for layer in model.host.model.layers:
        layer.self_attn.is_causal = True
    with pytest.raises(RuntimeError, match="attention is causal"):
        check_host(model, frequencies)


def test_shapes_and_lengths_are_told_in_words() -> None:
    model = tiny_dream()
    for arguments, words in (
        ((torch.zeros(1, 4, 8),), r"inputs_embeds must be \[B, L, 16\], got shape \[1, 4, 8\]"),
        ((torch.zeros(1, 65, 16),), "a sequence has 65 tokens, more than max_position_embeddings=64"),
        ((torch.zeros(1, 4, 16), torch.ones(1, 5)), r"attention_mask must be \[1, 4\], got shape \[1, 5\]"),
        ((torch.zeros(1, 4, 16), torch.ones(4)), r"attention_mask must be \[B, L\], or"),
    ):
        with pytest.raises(ValueError, match=words):
            model.hidden(*arguments)
    with pytest.raises(TypeError, match="config must be a DreamConfig, got dict"):
        Dream({})
    with pytest.raises(ValueError, match=r"mask_token_id must lie in \[0, vocab_size=40\), got 40"):
        DreamConfig(vocab_size=40, mask_token_id=40)


def test_a_gradient_goes_through_checkpointed_layers_to_the_embeddings() -> None:
    model = tiny_dream()
    model.requires_grad_(False)
    embeds = model.embedding[IDS].requires_grad_()
    model.head(model.hidden(embeds)).logsumexp(-1).sum().backward()
    assert embeds.grad is not None
    plain, embeds.grad = embeds.grad, None
    model.gradient_checkpointing_enable()
    model.train()
    model.head(model.hidden(embeds)).logsumexp(-1).sum().backward()
    torch.testing.assert_close(embeds.grad, plain)


def test_a_transparency_config_is_read_for_generation(folder: Path, tmp_path: Path) -> None:
    fields = {
        "transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.25, "transparency_centre": -1.0,
        "transparency_steepness": 5.0, "mixinputs_k": 1, "mixture_temp": 1.0, "transparency_scheduling": "linear",
    }  # fmt: skip
    alone = tmp_path / "transparency_config.json"
    for path, mask in ((folder / "transparency_config.json", None), (alone, 38)):
        path.write_text(json.dumps(fields))
        sm = load_soft_mask(path if mask else folder, mask)
        assert sm is not None and sm.config.k == 1 and sm.config.schedule == "linear" and sm.config.ban is None
        assert sm.scale.item() == pytest.approx(0.25) and sm.centre.item() == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="mask_token_id must be given"):
        load_soft_mask(alone)
    alone.write_text(json.dumps({**fields, "transparency_scale": 0.0, "transparency_scheduling": "none"}))
    off = load_soft_mask(alone, 38)
    assert off is not None and off.scale.item() == 0.0
    alone.write_text(json.dumps({**fields, "transparency_scheduling": "cosine"}))
    with pytest.raises(ValueError, match="schedule must be one of none, linear, stepwise"):
        load_soft_mask(alone, 38)


class Held(torch.nn.Module):
    """A model object of another class, as a caller may hold it: forward gives logits."""

    def __init__(self, dream: Dream) -> None:
        super().__init__()
        self.dream = dream
        self.config = dream.config

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.dream.host.get_input_embeddings()

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: Any = None, position_ids: Any = None) -> Any:
        return self.dream.head(self.dream.hidden(inputs_embeds, attention_mask, position_ids))


def test_a_model_that_is_held_already_gives_the_same() -> None:
    model = tiny_dream()
    held = adapt_model(Held(model))
    assert isinstance(held, MaskedDiffusionModel) and (held.mask_token_id, held.shift) == (38, 1)
    for alg in ("entropy", "maskgit_plus"):
        expected = generate(model, IDS, MASK, 5, steps=5, alg=alg).sequences
        assert generate(held, IDS, MASK, 5, steps=5, alg=alg).sequences.equal(expected)
    with pytest.raises(ValueError, match="mask_token_id is 3, and model.config.mask_token_id is 38"):
        adapt_model(Held(model), mask_token_id=3)
    with pytest.raises(TypeError, match="must have get_input_embeddings"):
        adapt_model(object())
    model.host.config.is_causal = True
    for layer in model.host.model.layers:
        layer.self_attn.is_causal = True
    with pytest.raises(RuntimeError, match="attention is causal"):
        adapt_model(Held(model))


def test_the_tokenizer_is_dreams(data_dir: Path, tmp_path: Path) -> None:
    tokenizer = dream_tokenizer(data_dir / "qwen2.5")
    assert len(tokenizer) == 151_667 and tokenizer.mask_token_id == 151_666 and tokenizer.bos_token_id == 151_665
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 151_643 and tokenizer.padding_side == "left"
    assert tokenizer("a<|mask|>b")["input_ids"] == [64, 151_666, 65]
    tokenizer.save_pretrained(tmp_path)
    model = Dream(
        DreamConfig(
            vocab_size=151_672, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1,
        )
    )  # fmt: skip
    assert model_tokenizer(tmp_path, model)("hello")["input_ids"] == tokenizer("hello")["input_ids"]
    with pytest.raises(ValueError, match="the model's mask is id 7: it is not the tokenizer of this model"):
        dream_tokenizer(tmp_path, 7)
    # Dream's own folder has Qwen2's two files and a tokenizer class of remote code
    whole = json.loads((data_dir / "qwen2.5" / "tokenizer.json").read_text(encoding="utf-8"))
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "vocab.json").write_text(json.dumps(whole["model"]["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (slow / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    added = {str(entry["id"]): {n: v for n, v in entry.items() if n != "id"} for entry in whole["added_tokens"]}
    more = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    added |= {str(151_665 + i): {"content": token, **more} for i, token in enumerate(("<|beginoftext|>", "<|mask|>"))}
    settings = {
        "added_tokens_decoder": added, "tokenizer_class": "DreamTokenizer", "mask_token": "<|mask|>",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    }  # fmt: skip
    (slow / "tokenizer_config.json").write_text(json.dumps(settings))
    again = dream_tokenizer(slow)
    text = "def f(x):\n    return x  # <|mask|> \u00e9\u4e2d"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] and len(again) == 151_667
