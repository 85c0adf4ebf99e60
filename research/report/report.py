"""What a sweep has found: files in its folder and on its run in MLflow, at its end and after Ctrl-C.

python -m research.report SWEEP makes them again: from the study where its journal is in the sweep's folder, or else from
MLflow. SWEEP is a sweep's folder, or the id of its run in MLflow.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.metrics import confidence_interval
from research.report import gap
from research.report.plots import compute_importances, draw, format_number, group_configurations, parse_bounds
from research.report.preset import EXCLUDED_KEYS, build_preset, build_solution, dump_yaml
from research.report.results import Sweep, breaks_constraint, list_runs, read_store, read_study, to_csv
from research.run_dir import read_json, replace_text
from research.tracking import mlflow_store
from research.tracking.mlflow import RUN_ID_FILE, SWEEP_SPEC_FILE, connect, find_store_uri

if TYPE_CHECKING:
    from optuna.study import Study

JOURNAL_FILE, POPULATION_FILE = "study.journal", "population.json"  # in the folder of a sweep, or of one that evolves
POPULATION_HINT = "a population has its own report: population.csv, lineage.png and optimization_results.yaml in its folder"
MAX_TABLE_ROWS = 10  # trials and configurations in a table
SWEEP_HINT = "give a sweep's folder, as outputs/modular/sweep_..., or the id of its parent run in MLflow"


def report(folder: Path, study: "Study", plots: bool = True) -> None:
    """trials.csv, results.md, best.yaml, optimization_results.yaml and pictures; all of it on the sweep's run in MLflow too."""
    sweep = read_study(folder, study)
    files = write(sweep, folder, plots)
    if not (folder / RUN_ID_FILE).exists():
        return
    uri = find_store_uri(folder)
    try:
        with mlflow_store.shorten_timeouts():
            publish(sweep, connect(uri, must_exist=True), (folder / RUN_ID_FILE).read_text(), files)
    except Exception as error:  # whatever a store raises: the sweep is not to fail for it
        where = f"MLflow at {mlflow_store.redact_url(uri)} did not take the report ({first_line(error)}); it is in {folder}"
        print(f"warning: {where}", file=sys.stderr)


def first_line(error: Exception) -> str:
    """In one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def write(sweep: Sweep, folder: Path, plots: bool) -> list[tuple[Path, str | None]]:
    """The files, each with its place among the artifacts of the sweep's run."""
    texts = {"trials.csv": to_csv(sweep)}
    if sweep.best:
        texts["optimization_results.yaml"] = dump_yaml(build_solution(sweep))
    if sweep.best and has_fixed_overrides(sweep):
        texts["best.yaml"] = build_preset(sweep, sweep.best[0])
    else:
        (folder / "best.yaml").unlink(missing_ok=True)  # an earlier report's
    for name, text in texts.items():
        replace_text(folder / name, text)
    reasons = draw(sweep, folder / "plots") if plots else {}
    section, more = build_gap_section(sweep, folder, plots)
    reasons |= more
    replace_text(folder / "results.md", render_results(sweep, reasons, section))
    names = [name for name in (*texts, "results.md", SWEEP_SPEC_FILE) if (folder / name).exists()]
    pictures = [f"plots/{name}.png" for name, reason in reasons.items() if not reason]
    return [(folder / name, None) for name in names] + [(folder / picture, "plots") for picture in pictures]


def build_gap_section(sweep: Sweep, folder: Path, plots: bool) -> tuple[list[str], dict[str, str]]:
    """What rounded weights cost, as a section and a picture with its reason; none of the other files is lost for it."""
    try:
        found = gap.collect_arms(sweep, lambda row: [read_json(run / "summary.json") for run in list_runs(folder, row.folder)])
        if plots and found:
            gap.draw(found, folder / "plots")
        head, *rows = gap.table_rows(found)
        section = (
            [
                "## What rounded weights cost",
                gap.describe_budget(found),
                gap.METHOD_NOTE,
                render_table(head, rows),
            ]
            if found
            else []
        )
        return section, {"gap": ""} if plots and found else {}
    except Exception as error:  # whatever a library makes of unusual numbers
        return [], {"gap": f"{type(error).__name__}: {first_line(error)}"}


def has_fixed_overrides(sweep: Sweep) -> bool:
    """Whether its sweeper left word of what it held fixed, as Hydra's own does not."""
    return "fixed" in sweep.spec


# results.md


