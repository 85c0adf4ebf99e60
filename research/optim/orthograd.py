"""OrthoGrad (Prieto et al. 2025, arXiv 2501.04697): remove from each gradient its part along the weights.

Along their own direction weights can grow without end, which lowers the loss but does not help to generalise.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.optim.param_groups import OptimizerType, build_param_groups, promote_dtype, run_closure
from research.optim.transform import GradientTransform, wrap_optimizer
from research.ranges import NonNegativeFloat, PositiveFloat

EPS = 1e-30  # added to w.w: zero weights have no direction, and their gradient stays as it is
NOISE = 16  # rounding errors: a remainder smaller than this has no direction but chance, and becomes zero


class OrthoGrad(GradientTransform):
    """Orthogonalizes p.grad in place, then steps."""

    prefix = "OrthoGrad"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = run_closure(closure)
        orthogonalize_gradients([p for group in self.param_groups for p in group["params"] if p.grad is not None])
        self.step_base()
        return loss


@torch.no_grad()
def orthogonalize_gradients(params: Sequence[Tensor]) -> None:
    """Remove from each gradient, in place, its part along the weights (2501.04697, section 5), and restore its norm.

    A parameter of one number has only that direction: its gradient stays. For sharded weights the products are global.
    """
    params = [p for p in params if p.numel() > 1]
    if not params:
        return
    weights = [p.to(promote_dtype(p.dtype)) for p in params]
    grads = [p.grad.to(promote_dtype(p.dtype)) for p in params]  # type: ignore[union-attr]  # p.grad itself, unless it is half precision
    before = torch._foreach_norm(grads)
    along = [product.sum() for product in torch._foreach_mul(weights, grads)]
    shares = [dot / (norm.square() + EPS) for dot, norm in zip(along, torch._foreach_norm(weights), strict=True)]
    torch._foreach_addcmul_(grads, weights, shares, value=-1)  # g - (w.g / w.w) w
    torch._foreach_mul_(grads, list(map(_compute_rescale, before, torch._foreach_norm(grads))))
    for p, grad in zip(params, grads, strict=True):
        if grad is not p.grad:
            p.grad.copy_(grad)  # type: ignore[union-attr]


def _compute_rescale(before: Tensor, after: Tensor) -> Tensor:
    """Return the factor that restores a gradient's norm; 0 if only rounding errors are left of it."""
    return torch.where(after > NOISE * torch.finfo(after.dtype).eps * before, before / after, 0.0)


def orthograd(
    model: nn.Module,
    base: partial[OptimizerType],
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
) -> Optimizer:
    """Return OrthoGrad over the optimizer class of `base`. It takes no memory of its own.

    Raise ValueError for a base that is no optimizer class.
    """
    return wrap_optimizer(OrthoGrad, base, build_param_groups(model, weight_decay, no_decay), lr)
