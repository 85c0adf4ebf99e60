"""Schedules: pure functions of (step, steps) that return a factor for the lr, or one for lr and one for weight decay.

`set_rates` applies them to an optimizer. A run that is lengthened stretches them, unless `end` holds the step at which they
end: their last value stays from there on.
"""

import math

from torch.optim import Optimizer

from research.contracts import contract
from research.optim.param_groups import INITIAL_SETTINGS
from research.ranges import Fraction, NonNegativeInt, OpenFraction, PositiveInt


def _half_cosine(progress: float) -> float:
    """Return half a cosine: 1 at progress 0, 0 at progress 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def constant(step: int, steps: int, warmup: NonNegativeInt = 0) -> float:
    """Return 1 after the warm-up, which is linear from 1/warmup at the first step."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def cosine(step: int, steps: int, warmup: NonNegativeInt = 0, floor: Fraction = 0.1, end: PositiveInt | None = None) -> float:
    """After the warm-up, half a cosine down to `floor` at the last step (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""
    if step < warmup:
        return constant(step, steps, warmup)
    done = min(1.0, (step - warmup) / max(1, (end or steps) - 1 - warmup))
    return floor + (1 - floor) * _half_cosine(done)


def wsd(
    step: int,
    steps: int,
    warmup: NonNegativeInt = 0,
    decay: Fraction = 0.5,
    floor: Fraction = 0.0,
    end: PositiveInt | None = None,
) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, 2404.06395): linear to `floor` over the last share `decay` of the steps."""
    decay_steps, left = round(decay * (end or steps)), (end or steps) - 1 - step
    falling = floor + (1 - floor) * max(0, left) / decay_steps if left < decay_steps else 1.0
    return min(constant(step, steps, warmup), falling)


def bitnet(
    step: int,
    steps: int,
    warmup: NonNegativeInt = 0,
    middle: OpenFraction = 0.5,
    cooldown: OpenFraction = 0.33,
    end: PositiveInt | None = None,
) -> tuple[float, float]:
    """Return factors for lr and weight decay in the two stages of b1.58 2B4T (2504.12285, sections 3.1.1 and 3.1.2).

    Until `middle` of the steps both follow half a cosine. Then the lr drops to `cooldown` (or stays, if it is lower) and
    follows half a cosine to 0, without weight decay. The warm-up applies to the lr only.
    """
    done, warm = min(1.0, step / max(1, (end or steps) - 1)), constant(step, steps, warmup)
    if done < middle:
        return warm * _half_cosine(done), _half_cosine(done)
    return warm * min(cooldown, _half_cosine(middle)) * _half_cosine((done - middle) / (1 - middle)), 0.0


def set_rates(optimizer: Optimizer, factors: float | tuple[float, float]) -> None:
    """Set each group's lr, and its weight decay if the schedule has a factor for it: initial settings times the factors.

    Raise ValueError for a factor below 0, with which an optimizer climbs, and for NaN.
    """
    lr_factor, decay_factor = factors if isinstance(factors, tuple) else (factors, None)
    if not (lr_factor >= 0 and (decay_factor is None or decay_factor >= 0)):
        raise ValueError(f"the schedule's factors are {factors}: give one that returns 0 or more")
    for group in optimizer.param_groups:
        initial = group[INITIAL_SETTINGS]
        group["lr"] = initial["lr"] * lr_factor
        if decay_factor is not None and "weight_decay" in initial:
            group["weight_decay"] = initial["weight_decay"] * decay_factor


@contract
def get_lr(optimizer: Optimizer) -> float:
    """Return the learning rate of the first group as it is now."""
    return float(optimizer.param_groups[0]["lr"])
