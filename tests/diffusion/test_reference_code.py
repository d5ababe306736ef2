"""A whole training step with soft masking against the paper's own code: feedback, mixed embeddings, loss and gradients.

``reference_code.json`` was made with ``MDLM_SM`` and ``TransparencyHead`` of IBM/soft-masked-diffusion-language-models
(commit 091695d, on the files of s-sahoo/duo, branch ch-1, patched as its setup script does) on the CPU in
float32: its backbone given the weights below, its ``_sample_t`` and ``q_xt`` replaced by the times and masks below, its head
by the raw numbers below, then ``forward``, ``tran_head``, ``vocab_embed`` and ``_loss(train_mode=True).loss.backward()``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from soft_mask import SoftMask, SoftMaskConfig, mix_embed
from soft_mask.diffusion import Denoiser, masked_rows, predicting_rows, read_feedback
from soft_mask.models import MDLM, MDLMConfig

MASK = 10
FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "reference_code.json").read_text(encoding="utf-8"))
NOISY = torch.tensor([[10, 3, 10, 0, 7, 10, 10], [1, 10, 10, 10, 9, 2, 5]])
CLEAN = torch.tensor([[4, 3, 8, 0, 7, 1, 6], [1, 2, 9, 0, 9, 2, 5]])
TIMES = torch.tensor([0.7, 0.35])


@pytest.fixture
def model() -> MDLM:
    made = MDLM(MDLMConfig(vocab_size=11, model_length=7, hidden_dim=16, cond_dim=6, n_blocks=2, n_heads=2)).eval()
    for i, parameter in enumerate(made.parameters()):
        j = torch.arange(parameter.numel())
        value = ((j * j * (i + 3) + 977 * j + 613 * i) % 8191).double() / 8191 - 0.5
        parameter.data.copy_((1.6 * value).float().view(parameter.shape))
    return made


@pytest.fixture
def gate() -> SoftMask:
    made = SoftMask(SoftMaskConfig(mask_token_id=MASK, k=3, ban=(MASK,)))
    for name, value in (("raw_scale", 0.8), ("raw_steepness", 1.9), ("raw_centre", 0.6)):
        getattr(made, name).data.fill_(value)
    return made


def test_feedback_and_mixed_embeddings(model: MDLM, gate: SoftMask) -> None:
    rows = masked_rows(NOISY, MASK)
    with torch.no_grad():
        first = model.hidden(model.embedding[NOISY])
        fb = read_feedback(model, gate, predicting_rows(first, rows, 0), rows, NOISY.shape)
        flat = fb.select(NOISY == MASK)
        assert flat.ids.tolist() == FROZEN["ids"]
        torch.testing.assert_close(gate.gate(flat.neg_entropy), torch.tensor(FROZEN["lambda"]), rtol=0, atol=2e-6)
        mixed = mix_embed(
            NOISY, fb, model.embedding, mask_token_id=MASK, scale=gate.scale, steepness=gate.steepness, centre=gate.centre
        )
        torch.testing.assert_close(mixed[NOISY == MASK], torch.tensor(FROZEN["embeddings"]), rtol=0, atol=1e-5)
        torch.testing.assert_close(gate(NOISY, model(NOISY), model.embedding), mixed, rtol=0, atol=1e-6)


def test_loss_and_gradients_of_a_soft_step(model: MDLM, gate: SoftMask) -> None:
    out = Denoiser(model, gate)(CLEAN, NOISY, TIMES)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(FROZEN["loss"], rel=0, abs=1e-5)
    ours = {"raw_scale": gate.raw_scale, "raw_steep": gate.raw_steepness, "raw_centre_neg": gate.raw_centre}
    for name, expected in FROZEN["omega_gradients"].items():
        assert ours[name].grad is not None
        assert ours[name].grad.item() == pytest.approx(expected, rel=1e-4, abs=1e-7), name
    norms = [0.0 if p.grad is None else p.grad.norm().item() for p in model.parameters()]
    assert norms == pytest.approx(FROZEN["gradient_norms"], rel=1e-4, abs=1e-5)
    table = model.embedding.grad  # from the own tokens, the mask row and the k rows of the feedback
    assert table is not None
    torch.testing.assert_close(table, torch.tensor(FROZEN["embedding_gradient"]), rtol=0, atol=1e-5)
