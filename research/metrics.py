"""Metrics: pure functions of tensors and numbers."""

import math
import statistics
from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

# The 0.975 quantile of Student's t for 1 to 19 degrees of freedom; above, 1.96 of the normal distribution.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)


def num_correct(logits: Float[Tensor, "batch *rest"], targets: Int[Tensor, "batch *seq"]) -> Int[Tensor, ""]:
    """Return the number of targets with the largest logit; one target a sequence belongs to the last position."""
    if logits.ndim == targets.ndim + 2:
        logits = logits[:, -1]
    return (logits.argmax(-1) == targets).sum()


def nats_to_bits(nats: float) -> float:
    """Return nats as bits; with one byte a token, a loss becomes bits per byte."""
    return nats / math.log(2)


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % t interval: 0 for one value, NaN where a value is not finite."""
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values), math.nan  # statistics raises errors for what has both infinities
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, statistics.stdev(values) / math.sqrt(len(values)) * (T95[len(values) - 2] if len(values) < 21 else 1.96)
