"""The sink that logs a run to MLflow."""

import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from research.cli import print_message, redact
from research.contracts import contract
from research.options.finetuning import is_frozen
from research.options.trigger import higher_is_better, read_directions
from research.ranges import check_settings
from research.run_dir import TRIAL_ENV_VAR, RunConfig, Summary, list_checkpoints, read_summary, replace_text
from research.signals import watch
from research.tracking import fields, history, links, mlflow_store
from research.tracking.environment import PACKAGES
from research.tracking.fields import MAX_PARAM_LENGTH, MAX_TAG_LENGTH
from research.tracking.history import METRICS_FILE
from research.tracking.jsonl import FINISHED, KILLED, PRUNED, STOPPED, Jsonl
from research.tracking.mlflow_store import RUN_ID_FILE
from research.tracking.sink import Record, Sink, open_weights
from research.tracking.storage import DEFAULT_STORE, DEFAULT_URI, FileLock, resolve_uri
from research.tracking.study_spec import SWEEP_SPEC_FILE
from research.training.state import State

log = logging.getLogger(__name__)
BATCH_SIZE = 1000  # points in one call, MLflow's limit
MODEL_NAME, NUM_EXAMPLES = "model", 2  # of a logged model; samples in its example
LOADER = "research.export.pyfunc"  # whose _load_pyfunc MLflow calls
RUN_PARTS = ("config.yaml", "summary.json", "tokenizer", "model")  # that a run is loaded from, besides its checkpoint
MAX_PARAMS = 100  # in one call, MLflow's limit
Point = tuple[str, float, int, int]  # metric, value, ms since 1970, step
MLFLOW_STATUS = {STOPPED: KILLED, PRUNED: KILLED}  # MLflow does not know these two: the tag "status" has them


class MLflowSink(Sink):
    """A run in MLflow: in this project's SQLite store, or at MLFLOW_TRACKING_URI."""

    name, title, trace, max_numbers = "mlflow", "MLflow", RUN_ID_FILE, BATCH_SIZE

    def __init__(self, uri: str | None = None, log_model: bool = False) -> None:
        check_settings("tracker", MLflowSink.__init__.__annotations__, locals())
        self.uri, self.log_model = resolve_uri(uri), log_model
        variable = "MLFLOW_TRACKING_URI" if os.environ.get("MLFLOW_TRACKING_URI") else "tracker=mlflow, whose store"
        self.setting = "tracker.uri" if uri else variable
        self.stored_points: dict[tuple[str, int], float] = {}  # what the store has from earlier processes, by metric and step

    @property
    def address(self) -> str:
        return f"MLflow at {redact(self.uri)}"

    @property
    def answered(self) -> float:
        return max(self.ended, self.client.answered)

    @contract
    def prepare(self, run: RunConfig) -> None:
        """Connect to the store. Raise ValueError where it cannot be opened."""
        super().prepare(run)
        if self.uri == DEFAULT_URI and not DEFAULT_STORE.exists():
            print_message(f"creating {DEFAULT_STORE} (the first time only, takes some seconds)")
        try:
            with watch() as signals, signals.raise_immediately():  # nothing has begun yet that could be lost
                self.client = mlflow_store.Client(mlflow_store.connect(self.uri))
            if self.log_model:
                import mlflow.pyfunc  # noqa: F401  (in the main thread)
            self.patience = float(os.environ[mlflow_store.TIMEOUT_VARIABLE])  # seconds without an answer, at the end
        except Exception as error:
            raise ValueError(redact(f"{self.setting}={self.uri} is not a store that MLflow can open: {error}")) from error
        # Read now: the environment of this process may be another trial's by the time that the thread opens the run.
        self.trial_number = json.loads(os.environ.get(TRIAL_ENV_VAR) or "{}").get("number")

    def describe_end(self) -> str:
        link = links.format_run_link(links.get_address(self.uri), self.experiment_id, str(self.mlflow_run_id))
        return links.format_opening(self.uri, link)

    # What follows may be repeated.

    def open(self) -> None:
        """Create the run below its sweep's, or reopen it, and log its params and tags."""
        run = self.run
        mlflow_store.end_dead_runs(self.client)
        self.experiment_id = mlflow_store.get_or_create_experiment(self.client, run.study, self.uri)
        parent = self._open_parent(self.experiment_id, run.sweep_folder) if run.sweep_folder else None
        if self.mlflow_run_id is None and (stored_run := mlflow_store.find_run(self.client, run.folder)):
            self._reopen(stored_run)
        if self.mlflow_run_id is None:
            tags = fields.make_tags(run, self.trial_number, parent)
            self.mlflow_run_id = self.client.create_run(self.experiment_id, run_name=run.name, tags=tags).info.run_id
        if run.folder.is_dir():  # else it was moved before the store answered: no reason to ask again
            replace_text(run.folder / RUN_ID_FILE, self.mlflow_run_id)
        self._log_params(self.mlflow_run_id)

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
        self.mlflow_run_id = run_id

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

    @contract
    def log(self, records: Sequence[Record]) -> None:
        points = [
            (fields.rename_metric(key), value, record.timestamp, record.step)
            for record in records
            for key, value in record.metrics.items()
        ]
        for start in range(0, len(points), BATCH_SIZE):
            self._log_points(points[start : start + BATCH_SIZE])

    def _log_points(self, points: Sequence[Point]) -> None:
        """Log the points that the store lacks. A resumed run repeats some steps, mostly with the same numbers.

        Other numbers are logged beside the old ones, as after a rollback: MLflow cannot delete a point, and
        metrics.jsonl has only the last. Speed (system/) never repeats exactly, so its first number stays.
        """
        from mlflow.entities import Metric

        metrics, differing, path = [], [], self.run.folder / METRICS_FILE
        for key, value, timestamp, step in points:
            stored_value = self.stored_points.get((key, step))
            if stored_value is None or not (key.startswith(fields.SYSTEM) or stored_value == value):
                metrics.append(Metric(key, value, timestamp, step))
                if stored_value is not None and step <= self.first_step:
                    differing.append(f"{key} at step {step} is {stored_value} there, {value} in {path}")
        if differing:
            log.warning(
                "MLflow run %s: %s", self.mlflow_run_id, history.describe(differing, "both are there now, the right one last")
            )
        if metrics:
            self.client.log_batch(str(self.mlflow_run_id), metrics=metrics)

    @contract
    def close(self, status: str, summary: dict[str, Any]) -> None:
        """Log the summary and the artifacts, then set the status."""
        assert self.mlflow_run_id is not None
        self._log_summary(self.mlflow_run_id, summary)
        if not (self.state and self.state.has_lost_folder):
            written = read_summary(self.run.folder) or Summary(**{"status": status} | summary)
            replace(written, mlflow_run_id=self.mlflow_run_id).write(self.run.folder)
            self._log_artifacts(self.mlflow_run_id, int(summary.get("best", {}).get("step", -1)))
            self._warn_of_rest()
        if self.log_model and self.state:
            log_model(self.client, self.experiment_id, self.mlflow_run_id, self.run.folder, self.state)
        mlflow_status = MLFLOW_STATUS.get(status, status)
        self.client.set_tag(self.mlflow_run_id, "status", status)
        self.client.set_terminated(self.mlflow_run_id, mlflow_status)
        if self.run.sweep_folder:
            parent = (self.run.sweep_folder / RUN_ID_FILE).read_text(encoding="utf-8", errors="replace")
            mlflow_store.close_parent(self.client, parent, FINISHED if status == PRUNED else mlflow_status)

    @contract
    def describe(self, state: State) -> None:
        data = state.data
        described = fields.describe_data(self.run.choices.get("data", "data"), data)
        self.client.log_inputs(str(self.mlflow_run_id), datasets=[described])
        self.client.set_tag(str(self.mlflow_run_id), "data.digest", data.digest)

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
        with open_weights(self.run, best_step) as weights:
            if weights:
                self.client.log_artifact(run_id, str(weights[0]), "best")
                self.client.log_dict(run_id, weights[1], "best/about.json")

    def _warn_of_rest(self) -> None:
        """Say which points the store has from earlier processes of steps that metrics.jsonl no longer has."""
        if self.stored_points and (path := self.run.folder / METRICS_FILE).exists():
            logged = {(fields.rename_metric(key), line["step"]) for line in history.read_records(path) for key in line}
            rest = [f"{key} at step {step}" for key, step in sorted(self.stored_points.keys() - logged) if step]
            if rest:
                outcome = f"are of steps that {path} no longer has, and stay: MLflow deletes no point"
                log.warning("MLflow run %s: %s", self.mlflow_run_id, history.describe(rest, outcome))


