"""The report of a sweep: files in its folder and on its run in MLflow, at its end, after Ctrl-C, and again by command."""

import re
from collections import Counter
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

from optuna.study import Study

from research.cli import first_line, print_message, redact
from research.contracts import contract
from research.report import gap
from research.report.blocks import Block, Heading, Table, write
from research.report.content import build_blocks
from research.report.markdown import render_markdown
from research.report.plots import draw
from research.report.preset import build_preset, build_solution, dump_yaml
from research.report.results import Sweep, to_csv
from research.report.run_page import build_run_page
from research.report.study import load_study, read_study
from research.report.sweep_page import build_sweep_page
from research.report.target import find_target
from research.run_dir import RUN_ID_PATTERN, check_links, expand_path, replace_text
from research.tracking import fields, links, mlflow_store
from research.tracking.find import POPULATION_FILE, SWEEP_HINT, find_journal, is_run_folder, is_sweep_folder
from research.tracking.mlflow_store import RUN_ID_FILE, Artifacts
from research.tracking.storage import resolve_uri
from research.tracking.study_spec import SWEEP_SPEC_FILE

PAGE_FILE = "report.html"
POPULATION_HINT = "a population has its own report: population.csv, lineage.png and optimization_results.yaml in its folder"


@contract
def report(folder: Path, study: Study, plots: bool = True, uri: str | None = None) -> Sweep:
    """Write the report into the sweep's folder, and log it to the sweep's run in MLflow where there is one. Return its rows.

    `uri` is the store that this command names. To a server that only the folder names nothing is sent.
    """
    sweep = read_study(folder, study)
    files = write_files(sweep, folder, plots)
    if not (folder / RUN_ID_FILE).exists():
        return sweep
    try:
        uri = mlflow_store.find_store_uri(folder, uri)
        with mlflow_store.connect_briefly(uri) as client:
            parent = mlflow_store.read_run_id(client, folder)
            publish(sweep, client, parent, files)
            link = links.share_sweep(client, parent, uri, sweep.objectives[0], sweep.directions[0] == "maximize")
            print(f"{'MLflow':<16} {link}", flush=True)
    except Exception as error:  # stores raise errors of many kinds, and the sweep must not fail for them
        where = f" at {uri}" if uri else ""
        print_message(f"warning: MLflow{where} did not take the report ({first_line(error)}); it is in {folder}")
    return sweep


def write_files(sweep: Sweep, folder: Path, plots: bool) -> Artifacts:
    """Write trials.csv, results.md, best.yaml, optimization_results.yaml and the pictures. Return those that are there."""
    texts = {"trials.csv": to_csv(sweep)}
    if sweep.best:
        texts["optimization_results.yaml"] = dump_yaml(build_solution(sweep))
        texts["best.yaml"] = build_preset(sweep, sweep.best[0])
    else:
        (folder / "best.yaml").unlink(missing_ok=True)  # an earlier report's
    for name, text in texts.items():
        replace_text(folder / name, text)
    target = find_target(sweep)
    reasons = draw(sweep, folder / "plots", target) if plots else {}
    gap_section, gap_reasons = build_gap_section(sweep, folder, plots)
    reasons |= gap_reasons
    replace_text(folder / "results.md", render_markdown(build_blocks(sweep, reasons, gap_section, target)))
    names = [name for name in (*texts, "results.md", SWEEP_SPEC_FILE) if (folder / name).exists()]
    pictures = [f"plots/{name}.png" for name, reason in reasons.items() if not reason]
    return [(folder / name, None) for name in names] + [(folder / picture, "plots") for picture in pictures]


def build_gap_section(sweep: Sweep, folder: Path, plots: bool) -> tuple[list[Block], dict[str, str]]:
    """Return the section on what quantized weights cost, and the reason of its picture as `draw` does.

    Both are empty where the sweep does not compare networks. An error becomes a reason, and spoils no other file.
    """
    try:
        if not (arms := gap.collect_arms(sweep)):
            return [], {}
        if plots:
            gap.draw(arms, folder / "plots")
        head, *rows = gap.table_rows(arms)
        title, budget = Heading("What quantized weights cost"), write(gap.describe_budget(arms))
        return [title, budget, write(gap.METHOD_NOTE), Table(head, rows)], {"gap": ""} if plots else {}
    except Exception as error:  # unusual numbers fail in many ways
        return [], {"gap": f"{type(error).__name__}: {first_line(error)}"}


