"""Quantize tensors: small integers, the codes, times a scale.

BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764; report 2504.12285) is the default. Its relatives are settings: BitNet's
signs (2310.11453), absmedian (b1.58 Reloaded, 2407.09527), 4-bit activations (a4.8, 2411.04965).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from research.ranges import PositiveInt, WeightBits, check_fields

EPS = 1e-5  # floor of a tensor's magnitude, so that the scale of an all-zero tensor is not zero
QuantizedWeight = tuple[Float[Tensor, "out in"], Float[Tensor, "..."]]  # its codes and their scale
LEVELS = {1: (-1, 1), 1.58: (-1, 1), 2: (-2, 1), 4: (-8, 7), 8: (-128, 127)}  # bits -> smallest and largest code


@dataclass(frozen=True)
class Quantizer:
    """How a linear layer quantizes its weights and its activations. Raise ValueError for an unknown value of a setting.

    A tensor that is not finite gets a scale that is not finite, so that every product with it is not finite either.
    """

    scale_method: Literal["absmean", "absmedian", "absmax"] = "absmean"
    weight_bits: WeightBits = 1.58  # 1: signs; 1.58: ternary
    # What shares a scale: all weights, those of one output, or this many inputs of one output.
    granularity: Literal["tensor", "channel"] | PositiveInt = "tensor"
    activation_bits: Literal[8, 4] = 8
    activation_granularity: Literal["token", "tensor"] = "token"  # tensor: the codes of a token depend on other tokens

    def __post_init__(self) -> None:
        check_fields("model.linear", self)

    @property
    def is_ternary(self) -> bool:
        """Return whether every code is -1, 0 or 1."""
        return self.weight_bits < 2

    def quantize_weight(self, w: Float[Tensor, "out in"], dtype: torch.dtype | None = None) -> QuantizedWeight:
        """Return the codes of a weight, in `dtype` (None: its own), and their scale.

        The scale is [] (tensor), [out, 1] (channel) or [out, in] (groups): absmax / Q, or a mean over sqrt(Q), with Q the
        largest code. For ternary codes that is absmean (2402.17764, eq. 1 to 3); for wider codes it is LSQ's rule (Esser et
        al. 2020, 1902.08153) without its factor of two.
        """
        dtype = dtype or w.dtype
        w = w.to(torch.promote_types(w.dtype, torch.float32))  # 1 / EPS is beyond fp16
        rows = w.unflatten(1, (-1, self.granularity)) if isinstance(self.granularity, int) else w
        low, high = LEVELS[self.weight_bits]
        scale = self._compute_magnitude(rows) / (high if self.scale_method == "absmax" else math.sqrt(high))
        if self.weight_bits == 1:  # the sign of the weight minus its mean (2310.11453, eq. 1 to 3)
            mean = rows.mean() if self.granularity == "tensor" else rows.mean(-1, keepdim=True)
            codes = (rows > mean).to(dtype).mul_(2).sub_(1)
        else:
            codes = (rows * scale.reciprocal()).round_().clamp_(low, high).to(dtype)
        return codes.view_as(w), scale.expand_as(rows).reshape_as(w) if isinstance(self.granularity, int) else scale

    def _compute_magnitude(self, rows: Float[Tensor, "out ..."]) -> Float[Tensor, "..."]:
        """Return the mean, median or maximum of |w|: of all weights, or along the last axis."""
        size = rows.abs().flatten() if self.granularity == "tensor" else rows.abs()
        if self.scale_method == "absmean":
            size = size.mean(-1, keepdim=True)
        else:
            top = size.amax(-1, keepdim=True)
            # top - top makes the scale NaN where a weight is infinite: a median alone would miss it.
            size = top if self.scale_method == "absmax" else size.median(-1, keepdim=True).values + (top - top)
        size = size.clamp(min=EPS)
        return size.squeeze() if self.granularity == "tensor" else size

    def quantize_activation(self, x: Float[Tensor, "*batch dim"]) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "..."]]:
        """Return the codes of activations and their scale, [*batch, 1] (token) or [] (tensor), in float32 at least.

        8 bits: 127 x / absmax (2504.12285, section 2); 4 bits: sqrt(7) x / absmean (2411.04965, section 2). Raise ValueError
        for numbers that are not floating-point.
        """
        require_floating_point(x)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # a bf16 product has too few bits for 256 levels
        tensor = self.activation_granularity == "tensor"
        if tensor and not x.numel():  # no number has no largest one
            return x, x.new_tensor(EPS)
        if self.activation_bits == 8:
            top, bottom = (x.amax(), x.amin()) if tensor else (x.amax(-1, keepdim=True), x.amin(-1, keepdim=True))
            size = torch.maximum(top, -bottom).clamp(min=EPS)  # max |x|, without writing |x| to memory
            return (x * (127 / size)).round_(), size / 127  # no product exceeds 127 by more than a rounding error
        size = (x.abs().mean() if tensor else x.abs().mean(-1, keepdim=True)).clamp(min=EPS)
        return (x * (math.sqrt(7) / size)).round_().clamp_(-8, 7), size / math.sqrt(7)


TERNARY = Quantizer()


def require_floating_point(x: Tensor) -> None:
    """Raise ValueError for an input of a quantized layer that is not floating-point.

    The output has the input's type: it would lose its fractions, and wrap around where the type is too small.
    """
    if not x.is_floating_point():
        raise ValueError(f"a quantized layer takes floating-point input, got {x.dtype}: give x.to(torch.float32)")


def straight_through(x: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"], mix: Tensor | None) -> Float[Tensor, "*shape"]:
    """Return x + mix (q - x), of x and quantized x, whose gradient is that of x. None stands for a mix of 1."""
    q = q if mix is None else torch.lerp(x, q.to(x.dtype), mix.to(x.dtype))
    return q.detach().to(x.dtype) + (x - x.detach())
