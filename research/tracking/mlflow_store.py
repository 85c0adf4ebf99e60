"""An MLflow store: how to connect to it, and queries and clean-up through its client. MLflow is imported when one connects."""

import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from research.cli import first_line, print_message, redact, wait_for
from research.contracts import contract
from research.files.locks import is_locked
from research.run_dir import RUN_ID_PATTERN, read_summary, read_text
from research.tracking.fields import MAX_TAG_LENGTH, PARENT_TAG, SOURCE_TAG
from research.tracking.jsonl import FINISHED, KILLED
from research.tracking.sink import silent_stores
from research.tracking.storage import DEFAULT_URI, FileLock, find_sqlite_file, format_sqlite_url, resolve_uri

RUN_ID_FILE = "mlflow_run_id"  # in a run folder and a sweep's folder: the id of its run
FAILED_TAG = "sweep.failed"  # on a sweep's run: the status of a trial that did not finish
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
SETTINGS = {  # MLflow's, where the user has none
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing leaves the machine unasked
    TIMEOUT_VARIABLE: "15",  # seconds; MLflow's own limits let a hung server hold a run
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the tracker itself tries again
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # a server's address may hold a password
}
MIN_RATE = 1e6  # bytes a second of an upload
T = TypeVar("T")
log = logging.getLogger(__name__)
Artifacts = Sequence[tuple[Path, str | None]]  # files, and their folders among the artifacts of a run
Histories = Mapping[str, Mapping[int, float]]  # metric -> step -> value


@contract
def connect(uri: str, must_exist: bool = False) -> Any:
    """Return an MlflowClient of the store. A missing SQLite store is created, or with `must_exist` FileNotFoundError raised.

    Raise whatever MLflow raises where the store cannot be opened.
    """
    file = find_sqlite_file(uri)
    if must_exist and file and not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow.store.db.utils", "mlflow.pyfunc"):  # at INFO they log each table that they create, each check
        logging.getLogger(name).setLevel(logging.WARNING)
    # Two processes that create one SQLite store at once would break it.
    with FileLock(file.with_suffix(".lock")) if file else nullcontext():
        if file and not file.exists():
            # Created under another name and renamed: a store that a kill left half-created could never be opened.
            draft = file.with_name(f".{file.name}.draft")
            draft.unlink(missing_ok=True)
            MlflowClient(format_sqlite_url(draft))
            draft.replace(file)
        return MlflowClient(uri)


class Client:
    """An MlflowClient that knows when the store last answered. What it is set to takes the place of a method."""

    def __init__(self, client: Any) -> None:
        self.client, self.answered = client, time.monotonic()

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            self.answered = time.monotonic()
            return result

        return call

    @contract
    def log_artifact(self, run_id: str, path: str, folder: str | None = None) -> None:
        """Log a file. A large one has time to arrive before the store counts as silent."""
        self.answered = time.monotonic() + Path(path).stat().st_size / MIN_RATE
        self.__getattr__("log_artifact")(run_id, path, folder)


