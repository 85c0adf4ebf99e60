"""The trials of a sweep as plain rows, from its study or from MLflow alike: all of its report is made of them."""

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from research.preflight.overrides import parse, to_override
from research.run_dir import read_json
from research.tracking import mlflow_store
from research.tracking.mlflow import RUN_ID_FILE, SWEEP_SPEC_FILE
from research.tracking.optuna_storage import PRUNED_ATTR
from research.trigger import higher_is_better

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

EXCLUDED = "ASIDE"  # the state of a trial that the study does not count; the others are Optuna's
ENDED_STATES = ("COMPLETE", "PRUNED", "FAIL", EXCLUDED)
CONSTRAINT_SUFFIX = " (constraint)"  # ends the name of such a column
LAST_COLUMNS = (
    "started",
    "seconds",
    "steps",
    "repeats",
    "folder",
    "mlflow_run_id",
    "error",
    "note",
)  # columns after the parameters
INT, FLOAT = re.compile(r"[-+]?(0|[1-9]\d*)"), re.compile(r"[-+]?(\d+\.\d*|\.?\d+)([eE][-+]?\d+)?")
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Row:
    """One trial, as trials.csv has it."""

    number: int
    state: str
    values: tuple[float, ...] = ()  # one an objective
    params: Mapping[str, str] = field(default_factory=dict)  # as an override gives them
    started: datetime | None = None
    seconds: float | None = None
    steps: int = 0  # of all its runs
    repeats: tuple[float, ...] = ()  # the objective of each seed
    folder: str = ""  # from the sweep's folder where it is below
    run_ids: str = ""  # in MLflow, one a repeat
    error: str = ""
    note: str = ""
    limits: Mapping[str, float] = field(default_factory=dict)  # how far it is beyond each bound; 0 and less keeps to it


@dataclass(frozen=True)
class Sweep:
    """What was asked for and what came of it."""

    name: str
    spec: Mapping[str, Any]  # what study.json has
    objectives: Sequence[str]
    monitor: str  # the metric of the learning curves
    stop_reason: str  # why it ended before its last trial
    rows: Sequence[Row]
    load_curves: Callable[[Row], list[Curve]]  # one a run

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        return ["maximize" if way == "maximize" else "minimize" for way in self.spec["directions"]]

    @cached_property
    def space(self) -> dict[str, str]:
        """What each key could be, in the order of the command; a key that a function of the user's added comes last."""
        told = {key.lstrip("+"): str(text) for key, text in self.spec.get("space", {}).items()}
        return told | {key: "" for row in self.rows for key in row.params if key not in told}

    @property
    def repeat_key(self) -> str:
        """The key whose values are repeats of one configuration."""
        return str((self.spec.get("repeats") or {}).get("over", "seed"))

    @property
    def complete(self) -> list[Row]:
        return [row for row in self.rows if row.state == "COMPLETE"]

    @cached_property
    def repeat_groups(self) -> dict[int, list[Row]]:
        """For each complete trial those that differ from it in nothing but the repeated key, where that key was swept."""
        found: dict[Any, list[Row]] = {}
        for row in self.complete:
            found.setdefault(get_setting(row, self.repeat_key) if self.repeat_key in self.space else row.number, []).append(row)
        return {row.number: rows for rows in found.values() for row in rows}

    def compute_mean(self, row: Row) -> tuple[float, ...]:
        """The values of a complete trial, over the repeats of its configuration: the luckiest seed is not the best one."""
        return tuple(map(statistics.fmean, zip(*(each.values for each in self.repeat_groups[row.number]), strict=True)))

    def rank_rows(self) -> list[Row]:
        """Complete trials by the first objective; those that break a constraint come last."""
        return sorted(self.complete, key=lambda row: (breaks_constraint(row), self.get_costs(row)[0], row.number))

    @cached_property
    def best(self) -> list[Row]:
        """The best trial; of several objectives the Pareto front, by the first of them. Of repeats the first one."""
        kept = [row for row in self.rank_rows() if not breaks_constraint(row)]
        if len(self.directions) == 1:
            return kept[:1]
        costs = {row.number: self.get_costs(row) for row in kept if row is self.repeat_groups[row.number][0]}
        return [r for r in kept if r.number in costs and not any(dominates(c, costs[r.number]) for c in costs.values())]

    def get_costs(self, row: Row) -> tuple[float, ...]:
        """The values, where less is better."""
        return tuple(-v if way == "maximize" else v for v, way in zip(self.compute_mean(row), self.directions, strict=True))


def get_setting(row: Row, excluded_key: str) -> tuple[tuple[str, str], ...]:
    """A trial's parameters but one."""
    return tuple(pair for pair in sorted(row.params.items()) if pair[0] != excluded_key)


def breaks_constraint(row: Row) -> bool:
    """Whether it does not keep to a constraint."""
    return any(limit > 0 for limit in row.limits.values())


