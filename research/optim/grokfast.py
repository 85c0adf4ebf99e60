"""Grokfast (Lee et al. 2024, arXiv 2405.20233): amplify the slow part of the gradient before the optimizer's step.

The lr is the base's own: it is not divided by 1 + lamb.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research import rules
from research.optim.filter import Filter, FilterState, init_trigger_state
from research.optim.param_groups import OptimizerType, build_param_groups
from research.optim.transform import wrap_optimizer
from research.ranges import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from research.trigger import parse_trigger

log = logging.getLogger(__name__)


class EMA(Filter):
    """Slow part: the exponential moving average (2405.20233, Algorithm 2): mu <- alpha mu + (1-alpha) g, g <- g + lamb mu.

    As in the authors' code mu begins at the first gradient; with `found_inf`, at zero where that is not finite.
    """

    one_pass = "ema"

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> FilterState:
        fresh = {p: {"grokfast_ema": grad.clone()} for p, grad in zip(params, grads, strict=True) if _is_new(self, p)}
        emas = [(fresh.get(p) or self.state[p])["grokfast_ema"] for p in params]
        if self.found_inf is not None:  # where it is 1 the update is skipped, and the average stays as it is
            for grad, ema in zip(grads, emas, strict=True):
                ema.nan_to_num_(0.0, 0.0, 0.0)
                torch.where(self.found_inf > 0, ema, grad, out=grad)
        torch._foreach_lerp_(emas, grads, 1 - group["grokfast_alpha"])
        torch._foreach_add_(grads, emas, alpha=group["lamb"])
        return fresh


def _is_new(optimizer: Optimizer, p: Tensor) -> bool:
    return "grokfast_ema" not in optimizer.state[p]


class MA(Filter):
    """Slow part: the mean of the last `window` gradients (2405.20233, Algorithm 1): g <- g + lamb mean(g_{t-w+1} .. g_t).

    As in the authors' code it is off until the window is full. The window is a ring with a running sum, which is computed
    anew once a round so that rounding errors cannot build up. It takes window + 1 times the parameters' memory. After a
    resume with another window it begins empty.
    """

    one_pass = "window"

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> FilterState:
        window = group["window"]
        grad_of = dict(zip(params, grads, strict=True))
        fresh = {
            p: init_window(grad, window) for p, grad in grad_of.items() if len(self.state[p].get("grokfast_ring", ())) != window
        }
        memory_of = {p: fresh.get(p) or self.state[p] for p in params}
        by_age: dict[int, list[Tensor]] = defaultdict(list)  # parameters with a late first gradient have seen fewer
        for p in params:
            by_age[memory_of[p]["grokfast_seen"]].append(p)
        for seen, equals in by_age.items():
            memories, grads_now = [memory_of[p] for p in equals], [grad_of[p] for p in equals]
            totals = [memory["grokfast_sum"] for memory in memories]
            slots = [memory["grokfast_ring"][seen % window] for memory in memories]
            torch._foreach_add_(totals, grads_now)
            torch._foreach_sub_(totals, slots)
            torch._foreach_zero_(slots)
            torch._foreach_add_(slots, grads_now)  # _foreach_copy_ does not take sharded tensors
            for memory in memories:
                memory["grokfast_seen"] = seen + 1
                if seen % window == window - 1:
                    memory["grokfast_sum"].copy_(memory["grokfast_ring"].sum(0))
            if seen + 1 >= window:
                torch._foreach_add_(grads_now, totals, alpha=group["lamb"] / window)
        return fresh


def init_window(grad: Tensor, window: int) -> dict[str, Any]:
    """Return the state of a window before its first gradient."""
    nothing = torch.zeros_like(grad)
    return {"grokfast_ring": torch.stack([nothing] * window), "grokfast_sum": nothing, "grokfast_seen": 0}


def _check_options(options: dict[str, Any]) -> None:
    """Raise ValueError for options that would reverse a gradient, or filter nothing."""
    if not 0 <= options["lamb"] < math.inf:
        raise ValueError(f"optim.lamb={options['lamb']}: the gain of the slow part must be 0 or more")
    if not 0 <= options.get("adapt", 0) < math.inf:
        raise ValueError(f"optim.adapt={options['adapt']}: how strongly alpha follows the signal must be 0 or more")
    if options["clip_norm"] is not None and not options["clip_norm"] > 0:
        raise ValueError(f"optim.clip_norm={options['clip_norm']}: the largest norm must be above 0, or null")
    triggers = [(key, options[key]) for key in ("start_when", "stop_when")]
    start, stop = (None if value is None else parse_trigger(value, f"optim.{key}") for key, value in triggers)
    if start and stop:
        rules.enforce(rules.check_trigger_order(start, stop))


def _build(
    filter_class: type[Filter],
    model: nn.Module,
    base: partial[OptimizerType],
    lr: float,
    weight_decay: float,
    no_decay: Sequence[str],
    unfiltered: Sequence[str],
    options: dict[str, Any],
) -> Optimizer:
    """Return the filter over the base, with the filter's options in each group. Raise ValueError for wrong settings."""
    _check_options(options)
    names = [name for name, _ in model.named_parameters()]
    if isinstance(unfiltered, str) or not all(word and any(word in name for name in names) for word in unfiltered):
        raise ValueError(f"optim.unfiltered={unfiltered}: give a list of words, each in the name of a parameter, as [embed]")
    options |= init_trigger_state(options["start_when"], options["stop_when"])
    groups = []
    for group in build_param_groups(model, weight_decay, no_decay):
        parts: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
        for name, p in group["params"]:
            parts[not any(word in name for word in unfiltered)].append((name, p))
        gains = {True: options["lamb"], False: 0.0}
        groups += [group | options | {"params": part, "lamb": gains[which]} for which, part in parts.items() if part]
    optimizer = wrap_optimizer(filter_class, base, groups, lr)
    if taken := signature(base.func).parameters.keys() & options:  # one key of a group cannot be both
        reason = f"has a setting {min(taken)}, as the filter has: give another optimizer, as torch.optim.AdamW"
        raise ValueError(f"optim.base._target_={base.func.__qualname__} {reason}")
    optimizer.defaults |= options  # for groups that are added later
    return optimizer