def render_results(sweep: Sweep, reasons: Mapping[str, str], section: Sequence[str]) -> str:
    """The report for people."""
    aims = ", ".join(f"{way} {name}" for way, name in zip(sweep.directions, sweep.objectives, strict=True))
    parts = [
        f"# {sweep.name}: {aims}",
        describe_ending(sweep),
        *render_best_trials(sweep),
        *section,
        "## What was run",
        describe_space(sweep),
    ]
    if failed := [f"- trial {r.number}: {r.error.splitlines()[0]}" for r in sweep.rows if r.state == "FAIL" and r.error]:
        parts += [
            "## Failed",
            "\n".join(
                failed[:MAX_TABLE_ROWS] + [f"- and {len(failed) - MAX_TABLE_ROWS} more"] * (len(failed) > MAX_TABLE_ROWS)
            ),
        ]
    for index, name in enumerate(sweep.objectives):
        if shares := compute_importances(sweep, index):
            rows = [(key, f"{share:.2f}") for key, share in shares.items()]
            parts += [
                f"## What {name} depends on",
                "Shares of its variation, by PED-ANOVA; rough for few trials, or a parameter that few of them have.",
                render_table(("parameter", "share"), rows),
            ]
    if reasons:
        parts += ["## Pictures", *(f"![{name}](plots/{name}.png)" for name, reason in reasons.items() if not reason)]
        parts += ["\n".join(f"- no {name}: {reason}" for name, reason in reasons.items() if reason)]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_ending(sweep: Sweep) -> str:
    """How many trials ended how, what they took, and why there are no more."""
    states = Counter(row.state for row in sweep.rows)
    how = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
    seconds = sum(row.seconds or 0.0 for row in sweep.rows)
    took = f"{sum(row.steps for row in sweep.rows):,} steps" + (f" in {format_duration(seconds)} of trials" if seconds else "")
    ended, total = sum(states[state] for state in ("COMPLETE", "PRUNED", "FAIL")), int(sweep.spec.get("total", 0))
    left = f", {states['RUNNING']} are running or were interrupted" if states["RUNNING"] else ""
    why = f"{ended} of {total} trials have ended{left}: the same command goes on with the rest."
    if sweep.stop_reason:
        why = f"It ended early: {sweep.stop_reason}."
    elif not total:
        why = f"How many there were to be is not known{left}."
    elif ended >= total:
        why = f"All {total} trials have ended."
    return f"{len(sweep.rows)} trial{'s' * (len(sweep.rows) != 1)}: {how or 'none'}; {took}. {why}"


def render_best_trials(sweep: Sweep) -> Iterable[str]:
    """The best trials, and where a key was repeated the means over it."""
    if not sweep.best:
        yield "No trial is complete." if not sweep.complete else "No complete trial keeps to the constraints."
    else:
        by_mean = f", by the mean over {sweep.repeat_key}" if sweep.repeat_key in sweep.space else ""
        yield ("## The best trials" if len(sweep.directions) == 1 else "## The Pareto front") + by_mean
        rows = sweep.rank_rows()[:MAX_TABLE_ROWS] if len(sweep.directions) == 1 else sweep.best[:MAX_TABLE_ROWS]
        cells = [
            (row.number, *map(format_number, row.values), *(format_number(row.params.get(key, "")) for key in sweep.space),
             row.steps, format_duration(row.seconds or 0.0), row.folder, row.note) for row in rows
        ]  # fmt: skip
        yield render_table(("trial", *sweep.objectives, *sweep.space, "steps", "time", "folder", ""), cells)
        how = "copy it to `conf/experiment/NAME.yaml`, then `python train.py experiment=NAME`."
        lost = f"no `best.yaml`: this sweep left no {SWEEP_SPEC_FILE}, so what its runs had in common is not known"
        which = f"trial {sweep.best[0].number}{', the first of the best configuration' if by_mean else ''}"
        yield (
            f"`best.yaml` repeats {which}: {how}"
            if has_fixed_overrides(sweep)
            else f"There is {lost}; each run's overrides.txt has it."
        )
    over = sweep.repeat_key
    sets = [
        (rows[0], [v for row in rows if row.values for v in row.repeats or row.values]) for rows in group_configurations(sweep)
    ]
    means = [(row, *confidence_interval(values), len(values)) for row, values in sets if len(values) > 1]
    if means and len(sweep.directions) == 1:
        means.sort(key=lambda each: -each[1] if sweep.directions[0] == "maximize" else each[1])
        keys = [key for key in sweep.space if key != over]
        lines = [
            (*(format_number(row.params.get(key, "")) for key in keys), format_number(mean), f"± {half:.2g}", count)
            for row, mean, half, count in means[:MAX_TABLE_ROWS]
        ]
        yield f"## Means over {over}, with their 95 % t intervals"
        yield render_table((*keys, sweep.objectives[0], "", "runs"), lines)


def describe_space(sweep: Sweep) -> str:
    """What was swept, and what was held."""
    fixed = [line for line in sweep.spec.get("fixed", []) if line.partition("=")[0] not in EXCLUDED_KEYS]
    space = render_table(("parameter", "values"), [(key, format_range(sweep, key, text)) for key, text in sweep.space.items()])
    return space + (f"\n\nFixed: `{' '.join(fixed)}`" if fixed else "")


def format_range(sweep: Sweep, key: str, text: str) -> str:
    """What a parameter could be, for people."""
    known, when = parse_bounds(text)
    if not text and not has_fixed_overrides(sweep):
        return ", ".join(dict.fromkeys(row.params[key] for row in sweep.rows if key in row.params))
    if not known:
        return text or "suggested by a function"
    step = f", in steps of {known['step']}" if "step" in known else ""
    return f"{known['low']} .. {known['high']}{step}{', logarithmic' * ('log' in known)} {when}".rstrip()


