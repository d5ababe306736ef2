"""Against the original samplers: transition probabilities within 1e-6, and their tokens from their random numbers.

``originals.json`` was made by running the classes of kuleshov-group/remdm (``Diffusion``: all kernels, float64 draws),
kuleshov-group/mdlm (float32 draws, semi-autoregressive) and IBM/soft-masked-diffusion-language-models (``MDLM_SM`` with
its ``TransparencyHead``) on the CPU, their backbone replaced by the model below and their ``forward`` by its SUBS
log-probabilities in float32; every random number came from ``torch.manual_seed(3)``. The q of "transition" are what
reaches their ``_sample_categorical``, negative weights (which never win) as 0, normalised; rows that they copy instead
hold the token. "remdm-conf" needed one cast,
of the confidences it writes to the bfloat16 it keeps them in (under autocast they are bfloat16 already).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from soft_mask import SoftMask, SoftMaskConfig, generate
from soft_mask.models import MDLM, MDLMConfig
from soft_mask.sampling import generate_semi_autoregressive
from soft_mask.sampling import sampler as sampler_module
from soft_mask.sampling.arguments import make_sampler
from soft_mask.sampling.prediction import Prediction

MASK, V = 10, 11
FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "originals.json").read_text(encoding="utf-8"))
# Two sequences in the middle of denoising, and how sure each token was drawn (read by "remdm-conf" alone).
IDS = torch.tensor([[10, 3, 10, 0, 7, 10, 10], [1, 10, 10, 10, 9, 2, 5]])
CONFIDENCE = -torch.tensor([[0.9, 0.1, 0.5, 0.62, 0.33, 0.2, 0.8], [0.15, 0.7, 0.4, 0.6, 0.95, 0.05, 0.55]])


@pytest.fixture(scope="module")
def tiny() -> MDLM:
    """Weights from a formula, so that nothing has to be stored."""
    model = MDLM(MDLMConfig(vocab_size=V, model_length=7, hidden_dim=16, cond_dim=6, n_blocks=2, n_heads=2)).eval()
    for i, parameter in enumerate(model.parameters()):
        j = torch.arange(parameter.numel())
        value = ((j * j * (i + 3) + 977 * j + 613 * i) % 8191).double() / 8191 - 0.5
        parameter.data.copy_((1.6 * value).float().view(parameter.shape))
    model.vocab_embed.embedding.data.mul_(4.0)
    final = model.output_layer
    for parameter in (final.adaLN_modulation.weight, final.adaLN_modulation.bias, final.linear.bias):
        parameter.data.zero_()
    return model


def options_of(name: str, config: dict[str, float]) -> dict[str, Any]:
    alg = "ancestral" if name.startswith(("ancestral", "mdlm")) else name
    options: dict[str, Any] = {"alg": alg, "top_p": config.get("p", 1.0), "noise": "race"}
    if name == "remdm-conf":
        options["confidence_dtype"] = torch.bfloat16
    if name == "mdlm-float32":
        options["noise_dtype"] = torch.float32
    return {**options, **{key: value for key, value in config.items() if key != "p"}}


@pytest.mark.parametrize("name", list(FROZEN["transition"]))
def test_transitions_are_the_originals(tiny: MDLM, name: str) -> None:
    case = FROZEN["transition"][name]
    options = options_of(name, case["config"])
    alg, top_p = options.pop("alg"), options.pop("top_p")
    own = {key: value for key, value in options.items() if key in ("eta", "t_on", "t_off", "alpha_on")}
    policy = make_sampler(tiny, alg, case["steps"], top_p=top_p, options=own)
    masked = IDS == MASK
    rows = masked.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        prediction = Prediction(tiny, tiny.hidden(tiny.embedding[IDS]), rows)
        (logits,) = prediction.logits(rows)
    p = policy._probabilities(policy._filtered(logits)).double()
    confidence = torch.where(masked, -torch.inf, CONFIDENCE).to(torch.bfloat16)
    for step, q in zip(case["at"], case["q"], strict=True):
        transition = policy.transition(step, confidence)
        mine = torch.zeros(2, 7, V, dtype=torch.float64)
        remask = torch.as_tensor(transition.remask, dtype=torch.float64).expand(2, 7)
        mine.scatter_(-1, IDS[..., None], (1 - remask)[..., None])
        mine[..., MASK] += remask
        mine[masked] = p * transition.reveal
        mine[..., MASK] = torch.where(masked, 1 - transition.reveal, mine[..., MASK])
        torch.testing.assert_close(mine, torch.tensor(q, dtype=torch.float64), rtol=0, atol=1e-6)
        assert mine.sum(-1).sub(1).abs().max() < 1e-6


@pytest.mark.parametrize("name", [name for name in FROZEN["tokens"] if name != "semi-autoregressive"])
def test_same_noise_same_tokens(tiny: MDLM, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = FROZEN["tokens"][name]
    *soft, alg, steps = name.split("/")
    gate = None
    if soft:
        gate = SoftMask(SoftMaskConfig(mask_token_id=MASK, k=3, scale=0.9, steepness=2.0, centre=-2.0))
    options = options_of(alg, case["config"])
    expected = torch.tensor(case["x"])
    for chunk in (None, 4):  # rows drawn together must not matter
        if chunk:
            monkeypatch.setattr(sampler_module, "default_chunk_rows", lambda _: 64)
            monkeypatch.setattr("soft_mask.sampling.prediction.default_chunk_rows", lambda _: 64)
        out = generate(
            tiny,
            torch.full((6, 7), MASK),
            steps=int(steps),
            soft_mask=gate,
            generator=torch.Generator().manual_seed(3),
            **options,
        )
        assert out.sequences.equal(expected)
        assert out.nfe <= case["forwards"]  # theirs runs on sequences without masks as well


def test_the_reference_s_remask_feedback_matters() -> None:
    """The frozen cases tell soft from binary, and would tell another feedback of re-masked rows."""
    differ = [
        name for name in FROZEN["tokens"]
        if name.startswith("soft/") and FROZEN["tokens"][name]["x"] != FROZEN["tokens"][name.removeprefix("soft/")]["x"]
    ]  # fmt: skip
    assert len(differ) >= 6


def test_semi_autoregressive_is_the_original(tiny: MDLM) -> None:
    case = FROZEN["tokens"]["semi-autoregressive"]
    out = generate_semi_autoregressive(
        tiny,
        6,
        7,
        **case["config"],
        noise="race",
        noise_dtype=torch.float32,
        generator=torch.Generator().manual_seed(3),
    )
    expected: Tensor = torch.tensor(case["x"])
    assert out.sequences.equal(expected) and out.sequences.shape == (6, 7 + 2 * 3)
    assert out.nfe <= case["forwards"]
