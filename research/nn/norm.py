"""Root mean square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight (eq. 4), in the type of x: a bf16 x with a float32 weight would take a slow path."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)
