"""When something starts or stops within a run, which metrics there are, and in which direction each is better. Without torch.

A metric of conf/metrics says itself whether more is better, and a resolved configuration holds what it says: `directions`.
Of other names, those of older runs and of what callbacks log, the name decides.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from research.contracts import contract
from research.ranges import repr_value
from research.rules import Conflict

METRIC_PATTERN = re.compile(r"([a-z]\w*(?:/[\w.]+)+):([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
CORE_METRICS = ("val/loss", "val/acc", "val/bpb")  # of evaluations, without any of conf/metrics
NO_DIRECTIONS: Mapping[str, bool] = MappingProxyType({})
AT_MOST_1 = re.compile(r"/(?:\w+_)?(?:acc|f1|auroc|iou|exact_match|r2)$")  # of metrics in which more is better
TRIGGER_HINT = "give a number of steps, or METRIC:VALUE as val/acc:0.5"


@contract
def read_directions(config: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether more is better of each metric that says so in a configuration, by its name in evaluations."""
    nodes = config.get("metrics")
    says = {name: node.get("higher_is_better") for name, node in nodes.items() if isinstance(node, Mapping)} if nodes else {}
    return {f"val/{name}": better for name, better in says.items() if isinstance(better, bool)}


@contract
def higher_is_better(name: str, directions: Mapping[str, bool]) -> bool:
    """Return what the metric says; else True for accuracies, False for losses, bits per byte and what is not known."""
    return directions.get(name, name.endswith("acc"))


@contract
def is_better(name: str, new: float, old: float, directions: Mapping[str, bool]) -> bool:
    """Return whether `new` beats `old` by this metric. NaN beats nothing."""
    return new > old if higher_is_better(name, directions) else new < old


@contract
def shorten_name(name: str, width: int) -> str:
    """Return a metric's name in at most `width` cells of a terminal, its middle left out: names differ at their ends."""
    from rich.cells import cell_len, set_cell_size  # a Chinese letter has two

    if cell_len(name) <= width:
        return name
    tail = next(name[start:] for start in range(len(name)) if cell_len(name[start:]) <= width // 2)
    return f"{set_cell_size(name, width - 1 - cell_len(tail)).rstrip()}…{tail}"


@contract
def check_metric_name(name: str) -> Conflict | None:
    """Return the conflict of a metric that is named as one that every evaluation reports, or with a slash."""
    if f"val/{name}" not in CORE_METRICS and re.fullmatch(r"\w+", name):
        return None
    message = f"metrics.{name}: evaluations would report it as val/{name}, which is no name or is taken"
    return Conflict((f"metrics.{name}",), message, "give it another name of letters, digits and _")


@contract
def check_monitor(monitor: object, own: Iterable[str], reported: Sequence[str] = ()) -> Conflict | None:
    """Return the conflict of a monitor that no evaluation reports, or where `reported` is given, none of these data.

    `own` are the names of the metrics that conf/metrics adds and that can be compared.
    """
    names = [*CORE_METRICS, *own]
    if monitor not in names:
        near = get_close_matches(str(monitor), names, n=1)
        fix = f"did you mean: monitor={near[0]} ?" if near else ""
        return Conflict(("monitor",), f"monitor takes {', '.join(names)}; got {repr_value(monitor)}", fix)
    if not reported or monitor in reported:
        return None
    why = ": their targets are numbers, no classes" if monitor == "val/acc" else ""
    message = f"monitor={monitor} is not what evaluations of these data report{why}"
    return Conflict(("monitor",), message, f"give {' or '.join(f'monitor={metric}' for metric in reported)}")


@dataclass(frozen=True)
class Trigger:
    """Fires once `step` optimizer steps are done, or once the newest value of `metric` is `value` or better."""

    step: int = 0
    metric: str = ""
    value: float = 0.0

    def __str__(self) -> str:
        return f"{self.metric}:{self.value:g}" if self.metric else str(self.step)

    @contract
    def fires(self, step: int, metrics: Mapping[str, float], directions: Mapping[str, bool] = NO_DIRECTIONS) -> bool:
        """Return whether the moment has come; a metric that is missing or not finite fires nothing."""
        if not self.metric:
            return step >= self.step
        value = metrics.get(self.metric, math.nan)
        return math.isfinite(value) and not is_better(self.metric, self.value, value, directions)


def never_active(start: Trigger, stop: Trigger, directions: Mapping[str, bool] = NO_DIRECTIONS) -> bool:
    """Return whether `stop` fires no later than `start`, as far as both wait for one thing whose direction is known."""
    if start.metric != stop.metric or (start.metric not in directions and not re.search("(^|acc|loss|bpb)$", start.metric)):
        return False
    is_later = is_better(start.metric, stop.value, start.value, directions) if start.metric else stop.step > start.step
    return not is_later


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
    if is_beyond(trigger.metric, trigger.value):
        raise ValueError(f"{setting}={raw} cannot fire\naccuracies are fractions: give a value of at most 1")
    return trigger


@contract
def is_beyond(metric: str, value: float) -> bool:
    """Return whether a metric that is at most 1 never has this value."""
    return value > 1 and AT_MOST_1.search(metric) is not None


@contract
def check_trigger_order(start: Trigger, stop: Trigger, directions: Mapping[str, bool] = NO_DIRECTIONS) -> Conflict | None:
    """Return the conflict of a filter that stops before it starts."""
    if not never_active(start, stop, directions):
        return None
    message = f"optim.stop_when={stop} fires no later than optim.start_when={start}: nothing is filtered"
    return Conflict(("optim.stop_when", "optim.start_when"), message, "give a later trigger, or leave one out")


@contract
def check_trigger(key: str, trigger: Trigger, eval_train: bool, steps: int) -> Conflict | None:
    """Return the conflict of a trigger whose metric is not measured, or that counts more steps than the run has."""
    if trigger.metric == "train/acc" and not eval_train:
        return Conflict((key,), f"{key}={trigger} waits for train/acc, which is not measured", "give trainer.eval_train=true")
    if trigger.step < steps:
        return None
    message = f"{key}={trigger} does not fire within trainer.steps={steps}"
    return Conflict((key, "trainer.steps"), message, f"give fewer than {steps}, or leave it out")
