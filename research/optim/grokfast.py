"""Grokfast (Lee et al. 2024, arXiv 2405.20233): amplify the slow part of the gradient before the optimizer sees it.

A filter is a mixin in front of any torch optimizer class. The result is a real optimizer: alpha and lamb stand in its
parameter groups, the filter's memory in its state, so saving, scheduling and per-group values work as for any other.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.optim.plain import param_groups
from research.ranges import Count, Fraction, NonNegative, Positive

Memory = dict[Tensor, dict[str, Any]]


class _Filter(Optimizer):
    """Filters p.grad in place, then steps. Stands before an optimizer class in the bases of `filtered`."""

    found_inf: Tensor | None = None  # 1: leave this update out
    _step_supports_amp_scaling = False  # a fused base would hand us scaled gradients: let the scaler unscale first

    def amplify(self, params: list[Tensor], group: dict[str, Any]) -> Memory:
        """Add the slow part to the gradients in place; return what is new in the memory of each parameter."""
        raise TypeError(f"{type(self).__name__} has no filter")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        fresh: Memory = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["lamb"]:  # lamb = 0 is the base class: same bits, no memory
                fresh |= self.amplify(params, group)
        _unhooked(super().step)(self)
        for p, memory in fresh.items():  # only now: AdamW sets up its own state only where there is none
            self.state[p].update(memory)
        return loss


class EMA(_Filter):
    """Slow part: the exponential moving average (2405.20233, Algorithm 2): mu <- alpha mu + (1-alpha) g, g <- g + lamb mu.

    As in the authors' code mu begins at the first gradient; on a device at zero, where that one is not finite.
    """

    def amplify(self, params: list[Tensor], group: dict[str, Any]) -> Memory:
        fresh = {p: {"grokfast_ema": p.grad.clone()} for p in params if "grokfast_ema" not in self.state[p]}  # type: ignore[union-attr]
        grads = [p.grad for p in params]
        emas = [(fresh.get(p) or self.state[p])["grokfast_ema"] for p in params]
        if self.found_inf is not None:  # a verdict on the device: where it is 1 the average stays as it is
            for grad, ema in zip(grads, emas, strict=True):
                ema.nan_to_num_(0.0, 0.0, 0.0)
                torch.where(self.found_inf > 0, ema, grad, out=grad)  # type: ignore[arg-type]
        torch._foreach_lerp_(emas, grads, 1 - group["alpha"])  # type: ignore[arg-type]
        torch._foreach_add_(grads, emas, alpha=group["lamb"])  # type: ignore[arg-type]
        return fresh


class MA(_Filter):
    """Slow part: the mean of the last `window` gradients (2405.20233, Algorithm 1): g <- g + lamb mean(g_{t-w+1} .. g_t).

    Off until the window is full, as in the authors' code. The window is a ring with a running sum, summed anew once a
    turn, so that rounding cannot build up. Its memory is window + 1 times the parameters. With another window than
    before (after a resume) it begins empty.
    """

    def amplify(self, params: list[Tensor], group: dict[str, Any]) -> Memory:
        window = group["window"]
        fresh = {p: self._empty(p, window) for p in params if len(self.state[p].get("grokfast_ring", ())) != window}
        memory_of = {p: fresh.get(p) or self.state[p] for p in params}
        by_age: dict[int, list[Tensor]] = defaultdict(list)  # parameters with a late first gradient are younger
        for p in params:
            by_age[memory_of[p]["grokfast_seen"]].append(p)
        for seen, equals in by_age.items():
            memories = [memory_of[p] for p in equals]
            grads = [p.grad for p in equals]
            totals = [memory["grokfast_sum"] for memory in memories]
            slots = [memory["grokfast_ring"][seen % window] for memory in memories]
            torch._foreach_add_(totals, grads)  # type: ignore[arg-type]
            torch._foreach_sub_(totals, slots)
            torch._foreach_copy_(slots, grads)  # type: ignore[arg-type]
            for memory in memories:
                memory["grokfast_seen"] = seen + 1
                if seen % window == window - 1:
                    torch.sum(memory["grokfast_ring"], dim=0, out=memory["grokfast_sum"])
            if seen + 1 >= window:
                torch._foreach_add_(grads, totals, alpha=group["lamb"] / window)  # type: ignore[arg-type]
        return fresh

    @staticmethod
    def _empty(p: Tensor, window: int) -> dict[str, Any]:
        return {"grokfast_ring": p.new_zeros(window, *p.shape), "grokfast_sum": torch.zeros_like(p), "grokfast_seen": 0}


def _unhooked(step: Any) -> Callable[[Optimizer], Any]:
    """The base's own step: torch wraps a class's step in hooks once a plain object of it was made, and ours has its own."""
    function = step.__func__
    return function.__wrapped__ if getattr(function, "hooked", False) else function  # type: ignore[no-any-return]


def filtered(filter_class: type[_Filter], base: type[Optimizer]) -> type[Optimizer]:
    """`base` with the filter in front, as a class of its own: GrokfastAdamW."""
    return type(f"Grokfast{base.__name__}", (filter_class, base), {})


def _build(
    filter_class: type[_Filter],
    model: nn.Module,
    base: partial[Optimizer],
    lr: float,
    weight_decay: float,
    no_decay: Sequence[str],
    **options: float | int,
) -> Optimizer:
    assert isinstance(base.func, type)
    groups = [group | options for group in param_groups(model, weight_decay, no_decay)]
    optimizer = filtered(filter_class, base.func)(groups, lr=lr, **base.keywords)  # type: ignore[call-arg]
    heeds = filter_class is EMA and optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
    optimizer.heeds_found_inf = heeds  # type: ignore[attr-defined]
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # fused bases switch it on in __init__
    return optimizer


def ema(
    model: nn.Module,
    base: partial[Optimizer],
    lr: Positive,
    alpha: Fraction = 0.9,
    lamb: NonNegative = 2.0,
    weight_decay: NonNegative = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
) -> Optimizer:
    """Grokfast-EMA over the optimizer class of `base`: 4 bytes a parameter more than the base."""
    if not 0 <= alpha < 1:
        raise ValueError(f"optim.alpha={alpha}: the decay of the average must be in [0, 1)")
    return _build(EMA, model, base, lr, weight_decay, no_decay, alpha=alpha, lamb=lamb)


def ma(
    model: nn.Module,
    base: partial[Optimizer],
    lr: Positive,
    window: Count = 100,
    lamb: NonNegative = 2.0,
    weight_decay: NonNegative = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
) -> Optimizer:
    """Grokfast-MA over the optimizer class of `base`: window + 1 times the parameters more than the base."""
    if window < 1:
        raise ValueError(f"optim.window={window}: give at least 1 gradient")
    return _build(MA, model, base, lr, weight_decay, no_decay, window=window, lamb=lamb)
