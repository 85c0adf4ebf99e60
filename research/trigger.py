"""Moments of a run: a number of steps, or a metric that has reached a value; which way each metric is better.

No torch: the preflight reads moments before that is imported.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

METRIC_PATTERN = re.compile(r"([a-z]\w*(?:/[\w.]+)+):(\S+)")
TRIGGER_HINT = "give a number of steps, or METRIC:VALUE as val/acc:0.5"


def higher_is_better(name: str) -> bool:
    """Accuracies rise; losses and bits per byte fall."""
    return name.endswith("acc")


def is_better(name: str, new: float, old: float) -> bool:
    """Whether `new` beats `old`; NaN beats nothing."""
    return new > old if higher_is_better(name) else new < old


@dataclass(frozen=True)
class Trigger:
    """Come once `step` steps are done, or once the newest value of `metric` is `value` or better."""

    step: int = 0
    metric: str = ""
    value: float = 0.0

    def fires(self, step: int, metrics: Mapping[str, float]) -> bool:
        if not self.metric:
            return step >= self.step
        now = metrics.get(self.metric, math.nan)
        return math.isfinite(now) and not is_better(self.metric, self.value, now)


def never_active(start: Trigger, stop: Trigger) -> bool:
    """Whether whatever brings `start` has brought `stop` too."""
    if start.metric != stop.metric:
        return False
    if not start.metric:
        return stop.step <= start.step
    return not is_better(start.metric, stop.value, start.value)


def parse_trigger(raw: int | str, setting: str) -> Trigger:
    """What a setting says: 500 or val/acc:0.5. Raises ValueError that names the setting."""
    if type(raw) is int and raw > 0:
        return Trigger(step=raw)
    match = METRIC_PATTERN.fullmatch(raw) if isinstance(raw, str) else None
    try:
        value = float(match[2]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise ValueError(f"{setting}={raw}: {TRIGGER_HINT}")
    if higher_is_better(match[1]) and value > 1:
        raise ValueError(f"{setting}={raw}: accuracies are fractions, at most 1")
    return Trigger(metric=match[1], value=value)
