"""Where numbers go besides metrics.jsonl: MLflow.

A step never waits for a database: metrics are in metrics.jsonl at once, and a thread carries them to MLflow in batches,
again and again while the store cannot be reached.
"""

import json
import logging
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from research.run_dir import ROOT, TRIAL_ENV_VAR, RunConfig, replace_text, run_git, write_json
from research.tracking.jsonl import FINISHED, KILLED, PRUNED, STOPPED, Jsonl
from research.tracking.mlflow_store import (
    SOURCE_TAG,
    close_parent,
    end_dead_runs,
    flatten_config,
    get_or_create_experiment,
    lock_file,
    lock_store,
    redact_url,
)
from research.training.state import State

log = logging.getLogger(__name__)
DEFAULT_STORE = ROOT / "outputs" / "mlflow.db"
BATCH, BATCH_INTERVAL = 1000, 2.0  # metrics in one call (MLflow's limit), seconds between calls
FINISH_TIMEOUT = 60.0  # seconds that the end of a run waits for a store that does not answer
RUN_ID_FILE = "mlflow_run_id"  # the file in a run folder that says which run it is
SWEEP_SPEC_FILE = "study.json"  # in a sweep's folder: what it is for
MLFLOW_STATUS = {STOPPED: KILLED, PRUNED: KILLED}  # MLflow has no such words: the tag "status" has them


