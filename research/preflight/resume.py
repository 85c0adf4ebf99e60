"""What resume= means: the run that is resumed, the folder that it writes to, and the settings that must not change."""

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from research.cli import print_message
from research.composition.compose import is_interpolated
from research.composition.overrides import to_literal
from research.composition.recorded import (
    FREE_SETTINGS,
    OUTER_SETTINGS,
    Difference,
    list_differences,
    load_config,
)
from research.contracts import contract
from research.files.locks import is_locked
from research.preflight.fixed import find_fixed_conflict, resolve_settings
from research.preflight.requested import RequestedConfig
from research.rules import Conflict
from research.run_dir import (
    RUN_ID_PATTERN,
    expand_path,
    find_link,
    list_checkpoints,
    parse_json,
    read_summary,
    read_text,
    to_run_folder,
)
from research.tracking.find import describe_other
from research.training.manifest import is_checkpoint, is_intact, rank_checkpoints


@dataclass
class Resume:
    """The keys below `resume`, with their types."""

    path: str | None
    weights_only: bool


@contract
def prepare_resume(requested: RequestedConfig, multirun: bool = False) -> list[str]:
    """Return the overrides that replace an MLflow run id by its path, and send a resumed run to its own folder.

    Print a warning for each of that run's files that is damaged.
    """
    value, has_folder = requested.get_resolved("resume.path")[0], multirun or "hydra.run.dir" in requested.typed_overrides
    if value == "auto":
        path = None if has_folder else find_furthest_run(requested)
    else:
        path = find_resume_path(requested) if isinstance(value, str) else None
    overrides = [f"resume.path={to_literal(str(path))}"] if path and re.fullmatch(RUN_ID_PATTERN, value) else []
    # From an older or a copied checkpoint, or from weights alone, a new run branches off in a folder of its own.
    if path is None or has_folder or starts_from_weights(requested) or is_elsewhere(path):
        return overrides
    run = to_run_folder(path)
    for note in filter(None, (load_config(path)[1], *find_damage(run))):
        print_message(f"warning: {run}: {note}")
    return [*overrides, f"hydra.run.dir={to_literal(str(run))}"]


@contract
def get_folder_overrides(requested: RequestedConfig) -> list[str]:
    """Return the overrides that replace the ~ of folders which Hydra makes: it would make one called ~."""
    folders = {key: requested.get_resolved(key)[0] for key in ("out", "hydra.run.dir", "hydra.sweep.dir")}
    return [f"{key}={to_literal(str(expand_path(path)))}" for key, path in folders.items() if str(path).startswith("~")]


