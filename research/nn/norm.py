"""Root mean square normalisation (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from research.contracts import contract


class _Norm(torch.autograd.Function):
    """The norm in half the passes over memory that separate operations of torch take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        y: Tensor = (wide * inverse if wide is x else wide.mul_(inverse)).mul_(weight)
        return y.to(torch.promote_types(x.dtype, weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """With y = x r w and r = 1 / rms: dy/dx g = r (w g) - x r^3 mean(w g x), dy/dw g = sum over rows of r x g."""
        x, weight, inverse = ctx.saved_tensors
        dtype = x.dtype
        x, g = (t.reshape(-1, t.shape[-1]).to(inverse.dtype) for t in (x, gradient))
        r, w = inverse.flatten(), weight.to(inverse.dtype)
        product = x * g
        along = (product @ w).mul_(r**3 / -x.shape[1])
        x_grad = (g * w if g.dtype == gradient.dtype else g.mul_(w)).mul_(r[:, None]).addcmul_(x, along[:, None])
        return x_grad.view_as(gradient).to(dtype), (r @ product).to(weight.dtype), None


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight (eq. 4), in the wider type of x and the weight.

    So under autocast the layer that follows quantizes a float32 input, not one that bf16 has already rounded.
    """

    @contract
    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        if torch.compiler.is_compiling():  # the compiler fuses separate operations better than our function
            wide = x.to(torch.promote_types(x.dtype, self.weight.dtype))
            return F.rms_norm(wide, self.normalized_shape, self.weight.to(wide.dtype), self.eps)
        return cast(Tensor, _Norm.apply(x, self.weight, self.eps))  # type: ignore[no-untyped-call]
