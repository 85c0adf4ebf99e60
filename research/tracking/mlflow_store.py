"""What there is to do in an MLflow store besides logging: through its client, which others import."""

import fcntl
import json
import math
import os
import re
import socket
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from research.run_dir import is_locked
from research.tracking.jsonl import FINISHED, KILLED

SOURCE_TAG = "mlflow.source.name"  # a tag of each run of ours; a sweep has none: it is nobody's process


def is_sweep(tags: Mapping[str, str]) -> bool:
    """Whether these are the tags of a sweep's own run."""
    return "folder" in tags and SOURCE_TAG not in tags


def end_dead_runs(client: Any) -> None:
    """End, as KILLED, the runs of this machine that no process holds any more (MLflow leaves them RUNNING for ever)."""
    for experiment in client.search_experiments():
        running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        for run in client.search_runs([experiment.experiment_id], running):
            tags = run.data.tags
            if (
                SOURCE_TAG in tags and "folder" in tags and not is_locked(Path(tags["folder"]))
            ):  # else it is a sweep, or not ours
                client.set_terminated(run.info.run_id, KILLED)
                if parent := tags.get("mlflow.parentRunId"):
                    close_parent(client, parent, KILLED)


def close_parent(client: Any, parent: str, status: str) -> None:
    """Until the sweep's report has the final word (`conclude`): failed once one of its runs has."""
    if status != FINISHED:
        client.set_tag(parent, "sweep.failed", status)
    client.set_terminated(parent, client.get_run(parent).data.tags.get("sweep.failed", status))


@dataclass(frozen=True)
class Child:
    """A run of a sweep, as its store knows it."""

    number: int  # of its trial
    run_id: str
    state: str  # as Optuna calls it: COMPLETE, PRUNED, FAIL; RUNNING also where it was interrupted
    started: float
    ended: float | None
    folder: str
    params: dict[str, str]  # what was swept
    metrics: dict[str, float]
    monitor: str
    error: str


REDUCERS: dict[str, Callable[[Iterable[float]], float]] = {
    "mean": statistics.fmean, "median": statistics.median, "min": min, "max": max}  # fmt: skip
STATES = {"FINISHED": "COMPLETE", "PRUNED": "PRUNED", "FAILED": "FAIL"}


def list_children(client: Any, parent: str) -> list[Child]:
    """The runs of a sweep, in the order of their start."""
    place, token, found = [client.get_run(parent).info.experiment_id], None, list[Child]()
    while True:
        below = f"tags.`mlflow.parentRunId` = '{parent}'"
        page = client.search_runs(place, below, order_by=["attributes.start_time ASC"], page_token=token)
        found += [_parse_child(run, len(found) + index) for index, run in enumerate(page)]
        token = page.token
        if not token:
            return found


def _parse_child(run: Any, index: int) -> Child:
    tags, info = run.data.tags, run.info
    return Child(
        number=int(tags.get("trial.number", index)),
        run_id=info.run_id,
        state=STATES.get(tags.get("status", info.status) if info.status != "RUNNING" else "", "RUNNING"),
        started=info.start_time / 1000,
        ended=info.end_time / 1000 if info.end_time else None,
        folder=tags.get("folder", ""),
        params={key.removeprefix("sweep."): text for key, text in tags.items() if key.startswith("sweep.")},
        metrics=run.data.metrics,
        monitor=run.data.params.get("monitor", ""),
        error=tags.get("error", ""),
    )


