"""When something starts or stops within a run, and in which direction each metric is better. Without torch."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from research.rules import Conflict

METRIC_PATTERN = re.compile(r"([a-z]\w*(?:/[\w.]+)+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
TRIGGER_HINT = "give a number of steps, or METRIC:VALUE as val/acc:0.5"


def higher_is_better(name: str) -> bool:
    """True for accuracies; False for losses and bits per byte."""
    return name.endswith("acc")


def is_better(name: str, new: float, old: float) -> bool:
    """True if `new` beats `old` by this metric. NaN beats nothing."""
    return new > old if higher_is_better(name) else new < old


@dataclass(frozen=True)
class Trigger:
    """Fires once `step` optimizer steps are done, or once the newest value of `metric` is `value` or better."""

    step: int = 0
    metric: str = ""
    value: float = 0.0

    def __str__(self) -> str:
        return f"{self.metric}:{self.value:g}" if self.metric else str(self.step)

    def fires(self, step: int, metrics: Mapping[str, float]) -> bool:
        """True from the moment on; a metric that is missing or not finite fires nothing."""
        if not self.metric:
            return step >= self.step
        value = metrics.get(self.metric, math.nan)
        return math.isfinite(value) and not is_better(self.metric, self.value, value)


def never_active(start: Trigger, stop: Trigger) -> bool:
    """True if `stop` fires no later than `start`, as far as both wait for the same thing."""
    is_later = is_better(start.metric, stop.value, start.value) if start.metric else stop.step > start.step
    return start.metric == stop.metric and not is_later


def parse_trigger(raw: object, setting: str) -> Trigger:
    """Parse a number of steps as 500, or a metric with its value as val/acc:0.5.

    Raise ValueError with the setting and value in its first line, the fix in its second.
    """
    if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0:
        return Trigger(step=raw)
    match = METRIC_PATTERN.fullmatch(raw) if isinstance(raw, str) else None
    if match is None or not math.isfinite(float(match[2])):
        raise ValueError(f"{setting}={raw} is no trigger\n{TRIGGER_HINT}")
    trigger = Trigger(metric=match[1], value=float(match[2]))
    if higher_is_better(trigger.metric) and trigger.value > 1:
        raise ValueError(f"{setting}={raw} cannot fire\naccuracies are fractions: give a value of at most 1")
    return trigger


def check_trigger_order(start: Trigger, stop: Trigger) -> Conflict | None:
    """Return the conflict of a filter that stops before it starts."""
    if not never_active(start, stop):
        return None
    message = f"optim.stop_when={stop} fires no later than optim.start_when={start}: nothing is filtered"
    return Conflict(("optim.stop_when", "optim.start_when"), message, "give a later trigger, or leave one out")


def check_trigger(key: str, trigger: Trigger, eval_train: bool, steps: int) -> Conflict | None:
    """Return the conflict of a trigger whose metric is not measured, or that counts more steps than the run has."""
    if trigger.metric == "train/acc" and not eval_train:
        return Conflict((key,), f"{key}={trigger} waits for train/acc, which is not measured", "give trainer.eval_train=true")
    if trigger.step < steps:
        return None
    message = f"{key}={trigger} does not fire within trainer.steps={steps}"
    return Conflict((key, "trainer.steps"), message, f"give fewer than {steps}, or leave it out")