def find_damage(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a run's overrides.txt and env.json, which holds the overrides too since version 0.3."""
    texts = {}
    for name in ("overrides.txt", "env.json"):
        try:
            texts[name] = read_text(folder / name, "replace")
        except OSError as error:
            yield f"{name} {'is not there' if isinstance(error, FileNotFoundError) else 'cannot be read'}"
    try:
        recorded = parse_json(texts["env.json"]).get("overrides") if "env.json" in texts else None
    except ValueError as error:
        yield f"env.json is damaged: {error}"
    else:
        if recorded is not None and texts.get("overrides.txt", recorded) != recorded:
            yield "overrides.txt is damaged: env.json has other overrides"


def starts_from_weights(requested: RequestedConfig) -> bool:
    """Return whether a new run starts from the weights of another one."""
    return requested.get_resolved("resume.weights_only")[0] is True


@contract
def is_elsewhere(path: Path) -> bool:
    """Return whether a path is a checkpoint that is not the last one of a run: a copy, or an older one.

    A run has metrics.jsonl, or else a config.yaml that is the checkpoint's: other things would be overwritten.
    """
    if not is_checkpoint(path):
        return False
    run = to_run_folder(path)
    is_newest = path == next(iter(list_checkpoints(run).values()), None)
    return not (is_newest and ((run / "metrics.jsonl").exists() or not load_config(path)[1]))


def find_furthest_run(requested: RequestedConfig) -> Path | None:
    """Return the run of this very configuration that is furthest, of no more steps than requested; None for none."""
    root = expand_path(str(requested.get_resolved("out")[0])) / str(requested.get_resolved("name")[0])
    settings, steps = json.dumps(resolve_settings(requested), default=str), requested.get_resolved("trainer.steps")[0]
    run = choose_run(root, settings, steps)
    return run and run.resolve()


@cache  # for one command, which `check_overrides` begins: checkpoints of several runs are hashed whole
@contract
def choose_run(root: Path, settings: str, steps: int | None) -> Path | None:
    """Return the run below a folder that is furthest by an intact checkpoint.

    Where none is intact return a run whose damage is told when it is loaded, then one without a checkpoint, then None.
    """
    runs = rank_runs(root, json.loads(settings), steps)
    saved = [run for run, checkpoints in runs.items() if checkpoints]
    if len(saved) == 1:  # its checkpoints are checked when they are loaded
        return saved[0]
    furthest = sorted((pair for pairs in runs.values() for pair in pairs), key=lambda pair: pair[0], reverse=True)
    intact = (to_run_folder(folder) for _, folder in furthest if is_intact(folder))
    return next(intact, None) or next(iter((*saved, *runs)), None)


def rank_runs(root: Path, settings: dict[str, Any], steps: int | None) -> dict[Path, list[tuple[int, Path]]]:
    """Return the runs of these settings and no more steps, the newest first, with their checkpoints, the furthest first.

    With `epochs` in the settings `steps` is None, and they are counted by those that an earlier run took for its own epochs.
    """
    ranked = {}
    for run in sorted(root.glob("*/"), key=lambda run: run.stat().st_mtime, reverse=True):
        there = load_config(run)[0]
        if there and not list_other_settings(run, settings, there):
            checkpoints = rank_checkpoints(run)
            epochs, then = settings.get("epochs"), there.get("epochs")
            limit = math.ceil(there["steps"] * epochs / then) if epochs and then else math.inf if steps is None else steps
            if not checkpoints or checkpoints[0][0] <= limit:
                ranked[run] = checkpoints
    return ranked


def find_resume_path(requested: RequestedConfig) -> Path | None:
    """Return the run folder or checkpoint that resume= names, by a path or an MLflow run id; None where there is none."""
    value = str(requested.get_resolved("resume.path")[0])
    if os.path.exists(path := expand_path(value)):
        path = path.resolve()
        return path if is_checkpoint(path) else to_run_folder(path)
    if not re.fullmatch(RUN_ID_PATTERN, value):
        return None
    out = expand_path(str(requested.get_resolved("out")[0]))
    for file in (*out.glob("*/*/mlflow_run_id"), *out.glob("*/*/*/mlflow_run_id")):
        if read_text(file, "replace").strip() == value:
            return file.parent.resolve()
    # MLflow takes seconds to import, so it is asked only about a run that is not below `out`.
    from research.tracking.mlflow_store import get_run_folder

    uri = requested.get_resolved("tracker.uri")[0]
    try:
        path = Path(get_run_folder(value, uri if isinstance(uri, str) else None))
    except ValueError:
        return None
    return path if os.path.exists(path) else None


@contract
def find_resume_conflicts(requested: RequestedConfig) -> Iterator[Conflict]:
    """Yield the conflict of resume= where there is nothing to go on from, it is another's, or a process is writing it."""
    value, is_new = requested.get_resolved("resume.path")[0], starts_from_weights(requested)
    if isinstance(value, str) and value != "auto":
        yield from () if is_interpolated(value) else find_path_conflicts(requested, value)
    elif is_new and value == "auto":
        message = "resume=auto resumes the newest run of this configuration, resume.weights_only=true starts a new one"
        yield Conflict(("resume.path", "resume.weights_only"), message, "give resume=FOLDER, the run to start from")
    elif is_new:
        fix = "give resume=FOLDER, a run folder or a checkpoint"
        yield Conflict(("resume.weights_only",), "resume.weights_only=true needs weights to start from", fix)
    elif value == "auto":
        folder = requested.get_resolved("hydra.run.dir")[0] if "hydra.run.dir" in requested.typed_overrides else None
        own = Path(str(folder)).resolve() if folder else find_furthest_run(requested)
        if own and is_locked(own):
            yield Conflict(("resume.path",), f"another process is writing this very run: {own}", "wait for its end")
        elif own:
            yield from filter(None, [check_same_run(own, resolve_settings(requested)), find_link_conflict(own)])


def find_link_conflict(folder: Path) -> Conflict | None:
    """Return the conflict of a link in the run folder, through which a run would write elsewhere; None without one."""
    if not (link := find_link(folder)):
        return None
    message = f"{link} is a link: what is written there would go elsewhere"
    return Conflict(("resume.path", "hydra.run.dir"), message, "remove it, or copy its file")


@contract
def check_same_run(folder: Path, settings: dict[str, Any], is_trial: bool = False) -> Conflict | None:
    """Return the conflict of a folder that holds a run of other settings, but for where it goes, how far, and who watches."""
    there = load_config(folder)[0]
    if not there or not (differences := list_other_settings(folder, settings, there)):
        return None
    message = f"{folder} holds a run of other settings: {'; '.join(map(str, differences[:3]))}"
    if is_trial:
        return Conflict(("hydra.sweep.subdir",), message, "give each trial a folder of its own, by hydra.sweep.subdir")
    return Conflict(("resume.path", "hydra.run.dir"), message, "give a folder of its own, by out, name or hydra.run.dir")


def list_other_settings(run: Path, settings: dict[str, Any], there: dict[str, Any]) -> list[Difference]:
    """Return what keeps a run from going on. A finished one without checkpoints would begin again, its result lost."""
    is_finished = (summary := read_summary(run)) is not None and summary.status == "FINISHED"
    return list_differences(settings, there, OUTER_SETTINGS if is_finished and not list_checkpoints(run) else FREE_SETTINGS)


def find_path_conflicts(requested: RequestedConfig, value: str) -> Iterator[Conflict]:
    """Yield the conflicts of a path or id: no checkpoint, another model, or other data or optimizer where no new run begins."""
    path, is_new = find_resume_path(requested), starts_from_weights(requested)
    if path is None:
        is_id = re.fullmatch(RUN_ID_PATTERN, value)
        message = "no such folder, nor a run in MLflow" if is_id else f"there is no {expand_path(value).absolute()}"
        yield Conflict(("resume.path",), message, "give auto, a run folder, one of its checkpoints/step-*, or an MLflow run id")
        return
    folder = to_run_folder(path)
    if path == folder and not is_checkpoint(path) and not list_checkpoints(path):
        message, _, fix = describe_other(path, "resume").partition("; ")
        fix = fix or "give a run folder, or one of its checkpoints/step-*"
        yield Conflict(("resume.path",), message or f"{path} holds no checkpoint", fix)
    target = expand_path(str(requested.get_resolved("hydra.run.dir")[0])).resolve()
    writes_there = "hydra.run.dir" in requested.typed_overrides and target == folder
    if writes_there or not (is_new or is_elsewhere(path)):
        yield from filter(None, [find_link_conflict(folder)])
    if writes_there and is_elsewhere(path) and not is_new:
        message = f"{folder} has later checkpoints than {path.name}, or other things than that run"
        yield Conflict(("resume.path", "hydra.run.dir"), message, "leave out hydra.run.dir: the run gets a folder of its own")
    yield from filter(None, [find_fixed_conflict(requested, path, value, is_new)])
