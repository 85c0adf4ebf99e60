"""The trials of a sweep as typed rows, which the whole report is made of, and as trials.csv."""

import csv
import io
import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from operator import le
from pathlib import Path
from typing import Any, Literal

from research.cli import escape_controls
from research.composition.overrides import parse
from research.contracts import contract
from research.run_dir import Summary
from research.tracking.study_spec import StudySpec

EXCLUDED_STATE = "ASIDE"  # the state of a trial that the study does not count; the other states are Optuna's
LAST_COLUMNS = ("started", "seconds", "steps", "repeats", "folder", "mlflow_run_id", "error", "note")  # after the parameters
INT, FLOAT = re.compile(r"[-+]?(0|[1-9]\d*)"), re.compile(r"[-+]?(\d+\.\d*|\.?\d+)([eE][-+]?\d+)?")
Setting = tuple[tuple[str, str], ...]  # parameters and their values


@contract
@dataclass(frozen=True)
class Row:
    """One trial: a line of trials.csv."""

    number: int
    state: str
    values: tuple[float, ...] = ()  # one an objective
    params: Mapping[str, str] = field(default_factory=dict)  # values as text, as overrides have them
    started: datetime | None = None
    seconds: float | None = None
    repeats: tuple[float, ...] = ()  # the first objective of each repeat
    folder: str = ""  # relative to the sweep's folder where it is below
    runs: Mapping[Path, Summary] = field(default_factory=dict)  # by folder: one, or one a repeat
    error: str = ""
    note: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)  # by constraint: above 0 breaks it, by so much

    @property
    def steps(self) -> int:
        return sum(run.steps for run in self.runs.values())

    @property
    def run_ids(self) -> str:
        return " ".join(run.mlflow_run_id for run in self.runs.values() if run.mlflow_run_id)

    @property
    def breaks_constraint(self) -> bool:
        return any(limit > 0 for limit in self.limits.values())

    def list_values(self, keys: Iterable[str]) -> list[str]:
        """Return the values of these parameters; an empty text for one that the trial has not."""
        return [self.params.get(key, "") for key in keys]

    def select_params(self, keys: Iterable[str]) -> Setting:
        """Return those of these parameters that the trial has."""
        return tuple((key, self.params[key]) for key in keys if key in self.params)


@dataclass(frozen=True)
class Sweep:
    """What was searched, and the trials."""

    name: str
    spec: StudySpec
    objectives: Sequence[str]  # their names
    monitor: str  # the metric of the learning curves
    stop_reason: str  # why the sweep ended before its last trial; else empty
    rows: Sequence[Row]

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        return ["maximize" if direction == "maximize" else "minimize" for direction in self.spec.directions]

    @cached_property
    def space(self) -> dict[str, str]:
        """The values of each key, as a text, in the order of the command. A key that a custom function added comes last."""
        space = {key.lstrip("+"): str(text) for key, text in self.spec.space.items()}
        return space | {key: "" for row in self.rows for key in row.params if key not in space}

    @cached_property
    def complete(self) -> list[Row]:
        return [row for row in self.rows if row.state == "COMPLETE"]

    @cached_property
    def repeats(self) -> dict[int, list[Row]]:
        """By trial number, the complete trials of the same configuration: itself alone, unless `repeat_key` was swept."""
        groups = self._group(self.complete) if self.spec.repeat_key in self.space else [[row] for row in self.complete]
        return {row.number: rows for rows in groups for row in rows}

    @cached_property
    def ranking(self) -> list[Row]:
        """The complete trials, best first by the first objective; those that break a constraint come last."""
        return sorted(self.complete, key=lambda row: (row.breaks_constraint, self.compute_costs(row)[0], row.number))

    @property
    def configurations(self) -> list[list[Row]]:
        """The trials in groups that differ only in the repeated key, as seed: the best first, incomplete trials last."""
        return self._group([*self.ranking, *(row for row in self.rows if row.state != "COMPLETE")])

    @cached_property
    def best(self) -> list[Row]:
        """The best trial, or the Pareto front in the order of the first objective; of repeats the first one."""
        rows = [row for row in self.ranking if not row.breaks_constraint]
        if len(self.directions) == 1:
            return rows[:1]
        costs = {row.number: self.compute_costs(row) for row in rows if row is self.repeats[row.number][0]}
        rivals = set(costs.values())
        # Dominated: a rival is nowhere worse and somewhere better.
        dominated = {n for n, cost in costs.items() if any(rival != cost and all(map(le, rival, cost)) for rival in rivals)}
        return [row for row in rows if row.number in costs.keys() - dominated]

    @contract
    def compute_mean(self, row: Row) -> tuple[float, ...]:
        """Return the values of a complete trial, averaged over its configuration: the luckiest seed is not the best one."""
        columns = zip(*(repeat.values for repeat in self.repeats[row.number]), strict=True)
        return tuple(map(compute_mean, columns))

    def compute_costs(self, row: Row) -> tuple[float, ...]:
        """Return the mean values with the sign by which less is better."""
        signs = [-1 if direction == "maximize" else 1 for direction in self.directions]
        return tuple(sign * value for sign, value in zip(signs, self.compute_mean(row), strict=True))

    def _group(self, rows: Iterable[Row]) -> list[list[Row]]:
        groups: dict[Setting, list[Row]] = {}
        for row in rows:
            groups.setdefault(row.select_params(sorted(row.params.keys() - {self.spec.repeat_key})), []).append(row)
        return list(groups.values())


