"""The stores: what a run leaves in them, and what happens when MLflow's cannot be reached."""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fitting import make_state
from mlflow.entities import Dataset, Run
from mlflow.tracking import MlflowClient
from program import ROOT, Fork, create_empty_store
from torch import nn

from research.data.modular import modular
from research.files import locks
from research.run_dir import RunConfig
from research.tracking import fields
from research.tracking.environment import run_git
from research.tracking.find import find_run
from research.tracking.jsonl import FAILED, FINISHED, KILLED, Jsonl
from research.tracking.mlflow import MLflow
from research.tracking.mlflow_store import connect, end_dead_runs
from research.training.state import State


@pytest.fixture
def uri(tmp_path: Path) -> str:
    shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def make_run_config(tmp_path: Path, name: str = "run", **more: Any) -> RunConfig:
    path = tmp_path / "runs" / name
    path.mkdir(parents=True)
    return RunConfig(name, "study", path, {"lr": 0.1, "model": {"dim": 3}, "out": "x"}, [], {"model": "bitnet"}, **more)


def run_steps(tracker: Jsonl, run: RunConfig, steps: int, between: Callable[[int], None] = lambda step: None) -> State:
    """Run so many log points; `between` is called after each."""
    state = make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4)
    tracker.start(run)
    tracker.on_start(state)
    state.start_clock()
    for step in range(steps):
        state.advance()
        state.log({"train/loss": 1 / (step + 1), "lr": 0.1})
        tracker.on_step(state)
        between(step)
    return state


def read_losses(uri: str, run_id: str | None) -> list[tuple[int, float]]:
    assert run_id is not None
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, "train/loss")]


def read_datasets(stored: Run) -> list[Dataset]:
    assert stored.inputs is not None
    return [item.dataset for item in stored.inputs.dataset_inputs]


@pytest.mark.slow  # ten seconds of waiting
def test_a_store_that_is_locked_for_ten_seconds_loses_nothing(uri: str, tmp_path: Path) -> None:
    """Another process holds SQLite's write lock while the run logs, and half of the time after its end."""
    held = threading.Event()

    def hold() -> None:
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        held.set()
        time.sleep(10)
        connection.execute("COMMIT")
        connection.close()

    holder = threading.Thread(target=hold)
    slowest = 0.0

    def between(step: int) -> None:
        nonlocal slowest
        if step == 200:
            holder.start()
            held.wait()
        begun = time.perf_counter()
        time.sleep(0.005)
        slowest = max(slowest, time.perf_counter() - begun)

    tracker = MLflow(uri)
    run_steps(tracker, make_run_config(tmp_path), 1000, between)
    assert holder.is_alive(), "the run was to end while the store is locked"
    tracker.finish(FINISHED, {"steps": 1000})
    holder.join()
    assert slowest < 1, "a step waited for the store"
    steps, losses = zip(*read_losses(uri, tracker.run_id), strict=True)
    assert steps == tuple(range(1, 1001))
    assert losses == pytest.approx([1 / step for step in steps])
    assert MlflowClient(uri).get_run(str(tracker.run_id)).info.status == FINISHED


@pytest.mark.parametrize("run_id", ["", "half", "0" * 32])
def test_a_run_id_of_no_run_is_replaced(uri: str, tmp_path: Path, run_id: str) -> None:
    """A kill or a full disk may leave such a file. A run that was deleted in the UI is not continued either."""
    run = make_run_config(tmp_path, resumed=True)
    (run.folder / "mlflow_run_id").write_text(run_id)
    tracker = MLflow(uri)
    run_steps(tracker, run, 3)
    tracker.finish(FINISHED, {"steps": 3})
    assert [step for step, _ in read_losses(uri, tracker.run_id)] == [1, 2, 3]
    assert (run.folder / "mlflow_run_id").read_text() == tracker.run_id
    MlflowClient(uri).delete_run(str(tracker.run_id))
    again = MLflow(uri)
    run_steps(again, run, 3)
    again.finish(FINISHED, {"steps": 3})
    assert again.run_id != tracker.run_id
    assert len(read_losses(uri, again.run_id)) == 3


def test_a_run_that_was_killed_before_its_first_checkpoint_is_one_run(uri: str, tmp_path: Path) -> None:
    """It starts again from step 0, in the same folder and the same run."""
    run = make_run_config(tmp_path)
    first, again = MLflow(uri), MLflow(uri)
    run_steps(first, run, 3)
    first.finish(KILLED, {"steps": 3})
    run_steps(again, run, 5)
    again.finish(FINISHED, {"steps": 5})
    assert again.run_id == first.run_id
    assert [step for step, _ in read_losses(uri, again.run_id)] == [1, 2, 3, 4, 5]


