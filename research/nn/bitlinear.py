"""The linear layer of BitNet b1.58: ternary weights, int8 activations, full-precision master weights."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from research.nn.quantize import int8, ternary


class BitLinear(nn.Linear):
    """`nn.Linear` whose forward pass sees W1.58A8; takes the place of `nn.Linear` anywhere."""

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        return F.linear(int8(x), ternary(self.weight), self.bias)


def ternary_count(model: nn.Module) -> int:
    """How many of a model's parameters are ternary."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, BitLinear))


def packed_bytes(model: nn.Module) -> int:
    """Size of the model with ternary weights at two bits and a scale each, everything else in float32."""
    rest = sum(p.numel() for p in model.parameters()) - ternary_count(model)
    scales = sum(isinstance(m, BitLinear) for m in model.modules())
    return ternary_count(model) // 4 + 4 * (rest + scales)
