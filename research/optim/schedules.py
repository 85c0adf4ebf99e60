"""Schedules: pure functions of (step, steps) that give the factor on each group's lr, or those on lr and weight decay; and how
an optimizer follows them.
"""

import math

from torch.optim import Optimizer

from research.optim.param_groups import INITIAL_SETTINGS
from research.ranges import Fraction, NonNegativeInt, OpenFraction


def _warmup_factor(step: int, warmup: int) -> float:
    """Linear from 1/warmup at the first step to 1."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _half_cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def constant(step: int, steps: int, warmup: NonNegativeInt = 0) -> float:
    """Warm-up, then the full lr."""
    return _warmup_factor(step, warmup)


def cosine(step: int, steps: int, warmup: NonNegativeInt = 0, floor: Fraction = 0.1) -> float:
    """Warm-up, then half a cosine down to `floor` at the last step (Loshchilov & Hutter 2017, eq. 5)."""
    if step < warmup:
        return _warmup_factor(step, warmup)
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return floor + (1 - floor) * _half_cosine(done)


def wsd(step: int, steps: int, warmup: NonNegativeInt = 0, decay: Fraction = 0.5, floor: Fraction = 0.0) -> float:
    """Warm-up, stable, then linear down to `floor` over the last share `decay` of the steps (Hu et al. 2024, 2404.06395)."""
    length, left = round(decay * steps), steps - 1 - step
    falling = floor + (1 - floor) * max(0, left) / length if left < length else 1.0
    return min(_warmup_factor(step, warmup), falling)


def bitnet(
    step: int, steps: int, warmup: NonNegativeInt = 0, middle: OpenFraction = 0.5, cooldown: OpenFraction = 0.33
) -> tuple[float, float]:
    """Two stages (b1.58 2B4T report, 2504.12285, sections 3.1.1 and 3.1.2): half a cosine until `middle` of the steps, for lr
    and weight decay; then at once down to `cooldown`, or what is left by then where that is less, and half a cosine from
    there to 0, without weight decay. Warm-up is of lr alone.
    """
    done, warm = step / max(1, steps - 1), _warmup_factor(step, warmup)
    if done < middle:
        return warm * _half_cosine(done), _half_cosine(done)
    return warm * min(cooldown, _half_cosine(middle)) * _half_cosine((done - middle) / (1 - middle)), 0.0


def set_rates(optimizer: Optimizer, factors: float | tuple[float, float]) -> None:
    """Each group's lr, and its weight decay where the schedule has a say in it, are those that it was built with times the
    schedule's factors.
    """
    lr_factor, decay_factor = factors if isinstance(factors, tuple) else (factors, None)
    for group in optimizer.param_groups:
        built = group[INITIAL_SETTINGS]
        group["lr"] = built["lr"] * lr_factor
        if decay_factor is not None and "weight_decay" in built:
            group["weight_decay"] = built["weight_decay"] * decay_factor
