"""Moments of a run: a number of steps, or a metric that has reached a value."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

METRIC = re.compile(r"([a-z]\w*(?:/[\w.]+)+):(\S+)")
HOW = "give a number of steps, or METRIC:VALUE as val/acc:0.5"


@dataclass(frozen=True)
class Moment:
    """Come once `step` steps are done, or once the newest value of `metric` is `value` or better."""

    step: int = 0
    metric: str = ""
    value: float = 0.0

    def has_come(self, step: int, metrics: Mapping[str, float]) -> bool:
        if not self.metric:
            return step >= self.step
        from research.metrics import better  # here: the preflight reads moments before torch is imported

        now = metrics.get(self.metric, math.nan)
        return math.isfinite(now) and not better(self.metric, self.value, now)


def read_moment(given: int | str, setting: str) -> Moment:
    """What a setting says: 500 or val/acc:0.5. Raises ValueError that names the setting."""
    if type(given) is int and given > 0:
        return Moment(step=given)
    match = METRIC.fullmatch(given) if isinstance(given, str) else None
    try:
        value = float(match[2]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        raise ValueError(f"{setting}={given}: {HOW}")
    return Moment(metric=match[1], value=value)