def get_trial_outcome(
    client: Any, runs: Sequence[Child], names: Sequence[str], repeats: Mapping[str, Any]
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """A trial's state, its values, and the first of them for each repeat. One that was interrupted can be gone on with."""
    count, states = repeats.get("n", 1), {run.state for run in runs}
    whole = states == {"COMPLETE"} and len(runs) >= count
    state = next((each for each in ("FAIL", "PRUNED") if each in states), "COMPLETE" if whole else "RUNNING")
    found = [[get_number(client, run, name) for name in names] for run in runs if run.state == "COMPLETE"]
    reduce = REDUCERS[repeats.get("reduce", "mean")]
    values = tuple(reduce(column) for column in zip(*found, strict=True)) if state == "COMPLETE" else ()
    if any(map(math.isnan, values)):
        state, values = "FAIL", ()
    return state, values, tuple(each[0] for each in found) if count > 1 else ()


def get_number(client: Any, child: Child, name: str) -> float:
    """A number of a run by its name: that of its best evaluation before its last one. NaN where it has none."""
    for key in (f"best/{name}", f"final/{name}"):
        if key in child.metrics:
            return child.metrics[key]
    told = json.loads(read_artifact(client, child.run_id, "summary.json") or "{}").get(name)
    return float(told) if isinstance(told, int | float) else float("nan")


def get_num_steps(client: Any, run_id: str) -> int:
    """Those that an ended run has done."""
    return max((step for step, _ in fetch_history(client, run_id, "final/wall_s")), default=0)


def is_population(client: Any, parent: str) -> bool:
    """Whether the runs of this sweep are members of one: its own sweeper reports of them."""
    place = client.get_run(parent).info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`pbt.generation` LIKE '%'"
    return bool(client.search_runs([place], below, max_results=1))


def fetch_history(client: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    """A metric at each step; of several values the last one counts."""
    points = sorted(client.get_metric_history(run_id, key), key=lambda point: (point.step, point.timestamp))
    return list({point.step: point.value for point in points}.items())


def read_artifact(client: Any, run_id: str, name: str) -> str:
    """The text of an artifact; empty where the run has none of that name."""
    if name not in {each.path for each in client.list_artifacts(run_id)}:
        return ""
    with TemporaryDirectory() as place:
        return Path(client.download_artifacts(run_id, name, place)).read_text()


def conclude(
    client: Any,
    parent: str,
    files: Sequence[tuple[Path, str | None]],
    metrics: Mapping[str, Mapping[int, float]],
    tags: Mapping[str, str],
    status: str,
) -> None:
    """The final word on a sweep, which may be said again: files with their places, values by step, tags, the status."""
    end_dead_runs(client)
    for path, place in files:
        client.log_artifact(parent, str(path), place)
    for key, points in metrics.items():
        held = dict(fetch_history(client, parent, _clean_key(key)))
        for step, value in points.items():
            if held.get(step) != value:
                client.log_metric(parent, _clean_key(key), value, step=step)
    told = {_clean_key(key): text for key, text in tags.items()}
    for key in client.get_run(parent).data.tags:
        if key == "sweep.failed" or (key.startswith("best.") and key not in told):
            client.delete_tag(parent, key)
    for key, text in told.items():
        client.set_tag(parent, key, text[:8000])
    place = client.get_run(parent).info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    if client.search_runs([place], below, max_results=1):
        client.update_run(parent, status="RUNNING")  # others are at work, and will have the final word
    else:
        client.set_terminated(parent, status)


def _clean_key(key: str) -> str:
    """Without what MLflow has no place for in a name."""
    return re.sub(r"[^\w\-./ ]", "_", key)


@contextmanager
def shorten_timeouts() -> Iterator[None]:
    """Give a server that does not answer some seconds: MLflow's own patience is minutes."""
    own = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    own |= {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    before = {key: os.environ.get(key) for key in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            os.environ.update({key: value} if value is not None else {})


def get_or_create_experiment(client: Any, name: str, uri: str) -> str:
    """The experiment's id; made, or restored from MLflow's bin, where it is not there."""
    found = client.get_experiment_by_name(name)
    if found is None:
        beside = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name
        location = beside.as_uri() if uri.startswith("sqlite:///") else None  # a server knows its own place
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def redact_url(uri: str) -> str:
    """Without a user's name and password."""
    return re.sub(r"//.*@", "//", uri)


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, without what says nothing about the training."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in ("out", "name", "callbacks", "tracker", "resume"):
            continue
        found |= flatten_config(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def lock_store(uri: str) -> Iterator[None]:
    """Two processes that create one SQLite store at once would break it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    with lock_file(Path(uri.removeprefix("sqlite:///")).with_suffix(".lock")):
        yield
