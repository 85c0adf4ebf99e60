"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the halves layout (NEOX) of transformers and llama.cpp."""

import torch
from jaxtyping import Float
from torch import Tensor

from research.contracts import contract

Heads = Float[Tensor, "batch heads seq head_dim"]
RopeTable = Float[Tensor, "*rows seq half"]  # of cosines or sines; rows where sequences have positions of their own


@contract
def build_rope_table(
    seq_len: int, head_dim: int, base: float = 10_000.0
) -> tuple[Float[Tensor, "seq half"], Float[Tensor, "seq half"]]:
    """Return cosines and sines of position times frequency, theta_i = base^(-2i/head_dim) (eq. 15)."""
    frequency = base ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.arange(seq_len).float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Heads, cos: RopeTable, sin: RopeTable) -> Heads:
    """Rotate the pairs (x_i, x_{i+head_dim/2}) by their position's angle (eq. 34); return them in the type of x."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
