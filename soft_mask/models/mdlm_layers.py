"""The layers of MDLM's diffusion transformer (DiT, arXiv 2212.09748, as in MDLM, arXiv 2406.07524).

Attribute names are those of the public checkpoints, so that their tensors load without renaming.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "OutputLayer", "RotaryEmbedding", "SigmaMap", "VocabEmbedding"]

FREQUENCY_DIM = 256  # width of the sinusoid that the noise level enters through
MLP_RATIO = 4
ROTARY_BASE = 10_000.0
NORM_EPS = 1e-5


def at_least_float32(x: Tensor) -> Tensor:
    """The residual stream and the norms run in float32 (or float64) whatever the weights' dtype is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class VocabEmbedding(nn.Module):
    """The token table, a bare parameter in the public checkpoints."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))  # uniform within 1 / sqrt(dim)

    def forward(self, input_ids: Tensor) -> Tensor:  # [..] -> [.., d]
        return F.embedding(input_ids, self.embedding)


class SigmaMap(nn.Module):
    """The conditioning vector c. Without time conditioning sigma is zero, so c is one learned constant."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_DIM, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self) -> Tensor:  # -> [cond_dim]
        weight = next(self.mlp.parameters())
        sinusoid = weight.new_zeros(FREQUENCY_DIM)
        sinusoid[: FREQUENCY_DIM // 2] = 1.0  # cos(0) for the first half, sin(0) for the second
        with torch.autocast(weight.device.type, enabled=False):  # c stays as exact as its weights
            return F.silu(self.mlp(sinusoid))


class RotaryEmbedding(nn.Module):
    """Rotary positions, base 10000, the two halves of a head forming the pairs.

    The buffer is there for the checkpoints' sake. The angles come from the formula, because a buffer that was cast to
    bfloat16 with its model is off by radians at position 1000.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", self.frequencies(head_dim))

    @staticmethod
    def frequencies(head_dim: int, device: torch.device | None = None) -> Tensor:  # -> [head_dim / 2] float32
        return 1.0 / ROTARY_BASE ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:  # [B or 1, L] -> two of [.., L, 1, 1, head_dim / 2]
        angle = positions[..., None, None, None].float() * self.frequencies(2 * len(self.inv_freq), positions.device)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x [B, L, 2, H, D]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class LayerNorm(nn.Module):
    """Layer norm with a weight and no bias; the adaLN modulation is folded into its affine part, at no extra pass."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:  # [.., d], [d], [d]
        weight = (self.weight * (1 + scale)).to(x.dtype)  # LN(x) * w * (1 + scale) + shift
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, weight.shape, weight, shift.to(x.dtype), NORM_EPS)


def zero_linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """One transformer block: attention over the whole sequence and a GELU MLP, each gated by adaLN."""

    def __init__(self, dim: int, n_heads: int, cond_dim: int, dropout: float, gate_init: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.norm1 = LayerNorm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)  # rows: q, k, v; within each the heads in order
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU(approximate="tanh"), nn.Linear(MLP_RATIO * dim, dim))
        self.adaLN_modulation = zero_linear(cond_dim, 6 * dim)
        with torch.no_grad():  # the parts are shift, scale, gate of the attention, then of the MLP
            self.adaLN_modulation.bias.view(2, 3, dim)[:, 2] = gate_init

    def forward(
        self,
        x: Tensor,  # [B, L, d], float32: the residual stream
        cond: Tensor,  # [cond_dim]
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,  # [B, 1, 1, L] bool
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond).chunk(6)
        x = self.add(x, gate1, self.attention(self.norm1(x, shift1, scale1), rotary, mask))
        h = self.norm2(x, shift2, scale2).to(self.attn_qkv.weight.dtype)
        return self.add(x, gate2, self.mlp(h))

    def attention(self, h: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        batch, length, dim = h.shape
        qkv = self.attn_qkv(h.to(self.attn_qkv.weight.dtype))
        qkv = qkv.view(batch, length, 3, self.n_heads, dim // self.n_heads)
        cos, sin = rotary
        q, k = rotate(qkv[:, :, :2], cos.to(qkv.dtype), sin.to(qkv.dtype)).unbind(2)
        v = qkv[:, :, 2]
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        return self.attn_out(out.transpose(1, 2).reshape(batch, length, dim))

    def add(self, x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
        if self.training and self.dropout:
            branch = F.dropout(branch, self.dropout)
        return torch.addcmul(x, gate.to(x.dtype), branch.to(x.dtype))


class OutputLayer(nn.Module):
    """The final norm and the head; every row on its own."""

    def __init__(self, dim: int, vocab_size: int, cond_dim: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm(dim)
        self.linear = zero_linear(dim, vocab_size)
        self.adaLN_modulation = zero_linear(cond_dim, 2 * dim)

    def forward(self, rows: Tensor, cond: Tensor) -> Tensor:  # [.., d], [cond_dim] -> [.., V]
        shift, scale = self.adaLN_modulation(cond).chunk(2)
        return self.linear(self.norm_final(rows, shift, scale).to(self.linear.weight.dtype))
