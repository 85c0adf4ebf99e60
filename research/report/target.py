"""How many steps the trials of a sweep took to the value that their runs were to reach."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from research.report.results import Row, Sweep
from research.run_dir import read_text
from research.tracking.history import METRICS_FILE, read_records
from research.trigger import is_better

log = logging.getLogger(__name__)
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


def load_curve(folder: Path, metric: str) -> Curve:
    """Return a metric of a run by step; skip damaged lines of metrics.jsonl, as a last one that is incomplete."""
    records = read_records(folder / METRICS_FILE)
    return {int(record["step"]): float(record[metric]) for record in records if isinstance(record.get(metric), int | float)}


def find_target(sweep: Sweep) -> Target | None:
    """Return the target of the first run, and how fast the trials were; None where runs go to their last step."""
    folders = (folder for row in sweep.rows for folder in row.runs if (folder / "config.yaml").exists())
    first = next(folders, None)
    value = read_target(first) if first else None
    if value is None or not sweep.monitor:
        return None
    steps = {row.number: count_steps(row, sweep.monitor, value) for row in sweep.rows}
    return Target(sweep.monitor, value, steps, max((run.steps for row in sweep.rows for run in row.runs.values()), default=0))


def read_target(folder: Path) -> float | None:
    """Return the `target` of a run's configuration, or the accuracy at which measuring grokking ends it."""
    try:
        config: Any = yaml.safe_load(read_text(folder / "config.yaml"))
        grokking = config.get("callbacks", {}).get("grokking", {})
        value = grokking.get("end") if config.get("target") is None else config["target"]
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        log.info("no target: %s", error)
        return None


def count_steps(row: Row, metric: str, value: float) -> float | None:
    """Return the steps after which a trial's runs had first reached a value, their mean; None where one has not."""
    firsts = []
    for folder in row.runs:
        curve = load_curve(folder, metric)
        firsts.append(next((step for step, reached in sorted(curve.items()) if not is_better(metric, value, reached)), None))
    reached = [step for step in firsts if step is not None]
    return fmean(reached) if reached and len(reached) == len(firsts) else None
