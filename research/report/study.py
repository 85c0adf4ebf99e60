"""From Optuna's study and the run folders to a report's rows, and back to a study that Optuna can draw."""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from research.cli import describe_error, first_line, redact
from research.composition.overrides import to_override
from research.contracts import contract
from research.ranges import take_fields
from research.report.results import EXCLUDED_STATE, Row, Sweep, parse_number, parse_value
from research.run_dir import SUMMARY_FILE, Summary, read_summary, read_text
from research.tracking.history import find_contradiction
from research.tracking.mlflow_store import RUN_ID_FILE
from research.tracking.optuna_storage import (
    EXCLUDED_ATTR,
    POSTPONED_ATTR,
    PRUNED_ATTR,
    REUSED_ATTR,
    STOP_REASON_ATTR,
    TEXTS_ATTR,
    get_storage,
    silence_optuna,
)
from research.tracking.study_spec import StudySpec, read_study_spec

log = logging.getLogger(__name__)
CORRECTION = "the study has"  # begins the note of a trial whose run has reached something else
BOUNDS = re.compile(r"((?:(?:high|log|low|step)=\S+ ?)+)(.*)")  # in study.json: a numeric parameter, and its condition


def load_study(folder: Path, storage: str) -> Study:
    """Return the study of a sweep's folder from a storage. Raise ValueError where it cannot be read."""
    try:
        connected = get_storage(storage)
        names = optuna.get_all_study_names(connected)
        name = read_study_spec(folder).study or next(iter(names), "")
        if name not in names:
            raise ValueError(f"it has no study {name}".rstrip() + f", only: {', '.join(names)}" * bool(names))
        return optuna.load_study(study_name=name, storage=connected)
    except Exception as error:  # each kind of storage has its own errors
        raise ValueError(f"the study cannot be read from {redact(storage)}: {first_line(error)}") from error


@contract
def read_study(folder: Path, study: Study) -> Sweep:
    """Return the trials of a study, with what their run folders hold."""
    directions = [direction.name.lower() for direction in study.directions]
    saved = take_fields(
        StudySpec, study.user_attrs.get("grokbit", {}), f"the attribute grokbit of the study {study.study_name}"
    )
    spec = replace(read_study_spec(folder), **{"directions": directions} | saved)
    known: dict[tuple[str, str], str] = {}
    stored = study.user_attrs.get(TEXTS_ATTR)
    texts = list(map(str, stored)) if isinstance(stored, list) else []
    rows = [read_row(folder, trial, known, texts, spec.metrics) for trial in study.get_trials(deepcopy=False)]
    monitor = next((run.monitor for row in rows for run in row.runs.values() if run.monitor), "")
    unnamed = [monitor or "value"] if len(directions) == 1 else [f"value_{index}" for index in range(len(directions))]
    objectives = study.metric_names or spec.metrics or unnamed
    return Sweep(study.study_name, spec, objectives, monitor, str(study.user_attrs.get(STOP_REASON_ATTR, "")), rows)


@contract
def read_row(
    folder: Path, trial: FrozenTrial, known: dict[tuple[str, str], str], texts: Sequence[str], metrics: Sequence[str]
) -> Row:
    """Return the row of a trial. A warning names a trial that cannot be read: only its state and values count."""
    try:
        return correct_row(_build_row(folder, trial, known, texts), metrics)
    except Exception as error:  # attributes and files may hold anything
        log.warning("trial %d in %s is damaged: %s", trial.number, folder, describe_error(error))
        values = tuple(trial.values) if trial.state.name == "COMPLETE" else ()
        return Row(trial.number, trial.state.name, values, _read_params(trial, (), known, texts), note="damaged")


def _build_row(folder: Path, trial: FrozenTrial, known: dict[tuple[str, str], str], texts: Sequence[str]) -> Row:
    attrs, (trial_folder, run_folders) = trial.user_attrs, find_run_folders(folder, trial)
    pruned = f"pruned at step {attrs[PRUNED_ATTR]}" if PRUNED_ATTR in attrs else ""
    return Row(
        number=trial.number,
        state=EXCLUDED_STATE if EXCLUDED_ATTR in attrs else trial.state.name,
        values=tuple(trial.values) if trial.state.name == "COMPLETE" else (),
        params=_read_params(trial, run_folders, known, texts),
        started=trial.datetime_start,
        seconds=round(trial.duration.total_seconds(), 3) if trial.duration is not None else None,
        repeats=tuple(map(float, attrs.get("repeats", ()))),
        folder=str(trial_folder).removeprefix(f"{folder}/") if run_folders else "",
        runs={run_folder: read_run(run_folder) for run_folder in run_folders},
        error=str(attrs.get("error") or attrs.get(EXCLUDED_ATTR) or attrs.get(POSTPONED_ATTR) or ""),
        note=f"the result of {attrs[REUSED_ATTR]}" if REUSED_ATTR in attrs else pruned,
        limits=trial.constraints,
    )