class MLflow(Jsonl):
    """metrics.jsonl, and a run in MLflow: in this repository's SQLite store, or at MLFLOW_TRACKING_URI."""

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DEFAULT_STORE}"
        self.setting = "tracker.uri" if uri else "MLFLOW_TRACKING_URI"
        self.queue: queue.SimpleQueue[tuple[int, int, dict[str, float]] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)
        self.deadline, self.undelivered = float("inf"), ""
        self.stored_points: dict[tuple[str, int], float] = {}  # points that the store has from before, by metric and step

    def start(self, run: RunConfig) -> None:
        if self.uri == f"sqlite:///{DEFAULT_STORE}" and not DEFAULT_STORE.exists():
            print(f"creating {DEFAULT_STORE} (the first time only, takes some seconds)", file=sys.stderr)
        try:
            self.client = connect(self.uri)  # here, in the main thread: imports and threads do not mix
        except Exception as error:
            raise ValueError(f"{self.setting}={redact_url(self.uri)} is not a store that MLflow can open: {error}") from error
        super().start(run)
        self.run = run
        self.trial_number = json.loads(os.environ.get(TRIAL_ENV_VAR) or "{}").get("number")  # the environment is this run's own
        self.thread.start()

    def on_start(self, state: State) -> None:
        """What the last process of this run had no time to deliver comes first."""
        super().on_start(state)
        for record in self.read_records() if self.run.resumed else ():
            step, _ = int(record.pop("step")), record.pop("seconds")
            self.queue.put((int(time.time() * 1000), step, {k: v for k, v in record.items() if v is not None}))

    def on_step(self, state: State) -> None:
        super().on_step(state)
        if state.logged:
            self.queue.put((int(time.time() * 1000), state.progress.step, state.logged))

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        super().finish(status, summary)
        if self.thread.ident is None:
            return  # it never started: the store could not be opened
        self.deadline = time.monotonic() + FINISH_TIMEOUT
        self.outcome = status, summary
        self.queue.put(None)
        self.thread.join(FINISH_TIMEOUT + 5)
        if self.thread.is_alive() or self.undelivered:
            reason = self.undelivered or "no answer"
            print(f"warning: MLflow at {redact_url(self.uri)} did not take all of this run ({reason}); "
                  f"every metric is in {self.run.folder / 'metrics.jsonl'}", file=sys.stderr)  # fmt: skip
        elif status == FINISHED:
            how = "make ui" if self.uri == f"sqlite:///{DEFAULT_STORE}" else redact_url(self.uri)
            print(f"{'MLflow':<16} run {self.run_id} in {self.run.study}: {how}")

    # What follows runs in the thread.

    def _deliver(self) -> None:
        try:
            self._retry_until_done(self._open)
            for batch in self._iter_batches():
                self._retry_until_done(partial(self._log_batch, batch))
            self._retry_until_done(self._close)
        except TimeoutError as error:
            self.undelivered = str(error)

    def _retry_until_done(self, action: Callable[[], Any]) -> None:
        """Try until it works; from the end of the run on, for PATIENCE more. All our actions may be repeated."""
        pause = 0.2
        while True:
            try:
                action()
                return
            except Exception as error:  # whatever a store raises: the training must not hear of it
                log.warning("MLflow: %s", error)
                if time.monotonic() > self.deadline:
                    raise TimeoutError(str(error).splitlines()[0]) from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _iter_batches(self) -> Iterator[list[Any]]:
        """What has gathered in the queue, every PAUSE seconds, until the end mark."""
        from mlflow.entities import Metric

        ended = False
        rest: list[Any] = []
        while not ended or rest:
            deadline = time.monotonic() + BATCH_INTERVAL
            while not ended and len(rest) < BATCH and (wait := deadline - time.monotonic()) > 0:
                try:
                    item = self.queue.get(timeout=wait)
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                else:
                    stamp, step, values = item
                    rest += [Metric(key, value, stamp, step) for key, value in values.items() if self._is_new(key, step, value)]
            if rest:
                yield rest[:BATCH]
                rest = rest[BATCH:]

    def _is_new(self, key: str, step: int, value: float) -> bool:
        """Not a point that came before this run was stopped: steps that are done again give the same numbers, or new ones.

        New ones stand beside the old ones, as after a rollback: MLflow takes no point back, metrics.jsonl has the last.
        """
        before = self.stored_points.get((key, step))
        return before is None or not (key.startswith("perf/") or before == value)

    def _log_batch(self, batch: list[Any]) -> None:
        self.client.log_batch(str(self.run_id), metrics=batch)

    def _open(self) -> None:
        """The run, below its sweep, with what was asked for."""
        from mlflow.entities import Param

        run = self.run
        end_dead_runs(self.client)
        study = get_or_create_experiment(self.client, run.study, self.uri)
        parent = self._get_or_create_parent(study) if run.sweep_folder else None
        tags = {"folder": str(run.folder), "host": socket.gethostname(), SOURCE_TAG: "train.py", **run.choices}
        tags |= {"git.sha": run_git("rev-parse", "HEAD"), "git.dirty": str(bool(run_git("status", "--porcelain")))}
        tags |= {f"sweep.{key}": value for key, value in run.swept_values.items()}
        tags |= {"trial.number": str(self.trial_number)} if self.trial_number is not None else {}
        if parent:
            tags["mlflow.parentRunId"] = parent
            self.client.update_run(parent, status="RUNNING")
        note = run.folder / RUN_ID_FILE
        if self.run_id is None and note.exists():
            self._reopen(note.read_text(errors="replace"))
        if self.run_id is None:
            self.run_id = self.client.create_run(study, run_name=run.name, tags=tags).info.run_id
        replace_text(note, self.run_id)
        held = self.client.get_run(self.run_id).data.params  # they never change: what was changed since is told by a tag
        params = [Param(key, str(value)[:6000]) for key, value in flatten_config(run.config).items()]
        new = [param for param in params if param.key not in held]
        for start in range(0, len(new), 100):
            self.client.log_batch(self.run_id, params=new[start : start + 100])
        for param in params:
            if held.get(param.key, param.value) != param.value:
                self.client.set_tag(self.run_id, f"changed.{param.key}", param.value)

    def _reopen(self, run_id: str) -> None:
        """Go on with the run that this folder had, if this store still has it."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return
        if found is None or found.info.lifecycle_stage == "deleted":
            return
        keys = found.data.metrics
        self.client.update_run(run_id, status="RUNNING")
        for key in keys:
            self.stored_points |= {(key, point.step): point.value for point in self.client.get_metric_history(run_id, key)}
        self.run_id = run_id

    def _get_or_create_parent(self, study: str) -> str:
        """The run of the sweep: whoever comes first creates it and leaves its id in the sweep's folder."""
        assert self.run.sweep_folder is not None
        note = self.run.sweep_folder / RUN_ID_FILE
        with lock_file(self.run.sweep_folder / ".parent"):
            if not note.exists():
                tags = {
                    "folder": str(self.run.sweep_folder),
                    "host": socket.gethostname(),
                    "sweep": ",".join(self.run.swept_values),
                }
                created = self.client.create_run(study, run_name=f"sweep {', '.join(self.run.swept_values)}", tags=tags)
                note.write_text(created.info.run_id)
                if (
                    self.run.sweep_folder / SWEEP_SPEC_FILE
                ).exists():  # what the sweep is for: its report can be made from here alone
                    self.client.log_artifact(created.info.run_id, str(self.run.sweep_folder / SWEEP_SPEC_FILE))
        return note.read_text(errors="replace")

    def _close(self) -> None:
        """Inputs, artifacts, the best and the final numbers, the status."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        assert self.run_id is not None
        status, summary = self.outcome
        write_json(self.run.folder / "summary.json", summary | {"mlflow_run_id": self.run_id})
        if self.state:
            data = self.state.data
            source = json.dumps({"source": data.source})
            entity = Dataset(self.run.choices.get("data", "data"), data.digest[:36], "local", source)
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])
            self.client.set_tag(self.run_id, "data.digest", data.digest)
        stamp, step = int(time.time() * 1000), int(summary.get("steps") or 0)
        numbers = {f"best/{k}": v for k, v in (summary.get("best") or {}).items()}
        numbers |= {f"final/{k}": v for k, v in (summary.get("metrics") or {}).items()}
        numbers |= {f"final/{k}": summary[k] for k in ("wall_s", "peak_rss_mb") if k in summary}
        self.client.log_batch(self.run_id, metrics=[Metric(k, float(v), stamp, step) for k, v in numbers.items()])
        if summary.get("error"):
            self.client.set_tag(self.run_id, "error", str(summary["error"])[:8000])
        for path in sorted(p for p in self.run.folder.iterdir() if p.is_file() and not p.name.startswith(".")):
            self.client.log_artifact(self.run_id, str(path))
        for picture in sorted((self.run.folder / "plots").glob("*")):
            self.client.log_artifact(self.run_id, str(picture), "plots")
        best = self.run.folder / "checkpoints" / f"step-{int((summary.get('best') or {}).get('step', -1)):08d}"
        if (best / "model.safetensors").exists():
            self.client.log_artifact(self.run_id, str(best / "model.safetensors"), "best")
        self.client.set_tag(self.run_id, "status", status)
        self.client.set_terminated(self.run_id, MLFLOW_STATUS.get(status, status))
        if self.run.sweep_folder:
            ended = FINISHED if status == PRUNED else MLFLOW_STATUS.get(status, status)
            close_parent(self.client, (self.run.sweep_folder / RUN_ID_FILE).read_text(errors="replace"), ended)


def connect(uri: str, must_exist: bool = False) -> Any:
    """A client of the store, which must have been made before if `made`. Raises whatever MLflow does where there is none."""
    file = uri.removeprefix("sqlite:///")
    if must_exist and file != uri and not Path(file).exists():
        raise FileNotFoundError(f"{file} does not exist")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it tells of each table that it creates
    with lock_store(uri):
        if file not in (uri, ":memory:") and not Path(file).exists():  # whole or not at all: half of it could never be opened
            draft = Path(file).with_name(f".{Path(file).name}.draft")
            draft.unlink(missing_ok=True)  # of one that was killed
            MlflowClient(f"sqlite:///{draft}")
            draft.replace(file)
        return MlflowClient(uri)


def find_store_uri(sweep: Path) -> str:
    """Where the runs of a sweep are: as the config of one says, or else as anybody's are here."""
    import yaml  # type: ignore[import-untyped]

    for file in (*sorted(sweep.glob("*/config.yaml"))[:1], *sorted(sweep.glob("*/0/config.yaml"))[:1]):
        return MLflow(((yaml.safe_load(file.read_text()) or {}).get("tracker") or {}).get("uri")).uri
    return MLflow().uri


def get_run_folder(run_id: str, uri: str | None = None) -> str:
    """The run folder that a run in MLflow names. Raises ValueError where the store has no such run of ours."""
    from mlflow.exceptions import MlflowException

    store = MLflow(uri).uri
    try:
        return str(connect(store, must_exist=True).get_run(run_id).data.tags["folder"])
    except (MlflowException, KeyError, FileNotFoundError) as error:
        raise ValueError(f"MLflow at {redact_url(store)} has no run {run_id} of ours") from error


def add_artifact(run_id: str, file: Path, artifact_path: str, uri: str | None = None) -> None:
    """A file more among the artifacts of a run that has ended. Raises whatever MLflow does where the store is not there."""
    connect(MLflow(uri).uri, must_exist=True).log_artifact(run_id, str(file), artifact_path)
