"""The gated feed-forward layer (Shazeer 2020, arXiv 2002.05202), with SiLU or the squared ReLU of BitNet b1.58 2B4T."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from research.contracts import contract
from research.nn.bitlinear import Linear, shared_input_linears

Activation = Literal["silu", "relu2"]


def relu2(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return max(x, 0)^2 (So et al. 2021, arXiv 2109.08668)."""
    return F.relu(x).square()


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    @contract
    def __init__(self, dim: int, ffn_dim: int, activation: Activation, linear: Linear, sub_norm: nn.Module) -> None:
        super().__init__()
        self.activation = F.silu if activation == "silu" else relu2
        self.gate_proj = linear(dim, ffn_dim, bias=False)
        self.up_proj = linear(dim, ffn_dim, bias=False)
        self.ffn_sub_norm = sub_norm
        self.down_proj = linear(ffn_dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "batch seq dim"]) -> Float[Tensor, "batch seq dim"]:
        gate, up = shared_input_linears(x, self.gate_proj, self.up_proj)
        return self.down_proj(self.ffn_sub_norm(self.activation(gate) * up))  # type: ignore[no-any-return]