def log_model(client: Any, experiment_id: str, run_id: str, folder: Path, state: State) -> None:
    """Log the best checkpoint as a model that `mlflow.pyfunc.load_model` loads, with its signature and an example.

    Where weights are sharded, or a checkpoint holds adapters beside a base, there is no model to log: a warning says so.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, infer_signature

    checkpoint = list_checkpoints(folder).get(int(state.progress.best.get("step", -1)))
    if checkpoint is None or state.sharded or is_frozen(state.info.config):
        reason = "its weights are sharded" if state.sharded else "its checkpoints hold adapters alone"
        log.warning("MLflow: no model is logged: %s", reason if checkpoint else "there is no checkpoint")
        return
    inputs = state.val[torch.arange(min(len(state.val), NUM_EXAMPLES))][0]
    with torch.inference_mode():
        outputs = state.model.eval()(inputs)
    example, signature = inputs.cpu().numpy(), infer_signature(inputs.cpu().numpy(), outputs.float().cpu().numpy())
    model = client.create_logged_model(experiment_id, MODEL_NAME, run_id)
    with tempfile.TemporaryDirectory() as draft:
        run, saved = Path(draft, "run"), Path(draft, "saved")
        shutil.copytree(checkpoint, run / "checkpoints" / checkpoint.name)
        for name in RUN_PARTS:
            if (path := folder / name).exists():
                (shutil.copytree if path.is_dir() else shutil.copy)(path, run / name)
        pyfunc.save_model(
            saved,
            loader_module=LOADER,
            data_path=str(run),
            mlflow_model=Model(run_id=run_id, model_id=model.model_id),
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={version(name)}" for name in PACKAGES],
        )
        client.log_model_artifacts(model.model_id, str(saved))
    client.finalize_logged_model(model.model_id, "READY")


class MLflow(Jsonl):
    """metrics.jsonl, and a run in MLflow at `uri`: what tracker=mlflow is, for programs and for older configurations."""

    @contract
    def __init__(self, uri: str | None = None) -> None:
        self.sink = MLflowSink(uri)
        super().__init__({"mlflow": self.sink}, uri)
        (self.delivery,) = self.deliveries