def ema(
    model: nn.Module,
    base: partial[OptimizerType],
    lr: PositiveFloat,
    alpha: Fraction = 0.9,
    lamb: NonNegativeFloat = 2.0,
    weight_decay: NonNegativeFloat = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
    unfiltered: Sequence[str] = (),
    start_when: int | str | None = None,  # steps or METRIC:VALUE; None: from the first step on
    stop_when: int | str | None = None,
    clip_norm: PositiveFloat | None = None,  # of the filtered gradient; trainer.clip_norm is of the raw one
    adapt: NonNegativeFloat = 0.0,  # alpha <- alpha exp(-adapt * signal), signal as in measure_overfitting
) -> Optimizer:
    """Return Grokfast-EMA over the optimizer class of `base`. It takes 4 bytes a parameter more than the base.

    Raise ValueError for an alpha outside [0, 1), a trigger that cannot be parsed, or a base that is no optimizer class.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"optim.alpha={alpha}: the decay of the average must be in [0, 1)")
    when = {"start_when": start_when, "stop_when": stop_when}
    options = {"grokfast_alpha": alpha, "alpha_built": alpha, "lamb": lamb, "adapt": adapt, "clip_norm": clip_norm, **when}
    return _build(EMA, model, base, lr, weight_decay, no_decay, unfiltered, options)


def ma(
    model: nn.Module,
    base: partial[OptimizerType],
    lr: PositiveFloat,
    window: PositiveInt = 100,
    lamb: NonNegativeFloat = 2.0,
    weight_decay: NonNegativeFloat = 0.0,
    no_decay: Sequence[str] = ("norm", "bias"),
    unfiltered: Sequence[str] = (),
    start_when: int | str | None = None,  # steps or METRIC:VALUE; None: from the first step on
    stop_when: int | str | None = None,
    clip_norm: PositiveFloat | None = None,  # of the filtered gradient; trainer.clip_norm is of the raw one
) -> Optimizer:
    """Return Grokfast-MA over the optimizer class of `base`. It takes window + 1 times the parameters' memory: warn of it.

    Raise ValueError for an empty window, a trigger that cannot be parsed, or a base that is no optimizer class.
    """
    if window < 1:
        raise ValueError(f"optim.window={window}: give at least 1 gradient")
    when = {"start_when": start_when, "stop_when": stop_when}
    options = {"window": window, "lamb": lamb, "clip_norm": clip_norm, **when}
    optimizer = _build(MA, model, base, lr, weight_decay, no_decay, unfiltered, options)
    filtered = [p for group in optimizer.param_groups if group["lamb"] for p in group["params"]]
    size = (window + 1) * sum(p.numel() * max(4, p.element_size()) for p in filtered)
    log.warning("Grokfast-MA stores the last %d gradients: %s MB", window, f"{size / 1e6:,.1f}")
    return optimizer
