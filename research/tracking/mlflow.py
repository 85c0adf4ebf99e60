"""The tracker that logs a run to MLflow as well as to metrics.jsonl."""

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from research.cli import announce_wait, first_line, print_message, redact
from research.data.spec import Dataset
from research.run_dir import TRIAL_ENV_VAR, RunConfig, Summary, lock, read_summary, replace_text
from research.signals import watch
from research.tracking import fields, history, links, mlflow_store
from research.tracking.fields import MAX_PARAM_LENGTH, MAX_TAG_LENGTH
from research.tracking.jsonl import FINISHED, KILLED, PRUNED, STOPPED, Jsonl
from research.tracking.mlflow_store import RUN_ID_FILE
from research.tracking.storage import DEFAULT_STORE, DEFAULT_URI, FileLock, resolve_uri
from research.tracking.study_spec import SWEEP_SPEC_FILE
from research.training.state import State
from research.trigger import higher_is_better, read_directions

log = logging.getLogger(__name__)
BATCH_SIZE, BATCH_INTERVAL = 1000, 2.0  # points in one call (MLflow's limit), seconds between deliveries
SIGNAL_TIMEOUT = 3.0  # seconds without an answer of the store, after which a run that a signal has ended ends without it
UNSENT_FILE = ".mlflow_unsent"  # in a run folder: the store lacks a part of the run
MAX_PARAMS = 100  # in one call, MLflow's limit
Point = tuple[str, float, int, int]  # metric, value, ms since 1970, step
MLFLOW_STATUS = {STOPPED: KILLED, PRUNED: KILLED}  # MLflow does not know these two: the tag "status" has them


