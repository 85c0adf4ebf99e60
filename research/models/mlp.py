"""A residual multi-layer perceptron for vectors. Its linear layer is a parameter, as in the transformer."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from research.data.spec import Vectors
from research.nn.bitlinear import Linear
from research.nn.norm import RMSNorm
from research.ranges import Depth, Fraction, PositiveInt, check_settings


class Residual(nn.Module):
    """x + dropout(linear(silu(norm(x))))."""

    def __init__(self, dim: int, linear: Linear, dropout: float) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.linear = linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return x + self.dropout(self.linear(F.silu(self.norm(x))))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """A linear layer, residual blocks, norm, head. First layer and head stay in full precision, as the ends of BitNet do."""

    def __init__(self, shape: Vectors, dim: PositiveInt, depth: Depth, linear: Linear, dropout: Fraction = 0.0) -> None:
        check_settings("model", MLP.__init__.__annotations__, locals())
        super().__init__()
        self.embed = nn.Linear(shape.num_features, dim)
        self.blocks = nn.Sequential(*(Residual(dim, linear, dropout) for _ in range(depth)))
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, shape.num_classes)
        self.mean, self.scale = shape.mean, shape.scale

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        outputs: Tensor = self.head(self.norm(self.blocks(self.embed(x))))
        return outputs if (self.mean, self.scale) == (0.0, 1.0) else self.mean + self.scale * outputs.float()
