"""What came of a job: the number or the numbers that the study is about, or why there is none."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from optuna.trial import Trial

from research.run_dir import read_json
from research.sweep.settings import parse_bound

REDUCERS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}


@dataclass
class Outcome:
    """One job's or one configuration's."""

    values: list[float] = field(default_factory=list)
    error: str = ""
    cause: BaseException | None = None
    folder: Path | None = None
    limits: dict[str, float] = field(default_factory=dict)  # metrics that constraints are about


def read_outcome(result: JobReturn, metrics: Sequence[str], count: int, limits: Sequence[str]) -> Outcome:
    """The objectives that a job returned, or that its summary.json tells of by name."""
    folder = Path(result.hydra_cfg.hydra.runtime.output_dir) if result.hydra_cfg else None
    try:
        returned = result.return_value
    except Exception as error:  # whatever the job raised fails the trial alone
        return Outcome(error=f"{type(error).__name__}: {error}", cause=error, folder=folder)
    try:
        known = dict(returned) if isinstance(returned, Mapping) else load_metrics(folder) if metrics or limits else {}
        found = [get_number(known, name) for name in metrics] if metrics else parse_numbers(returned, count)
        about = {name: get_number(known, name, "constraints") for name in limits}
    except ValueError as error:
        return Outcome(error=str(error), cause=error, folder=folder)
    if any(math.isnan(value) for value in found):
        return Outcome(error="the objective is not a number (NaN)", folder=folder)
    return Outcome(found, folder=folder, limits=about)


def parse_numbers(returned: Any, count: int) -> list[float]:
    """As many as there are objectives. Raises ValueError for anything else."""
    several = isinstance(returned, Sequence) and not isinstance(returned, str)
    try:
        found = [float(value) for value in (returned if several else [returned])]
    except (TypeError, ValueError):
        found = []
    if len(found) != count:
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise ValueError(f"the job must return {wanted}, it returned {returned!r}; or name its metrics: hydra.sweeper.metrics")
    return found


def load_metrics(folder: Path | None) -> dict[str, Any]:
    """Numbers of a run by their names: those of its best evaluation before its last ones."""
    told = read_json(folder / "summary.json") if folder else {}
    return {**told, **(told.get("metrics") or {}), **(told.get("best") or {})}


def get_number(known: Mapping[str, Any], name: str, setting: str = "metrics") -> float:
    """One of the run's numbers. Raises ValueError where it has none of that name."""
    value = known.get(name)
    if isinstance(value, int | float):
        return float(value)
    there = ", ".join(sorted(key for key, each in known.items() if isinstance(each, int | float)))
    raise ValueError(f"hydra.sweeper.{setting}: the run has no number {name}; it has: {there or 'none'}")


def reduce_outcomes(outcomes: Sequence[Outcome], method: str) -> Outcome:
    """Several runs of one configuration as one."""
    values = [each.values[0] for each in outcomes]
    value = REDUCERS[method](values)
    limits = {name: statistics.fmean(each.limits[name] for each in outcomes) for name in outcomes[0].limits}
    return Outcome([value], folder=outcomes[0].folder.parent if outcomes[0].folder else None, limits=limits)


def set_constraints(trial: Trial, outcome: Outcome, constraints: Mapping[str, str]) -> None:
    """The study learns how far the trial is from each bound: 0 and less keeps to it."""
    for name, text in constraints.items():
        sign, limit = parse_bound(text) or ("<=", math.inf)
        if name in outcome.limits:
            trial.set_constraint(name, outcome.limits[name] - limit if sign in ("<=", "<") else limit - outcome.limits[name])