@contract
def publish(sweep: Sweep, client: Any, parent: str, files: Artifacts) -> None:
    """Log the report to the sweep's run in MLflow. Raise whatever the store raises."""
    states = Counter(row.state for row in sweep.rows)
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    metrics = {f"trials/{name}": {0: float(states[state])} for name, state in names.items()}
    rows = [row for row in sweep.complete if not row.breaks_constraint]
    for index, name in enumerate(sweep.objectives if rows else ()):
        better = max if sweep.directions[index] == "maximize" else min
        best_so_far = accumulate((row.values[index] for row in rows), better)
        history = {row.number: value for row, value in zip(rows, best_so_far, strict=True)}
        metrics["best_value" if len(sweep.directions) == 1 else f"best_value/{name}"] = history
        metrics[fields.format_best(name)] = {0: better(sweep.compute_mean(row)[index] for row in rows)}
    tags = {f"best.{key}": text for row in sweep.best[:1] for key, text in row.params.items()}
    tags |= {"best_trial": str(sweep.best[0].number)} if sweep.best else {}
    status = "KILLED" if states["RUNNING"] else "FAILED" if states["FAIL"] > sweep.spec.max_failures else "FINISHED"
    for path in (path for path, _ in files if path.name == "results.md"):
        tags[fields.NOTE_TAG] = path.read_text(encoding="utf-8").partition("## Pictures")[
            0
        ]  # as the description, which shows no pictures
    mlflow_store.conclude(client, parent, files, metrics, tags, status)


@contract
def rebuild_report(source: str, plots: bool, storage: str = "") -> Path:
    """Write the report of a sweep again and return the sweep's folder. Raise ValueError where there is no such sweep.

    `source` is the folder, or the id of the sweep's run in MLflow. `storage` has the study where the folder has no journal.
    """
    folder, study = find_study(source, storage)
    report(folder.absolute(), study, plots)
    return folder


def find_study(source: str, storage: str) -> tuple[Path, Study]:
    """Return the folder of a sweep and its study. Raise ValueError where there is no such sweep."""
    folder = expand_path(source)
    try:
        if not folder.is_dir() and re.fullmatch(RUN_ID_PATTERN, source):
            folder = find_sweep_folder(source)
        if (folder / POPULATION_FILE).exists():
            raise ValueError(f"it is a population; {POPULATION_HINT}")
        check_links(folder)
        return folder, load_study(folder, storage or find_journal(folder))
    except ValueError as error:
        raise ValueError(f"RUN_OR_SWEEP={source}: {error}") from error


@contract
def write_page(source: str, file: Path | None, plots: bool, storage: str = "") -> Path:
    """Write the page of a run or a sweep, and nothing else; return its file. Raise ValueError where there is none of both."""
    run = find_run_folder(source)
    if run:
        folder, page = run, build_run_page(run)
    else:
        folder, study = find_study(source, storage)
        sweep = read_study(folder.absolute(), study)
        page = build_sweep_page(folder, sweep, plots, build_gap_section(sweep, folder, plots=False)[0])
    file = folder / PAGE_FILE if file is None else file / PAGE_FILE if file.is_dir() else expand_path(file)
    replace_text(file, page)
    return file


def find_run_folder(source: str) -> Path | None:
    """Return the folder of a run, by its path or its id in MLflow; None for a sweep, or what is neither."""
    folder = expand_path(source)
    if not folder.is_dir() and re.fullmatch(RUN_ID_PATTERN, source):
        with suppress(ValueError):
            folder = Path(mlflow_store.get_run_folder(source))
    return folder.resolve() if not is_sweep_folder(folder) and is_run_folder(folder) else None


def find_sweep_folder(run_id: str) -> Path:
    """Return the folder of a sweep by the id of its run in MLflow. Raise ValueError where it is no sweep, or has gone."""
    uri = resolve_uri()
    try:
        with mlflow_store.connect_briefly(uri) as client:
            tags = client.get_run(run_id).data.tags
    except Exception as error:  # stores raise errors of many kinds
        raise ValueError(f"MLflow at {redact(uri)} has no such run ({first_line(error)}); {SWEEP_HINT}") from error
    if "folder" not in tags or fields.SOURCE_TAG in tags:
        parent = tags.get(fields.PARENT_TAG, "none")
        raise ValueError(f"this run in MLflow is no sweep but a run of the sweep {parent}; {SWEEP_HINT}")
    folder, host = Path(tags["folder"]), tags.get("host", "an unknown host")
    if not folder.is_dir():
        artifacts = "its last report is among this run's artifacts in MLflow"
        raise ValueError(f"the sweep's folder {folder} on {host} is gone; {artifacts}")
    return folder