def correct_row(row: Row, metrics: Sequence[str]) -> Row:
    """Return the row with what its run has reached where the study has something else, and a note and a warning of that.

    The run writes its summary, the study has a copy, which counts where the run's own records differ. Of a trial that failed
    in the study the result is only noted.
    """
    summaries = [run for run in row.runs.values() if run.status == "FINISHED"]
    if len(row.runs) != 1 or not summaries or row.state not in ("COMPLETE", "FAIL"):
        return row
    numbers = vars(summaries[0]) | summaries[0].metrics | summaries[0].best
    known = [numbers.get(name) for name in metrics] or [summaries[0].value]
    values = tuple(float(value) for value in known if isinstance(value, int | float))
    if row.values == values or len(values) < len(known):
        return row
    state = ", ".join(map(repr, row.values)) or row.state
    note = f"{CORRECTION} {state}, {SUMMARY_FILE} has {', '.join(map(repr, values))}"
    if doubt := find_contradiction(next(iter(row.runs)), summaries[0]):
        note, values = f"{note}, but {doubt}", row.values
    log.warning("trial %d: %s: %s", row.number, row.folder, note)
    return replace(row, note=f"{row.note} {note}".strip(), values=values if row.values else ())


@contract
def read_run(folder: Path) -> Summary:
    """Return a run's summary, with the id of its run in MLflow; of a run that is under way or was killed, only the id."""
    return replace(read_summary(folder) or Summary(""), mlflow_run_id=read_note(folder / RUN_ID_FILE) or None)


def read_note(file: Path) -> str:
    """Return the text of a run's file; nothing where there is none, or one that cannot be read, which a warning names."""
    try:
        return read_text(file)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        log.warning("%s is damaged and left out: %s", file, error)
        return ""


def find_run_folders(folder: Path, trial: FrozenTrial) -> tuple[Path, list[Path]]:
    """Return a trial's folder, and its run folders: itself, or those of its repeats, which are numbered below it.

    The trial's folder is the one that it names, unless that is gone, as after the sweep's folder was moved, or is the folder
    of its first repeat: then it is the one with the trial's number.
    """
    numbered, named = folder / str(trial.number), Path(str(trial.user_attrs.get("folder", "")))
    trial_folder = named if named.is_absolute() and named.is_dir() and named.parent != numbered else numbered
    repeats = [path for path in trial_folder.glob("*/") if path.name.isdecimal()]
    own = [trial_folder] if trial_folder.is_dir() else []
    return trial_folder, sorted(repeats, key=lambda path: int(path.name)) or own


def _read_params(
    trial: FrozenTrial, run_folders: Sequence[Path], known: dict[tuple[str, str], str], texts: Sequence[str]
) -> dict[str, str]:
    """Return the parameters as the overrides of the trial's first run.

    `known` collects how overrides spell each value, for trials that have no run of their own. The values of `texts` are
    stored as overrides spell them.
    """
    pairs = (line.partition("=") for run in run_folders[:1] for line in read_note(run / "overrides.txt").splitlines())
    overrides = {key.lstrip("+"): text for key, _, text in pairs}
    params = {key.lstrip("+"): value for key, value in trial.params.items()}
    known |= {(key, repr(value)): overrides[key] for key, value in params.items() if key in overrides}
    spelled = {key: str(value) if key in texts else to_override(value) for key, value in params.items()}
    return {key: known.get((key, repr(value))) or spelled[key] for key, value in params.items()}


# Back to a study, for Optuna's plots and importances. Its categories are the values' texts, and numbers get an axis.


@contract
def to_study(sweep: Sweep, index: int | None = None) -> Study:
    """Return an in-memory study in which trial n is row n, waiting if excluded; with an index it has this objective alone."""
    objectives = slice(None) if index is None else slice(index, index + 1)
    texts = {key: list(dict.fromkeys(row.params[key] for row in sweep.rows if key in row.params)) for key in sweep.space}
    distributions = {key: infer_distribution(sweep.space[key], values) for key, values in texts.items() if values}
    as_text = {key for key, distribution in distributions.items() if isinstance(distribution, CategoricalDistribution)}
    with silence_optuna():
        study = optuna.create_study(study_name=sweep.name, directions=sweep.directions[objectives])
        for row in sweep.rows:
            if row.state == EXCLUDED_STATE:
                study.add_trial(create_trial(state=TrialState.WAITING))
                continue
            own = {key: distributions[key] for key in row.params}
            params = {key: text if key in as_text else parse_value(text) for key, text in row.params.items()}
            values, limits, state = list(row.values[objectives]) or None, dict(row.limits) or None, TrialState[row.state]
            trial = create_trial(state=state, values=values, params=params, distributions=own, constraints=limits)
            trial.datetime_start = row.started
            if row.started and row.seconds is not None:
                trial.datetime_complete = row.started + timedelta(seconds=row.seconds)
            study.add_trial(trial)
    return study


@contract
def infer_distribution(description: str, texts: Sequence[str]) -> BaseDistribution:
    """Return the distribution of a parameter that took these values, so that also a grid's numbers get an axis.

    The axis is logarithmic where the space says so; without bounds in it, where the values span a decade.
    """
    numbers = [number for number in map(parse_number, texts) if number is not None and math.isfinite(number)]
    if len(numbers) < len(texts):
        return CategoricalDistribution(list(texts))
    bounds, _ = parse_bounds(description)
    ends = [float(bounds[end]) for end in ("low", "high") if end in bounds]
    low, high = min([*numbers, *ends]), max([*numbers, *ends])
    log_scale = low > 0 and ("log" in bounds if ends else high >= 10 * low)
    if all(isinstance(value, int) for value in numbers):
        return IntDistribution(int(low), int(high), log=log_scale)
    return FloatDistribution(float(low), float(high), log=log_scale)


@contract
def parse_bounds(description: str) -> tuple[dict[str, str], str]:
    """Return the bounds of a numeric parameter in study.json and its condition; of a list of choices nothing."""
    match = BOUNDS.fullmatch(description)
    return (dict(word.split("=") for word in match[1].split()), match[2]) if match else ({}, "")
