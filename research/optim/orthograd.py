"""OrthoGrad (Prieto et al. 2025, arXiv 2501.04697): step only across the weights, never along them.

Along its own direction a network's weights can grow for ever, which lowers the loss and teaches nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.optim.param_groups import build_param_groups, promote_dtype, run_closure
from research.optim.transform import GradientTransform, wrap_optimizer
from research.ranges import NonNegativeFloat, PositiveFloat

EPS = 1e-30  # beside w.w: weights of zero have no direction, and their gradient stays as it is
NOISE = 16  # roundings: what is left of a gradient below so many of its own is no direction but chance


class OrthoGrad(GradientTransform):
    """Turns p.grad in place, then steps."""

    prefix = "OrthoGrad"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = run_closure(closure)
        orthogonalize_gradients([p for group in self.param_groups for p in group["params"] if p.grad is not None])
        self.step_base()
        return loss


@torch.no_grad()
def orthogonalize_gradients(params: Sequence[Tensor]) -> None:
    """Each gradient without its part along the weights (2501.04697, section 5), and as long as before.

    In place. A single number has nothing but its own direction: its gradient stays. Of sharded weights the products are
    those of the whole.
    """
    params = [p for p in params if p.numel() > 1]
    if not params:
        return
    weights = [p.to(promote_dtype(p.dtype)) for p in params]
    grads = [p.grad.to(promote_dtype(p.dtype)) for p in params]  # type: ignore[union-attr]  # p.grad itself, unless in half precision
    before = torch._foreach_norm(grads)
    along = [product.sum() for product in torch._foreach_mul(weights, grads)]
    shares = [dot / (norm.square() + EPS) for dot, norm in zip(along, torch._foreach_norm(weights), strict=True)]
    torch._foreach_addcmul_(grads, weights, shares, value=-1)  # g - (w.g / w.w) w
    torch._foreach_mul_(grads, list(map(_compute_rescale, before, torch._foreach_norm(grads))))
    for p, grad in zip(params, grads, strict=True):
        if grad is not p.grad:
            p.grad.copy_(grad)  # type: ignore[union-attr]


def _compute_rescale(before: Tensor, after: Tensor) -> Tensor:
    """What gives a gradient its length back; 0 where only rounding is left of it."""
    return torch.where(after > NOISE * torch.finfo(after.dtype).eps * before, before / after, 0.0)


def orthograd(
    model: nn.Module,
    base: partial[Optimizer],
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
) -> Optimizer:
    """OrthoGrad over the optimizer class of `base`; it needs no memory of its own.

    Raises ValueError for a base that is no optimizer class.
    """
    return wrap_optimizer(OrthoGrad, base, build_param_groups(model, weight_decay, no_decay), lr)