def test_a_damaged_line_is_reported_and_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run_config(tmp_path)
    first = Jsonl()
    run_steps(first, run, 3)
    first.finish(KILLED, {})
    path = run.folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace("{", "\0") + lines[2] + lines[2][:9])
    state, tracker = make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4), Jsonl()
    state.progress.step = 3
    tracker.start(run)
    tracker.on_start(state)
    tracker.finish(KILLED, {})
    assert path.read_text() == lines[0] + lines[2]
    assert f"{path}: line 2 is damaged" in caplog.text


def test_a_store_that_never_answers_ends_with_a_warning(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run, tracker = make_run_config(tmp_path), MLflow(uri)
    tracker.start(run)
    for name in ("log_batch", "create_run"):
        monkeypatch.setattr(tracker.sink.client, name, _raise_unreachable)
    tracker.state = state = make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4)
    state.start_clock()
    state.advance()
    state.log({"train/loss": 0.5})
    tracker.on_step(state)
    tracker.finish(FINISHED, {"steps": 1})
    warning = capsys.readouterr().err
    assert "did not take all of this run (nobody there)" in warning
    assert str(run.folder / "metrics.jsonl") in warning
    assert json.loads((run.folder / "metrics.jsonl").read_text())["train/loss"] == 0.5


def _raise_unreachable(*arguments: Any, **settings: Any) -> Any:
    raise ConnectionError("nobody there")


def test_a_uri_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    tracker = MLflow("ftp://x")
    with pytest.raises(ValueError, match=r"tracker\.uri=ftp://x is not a store"):
        tracker.start(make_run_config(tmp_path))
    tracker.finish(FAILED, {})  # as a run does after any failure


def test_what_a_run_leaves_in_the_store(uri: str, tmp_path: Path) -> None:
    run, tracker = make_run_config(tmp_path), MLflow(uri)
    (run.folder / "config.yaml").write_text("lr: 0.1\n")
    (run.folder / "plots").mkdir()
    (run.folder / "plots" / "curves.png").write_bytes(b"picture")
    run_steps(tracker, run, 3)
    tracker.finish(FAILED, {"error": "ValueError: too bad", "steps": 3, "best": {"val/acc": 0.5, "step": 2}})
    client = MlflowClient(uri)
    stored = client.get_run(str(tracker.run_id))
    assert stored.info.status == FAILED
    assert stored.data.params == {"lr": "0.1", "model.dim": "3"}
    assert stored.data.tags["mlflow.user"] == stored.info.user_id == fields.get_user()
    assert stored.data.tags["mlflow.source.git.commit"] == run_git("rev-parse", "HEAD")
    assert stored.data.tags["mlflow.note.content"] == "`python train.py`"
    assert stored.data.tags["error"] == "ValueError: too bad"
    assert stored.data.metrics["best.val_acc"] == 0.5
    data = modular(p=5)
    assert stored.data.tags["data.digest"] == data.digest
    (dataset,) = read_datasets(stored)
    assert (dataset.name, dataset.digest) == ("data", data.digest[:8])
    assert json.loads(dataset.source) == {"source": data.source}
    assert json.loads(str(dataset.profile)) == {"train": len(data.train), "val": len(data.val)}
    assert {a.path for a in client.list_artifacts(str(tracker.run_id))} >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "plots",
    }
    assert (tmp_path / "mlartifacts" / "study").is_dir(), "artifacts stand beside the store"
    assert find_run(str(tracker.run_id), "finetune.base", uri) == run.folder
    with pytest.raises(ValueError, match=f"finetune.base={'0' * 32}: MLflow at .* has no run"):
        find_run("0" * 32, "finetune.base", uri)
    run.folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"objective.teacher={tracker.run_id}: its folder .* is not there"):
        find_run(str(tracker.run_id), "objective.teacher", uri)


def test_a_resumed_run_has_its_fields_once(uri: str, tmp_path: Path) -> None:
    """Also where a setting is null now that it had a number."""
    run = make_run_config(tmp_path)
    for target in (0.9, None):
        tracker = MLflow(uri)
        run_steps(tracker, replace(run, config=run.config | {"target": target}), 2)
        tracker.finish(FINISHED, {"steps": 2, "best": {"val/acc": 0.5 if target else 0.6}, "wall_s": 1.0})
    client = MlflowClient(uri)
    stored = client.get_run(str(tracker.run_id))
    assert stored.data.params["target"] == "0.9"
    assert stored.data.tags["changed.target"] == "None"
    assert len(read_datasets(stored)) == 1
    assert stored.data.metrics["best.val_acc"] == 0.6
    assert stored.data.metrics["system/wall_s"] == 1.0


