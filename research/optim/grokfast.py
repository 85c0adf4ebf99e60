"""Grokfast (Lee et al. 2024, arXiv 2405.20233): amplify the slow part of the gradient before the optimizer's step.

The lr is the base's own: it is not divided by 1 + lamb.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research import rules
from research.optim.filter import Filter, FilterState, init_trigger_state, parse_triggers
from research.optim.fused import init_window
from research.optim.param_groups import OptimizerType, ParamGroup, ParamGroups, build_param_groups, split_group
from research.optim.transform import wrap_optimizer
from research.options.trigger import check_trigger_order
from research.ranges import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, check_settings

log = logging.getLogger(__name__)


class EMA(Filter):
    """Slow part: the exponential moving average (2405.20233, Algorithm 2): mu <- alpha mu + (1-alpha) g, g <- g + lamb mu.

    As in the authors' code mu begins at the first gradient; with `found_inf`, at zero where that is not finite.
    """

    one_pass = "grokfast_alpha"

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> FilterState:
        pairs = zip(params, grads, strict=True)
        fresh = {p: {"grokfast_ema": grad.clone()} for p, grad in pairs if "grokfast_ema" not in self.state[p]}
        emas = [(fresh.get(p) or self.state[p])["grokfast_ema"] for p in params]
        if self.found_inf is not None:  # where it is 1 the update is skipped, and the EMA stays as it is
            for grad, ema in zip(grads, emas, strict=True):
                ema.nan_to_num_(0.0, 0.0, 0.0)
                torch.where(self.found_inf > 0, ema, grad, out=grad)
        torch._foreach_lerp_(emas, grads, 1 - group["grokfast_alpha"])
        torch._foreach_add_(grads, emas, alpha=group["lamb"])
        return fresh


class MA(Filter):
    """Slow part: the mean of the last `window` gradients (2405.20233, Algorithm 1): g <- g + lamb mean(g_{t-w+1} .. g_t).

    As in the authors' code it is off until the window is full. The window is a ring with a running sum, which is computed
    anew once a round so that rounding errors cannot build up. It takes window + 1 times the parameters' memory. After a
    resume with another window it begins empty.
    """

    one_pass = "window"

    def amplify(self, grads: list[Tensor], params: list[Tensor], group: dict[str, Any]) -> FilterState:
        window, fresh = group["window"], FilterState()
        by_age: dict[int, list[tuple[Any, Any]]] = defaultdict(list)  # parameters with a late first gradient have seen fewer
        for p, grad in zip(params, grads, strict=True):
            memory = self.state[p]
            if len(memory.get("grokfast_ring", ())) != window:
                memory = fresh[p] = init_window(grad, window)
            by_age[memory["grokfast_seen"]].append((grad, memory))
        for seen, pairs in by_age.items():
            grads_now, memories = map(list, zip(*pairs, strict=True))
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


def _build(
    kind: type[Filter], base: partial[OptimizerType], lr: float, groups: ParamGroups, words: Sequence[str], options: ParamGroup
) -> Optimizer:
    """Return the filter over the base. Names that contain one of `words` are not filtered. Raise ValueError."""
    start, stop = parse_triggers(options)
    if start and stop:
        rules.enforce(check_trigger_order(start, stop))
    names = [name for group in groups for name, _ in group["params"]]
    if not all(word and any(word in name for name in names) for word in words):
        raise ValueError(f"optim.unfiltered={words}: give a list of words, each in the name of a parameter, as [embed]")
    options |= init_trigger_state(options)
    parts = [part for group in groups for part in split_group(group, words, options, options | {"lamb": 0.0})]
    optimizer = wrap_optimizer(kind, base, parts, lr)
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
    check_settings("optim", ema.__annotations__, locals())
    when = {"start_when": start_when, "stop_when": stop_when}
    options = {"grokfast_alpha": alpha, "alpha_built": alpha, "lamb": lamb, "adapt": adapt, "clip_norm": clip_norm, **when}
    return _build(EMA, base, lr, build_param_groups(model, weight_decay, no_decay), unfiltered, options)


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
    check_settings("optim", ma.__annotations__, locals())
    options = {"window": window, "lamb": lamb, "clip_norm": clip_norm, "start_when": start_when, "stop_when": stop_when}
    optimizer = _build(MA, base, lr, build_param_groups(model, weight_decay, no_decay), unfiltered, options)
    filtered = [p for group in optimizer.param_groups if group["lamb"] for p in group["params"]]
    size = (window + 1) * sum(p.numel() * max(4, p.element_size()) for p in filtered)
    log.warning("Grokfast-MA stores the last %d gradients: %s MB", window, f"{size / 1e6:,.1f}")
    return optimizer