class MLflow(Jsonl):
    """metrics.jsonl, and a run in MLflow: in this project's SQLite store, or at MLFLOW_TRACKING_URI.

    A thread opens the run in MLflow, logs the metrics in batches and closes the run: no training step waits for a database.
    """

    def __init__(self, uri: str | None = None) -> None:
        super().__init__()
        self.uri = resolve_uri(uri)
        variable = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "tracker=mlflow, whose store"
        self.setting = "tracker.uri" if uri else variable
        self.stored_points: dict[tuple[str, int], float] = {}  # what the store has from earlier processes, by metric and step
        self.first_step = 0  # at which this process began
        self.points: deque[Point] = deque()  # that are not logged yet
        self.finishing, self.over, self.error = threading.Event(), threading.Event(), ""
        self.thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)

    def start(self, run: RunConfig) -> None:
        """Connect to the store and start the thread. Raise ValueError where the store cannot be opened."""
        if self.uri == DEFAULT_URI and not DEFAULT_STORE.exists():
            print_message(f"creating {DEFAULT_STORE} (the first time only, takes some seconds)")
        try:
            # In the main thread: an import in a thread can deadlock with one here.
            with watch() as signals, signals.raise_immediately():  # nothing has begun yet that could be lost
                self.client = mlflow_store.Client(mlflow_store.connect(self.uri))
            self.patience = float(os.environ[mlflow_store.TIMEOUT_VARIABLE])  # seconds without an answer, at the end
        except Exception as error:
            raise ValueError(redact(f"{self.setting}={self.uri} is not a store that MLflow can open: {error}")) from error
        super().start(run)
        self.run = run
        # Read now: the environment of this process may be another trial's by the time that the thread opens the run.
        self.trial_number = json.loads(os.environ.get(TRIAL_ENV_VAR) or "{}").get("number")
        self.thread.start()

    def on_start(self, state: State) -> None:
        """Deliver first what an earlier process of this run logged and may not have delivered."""
        super().on_start(state)
        self.first_step = state.first_step
        if self.run.resumed:
            self._queue_history()

    def on_step(self, state: State) -> None:
        super().on_step(state)
        if state.logged:
            self._queue(state.progress.step, state.logged)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        super().finish(status, summary)
        if not self.file:
            return  # the store could not be opened
        self.outcome = status, summary
        with suppress(OSError):  # the disk is full
            if not (self.state and self.state.has_lost_folder):
                (self.run.folder / UNSENT_FILE).touch()
        if self._wait_until_sent():
            mlflow_store.silent_stores.discard(self.uri)
            if status == FINISHED and not self.run.in_sweep:  # a sweep has a link of its own
                link = links.format_run_link(links.get_address(self.uri), self.experiment_id, str(self.run_id))
                print(f"{'MLflow':<16} {links.format_opening(self.uri, link)}")
            return
        mlflow_store.silent_stores.add(self.uri)
        note = f"did not take all of this run ({self.error or 'no answer'}); every metric is in {self.path}"
        print_message(f"warning: MLflow at {redact(self.uri)} {note}\nthe same settings with resume=RUN send the rest")

    def send_rest(self, run: RunConfig) -> None:
        if not (summary := read_summary(run.folder)) or not (run.folder / UNSENT_FILE).exists():
            return
        try:
            with lock(run.folder):
                self.start(run)
                self._queue_history()
                self.finish(summary.status, asdict(summary))
        except (ValueError, OSError) as error:  # the run itself is whole
            print_message(f"warning: {error}")

    def _wait_until_sent(self) -> bool:
        """Return True once the store has the run, False where it does not answer, or a signal comes meanwhile."""
        begun = time.monotonic()
        with announce_wait(f"MLflow at {redact(self.uri)}"), watch() as signals, suppress(KeyboardInterrupt):
            count, is_brief = signals.count, bool(signals.signum) or self.uri in mlflow_store.silent_stores
            patience = SIGNAL_TIMEOUT if is_brief else self.patience
            self.finishing.set()
            while self.thread.is_alive() and signals.count == count:
                if time.monotonic() > max(begun, self.client.answered) + patience:
                    break
                self.thread.join(0.1)
        is_sent = not self.thread.is_alive()
        self.over.set()
        return is_sent

    def _queue_history(self) -> None:
        for record in history.read_records(self.path):
            step, _ = int(record.pop("step")), record.pop("seconds")
            self._queue(step, {key: value for key, value in record.items() if value is not None})

    def _queue(self, step: int, metrics: Mapping[str, float]) -> None:
        timestamp = int(time.time() * 1000)
        self.points.extend((fields.rename_metric(key), value, timestamp, step) for key, value in metrics.items())

    # What follows runs in the thread. `_open`, `_log_points` and `_close` may be repeated.

    def _deliver(self) -> None:
        """Log the points every BATCH_INTERVAL, and once more when the run finishes."""
        with suppress(TimeoutError):
            self._retry_until_done(self._open)
            is_last = has_data = False
            while not is_last:
                is_last = self.finishing.wait(BATCH_INTERVAL)
                if self.state and not has_data:  # as soon as it is built: a run that is killed later has it too
                    self._retry_until_done(partial(self._log_data, self.state.data))
                    has_data = True
                while batch := [self.points.popleft() for _ in range(min(BATCH_SIZE, len(self.points)))]:
                    self._retry_until_done(partial(self._log_points, batch))
            self._retry_until_done(self._close)

    def _retry_until_done(self, action: Callable[[], None]) -> None:
        """Repeat a call until it works. Raise TimeoutError once the run no longer waits for it."""
        pause = 0.0
        while not self.over.wait(pause):
            try:
                action()
                self.error = ""
                return
            except Exception as error:  # stores raise errors of many kinds, and none of them may end the training
                log.warning("MLflow: %s", error)
                self.error = first_line(error)
            pause = min(2 * pause + 0.2, 5.0)
        raise TimeoutError

    def _open(self) -> None:
        """Create the run below its sweep's, or reopen it, and log its params and tags."""
        run = self.run
        mlflow_store.end_dead_runs(self.client)
        self.experiment_id = mlflow_store.get_or_create_experiment(self.client, run.study, self.uri)
        parent = self._open_parent(self.experiment_id, run.sweep_folder) if run.sweep_folder else None
        if self.run_id is None and (stored_run := mlflow_store.find_run(self.client, run.folder)):
            self._reopen(stored_run)
        if self.run_id is None:
            tags = fields.make_tags(run, self.trial_number, parent)
            self.run_id = self.client.create_run(self.experiment_id, run_name=run.name, tags=tags).info.run_id
        if run.folder.is_dir():  # else it was moved before the store answered: no reason to ask again
            replace_text(run.folder / RUN_ID_FILE, self.run_id)
        self._log_params(self.run_id)

    def _log_params(self, run_id: str) -> None:
        """Log the config as params. MLflow's params never change, so a changed one becomes a tag `changed.KEY`."""
        from mlflow.entities import Param

        stored, settings = self.client.get_run(run_id).data.params, fields.flatten_config(self.run.config)
        settings = {key: text for key, text in self.run.swept_values.items() if key not in settings} | settings
        texts = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in settings.items()}
        requested = dict(override.lstrip("+").partition("=")[::2] for override in self.run.overrides)
        new = [Param(key, texts[key]) for key in fields.select_params(settings, requested) if key not in stored]
        for start in range(0, len(new), MAX_PARAMS):
            self.client.log_batch(run_id, params=new[start : start + MAX_PARAMS])
        for key, text in texts.items():
            if stored.get(key, text) != text:
                self.client.set_tag(run_id, f"changed.{key}", text)

    def _reopen(self, stored_run: Any) -> None:
        """Continue a run. Read which points it holds."""
        run_id = stored_run.info.run_id
        self.client.set_tag(run_id, "folder", str(self.run.folder))  # it may have been moved
        self.client.update_run(run_id, status="RUNNING")
        for key in stored_run.data.metrics:
            points = sorted(self.client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
            self.stored_points |= {(key, point.step): point.value for point in points}
        self.run_id = run_id

    def _open_parent(self, experiment_id: str, folder: Path) -> str:
        """Return the id of the sweep's run. The first trial creates the run and writes its id into the sweep's folder."""
        id_file, spec_file, keys = folder / RUN_ID_FILE, folder / SWEEP_SPEC_FILE, list(self.run.swept_values)
        with FileLock(folder / ".parent"):
            if mlflow_store.find_run(self.client, folder) is None:
                tags = {"folder": str(folder), "host": socket.gethostname(), "sweep": ",".join(keys)}
                tags |= {"mlflow.user": fields.get_user()}
                created = self.client.create_run(experiment_id, run_name=f"sweep {', '.join(keys)}", tags=tags)
                replace_text(id_file, created.info.run_id)
                monitor = str(self.run.config.get("monitor", ""))
                is_higher_better = higher_is_better(monitor, read_directions(self.run.config))
                view = links.build_view(created.info.run_id, keys, monitor, is_higher_better)
                self.client.set_experiment_tag(experiment_id, links.VIEW_TAG + created.info.run_id, view)
                if spec_file.exists():
                    self.client.log_artifact(created.info.run_id, str(spec_file))
        run_id = id_file.read_text(encoding="utf-8", errors="replace")
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def _log_points(self, points: Sequence[Point]) -> None:
        """Log the points that the store lacks. A resumed run repeats some steps, mostly with the same numbers.

        Other numbers are logged beside the old ones, as after a rollback: MLflow cannot delete a point, and
        metrics.jsonl has only the last. Speed (system/) never repeats exactly, so its first number stays.
        """
        from mlflow.entities import Metric

        metrics, differing = [], []
        for key, value, timestamp, step in points:
            stored_value = self.stored_points.get((key, step))
            if stored_value is None or not (key.startswith(fields.SYSTEM) or stored_value == value):
                metrics.append(Metric(key, value, timestamp, step))
                if stored_value is not None and step <= self.first_step:
                    differing.append(f"{key} at step {step} is {stored_value} there, {value} in {self.path}")
        if differing:
            log.warning("MLflow run %s: %s", self.run_id, history.describe(differing, "both are there now, the right one last"))
        if metrics:
            self.client.log_batch(str(self.run_id), metrics=metrics)

    def _close(self) -> None:
        """Log the summary and the artifacts, then set the status."""
        assert self.run_id is not None
        status, summary = self.outcome
        self._log_summary(self.run_id, summary)
        if not (self.state and self.state.has_lost_folder):
            written = read_summary(self.run.folder) or Summary(**{"status": status} | summary)
            replace(written, mlflow_run_id=self.run_id).write(self.run.folder)
            self._log_artifacts(self.run_id, int(summary.get("best", {}).get("step", -1)))
        mlflow_status = MLFLOW_STATUS.get(status, status)
        self.client.set_tag(self.run_id, "status", status)
        self.client.set_terminated(self.run_id, mlflow_status)
        if self.run.sweep_folder:
            parent = (self.run.sweep_folder / RUN_ID_FILE).read_text(encoding="utf-8", errors="replace")
            mlflow_store.close_parent(self.client, parent, FINISHED if status == PRUNED else mlflow_status)
        (self.run.folder / UNSENT_FILE).unlink(missing_ok=True)

    def _log_data(self, data: Dataset[Any]) -> None:
        described = fields.describe_data(self.run.choices.get("data", "data"), data)
        self.client.log_inputs(str(self.run_id), datasets=[described])
        self.client.set_tag(str(self.run_id), "data.digest", data.digest)

    def _log_summary(self, run_id: str, summary: dict[str, Any]) -> None:
        """Log the numbers that the run ends with, and its error as a tag."""
        from mlflow.entities import Metric

        timestamp, results = int(time.time() * 1000), fields.collect_results(summary)
        self.client.log_batch(run_id, metrics=[Metric(key, value, timestamp, 0) for key, value in results.items()])
        if summary.get("error"):
            self.client.set_tag(run_id, "error", str(summary["error"])[:MAX_TAG_LENGTH])

    def _log_artifacts(self, run_id: str, best_step: int) -> None:
        """Log the files of the run folder, the plots, and the weights of the best checkpoint where it still exists."""
        for path in sorted((*self.run.folder.glob("[!.]*"), *(self.run.folder / "plots").glob("*"))):
            if path.is_file() and not path.is_symlink():  # a link may lead to what is no part of the run
                self.client.log_artifact(run_id, str(path), None if path.parent == self.run.folder else "plots")
        weights = self.run.folder / "checkpoints" / f"step-{best_step:08d}" / "model.safetensors"
        if weights.exists():
            self.client.log_artifact(run_id, str(weights), "best")