@contract
def compute_mean(values: Collection[float]) -> float:
    """Return the mean; of infinite values what IEEE 754 makes it, as NaN for both infinities."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else sum(values) / len(values)


@cache
@contract
def parse_value(text: str) -> Any:
    """Return the value that Hydra reads in an override. Plain numbers are parsed here: Hydra's parser takes milliseconds."""
    if INT.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    overrides, _ = parse([f"x={text}"])
    return text if not overrides or overrides[0].is_sweep_override() else overrides[0].value()


@contract
def parse_number(text: str) -> float | None:
    """Return an override's value as a number, a whole one as an int; None for words, null and booleans."""
    value = parse_value(text)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


@contract
def format_number(value: object) -> str:
    """Return a float, also one that is still text, in six digits; anything else as it is."""
    parsed = parse_value(value) if isinstance(value, str) else value
    return f"{parsed:.6g}" if isinstance(parsed, float) else str(value)


@contract
def to_csv(sweep: Sweep) -> str:
    """Return trials.csv: a header and one line a trial."""
    limits = list(dict.fromkeys(name for row in sweep.rows for name in row.limits))
    constraints = [f"{name} (constraint)" for name in limits]
    lines: list[list[object]] = [["number", "state", *sweep.objectives, *constraints, *sweep.space, *LAST_COLUMNS]]
    for row in sweep.rows:
        values = row.values or [""] * len(sweep.objectives)
        params = [*(row.limits.get(name, "") for name in limits), *row.list_values(sweep.space)]
        started = row.started and row.started.astimezone().isoformat(timespec="milliseconds")
        last = [started, row.seconds, row.steps, " ".join(map(repr, row.repeats))]
        lines.append([row.number, row.state, *values, *params, *last, row.folder, row.run_ids, row.error, row.note])
    return render_csv(lines)


@contract
def render_csv(lines: Iterable[Iterable[object]]) -> str:
    """Return lines as CSV. Text that a spreadsheet would run as a formula gets an apostrophe in front; numbers stay."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(protect_cell, line) for line in lines)
    return text.getvalue()


def protect_cell(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula, and that does not end its line."""
    if not isinstance(cell, str):
        return cell
    cell = escape_controls(cell.replace("\r\n", "\n").replace("\r", "\n"))  # Python's writer quotes the latter alone
    if not re.sub(r"^[^!-\U0010ffff]+|[\u200b-\u200d\u2060\xa0\xad]", "", cell).lstrip().startswith(tuple("=+-@＝＋－＠")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