def dominates(costs: Sequence[float], others: Sequence[float]) -> bool:
    """Whether it is nowhere worse, and somewhere better."""
    return all(a <= b for a, b in zip(costs, others, strict=True)) and any(a < b for a, b in zip(costs, others, strict=True))


def parse_value(text: str) -> Any:
    """The value that Hydra reads in an override; its parser is asked only where it is no plain number."""
    if INT.fullmatch(text):
        return int(text)
    return float(text) if FLOAT.fullmatch(text) else _parse_with_hydra(text)


@cache
def _parse_with_hydra(text: str) -> Any:
    found, _ = parse([f"x={text}"])
    return text if not found or found[0].is_sweep_override() else found[0].value()


def name_objectives(metric_names: Sequence[str] | None, monitor: str, count: int) -> list[str]:
    """What the values of a trial are called."""
    if metric_names:
        return list(metric_names)
    return [monitor or "value"] if count == 1 else [f"value_{index}" for index in range(count)]


# From a study and the folders of its trials.


def read_study(folder: Path, study: "Study") -> Sweep:
    """What they tell."""
    ways = [way.name.lower() for way in study.directions]
    asked = {"directions": ways} | read_json(folder / SWEEP_SPEC_FILE) | study.user_attrs.get("grokbit", {})
    known: dict[tuple[str, str], str] = {}  # how runs wrote a value: another trial may have it without a run of its own
    rows = [_build_row(folder, trial, known) for trial in study.get_trials(deepcopy=False)]
    summaries = (read_json(run / "summary.json") for row in rows for run in list_runs(folder, row.folder))
    monitor = next((str(told["monitor"]) for told in summaries if "monitor" in told), "")
    names = name_objectives(study.metric_names or asked.get("metrics"), monitor, len(ways))
    over = str(study.user_attrs.get("over", ""))
    return Sweep(study.study_name, asked, names, monitor, over, rows, lambda row: _load_curves(folder, row, monitor))


def list_runs(folder: Path, trial_folder: str) -> list[Path]:
    """The run folders of a trial: its own, or those of its repeats."""
    own = folder / trial_folder
    if not trial_folder or not own.is_dir():
        return []
    repeats = [path for path in own.iterdir() if path.name.isdecimal() and path.is_dir()]
    return sorted(repeats, key=lambda path: int(path.name)) or [own]


def _build_row(folder: Path, trial: "FrozenTrial", known: dict[tuple[str, str], str]) -> Row:
    attrs, begun = trial.user_attrs, trial.datetime_start
    here, told = folder / str(trial.number), Path(attrs.get("folder", ""))
    own = told if told.is_absolute() and told.is_dir() and told.parent != here else here  # a repeat's, or one that was moved
    place = str(own.relative_to(folder)) if own.is_relative_to(folder) else str(own)
    found = list_runs(folder, place)
    pruned = f"pruned at step {attrs[PRUNED_ATTR]}" if PRUNED_ATTR in attrs else ""
    return Row(
        number=trial.number,
        state=EXCLUDED if "aside" in attrs else trial.state.name,
        values=tuple(trial.values) if trial.state.name == "COMPLETE" else (),
        params=_read_params(trial, found, known),
        started=begun and begun.replace(microsecond=begun.microsecond // 1000 * 1000),  # as the table has it
        seconds=round(trial.duration.total_seconds(), 3) if trial.duration is not None else None,
        steps=sum(int(read_json(run / "summary.json").get("steps") or 0) for run in found),
        repeats=tuple(attrs.get("repeats", ())),
        folder=place if found else "",
        run_ids=" ".join(note.read_text() for run in found if (note := run / RUN_ID_FILE).exists()),
        error=str(attrs.get("error") or attrs.get("aside") or ""),
        note=f"the result of {attrs['reused']}" if "reused" in attrs else pruned,
        limits=trial.constraints,
    )


def _read_params(trial: "FrozenTrial", run_folders: Sequence[Path], known: dict[tuple[str, str], str]) -> dict[str, str]:
    """The parameters as the trial's run was given them."""
    files = [run / "overrides.txt" for run in run_folders[:1] if (run / "overrides.txt").exists()]
    pairs = (line.partition("=") for file in files for line in file.read_text().splitlines())
    told = {key.lstrip("+"): text for key, _, text in pairs}
    params = {key.lstrip("+"): value for key, value in trial.params.items()}
    known |= {(key, repr(value)): told[key] for key, value in params.items() if key in told}
    return {key: known.get((key, repr(value))) or to_override(value) for key, value in params.items()}


def _load_curves(folder: Path, row: Row, monitor: str) -> list[Curve]:
    files = [run / "metrics.jsonl" for run in list_runs(folder, row.folder)]
    return [curve for file in files if file.exists() and (curve := list(_iter_points(file, monitor)))]


def _iter_points(file: Path, monitor: str) -> Iterable[tuple[int, float]]:
    """The monitor at each step of metrics.jsonl; a line that is only half-written yet is left out."""
    for line in file.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record.get(monitor), int | float):
            yield int(record["step"]), float(record[monitor])


