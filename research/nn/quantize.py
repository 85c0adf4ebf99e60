"""Quantisers of BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764; report arXiv 2504.12285).

Each rounds in the forward pass and hands the gradient through unchanged (straight-through, Bengio et al. 2013).
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

_EPS = 1e-5  # the floor of a scale: an all-zero tensor stays zero


def absmean(weight: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The scale of ternary weights: the mean of |w| (2402.17764, eq. 3)."""
    return weight.abs().mean().clamp(min=_EPS)


def ternary_codes(weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The codes -1, 0, 1 of a weight: round(w / absmean) clipped to [-1, 1] (2402.17764, eq. 1 and 2)."""
    return (weight * absmean(weight).reciprocal()).round_().clamp_(-1, 1)


def absmax(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch 1"]:
    """The scale of int8 activations: the largest |x| of each token (2504.12285, section 2)."""
    return x.abs().amax(dim=-1, keepdim=True).clamp(min=_EPS)


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(weight: Tensor) -> Tensor:
        return ternary_codes(weight) * absmean(weight)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


class _Int8(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))  # a bf16 product has too few digits to round to 256 levels
        scale = 127 / absmax(exact)
        return (exact * scale).round_().clamp_(-128, 127).div_(scale).to(x.dtype)

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def ternary(weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """A weight as {-s, 0, s} with s = absmean(w); the gradient passes straight through."""
    return cast(Tensor, _Ternary.apply(weight))  # type: ignore[no-untyped-call]


def int8(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Activations at 256 levels, one scale a token; the gradient passes straight through."""
    return cast(Tensor, _Int8.apply(x))  # type: ignore[no-untyped-call]
