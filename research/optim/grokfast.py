"""Grokfast (Lee et al. 2024, arXiv 2405.20233): amplify the slow part of the gradient before the optimizer sees it.

A filter is a mixin in front of any torch optimizer class. The result is a real optimizer: alpha and lamb stand in its
parameter groups, the filter's memory in its state, so saving, scheduling and per-group values work as for any other.
The lr is the base's own: no part of it is divided by 1 + lamb.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from research import processes
from research.callback import State
from research.optim import fused
from research.optim.plain import param_groups, wide, widen
from research.ranges import Count, Fraction, NonNegative, Positive
from research.snapshot import SETTINGS
from research.when import moment

log = logging.getLogger(__name__)
Memory = dict[Tensor, dict[str, Any]]


class Filter(Optimizer):
    """Filters p.grad in place, then steps. Stands before an optimizer class in the bases of `filtered`.

    Gradients in half precision are filtered in float32, and sparse ones whole: the slow part moves every row.
    """

    found_inf: Tensor | None = None  # 1: leave this update out
    told = False  # which metrics are missing
    _step_supports_amp_scaling = False  # a fused base would hand us scaled gradients: let the scaler unscale first

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> Memory:
        """Add the slow part to the gradients in place; return what is new in the memory of each parameter."""
        raise TypeError(f"{type(self).__name__} has no filter")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if fused.step(self):
            return loss
        fresh: Memory = {}
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and filters(group):
                grads = [widened(p.grad) for p in params]
                fresh |= self.amplify(grads, params, group)
                for p, grad in zip(params, grads, strict=True):
                    if grad is not p.grad:
                        p.grad.copy_(grad.to_sparse(p.grad.sparse_dim()) if p.grad.is_sparse else grad)
        if norm := self.param_groups[0].get("clip_norm"):
            nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], norm)
        unhooked(super().step)(self)
        for p, memory in fresh.items():  # only now: AdamW sets up its own state only where there is none
            self.state[p].update(memory)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        widen(self, state_dict, ("grokfast_ema", "grokfast_ring", "grokfast_sum"))

    def awaited(self) -> set[str]:
        """The metrics that turn filters on and off."""
        given = [(key, group[key]) for group in self.param_groups for key in ("start_when", "stop_when")]
        return {moment(value, key).metric for key, value in given if value is not None} - {""}

    def heed(self, step: int, metrics: dict[str, float] | None) -> None:
        """Before a step: turn filters on and off where their moment has come, and adapt alpha; None: no news of metrics."""
        for group in self.param_groups:
            start, stop = (group[key] and moment(group[key], f"optim.{key}") for key in ("start_when", "stop_when"))
            waits = not (group["grokfast_on"] or group["grokfast_over"])
            if waits and start.has_come(step, metrics or {}):
                group["grokfast_on"] = True
            if group["grokfast_on"] and stop and stop.has_come(step, metrics or {}):
                group["grokfast_on"], group["grokfast_over"] = False, True
                for p in group["params"]:
                    self.state[p] = {k: value for k, value in self.state[p].items() if not k.startswith("grokfast")}
            if group.get("adapt") and metrics is not None:  # GrokAdamW (Hartford 2024): alpha falls while it only memorises
                delay = max(0.0, metrics.get("val/loss", 0.0) - metrics.get("train/loss", math.inf))
                group["alpha"] = group[SETTINGS]["alpha"] * math.exp(-group["adapt"] * delay)


def filters(group: dict[str, Any]) -> bool:
    """Whether the gradients of a group are filtered now; lamb = 0 is the base class: same bits, no memory."""
    return bool(group["lamb"] and group["grokfast_on"])


def widened(grad: Tensor) -> Tensor:
    """A gradient as the filter sees it: dense, and float32 at least; itself where it is that."""
    dense = grad.to_dense() if grad.is_sparse else grad
    return dense.to(wide(dense.dtype))


def heed(optimizer: Optimizer, state: State) -> None:
    """Tell a filter how far the run is. What its metrics were at the last log point is what the first process saw."""
    if isinstance(optimizer, Filter):
        if "val/loss" in state.logged and not optimizer.told:
            optimizer.told = True
            for metric in optimizer.awaited() - set(state.metrics):
                log.warning(
                    "the filter waits for %s, which no evaluation told; there are: %s", metric, ", ".join(state.metrics)
                )
        news = processes.count() == 1 or bool(state.logged) or state.step == state.first
        optimizer.heed(state.step, processes.everywhere(state.metrics) if news else None)


class EMA(Filter):
    """Slow part: the exponential moving average (2405.20233, Algorithm 2): mu <- alpha mu + (1-alpha) g, g <- g + lamb mu.

    As in the authors' code mu begins at the first gradient; on a device at zero, where that one is not finite.
    """

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> Memory:
        fresh = {p: {"grokfast_ema": grad.clone()} for p, grad in zip(params, grads, strict=True) if _new(self, p)}
        emas = [(fresh.get(p) or self.state[p])["grokfast_ema"] for p in params]
        if self.found_inf is not None:  # a verdict on the device: where it is 1 the average stays as it is
            for grad, ema in zip(grads, emas, strict=True):
                ema.nan_to_num_(0.0, 0.0, 0.0)
                torch.where(self.found_inf > 0, ema, grad, out=grad)
        torch._foreach_lerp_(emas, grads, 1 - group["alpha"])
        torch._foreach_add_(grads, emas, alpha=group["lamb"])
        return fresh


def _new(optimizer: Optimizer, p: Tensor) -> bool:
    return "grokfast_ema" not in optimizer.state[p]


class MA(Filter):
    """Slow part: the mean of the last `window` gradients (2405.20233, Algorithm 1): g <- g + lamb mean(g_{t-w+1} .. g_t).

    Off until the window is full, as in the authors' code. The window is a ring with a running sum, summed anew once a
    turn, so that rounding cannot build up. Its memory is window + 1 times the parameters. With another window than
    before (after a resume) it begins empty.
    """

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> Memory:
        window = group["window"]
        grad_of = dict(zip(params, grads, strict=True))
        fresh = {p: empty(grad, window) for p, grad in grad_of.items() if len(self.state[p].get("grokfast_ring", ())) != window}
        memory_of = {p: fresh.get(p) or self.state[p] for p in params}
        by_age: dict[int, list[Tensor]] = defaultdict(list)  # parameters with a late first gradient are younger
        for p in params:
            by_age[memory_of[p]["grokfast_seen"]].append(p)
        for seen, equals in by_age.items():
            memories, mine = [memory_of[p] for p in equals], [grad_of[p] for p in equals]
            totals = [memory["grokfast_sum"] for memory in memories]
            slots = [memory["grokfast_ring"][seen % window] for memory in memories]
            torch._foreach_add_(totals, mine)
            torch._foreach_sub_(totals, slots)
            torch._foreach_copy_(slots, mine)
            for memory in memories:
                memory["grokfast_seen"] = seen + 1
                if seen % window == window - 1:
                    torch.sum(memory["grokfast_ring"], dim=0, out=memory["grokfast_sum"])
            if seen + 1 >= window:
                torch._foreach_add_(mine, totals, alpha=group["lamb"] / window)
        return fresh


def empty(grad: Tensor, window: int) -> dict[str, Any]:
    """The memory of a window before its first gradient."""
    ring = grad.new_zeros(window, *grad.shape)
    return {"grokfast_ring": ring, "grokfast_sum": torch.zeros_like(grad), "grokfast_seen": 0}


def unhooked(step: Any) -> Callable[[Optimizer], Any]:
    """The base's own step: torch wraps a class's step in hooks once a plain object of it was made, and ours has its own."""
    function = step.__func__
    return function.__wrapped__ if getattr(function, "hooked", False) else function  # type: ignore[no-any-return]


def filtered(filter_class: type[Filter], base: type[Optimizer]) -> type[Optimizer]:
    """`base` with the filter in front, as a class of its own: GrokfastAdamW."""
    return type(f"Grokfast{base.__name__}", (filter_class, base), {})


def _build(
    filter_class: type[Filter],
    model: nn.Module,
    base: partial[Optimizer],
    lr: float,
    weight_decay: float,
    no_decay: Sequence[str],
    unfiltered: Sequence[str],
    options: dict[str, Any],
) -> Optimizer:
    kind = base.func
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)) or issubclass(kind, LBFGS):
        told = "computes gradients within its step" if kind is LBFGS else "is no optimizer class"
        raise ValueError(f"optim.base._target_={getattr(kind, '__qualname__', kind)} {told}: give one as torch.optim.AdamW")
    if not 0 <= options["lamb"] < math.inf:
        raise ValueError(f"optim.lamb={options['lamb']}: the gain of the slow part must be 0 or more")
    for key in ("start_when", "stop_when"):
        if options[key] is not None:
            moment(options[key], f"optim.{key}")
    options |= {"grokfast_on": options["start_when"] is None, "grokfast_over": False}
    groups = []
    for group in param_groups(model, weight_decay, no_decay):
        parts: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
        for name, p in group["params"]:
            parts[not any(word in name for word in unfiltered)].append((name, p))
        gains = {True: options["lamb"], False: 0.0}
        groups += [group | options | {"params": part, "lamb": gains[which]} for which, part in parts.items() if part]
    optimizer = filtered(filter_class, kind)(groups, lr=lr, **base.keywords)  # type: ignore[call-arg]
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
    unfiltered: Sequence[str] = (),
    start_when: int | str | None = None,  # steps or METRIC:VALUE; None: from the first step on
    stop_when: int | str | None = None,
    clip_norm: Positive | None = None,  # of the filtered gradient; trainer.clip_norm is of the raw one
    adapt: NonNegative = 0.0,  # alpha <- alpha exp(-adapt max(0, val/loss - train/loss))
) -> Optimizer:
    """Grokfast-EMA over the optimizer class of `base`: 4 bytes a parameter more than the base.

    Raises ValueError for an alpha outside [0, 1), moments that cannot be read, a base that is no optimizer class.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"optim.alpha={alpha}: the decay of the average must be in [0, 1)")
    when = {"start_when": start_when, "stop_when": stop_when}
    options = {"alpha": alpha, "lamb": lamb, "adapt": adapt, "clip_norm": clip_norm, **when}
    return _build(EMA, model, base, lr, weight_decay, no_decay, unfiltered, options)


