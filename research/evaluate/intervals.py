"""How exact a metric is, and how exact the difference of two: from the influence of each part of the samples.

The influence of a part is how far it moves the metric, to first order; the standard error is that of the mean influence.
A difference is paired: its influences are the differences of both. Parts are documents, or samples that stand alone, as
windows of one document are not independent (clustered errors and paired differences: Miller 2024, 2411.00640, sections 2
and 4).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from research.contracts import contract

GROUPS = 20  # of the jackknife, and blocks of text that is of few documents
MIN_DOCUMENTS = 10
Influences = Float[Tensor, "parts"]


class Estimate(NamedTuple):
    """A number with its standard error and its 95 % t interval; NaN where there are no two parts, or no finite number."""

    value: float
    stderr: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Return half the width of the interval."""
        return self.high - self.value


@contract
def estimate(value: float, influences: Influences | None) -> Estimate:
    """Return a value with the interval that its influences give."""
    if influences is None or (count := len(influences)) < 2 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, math.nan)
    from scipy.special import stdtrit  # heavy

    stderr = float(influences.double().std()) / math.sqrt(count)
    half = float(stdtrit(count - 1, 0.975)) * stderr
    return Estimate(value, stderr, value - half, value + half)


@contract
def estimate_difference(one: tuple[float, Influences], other: tuple[float, Influences]) -> Estimate:
    """Return the difference of a metric to another one of the same parts, paired; of each its value and influences."""
    return estimate(one[0] - other[0], one[1] - other[1])


def sum_parts(values: Float[Tensor, "samples"], parts: Int[Tensor, "samples"]) -> Float[Tensor, "parts"]:
    """Return the sum of each part's samples; parts are numbered from 0 without a gap."""
    return values.new_zeros(int(parts.max()) + 1).index_add_(0, parts, values)


@contract
def measure_ratio(
    numerators: Float[Tensor, "samples"], denominators: Float[Tensor, "samples"], parts: Int[Tensor, "samples"]
) -> Influences:
    """Return the influences on a ratio of two sums, as a mean over targets: Cochran 1977, Sampling Techniques, section 6.3."""
    above, below = sum_parts(numerators, parts), sum_parts(denominators, parts)
    return (above - above.sum() / below.sum() * below) / below.mean()


@contract
def measure_jackknife(left_out: list[float]) -> Influences:
    """Return the influences on any metric, from its values without one group of parts each.

    The delete-a-group jackknife (Kott 2001, The Delete-a-Group Jackknife, Journal of Official Statistics 17).
    """
    values = torch.tensor(left_out, dtype=torch.float64)
    return (len(values) - 1) * (values.mean() - values)


@contract
def number_parts(documents: Int[Tensor, "samples"]) -> tuple[Int[Tensor, "samples"], bool]:
    """Return the part of each sample, from 0 without a gap, and whether parts are documents, or the samples themselves.

    Text of few documents has GROUPS blocks of neighbouring samples in their place: batch means, which are nearly independent
    where a block is long.
    """
    numbers = torch.unique(documents, return_inverse=True)[1]
    if int(numbers.max()) + 1 >= MIN_DOCUMENTS:
        return numbers, True
    return torch.arange(len(numbers)) * min(GROUPS, len(numbers)) // len(numbers), False


@contract
def draw_groups(parts: Int[Tensor, "samples"]) -> Int[Tensor, "samples"]:
    """Return the group of each sample for the jackknife: parts as a whole, at random, from a fixed seed, in equal numbers."""
    count = int(parts.max()) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    groups = torch.empty_like(order)
    groups[order] = torch.arange(count) % min(GROUPS, count)
    return groups[parts]
