"""How many steps the trials of a sweep took to the value that their runs were to reach."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from research.composition.compose import MISSING, ComposedConfig
from research.composition.recorded import load_config
from research.contracts import contract
from research.options.trigger import is_better, read_directions
from research.report.results import Row, Sweep
from research.tracking.history import METRICS_FILE, read_records

Curve = dict[int, float]  # step -> value


@dataclass(frozen=True)
class Target:
    """A value of a metric, and the steps to it."""

    metric: str
    value: float
    steps: Mapping[int, float | None]  # trial -> steps, a mean over its runs; None: not each of them reached it
    longest: int  # steps of the longest run

    @property
    def name(self) -> str:
        return f"steps to {self.metric} {self.value:g}"


@contract
def load_curve(folder: Path, metric: str) -> Curve:
    """Return a metric of a run by step; skip damaged lines of metrics.jsonl, as a last one that is incomplete."""
    records = read_records(folder / METRICS_FILE)
    return {int(record["step"]): float(record[metric]) for record in records if isinstance(record.get(metric), int | float)}


@contract
def find_target(sweep: Sweep) -> Target | None:
    """Return the target of the first run, and how fast the trials were; None where runs go to their last step."""
    folders = (folder for row in sweep.rows for folder in row.runs if (folder / "config.yaml").exists())
    first = next(folders, None)
    config = load_config(first)[0] if first else {}
    value = read_target(config)
    if value is None or not sweep.monitor:
        return None
    directions = read_directions(config)
    steps = {row.number: count_steps(row, sweep.monitor, value, directions) for row in sweep.rows}
    return Target(sweep.monitor, value, steps, max((run.steps for row in sweep.rows for run in row.runs.values()), default=0))


def read_target(config: dict[str, Any]) -> float | None:
    """Return the `target` of a run's configuration, or the accuracy at which measuring grokking ends it."""
    value = config.get("target")
    if value is None and (end := ComposedConfig(config).get("callbacks.grokking.end")) is not MISSING:
        value = end
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@contract
def count_steps(row: Row, metric: str, value: float, directions: Mapping[str, bool]) -> float | None:
    """Return the steps after which a trial's runs had first reached a value, their mean; None where one has not."""
    firsts = []
    for folder in row.runs:
        curve = load_curve(folder, metric)
        reached = [step for step, got in curve.items() if not is_better(metric, value, got, directions)]
        firsts.append(min(reached, default=None))
    known = [step for step in firsts if step is not None]
    return fmean(known) if known and len(known) == len(firsts) else None
