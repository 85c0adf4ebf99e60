"""What there is to do in an MLflow store besides logging: through its client, which others import."""

import fcntl
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.folder import alive
from research.jsonl import FINISHED, KILLED


def end_dead_runs(client: Any) -> None:
    """End, as KILLED, the runs of this machine that no process holds any more (MLflow leaves them RUNNING for ever)."""
    for experiment in client.search_experiments():
        running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        for run in client.search_runs([experiment.experiment_id], running):
            tags = run.data.tags
            if "folder" in tags and "sweep" not in tags and not alive(Path(tags["folder"])):  # else it is not one of ours
                client.set_terminated(run.info.run_id, KILLED)
                if parent := tags.get("mlflow.parentRunId"):
                    close_parent(client, parent, KILLED)


def close_parent(client: Any, parent: str, status: str) -> None:
    """A sweep has failed once one of its runs has; whoever ends last leaves the final word."""
    if status != FINISHED:
        client.set_tag(parent, "sweep.failed", status)
    client.set_terminated(parent, client.get_run(parent).data.tags.get("sweep.failed", status))


def experiment(client: Any, name: str, uri: str) -> str:
    """The experiment's id; made, or restored from MLflow's bin, where it is not there."""
    found = client.get_experiment_by_name(name)
    if found is None:
        beside = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name
        location = beside.as_uri() if uri.startswith("sqlite:///") else None  # a server knows its own place
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def shown(uri: str) -> str:
    """Without a user's name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys, without what says nothing about the training."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in ("out", "name", "callbacks", "tracker", "resume"):
            continue
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Two processes that create one SQLite store at once would break it."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    with locked(Path(uri.removeprefix("sqlite:///")).with_suffix(".lock")):
        yield