@contextmanager
@contract
def connect_briefly(uri: str | None = None) -> Iterator[Any]:
    """Yield a client of a store that exists, for calls that can be repeated: a signal ends them at once.

    Raise ConnectionError where the last run of this process has waited for the store in vain.
    """
    store = resolve_uri(uri)
    if f"MLflow at {redact(store)}" in silent_stores:
        raise ConnectionError("it did not answer the last run")
    names = {*SETTINGS, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"}
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        client = connect(store, must_exist=True)
        with wait_for(f"MLflow at {redact(store)}"):
            yield client
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def choose_uri(recorded: str | None, requested: str | None = None) -> str:
    """Return the URI of the store that a folder's configuration records, if it is the user's own: no password goes elsewhere.

    His own are what this command requests, MLFLOW_TRACKING_URI and the default. A local file is not trusted either: what it
    records says where artifacts go. The passwords, which are not recorded, are those of his own. Raise ValueError for a store
    that only the configuration names.
    """
    own = [resolve_uri(requested), resolve_uri(), DEFAULT_URI]
    if recorded is None:
        return own[0]
    if match := next((uri for uri in own if redact(uri) == redact(recorded)), None):
        return match
    store = redact(recorded)
    raise ValueError(f"only the configuration in the folder names the store {store}; if it is yours, set MLFLOW_TRACKING_URI")


@contract
def find_store_uri(sweep_folder: Path, requested: str | None = None) -> str:
    """Return the URI of the store that a sweep's runs were logged to: that of its first run's config, else the default.

    Raise ValueError as `choose_uri` does; `requested` is what this command names.
    """
    for file in (*sorted(sweep_folder.glob("*/config.yaml"))[:1], *sorted(sweep_folder.glob("*/0/config.yaml"))[:1]):
        return choose_uri(((yaml.safe_load(read_text(file)) or {}).get("tracker") or {}).get("uri"), requested)
    return resolve_uri(requested)


@contract
def get_run_folder(run_id: str, uri: str | None = None) -> str:
    """Return the run folder that a run in MLflow names. Raise ValueError where the store has no such run of this program."""
    store = resolve_uri(uri)
    try:
        with connect_briefly(store) as client:
            return str(client.get_run(run_id).data.tags["folder"])
    except Exception as error:  # stores raise errors of many kinds
        raise ValueError(f"MLflow at {redact(store)} has no run {run_id} of ours") from error


@contract
def is_copy(run: Any, folder: Path) -> bool:
    """Return whether a folder that names a run in MLflow is a copy of the folder that the run was made in.

    A moved one is no copy: the first place is empty then. What is on another machine cannot be seen from here: a copy.
    """
    original, host = Path(run.data.tags.get("folder", folder)), run.data.tags.get("host", socket.gethostname())
    if original == folder or (original.exists() and folder.exists() and original.samefile(folder)):
        return False
    id_file = original / RUN_ID_FILE
    still_there = id_file.is_file() and read_text(id_file, "replace").strip() == run.info.run_id
    return still_there or str(host) != socket.gethostname()


@contract
def find_run(client: Any, folder: Path) -> Any:
    """Return the run that a folder names, by its summary where that file is damaged; None for a new or a copied folder.

    Log a warning where a folder that has a run does not name one of this store.
    """
    from mlflow.exceptions import MlflowException

    id_file, summary = folder / RUN_ID_FILE, read_summary(folder)
    text = read_text(id_file, "replace").strip() if id_file.exists() else ""
    for run_id in filter(partial(re.fullmatch, RUN_ID_PATTERN), (text, str(summary and summary.mlflow_run_id))):
        try:
            stored_run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                continue
            raise
        if stored_run.info.lifecycle_stage == "deleted":
            continue
        if is_copy(stored_run, folder):
            log.warning("MLflow: %s is a copy of the folder of run %s: it becomes a run of its own", folder, run_id)
            return None
        if run_id != text:
            log.warning("MLflow: %s is damaged or gone: summary.json names the run, %s", id_file, run_id)
        return stored_run
    if id_file.exists():
        log.warning("MLflow: %s names no run of this store: it becomes a new one", id_file)
    return None


@contract
def read_run_id(client: Any, folder: Path) -> str:
    """Return the id of the run in MLflow that a folder names. Raise ValueError where the folder is a copy of that run's."""
    run_id = read_text(folder / RUN_ID_FILE, "replace").strip()
    if is_copy(client.get_run(run_id), folder):
        raise ValueError(f"{folder} is a copy of the folder of run {run_id}, which stays as it is")
    return run_id


def end_dead_runs(client: Any) -> None:
    """Set to KILLED the runs of this machine whose process has died; MLflow would leave them RUNNING for ever."""
    for experiment in client.search_experiments():
        running = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
        for run in client.search_runs([experiment.experiment_id], running):
            tags = run.data.tags
            # A run without these tags is a sweep's, or another program's.
            if SOURCE_TAG in tags and "folder" in tags and not is_locked(Path(tags["folder"])):
                client.set_terminated(run.info.run_id, KILLED)
                if parent := tags.get(PARENT_TAG):
                    close_parent(client, parent, KILLED)


@contract
def close_parent(client: Any, parent: str, status: str) -> None:
    """Set the status of a sweep's run until `conclude` sets the last one: failed once one of its trials has failed."""
    if status != FINISHED:
        client.set_tag(parent, FAILED_TAG, status)
    client.set_terminated(parent, client.get_run(parent).data.tags.get(FAILED_TAG, status))


@contract
def conclude(client: Any, parent: str, files: Artifacts, metrics: Histories, tags: Mapping[str, str], status: str) -> None:
    """Log the result of a sweep on its run. Repeated, it replaces what an earlier call logged."""
    end_dead_runs(client)
    for path, artifact_folder in files:
        client.log_artifact(parent, str(path), artifact_folder)
    for key, points in _clean_keys(metrics).items():
        history = sorted(client.get_metric_history(parent, key), key=lambda point: (point.step, point.timestamp))
        stored = {point.step: point.value for point in history}
        for step, value in points.items():
            if stored.get(step) != value:
                client.log_metric(parent, key, value, step=step)
    new_tags, run = _clean_keys(tags), client.get_run(parent)
    for key in run.data.tags:
        if key == FAILED_TAG or (key.startswith("best.") and key not in new_tags):
            client.delete_tag(parent, key)
    for key, text in new_tags.items():
        client.set_tag(parent, key, text[:MAX_TAG_LENGTH])
    running = f"tags.`{PARENT_TAG}` = '{parent}' and attributes.status = 'RUNNING'"
    if client.search_runs([run.info.experiment_id], running, max_results=1):
        client.update_run(parent, status="RUNNING")  # trials run on other machines: the last of them concludes
    else:
        client.set_terminated(parent, status)


def _clean_keys(items: Mapping[str, T]) -> dict[str, T]:
    """Replace the characters that MLflow does not allow in a name."""
    return {re.sub(r"[^\w\-./ ]", "_", key): value for key, value in items.items()}


@contract
def get_or_create_experiment(client: Any, name: str, uri: str) -> str:
    """Return the id of an experiment. Create it where it is missing, restore it where it was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        file = find_sqlite_file(uri)
        # A server has its own folder for artifacts.
        location = (file.resolve().parent / "mlartifacts" / name).as_uri() if file else None
        return str(client.create_experiment(name, artifact_location=location))
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


@contract
def upload_report(run_folder: Path, file: Path, artifact_folder: str, uri: str | None) -> None:
    """Add the report to the artifacts of the folder's own run in MLflow; print a warning where MLflow fails."""
    if not (run_folder / RUN_ID_FILE).exists():
        return
    try:
        with connect_briefly(choose_uri(uri)) as client:
            client.log_artifact(read_run_id(client, run_folder), str(file), artifact_folder)
    except Exception as error:  # stores raise many types, and the export is complete
        print_message(f"warning: MLflow did not accept the report ({type(error).__name__}: {first_line(error)}); it is {file}")
