"""MDLM against numbers of the original implementation, and the contract of the protocol."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from soft_mask.models import MDLM, MaskedDiffusionModel, MDLMConfig

TINY: dict[str, Any] = {
    "vocab_size": 11,
    "model_length": 7,
    "hidden_dim": 16,
    "cond_dim": 6,
    "n_blocks": 2,
    "n_heads": 2,
}
IDS = torch.tensor([[10, 3, 10, 0, 7, 10, 10], [1, 10, 10, 10, 9, 2, 5]])

# Computed once, in float32 on a CPU, with the original's models/dit.py (kuleshov-group/mdlm, commit c112c52), its flash
# attention replaced by an explicit softmax and its weights filled as `fill` does. On five random models with weights of
# standard deviation 0.3 the two agreed within 5.3e-6 on logits of size 3 to 9, and in every gradient within 7e-6 of its
# largest entry.
ORIGINAL_0_0 = [1.2207021, -1.1909986, 1.8428416, -7.6605153, -2.7824483, -2.9566264, -3.5870249, -1.2526650,
                -0.0580831, 3.7109194, -0.5225484]  # fmt: skip
ORIGINAL_1_3 = [1.0475847, -1.3555655, 1.3780975, -7.3816237, -2.6522484, -2.7368743, -3.8022244, -0.9879086,
                -0.0619509, 3.4412065, -0.7539071]  # fmt: skip
ORIGINAL_SQUARES = 1628.5997


def fill(model: nn.Module) -> nn.Module:
    """Weights by a formula in whole numbers: the same on every machine."""
    for i, parameter in enumerate(model.parameters()):
        j = torch.arange(parameter.numel())
        value = ((j * j * (i + 3) + 977 * j + 613 * i) % 8191).double() / 8191 - 0.5
        parameter.data.copy_((1.6 * value).float().view(parameter.shape))
    return model


def tiny(seed: int = 0, **changes: Any) -> MDLM:
    """A model with random weights everywhere, also where the initialisation is zero."""
    model = MDLM(MDLMConfig(**{**TINY, **changes}))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def test_public_model_has_the_public_names_and_size() -> None:
    with torch.device("meta"):
        model = MDLM(MDLMConfig())
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 130
    assert sum(p.numel() for p in model.parameters()) == 169_627_218
    block = ["norm1.weight", "attn_qkv.weight", "attn_out.weight", "norm2.weight", "mlp.0.weight", "mlp.0.bias",
             "mlp.2.weight", "mlp.2.bias", "adaLN_modulation.weight", "adaLN_modulation.bias"]  # fmt: skip
    assert names == [
        "vocab_embed.embedding",
        *(f"sigma_map.mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"blocks.{i}.{name}" for i in range(12) for name in block),
        "output_layer.norm_final.weight",
        *(f"output_layer.{name}.{kind}" for name in ("linear", "adaLN_modulation") for kind in ("weight", "bias")),
    ]
    state = model.state_dict()
    assert set(state) - set(names) == {"rotary_emb.inv_freq"}
    shapes = {
        "vocab_embed.embedding": (50258, 768),
        "sigma_map.mlp.0.weight": (128, 256),
        "rotary_emb.inv_freq": (32,),
        "blocks.11.attn_qkv.weight": (2304, 768),
        "blocks.11.mlp.2.weight": (768, 3072),
        "blocks.11.adaLN_modulation.weight": (4608, 128),
        "output_layer.linear.weight": (50258, 768),
        "output_layer.adaLN_modulation.weight": (1536, 128),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_logits_are_the_original_ones() -> None:
    model = fill(MDLM(MDLMConfig(**TINY))).eval()
    logits = model(IDS)
    assert logits.shape == (2, 7, 11)
    torch.testing.assert_close(logits[0, 0], torch.tensor(ORIGINAL_0_0), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[1, 3], torch.tensor(ORIGINAL_1_3), rtol=0, atol=1e-5)
    assert logits.square().sum().item() == pytest.approx(ORIGINAL_SQUARES, abs=0.01)


def test_meets_the_protocol() -> None:
    model = tiny()
    assert isinstance(model, MaskedDiffusionModel)
    assert (model.mask_token_id, model.vocab_size, model.shift, model.bans_mask) == (10, 11, 0, True)
    assert model.embedding is model.vocab_embed.embedding
    hidden = model.hidden(model.embedding[IDS])
    assert hidden.shape == (2, 7, 16)
    assert torch.equal(model.head(hidden), model(IDS))
    rows = hidden.flatten(0, 1)[[3, 8]]  # the head sees rows one by one, in any number
    torch.testing.assert_close(model.head(rows), model(IDS).flatten(0, 1)[[3, 8]], rtol=0, atol=2e-6)
    assert model.head(rows[:0]).shape == (0, 11)


def test_attention_is_bidirectional() -> None:
    model = tiny()
    other = IDS.clone()
    other[:, -1] = 4
    assert (model(IDS)[:, 0] - model(other)[:, 0]).abs().max() > 1e-3


def test_positions_are_relative_and_in_order() -> None:
    model = tiny()
    embeds = model.embedding[IDS]
    positions = torch.arange(7).expand(2, 7)
    plain = model.hidden(embeds)
    assert torch.equal(model.hidden(embeds, position_ids=positions), plain)
    assert torch.equal(model.hidden(embeds, position_ids=positions[0]), plain)
    torch.testing.assert_close(model.hidden(embeds, position_ids=positions + 100), plain, rtol=0, atol=1e-4)
    turned = model.hidden(embeds.flip(1), position_ids=positions.flip(1)).flip(1)  # order lies in the positions alone
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-5)
    assert (model.hidden(embeds.flip(1)).flip(1) - plain).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_padding_is_not_attended_to(dtype: torch.dtype) -> None:
    model = tiny()
    padded = torch.cat([IDS[:, :5], torch.tensor([[3, 8], [6, 6]])], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]] * 2).to(dtype)
    torch.testing.assert_close(model(padded, mask)[:, :5], model(IDS[:, :5]), rtol=0, atol=1e-5)
    left = torch.cat([padded[:, 5:], padded[:, :5]], dim=1)  # rotary positions are relative: left padding is as good
    torch.testing.assert_close(model(left, mask.flip(1))[:, 2:], model(IDS[:, :5]), rtol=0, atol=1e-5)
    assert (model(padded)[:, :5] - model(IDS[:, :5])).abs().max() > 1e-2


def test_starts_as_the_original_does() -> None:
    model = MDLM(MDLMConfig(**TINY))
    embeds = model.embedding[IDS]
    assert torch.equal(model.hidden(embeds), embeds)  # adaLN-zero: every block is the identity
    assert torch.equal(model(IDS), torch.zeros(2, 7, 11))
    assert model.embedding.abs().max() <= 1 / 16**0.5
    assert dict(MDLM(MDLMConfig(**TINY, gate_init=1.0)).named_parameters())["blocks.0.adaLN_modulation.bias"].view(6, 16).sum(
        1
    ).tolist() == [0, 0, 16, 0, 0, 16]


def test_dropout_acts_on_branches_in_training_only() -> None:
    model = tiny(dropout=0.5)
    embeds = model.embedding[IDS]
    evaluated = model.hidden(embeds)
    model.train()
    assert (model.hidden(embeds) - evaluated).abs().max() > 1e-2
    assert torch.equal(tiny(dropout=0.0).train().hidden(embeds), evaluated)
    closed = MDLM(MDLMConfig(**{**TINY, "dropout": 0.5})).train()
    assert torch.equal(closed.hidden(embeds), embeds)  # the residual itself is never dropped


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_keeps_a_float32_residual(how: str) -> None:
    model = tiny()
    exact = model(IDS)
    if how == "weights":
        model = model.to(torch.bfloat16)
        hidden, logits = model.hidden(model.embedding[IDS]), model(IDS)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            hidden, logits = model.hidden(model.embedding[IDS]), model(IDS)
    assert hidden.dtype == torch.float32 and logits.dtype == torch.bfloat16
    assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_positions_survive_bfloat16() -> None:
    """The buffer is rounded with the weights; at position 1000 that would turn heads by radians."""
    model = tiny().to(torch.bfloat16)
    assert model.rotary_emb.inv_freq.dtype == torch.bfloat16
    positions = torch.arange(7)[None] * 150
    for got, want in zip(model.rotary_emb(positions), tiny().rotary_emb(positions), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_float64_stays_float64() -> None:
    model = tiny()
    exact = model(IDS)
    double = model.double()(IDS)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), exact, rtol=0, atol=1e-5)


def test_tied_table_is_one_parameter_with_both_gradients() -> None:
    model, loose = tiny(tie_word_embeddings=True), tiny()
    assert len(list(model.parameters())) == len(list(loose.parameters())) - 1
    assert model.output_layer.linear.weight is model.embedding
    loose.load_state_dict(model.state_dict())
    model(IDS).square().sum().backward()
    loose(IDS).square().sum().backward()
    grads: list[Tensor | None] = [loose.embedding.grad, loose.output_layer.linear.weight.grad]
    assert grads[0] is not None and grads[1] is not None
    torch.testing.assert_close(model.embedding.grad, grads[0] + grads[1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.hidden(torch.zeros(1, 8, 16)), "8 tokens, more than model_length=7"),
        (lambda m: m.hidden(torch.zeros(1, 4, 16), cache=object()), "cache must be None"),
        (lambda m: m.hidden(torch.zeros(4, 16)), r"inputs_embeds must be \[B, L, 16\], got shape \[4, 16\]"),
        (lambda m: m.hidden(torch.zeros(1, 4, 15)), r"inputs_embeds must be \[B, L, 16\]"),
        (lambda m: m.hidden(torch.zeros(2, 4, 16), torch.ones(2, 5)), r"attention_mask must have shape \[2, 4\]"),
        (lambda m: m.hidden(torch.zeros(2, 4, 16), position_ids=torch.arange(5)), "position_ids must be"),
        (lambda m: m(torch.zeros(4, dtype=torch.int64)), r"input_ids must be \[B, L\]"),
    ],
)
def test_bad_input_is_told_in_words(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(tiny())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"time_conditioning": True}, ValueError, "time_conditioning=True is not supported"),
        ({"n_heads": 3}, ValueError, "hidden_dim / n_heads must be an even whole number"),
        ({"n_heads": 16}, ValueError, "even whole number"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1"),
        ({"n_blocks": 2.0}, TypeError, "n_blocks must be an int"),
        ({"dropout": 1.0}, ValueError, "dropout must lie in"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a float"),
        ({"mask_token_id": 11}, ValueError, r"mask_token_id must lie in \[0, 11\)"),
    ],
)
def test_bad_config_is_told_in_words(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        MDLMConfig(**{**TINY, **changes})


def test_config_reads_the_public_file() -> None:
    text = """{"architectures": ["MDLM"], "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig"}, "cond_dim": 128,
    "dropout": 0.1, "hidden_dim": 768, "model_length": 1024, "model_type": "mdlm", "n_blocks": 12, "n_heads": 12,
    "return_dict": false, "time_conditioning": false, "torch_dtype": "float32", "vocab_size": 50258}"""
    config = MDLMConfig.from_dict(json.loads(text))
    assert config == MDLMConfig() and config.mask_token_id == 50257
    assert MDLMConfig.from_dict(config.to_dict()) == config
    assert MDLMConfig(**TINY, mask_token_id=4).mask_token_id == 4
    with pytest.raises(ValueError, match="model_type must be 'mdlm' for an MDLM, got 'Dream'"):
        MDLMConfig.from_dict({"model_type": "Dream"})
    with pytest.raises(TypeError, match="config must be an MDLMConfig"):
        MDLM(TINY)  # type: ignore[arg-type]
