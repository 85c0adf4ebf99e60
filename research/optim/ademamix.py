"""AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137): Adam with a second, much slower average of the gradient."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from research import rules
from research.contracts import contract
from research.optim.param_groups import promote, restore_promoted_state, run_closure
from research.ranges import Fractions, NonNegativeFloat, PositiveFloat, PositiveInt, check_settings

MOMENTS = ("exp_avg", "exp_avg_slow", "exp_avg_sq")  # m1, m2 and v of the paper


class AdEMAMix(Optimizer):
    """AdEMAMix (2409.03137, Algorithm 1) with its two schedules; the weight decay is decoupled, as in AdamW.

    The moments of half-precision parameters are float32. The schedules count each parameter's own steps.
    Raise ValueError for betas or schedules outside their range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: PositiveFloat = 1e-3,
        betas: Fractions = (0.9, 0.999, 0.9999),  # of the fast average, of the squares, of the slow average
        alpha: NonNegativeFloat = 5.0,  # weight of the slow average; 0 is AdamW
        t_alpha: PositiveInt | None = None,  # steps in which alpha rises from 0; None: constant
        t_beta3: PositiveInt | None = None,  # steps in which the third beta rises from the first; None: constant
        eps: PositiveFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        check_settings("optim.base", AdEMAMix.__init__.__annotations__, locals())
        rules.enforce(rules.check_betas("research.optim.ademamix.AdEMAMix", betas))
        settings = {"betas": tuple(betas), "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay} | settings)

    @contract
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        restore_promoted_state(self, state_dict, MOMENTS)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = run_closure(closure)
        for group in self.param_groups:
            by_step: dict[int, list[Tensor]] = defaultdict(list)  # parameters with a late first gradient have fewer steps
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state |= {key: torch.zeros_like(promote(p)) for key in MOMENTS}
                        state["step"] = torch.zeros(())
                    state["step"] += 1
                    by_step[int(state["step"])].append(p)
            for t, params in by_step.items():
                self._update(params, t, group)
        return loss

    def _update(self, params: list[Tensor], t: int, group: dict[str, Any]) -> None:
        """Take the t-th step of these parameters, t from 1."""
        (beta1, beta2, _), lr = group["betas"], group["lr"]
        alpha, beta3 = schedule_alpha(t, group["alpha"], group["t_alpha"]), schedule_beta3(t, group["betas"], group["t_beta3"])
        m1, m2, v = ([self.state[p][key] for p in params] for key in MOMENTS)
        weights, grads = [promote(p) for p in params], [promote(p.grad) for p in params if p.grad is not None]
        torch._foreach_lerp_(m1, grads, 1 - beta1)  # m1 <- beta1 m1 + (1 - beta1) g
        torch._foreach_lerp_(m2, grads, 1 - beta3)  # m2 <- beta3 m2 + (1 - beta3) g
        torch._foreach_mul_(v, beta2)  # v <- beta2 v + (1 - beta2) g^2
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        updates = torch._foreach_div(m1, 1 - beta1**t)  # m1 / (1 - beta1^t) + alpha m2, which has no bias correction
        torch._foreach_add_(updates, m2, alpha=alpha)
        roots = torch._foreach_sqrt(v)  # sqrt(v / (1 - beta2^t)) + eps
        torch._foreach_div_(roots, math.sqrt(1 - beta2**t))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])  # theta <- theta - lr (update / root + lambda theta)
        torch._foreach_addcdiv_(weights, updates, roots, -lr)
        for p, weight in zip(params, weights, strict=True):
            if weight is not p:
                p.copy_(weight)


def schedule_alpha(t: int, alpha: float, steps: int | None) -> float:
    """Return the weight of the slow average at step t, from 1: min(t alpha / steps, alpha) (2409.03137, section 3)."""
    return min(t * alpha / steps, alpha) if steps else alpha


def schedule_beta3(t: int, betas: Sequence[float], steps: int | None) -> float:
    """Return the decay of the slow average at step t, from 1: its half-life rises linearly (2409.03137, section 3).

    exp(ln beta1 ln beta3 / ((1 - t/steps) ln beta3 + t/steps ln beta1)), at most beta3. Computed here with 1 / ln beta, to
    which the half-life is proportional, so that beta1 = 0 works.
    """
    beta1, _, beta3 = betas
    if not steps or t >= steps:
        return beta3
    begin = 1 / math.log(beta1) if beta1 else 0.0
    return math.exp(1 / ((1 - t / steps) * begin + t / steps / math.log(beta3)))
