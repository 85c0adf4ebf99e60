"""Metrics: pure functions of tensors and numbers, and those that conf/metrics adds to an evaluation.

One of these sees the evaluation batch by batch. What it keeps of each batch comes together from all processes before its
number is computed. So the number is of all targets, however many processes share them. torchmetrics is imported only where
one of its metrics is used.
"""

import copy
import logging
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from research.contracts import contract
from research.losses import IGNORE
from research.ranges import PositiveInt, check_settings

log = logging.getLogger(__name__)

# The 0.975 quantile of Student's t for 1 to 19 degrees of freedom; above, 1.96 of the normal distribution.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)


NUM_BINS = 15  # of confidences, as Guo et al. 2017 have them
MAX_DRAWS = 20_000_000  # random numbers of one calibration null


@contract
def num_correct(logits: Float[Tensor, "batch *rest"], targets: Int[Tensor, "batch *positions"]) -> Int[Tensor, ""]:
    """Return the number of targets with the largest logit; one target a sequence belongs to the last position."""
    return (put_classes_last(logits, targets).argmax(-1) == targets).sum()


@contract
def put_classes_last(
    logits: Float[Tensor, "batch *rest"], targets: Shaped[Tensor, "batch *positions"]
) -> Float[Tensor, "batch *positions classes"]:
    """Return logits with the classes last: at the last position where a sequence has one target, of pixels from axis 1."""
    if logits.ndim == targets.ndim + 2:
        return logits[:, -1]
    return logits.movedim(1, -1) if targets.ndim == 3 else logits


def select_valid(
    logits: Float[Tensor, "batch *rest"], targets: Shaped[Tensor, "batch *positions"]
) -> tuple[Float[Tensor, "n ..."], Num[Tensor, "n ..."]]:
    """Return the logits [n, classes] and the class of each target that counts; of numbers the outputs and the numbers.

    In float32 or better, as a model in bf16 has eight bits; numbers in float64, whose squares are summed.
    """
    if targets.is_floating_point():
        return logits.double().reshape(targets.shape), targets.double()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_valid = targets != IGNORE
    return put_classes_last(logits, targets)[is_valid], targets[is_valid].long()


@contract
def nats_to_bits(nats: float) -> float:
    """Return nats as bits; with one byte a token, a loss becomes bits per byte."""
    return nats / math.log(2)


@contract
def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % t interval: 0 for one value, NaN where a value is not finite."""
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values), math.nan  # statistics raises errors for what has both infinities
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, statistics.stdev(values) / math.sqrt(len(values)) * (T95[len(values) - 2] if len(values) < 21 else 1.96)


class Metric(ABC):
    """One number of an evaluation, `val/NAME` for the NAME that conf/metrics gives it.

    `higher_is_better` decides what best means, also in sweeps; None: it cannot be the monitor. Most are a `RowMetric`.
    """

    @contract
    def __init__(self, higher_is_better: bool | None) -> None:
        self.higher_is_better = higher_is_better

    @abstractmethod
    def reset(self) -> None:
        """Forget the evaluation before."""

    @abstractmethod
    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch."""

    @abstractmethod
    def merge(self, parts: Sequence[Any]) -> float:
        """Return the metric over what this metric has kept in all processes, its `parts`."""


@contract
class RowMetric(Metric):
    """A metric of two functions: `measure`, a row for each target or sample that counts, and `compute`, of all rows."""

    def __init__(self, higher_is_better: bool | None) -> None:
        super().__init__(higher_is_better)
        self.rows: list[Tensor] = []

    @abstractmethod
    def measure(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "n ..."]:
        """Return what a batch adds, one row a target or sample; `select_valid` takes what counts."""

    @abstractmethod
    def compute(self, rows: Float[Tensor, "n ..."]) -> float:
        """Return the metric of all rows, which are in float64."""

    def reset(self) -> None:
        self.rows = []

    def update(self, logits: Tensor, targets: Tensor) -> None:
        rows: object = self.measure(logits, targets)
        if not isinstance(rows, Tensor) or not rows.ndim:
            fix = "return a row for each target that counts, [n] or [n, ...]: compute takes the mean"
            raise ValueError(f"{self.name}.measure returned {describe(rows)}, which is no row\n{fix}")
        self.rows.append(rows.detach())

    def merge(self, parts: Sequence[Any]) -> float:
        return self.to_number(self.compute(self.join_rows(parts)))

    def join_rows(self, parts: Sequence["RowMetric"]) -> Float[Tensor, "n ..."]:
        """Return the rows of all batches and processes."""
        return torch.cat([row.cpu() for part in parts for row in part.rows]).double()

    def to_number(self, value: object) -> float:
        """Return what `compute` has returned. Raise ValueError where it is no number."""
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, RuntimeError) as error:
            message = f"{self.name}.compute returned {describe(value)}, which is no number"
            raise ValueError(f"{message}\nreturn one number; a metric for each other one") from error

    @property
    def name(self) -> str:
        """Return the name of its class, as `_target_` has it."""
        return f"{type(self).__module__}.{type(self).__qualname__}"