# From MLflow.


def read_store(client: Any, parent: str) -> Sweep:
    """What the runs of a sweep tell, and the report that it may have had: of trials that had ended by then all is known."""
    children = mlflow_store.list_children(client, parent)
    monitor = next((child.monitor for child in children if child.monitor), "")
    ways = ["maximize" if higher_is_better(monitor) else "minimize"]
    asked = {"directions": ways} | json.loads(mlflow_store.read_artifact(client, parent, SWEEP_SPEC_FILE) or "{}")
    names = name_objectives(asked.get("metrics"), monitor, len(asked["directions"]))
    home = client.get_run(parent).data.tags.get("folder", "")
    rows = {row.number: row for row in parse_csv(mlflow_store.read_artifact(client, parent, "trials.csv"), len(names))}
    for number in {child.number for child in children}:
        if number not in rows or rows[number].state not in ENDED_STATES:
            last = {child.folder: child for child in children if child.number == number}  # the newest of each folder
            rows[number] = _join_runs(client, list(last.values()), Path(home), names, asked.get("repeats") or {})

    def load_curves(row: Row) -> list[Curve]:
        found = [mlflow_store.fetch_history(client, run_id, monitor) for run_id in row.run_ids.split()]
        return [curve for curve in found if curve]

    name, over = str(asked.get("study") or Path(home).name or parent), str(asked.get("reason", ""))
    return Sweep(name, asked, names, monitor, over, [rows[number] for number in sorted(rows)], load_curves)


def _join_runs(
    client: Any, children: Sequence[mlflow_store.Child], home: Path, names: Sequence[str], repeats: Mapping[str, Any]
) -> Row:
    """A trial from its runs. One that was interrupted can be gone on with: as in its study, it counts as running."""
    state, values, each = mlflow_store.get_trial_outcome(client, children, names, repeats)
    own = Path(children[0].folder).parent if repeats.get("n", 1) > 1 else Path(children[0].folder)
    ended, started = [child.ended for child in children if child.ended], min(child.started for child in children)
    steps = sum(mlflow_store.get_num_steps(client, child.run_id) for child in children)
    return Row(
        number=children[0].number, state=state, values=values, params=children[0].params,
        started=datetime.fromtimestamp(started),
        seconds=round(max(ended) - started, 3) if state in ENDED_STATES and ended else None,
        steps=steps, repeats=each,
        folder=str(own.relative_to(home)) if own.is_relative_to(home) else str(own),
        run_ids=" ".join(child.run_id for child in children),
        error=next((child.error for child in children if child.error), ""),
        note=f"pruned at step {steps}" if state == "PRUNED" else "",
    )  # fmt: skip


# As trials.csv.


def to_csv(sweep: Sweep) -> str:
    """One line a trial."""
    limits = list(dict.fromkeys(name for row in sweep.rows for name in row.limits))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "state", *sweep.objectives, *(f"{name}{CONSTRAINT_SUFFIX}" for name in limits), *sweep.space, *LAST_COLUMNS]
    )
    for row in sweep.rows:
        values = [*row.values, *[""] * (len(sweep.objectives) - len(row.values))]
        told = [*(row.limits.get(name, "") for name in limits), *(row.params.get(key, "") for key in sweep.space)]
        started = row.started.astimezone().isoformat(timespec="milliseconds") if row.started else ""
        last = [started, "" if row.seconds is None else row.seconds, row.steps, " ".join(map(repr, row.repeats))]
        writer.writerow([row.number, row.state, *values, *told, *last, row.folder, row.run_ids, row.error, row.note])
    return text.getvalue()


def parse_csv(text: str, count: int) -> list[Row]:
    """The rows that `to_csv` wrote of a sweep with `count` objectives."""
    header, *lines = list(csv.reader(io.StringIO(text))) or [[]]
    first, end, rows = 2 + count, -len(LAST_COLUMNS), list[Row]()
    for line in lines:
        cells = [(key, text) for key, text in zip(header[first:end], line[first:end], strict=True) if text]
        started, seconds, steps, repeats, *rest = line[end:]
        rows.append(Row(
            number=int(line[0]), state=line[1], values=tuple(float(value) for value in line[2:first] if value),
            params={key: text for key, text in cells if not key.endswith(CONSTRAINT_SUFFIX)},
            started=datetime.fromisoformat(started).astimezone().replace(tzinfo=None) if started else None,
            seconds=float(seconds) if seconds else None, steps=int(steps), repeats=tuple(map(float, repeats.split())),
            folder=rest[0], run_ids=rest[1], error=rest[2], note=rest[3],
            limits={key.removesuffix(CONSTRAINT_SUFFIX): float(text) for key, text in cells if key.endswith(CONSTRAINT_SUFFIX)},
        ))  # fmt: skip
    return rows