def test_a_sweep_has_one_parent_that_fails_with_its_runs(uri: str, tmp_path: Path) -> None:
    ids = []
    for number, status in enumerate((FINISHED, FAILED, FINISHED)):
        sweep = {"sweep_folder": tmp_path / "sweep", "swept_values": {"lr": f"{number}"}}
        tracker = MLflow(uri)
        run_steps(tracker, make_run_config(tmp_path, f"lr={number}", **sweep), 1)
        tracker.finish(status, {"steps": 1})
        ids.append(tracker.run_id)
    client = MlflowClient(uri)
    children = [client.get_run(str(run_id)) for run_id in ids]
    (parent,) = {child.data.tags["mlflow.parentRunId"] for child in children}
    assert client.get_run(parent).info.status == FAILED
    assert [child.info.run_name for child in children] == ["lr=0", "lr=1", "lr=2"]
    assert [child.data.tags["sweep.lr"] for child in children] == ["0", "1", "2"]
    view = json.loads(client.get_experiment(children[0].info.experiment_id).tags[f"mlflow.sharedViewState.{parent}"])
    assert view["searchFilter"] == f"tags.`mlflow.parentRunId` = '{parent}'"
    assert view["compareRunCharts"][0]["selectedParams"] == ["lr"]


def test_only_runs_of_dead_processes_are_ended(uri: str, tmp_path: Path) -> None:
    living, dead = make_run_config(tmp_path, "living"), make_run_config(tmp_path, "dead")
    trackers = [MLflow(uri), MLflow(uri)]
    with locks.lock(living.folder):
        for tracker, run in zip(trackers, (living, dead), strict=True):
            run_steps(tracker, run, 1)
            _wait_until(partial(_has_losses, uri, tracker))
        client = MlflowClient(uri)
        end_dead_runs(client)
        statuses = [client.get_run(str(tracker.run_id)).info.status for tracker in trackers]
    for tracker in trackers:
        tracker.finish(FINISHED, {"steps": 1})
    assert statuses == ["RUNNING", "KILLED"]


def _has_losses(uri: str, tracker: MLflow) -> bool:
    return bool(tracker.run_id and read_losses(uri, tracker.run_id))


def _wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(100):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("the condition did not hold within 10 s")


def test_a_deleted_experiment_comes_back(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("study"))
    tracker = MLflow(uri)
    run_steps(tracker, make_run_config(tmp_path), 1)
    tracker.finish(FINISHED, {"steps": 1})
    assert read_losses(uri, tracker.run_id) == [(1, 1.0)]


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    run, tracker, state = (
        make_run_config(tmp_path),
        Jsonl(),
        make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4),
    )
    tracker.start(run)
    state.start_clock()
    state.advance()
    state.log({"grad/norm": math.nan, "lr": math.inf, "train/loss": 1.0})
    tracker.on_step(state)
    tracker.finish(FINISHED, {})
    line = json.loads((run.folder / "metrics.jsonl").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert (line["grad/norm"], line["lr"], line["train/loss"]) == (None, None, 1.0)


@pytest.mark.parametrize("tracker", ["none", "jsonl"])
def test_without_mlflow_it_is_not_imported(tmp_path: Path, tracker: str) -> None:
    code = (
        "import runpy, sys; sys.argv = ['train.py', *sys.argv[1:]]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    tiny = ["trainer=debug", "model.dim=16", "model.heads=2", "data.p=5", "batch_size=4", f"out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *tiny, f"tracker={tracker}"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert bool(list(tmp_path.rglob("metrics.jsonl"))) == (tracker == "jsonl")


def test_two_processes_may_make_one_store(tmp_path: Path) -> None:
    """Both start without a store, and both runs are in it at the end."""
    store = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    (tmp_path / "new").mkdir()
    code = (
        "import sys; from pathlib import Path; from research.run_dir import RunConfig\n"
        "from research.tracking.mlflow import MLflow\n"
        "run = RunConfig(sys.argv[2], 'study', Path(sys.argv[3]), {}, [], {}); tracker = MLflow(sys.argv[1])\n"
        "tracker.start(run); tracker.finish('FINISHED', {})"
    )
    processes = []
    for name in "ab":
        (tmp_path / name).mkdir()
        processes.append(Fork(["-c", code, store, name, str(tmp_path / name)], ROOT, dict(os.environ)))
    for process in processes:
        _, errors = process.communicate(timeout=120)
        others = [line for line in errors.splitlines() if not line.startswith("waiting for ")]  # a busy machine
        assert (process.returncode, others) == (0, [])
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    assert sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id])) == ["a", "b"]


def test_a_store_whose_creation_was_killed_is_made_anew(tmp_path: Path) -> None:
    """Killed between two of its tables: half of a store could never be opened again."""
    uri, draft = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / ".mlflow.db.draft"
    command = [sys.executable, "-c", f"from research.tracking.mlflow_store import connect; connect({uri!r})"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (draft.exists() and draft.stat().st_size > 50_000):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert draft.exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert len(connect(uri).search_experiments()) == 1
    assert not draft.exists()