@contract
class Torchmetric(Metric):
    """A metric of the torchmetrics library, or one with its interface.

    `metric` makes it: of classes it gets their number, and then probabilities [n, classes] with targets [n]; of numbers the
    outputs and the targets. With `needs_all_classes` it is NaN, and a warning tells why, where a class has no target: a NaN
    is never best.
    """

    def __init__(self, higher_is_better: bool | None, metric: Callable[..., Any], needs_all_classes: bool = False) -> None:
        super().__init__(higher_is_better)
        self.make, self.needs_all_classes = metric, needs_all_classes
        self.metric: Any = None
        self.class_counts = torch.zeros(0)
        self.class_names: Sequence[str] = ()  # for the warning
        self.has_warned = False

    def reset(self) -> None:
        self.metric, self.class_counts = None, torch.zeros(0)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        outputs, targets = select_valid(logits, targets)
        if not len(targets):
            return
        has_classes = not targets.is_floating_point()
        if self.metric is None:
            settings = {"num_classes": outputs.shape[-1]} if has_classes else {}
            self.metric = self.make(**settings, sync_on_compute=False).to(outputs.device)
            self.metric.set_dtype(torch.float64)  # of its sums
            self.class_counts = outputs.new_zeros(settings.get("num_classes", 0))
        if has_classes:
            outputs = outputs.double().softmax(-1)  # in float32 all that are sure to 1 in 10^8 would be tied
            self.class_counts += torch.bincount(targets, minlength=len(self.class_counts))
        self.metric.update(outputs, targets)

    def merge(self, parts: Sequence[Any]) -> float:
        parts = [part for part in parts if part.metric is not None]
        merged = copy.deepcopy(parts[0].metric).cpu()
        for part in parts[1:]:
            merged.merge_state(part.metric.cpu())
        missing = (torch.stack([part.class_counts.cpu() for part in parts]).sum(0) == 0).nonzero().flatten().tolist()
        reason = f"the split has no target of class {name_classes(missing, self.class_names)}" if missing else ""
        try:
            value = math.nan if self.needs_all_classes and reason else float(merged.compute())
        except ValueError as error:  # as of R2 of one sample
            value, reason = math.nan, str(error)
        if math.isnan(value) and not self.has_warned:
            self.has_warned = True
            log.warning("%s is NaN: %s", type(merged).__name__, reason or "torchmetrics gives no number")
        return value


class Perplexity(RowMetric):
    """e to the mean cross entropy (nats) of the targets."""

    @contract
    def measure(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "n"]:
        return F.cross_entropy(*select_valid(logits, targets), reduction="none")

    @contract
    def compute(self, rows: Float[Tensor, "n"]) -> float:
        return float(rows.mean().exp())


class Confidence(RowMetric):
    """The mean probability of the class that is predicted."""

    @contract
    def measure(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "n"]:
        return select_valid(logits, targets)[0].softmax(-1).amax(-1)

    @contract
    def compute(self, rows: Float[Tensor, "n"]) -> float:
        return float(rows.mean())


class ExactMatch(RowMetric):
    """The share of samples all of whose targets that count have the largest logit."""

    @contract
    def measure(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "n"]:
        is_valid = (targets != IGNORE).flatten(1) if targets.ndim > 1 else (targets != IGNORE)[:, None]
        is_right = (put_classes_last(logits, targets).argmax(-1) == targets).view_as(is_valid)
        return (is_right | ~is_valid).all(1)[is_valid.any(1)].float()

    @contract
    def compute(self, rows: Float[Tensor, "n"]) -> float:
        return float(rows.mean())


class CalibrationNull(Confidence):
    """The calibration error that a perfectly calibrated model with these confidences would show on as many targets.

    The expected calibration error of a finite sample is above 0 whatever the model: its size is to be held against this
    one. Each prediction is right with the probability that it claims, drawn `draws` times (fewer for very many targets)
    from a fixed seed; the mean is returned.
    """

    def __init__(self, higher_is_better: bool | None, draws: PositiveInt = 200, n_bins: PositiveInt = NUM_BINS) -> None:
        check_settings("metrics.calibration_null", CalibrationNull.__init__.__annotations__, locals())
        super().__init__(higher_is_better)
        self.draws, self.n_bins = draws, n_bins

    @contract
    def compute(self, rows: Float[Tensor, "n"]) -> float:
        confidences = rows.sort().values  # so the order of batches and processes does not matter
        generator = torch.Generator().manual_seed(0)
        count = max(10, min(self.draws, MAX_DRAWS // len(rows)))
        draws = (torch.rand(len(rows), generator=generator) < confidences for _ in range(count))
        return statistics.fmean(calibration_error(confidences, is_right, self.n_bins) for is_right in draws)


def calibration_error(confidences: Float[Tensor, "n"], is_right: Shaped[Tensor, "n"], n_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error: how far accuracy and confidence are apart, over equal bins of confidence.

    Guo et al. 2017, equation 3, as torchmetrics computes it: its bins end at numbers of float32.
    """
    bins = torch.bucketize(confidences.float(), torch.linspace(0, 1, n_bins + 1), right=True) - 1
    gaps = torch.bincount(bins, is_right.double() - confidences.double())
    return float(gaps.abs().sum() / len(confidences))


@contract
def name_classes(numbers: Sequence[int], names: Sequence[str]) -> str:
    """Return the first ten classes by number, and by name where they have names."""
    return ", ".join(f"{number} {names[number]}" if number < len(names) else str(number) for number in numbers[:10])


@contract
def describe(value: object) -> str:
    """Return what a function has returned, for a message."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


@contract
def find_directions(metrics: Mapping[str, Metric]) -> dict[str, bool]:
    """Return of each metric whether more is better, by its name in an evaluation; those that do not say are left out."""
    return {f"val/{name}": m.higher_is_better for name, m in metrics.items() if m.higher_is_better is not None}
