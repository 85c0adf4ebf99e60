"""OrthoGrad (Prieto et al. 2025, arXiv 2501.04697): remove from each gradient its part along the weights.

Along their own direction weights can grow without end, which lowers the loss but does not help to generalise.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.optim.param_groups import OptimizerType, build_param_groups, promote, run_closure
from research.optim.transform import GradientTransform, wrap_optimizer
from research.ranges import NonNegativeFloat, PositiveFloat, check_settings

EPS = 1e-30  # added to w.w: zero weights have no direction, and their gradient stays as it is
NOISE = 16  # rounding errors: a smaller remainder is rounding noise, and becomes zero


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
    weights = [promote(p) for p in params]
    grads = [promote(p.grad) for p in params if p.grad is not None]
    before = torch._foreach_norm(grads)
    along = [product.sum() for product in torch._foreach_mul(weights, grads)]
    shares = [dot / (norm.square() + EPS) for dot, norm in zip(along, torch._foreach_norm(weights), strict=True)]
    torch._foreach_addcmul_(grads, weights, shares, value=-1)  # g - (w.g / w.w) w
    norms = zip(before, torch._foreach_norm(grads), strict=True)
    rescales = [torch.where(new > NOISE * torch.finfo(new.dtype).eps * old, old / new, 0.0) for old, new in norms]
    torch._foreach_mul_(grads, rescales)
    for p, grad in zip(params, grads, strict=True):
        if grad is not p.grad:
            p.grad.copy_(grad)  # type: ignore[union-attr]


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
    check_settings("optim", orthograd.__annotations__, locals())
    return wrap_optimizer(OrthoGrad, base, build_param_groups(model, weight_decay, no_decay), lr)