def render_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def format_duration(seconds: float) -> str:
    """A time for people."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if whole < 10 else f"{whole} s" if whole < 120 else f"{whole / 60:.0f} min"


# On the sweep's run in MLflow.


def publish(sweep: Sweep, client: Any, parent: str, files: Sequence[tuple[Path, str | None]]) -> None:
    """The report on the sweep's own run. Raises whatever the store does."""
    states = Counter(row.state for row in sweep.rows)
    ends = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    metrics = {f"trials/{name}": {0: float(states[state])} for name, state in ends.items()}
    kept = sorted((row for row in sweep.complete if not breaks_constraint(row)), key=lambda row: row.number)
    for index, name in enumerate(sweep.objectives if kept else ()):
        better = max if sweep.directions[index] == "maximize" else min
        best = accumulate((row.values[index] for row in kept), better)
        so_far = {row.number: value for row, value in zip(kept, best, strict=True)}
        metrics["best_value" if len(sweep.directions) == 1 else f"best_value/{name}"] = so_far
        metrics[f"best/{name}"] = {0: better(sweep.compute_mean(row)[index] for row in kept)}
    tags = {f"best.{key}": text for row in sweep.best[:1] for key, text in row.params.items()}
    tags |= {"best_trial": str(sweep.best[0].number)} if sweep.best else {}
    status = "KILLED" if states["RUNNING"] else "FAILED" if has_failed(sweep, states["FAIL"]) else "FINISHED"
    mlflow_store.conclude(client, parent, files, metrics, tags, status)


def has_failed(sweep: Sweep, failed: int) -> bool:
    """Whether the sweep's command ends with an error: one run of a grid failed, or more trials than may."""
    allowed = int(float(sweep.spec.get("max_failure_rate", 0.5)) * int(sweep.spec.get("total", 0)) + 1e-9)
    return failed > allowed or (failed > 0 and sweep.spec.get("kind") == "grid")


# Again, from the study or from MLflow.


def rebuild_report(source: str, plots: bool) -> Path:
    """Make the report of a sweep once more. Raises ValueError where there is none."""
    folder = Path(source)
    if (folder / POPULATION_FILE).exists():
        raise ValueError(f"SWEEP={source} is a population: {POPULATION_HINT}")
    if study := load_journal_study(folder):
        report(folder.absolute(), study, plots)
        return folder
    if (folder / RUN_ID_FILE).exists() and not (folder / "config.yaml").exists():
        parent = (folder / RUN_ID_FILE).read_text()
    elif re.fullmatch(r"[0-9a-f]{32}", source):
        folder, parent = Path(f"sweep_{source}"), source
    else:
        raise ValueError(f"SWEEP={source} is no sweep: {SWEEP_HINT}")
    uri = find_store_uri(folder)
    try:
        with mlflow_store.shorten_timeouts():
            return rebuild_from_mlflow(connect(uri, must_exist=True), parent, folder, plots)
    except Exception as error:  # whatever a store raises
        why = f"MLflow at {mlflow_store.redact_url(uri)} does not tell of this sweep ({first_line(error)})"
        raise ValueError(f"SWEEP={source}: {why}; {SWEEP_HINT}") from error


def rebuild_from_mlflow(client: Any, parent: str, folder: Path, plots: bool) -> Path:
    """The report in the sweep's folder where that is there, or else in a new one that has what the report needs."""
    tags = client.get_run(parent).data.tags
    if not mlflow_store.is_sweep(tags):
        raise ValueError(f"it is a run, of the sweep {tags.get('mlflow.parentRunId', 'none')}")
    if mlflow_store.is_population(client, parent):
        raise ValueError(POPULATION_HINT)
    home = Path(tags["folder"])
    if not folder.is_dir() and home.is_dir():
        folder = home
        if study := load_journal_study(home):
            report(home, study, plots)
            return home
    sweep = read_store(client, parent)
    folder.mkdir(exist_ok=True)
    notes = {RUN_ID_FILE: parent} | (
        {SWEEP_SPEC_FILE: json.dumps(sweep.spec, indent=2) + "\n"} if has_fixed_overrides(sweep) else {}
    )
    for name, text in notes.items():
        if not (folder / name).exists():
            replace_text(folder / name, text)
    publish(sweep, client, parent, write(sweep, folder, plots))
    return folder


def load_journal_study(folder: Path) -> "Study | None":
    """The study of a sweep that keeps it in its folder: it knows of trials that never had a run in MLflow."""
    if not (folder / JOURNAL_FILE).exists():
        return None
    import optuna

    from research.tracking import optuna_storage

    try:
        storage = optuna_storage.get_storage(f"journal://{(folder / JOURNAL_FILE).absolute()}")
        name = read_json(folder / SWEEP_SPEC_FILE).get("study") or optuna.get_all_study_names(storage)[0]
        return optuna.load_study(study_name=name, storage=storage)
    except Exception as error:  # whatever Optuna makes of a damaged file
        print(f"warning: {folder / JOURNAL_FILE} does not tell of this sweep ({first_line(error)})", file=sys.stderr)
        return None