def ma(
    model: nn.Module,
    base: partial[Optimizer],
    lr: Positive,
    window: Count = 100,
    lamb: NonNegative = 2.0,
    weight_decay: NonNegative = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
    unfiltered: Sequence[str] = (),
    start_when: int | str | None = None,  # steps or METRIC:VALUE; None: from the first step on
    stop_when: int | str | None = None,
    clip_norm: Positive | None = None,  # of the filtered gradient; trainer.clip_norm is of the raw one
) -> Optimizer:
    """Grokfast-MA over the optimizer class of `base`: window + 1 times the parameters more than the base, which is told.

    Raises ValueError for an empty window, moments that cannot be read, a base that is no optimizer class.
    """
    if window < 1:
        raise ValueError(f"optim.window={window}: give at least 1 gradient")
    when = {"start_when": start_when, "stop_when": stop_when}
    options = {"window": window, "lamb": lamb, "clip_norm": clip_norm, **when}
    optimizer = _build(MA, model, base, lr, weight_decay, no_decay, unfiltered, options)
    kept = [p for group in optimizer.param_groups if group["lamb"] for p in group["params"]]
    size = (window + 1) * sum(p.numel() * max(4, p.element_size()) for p in kept)
    log.warning("Grokfast-MA keeps the last %d gradients: %s MB", window, f"{size / 1e6:,.1f}")
    return optimizer
