"""Each tracker has the numbers of metrics.jsonl, whatever the history of the run: kills, resumes, rollbacks, others' turns."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import wandb
import wandb_server
from mlflow.tracking import MlflowClient
from program import create_empty_store
from sinks import (
    Rows,
    assert_same,
    begin,
    isolate_sinks,
    kill,
    log_until,
    make_run,
    read_csv,
    read_metrics,
    read_tensorboard,
    read_wandb,
    wait_until_sent,
)

from research.run_dir import RunConfig, Summary
from research.tracking.csv import CsvSink
from research.tracking.jsonl import FINISHED, Jsonl
from research.tracking.mlflow import MLflowSink
from research.tracking.sink import Sink
from research.tracking.tensorboard import TensorBoardSink
from research.tracking.wandb import WandbSink


class Part(NamedTuple):
    """What one process of a run does: it begins at a step, and logs up to another; or it finds the run finished."""

    begin: int = 0
    end: int = 0  # 0: it has nothing to do
    factor: float = 1.0  # of the numbers: other settings
    every: int = 1  # steps between two log points
    tracked: bool = True  # False: with another tracker
    is_killed: bool = False
    rollback: int = 0  # at the end it goes back to this step, and logs other numbers


HISTORIES = {
    "no resume": [Part(0, 9)],
    "a kill before any checkpoint": [Part(0, 5, is_killed=True), Part(0, 9, factor=2)],
    "the same numbers again": [Part(0, 8, is_killed=True), Part(5, 9)],
    "other numbers": [Part(0, 8, is_killed=True), Part(5, 9, factor=2)],
    "an earlier checkpoint, then fewer steps": [Part(0, 8), Part(3, 6, factor=2)],
    "fewer steps, with the same numbers": [Part(0, 8), Part(3, 6)],
    "other log points": [Part(0, 7), Part(3, 9, every=2)],
    "a rollback": [Part(0, 7, rollback=4)],
    "a rollback, a kill, other numbers": [Part(0, 7, rollback=4, is_killed=True), Part(5, 9, factor=3), Part(7, 9, factor=4)],
    "added at a resume": [Part(0, 6, tracked=False), Part(4, 9)],
    "left out, and added again": [Part(0, 6), Part(3, 8, factor=2, tracked=False), Part(8, 9, factor=2)],
    "added once it is finished": [Part(0, 6, tracked=False), Part()],
    "left out, and added once it is finished": [Part(0, 6), Part(3, 8, factor=2, tracked=False), Part()],
}


class Store(NamedTuple):
    """A tracker, and how its numbers are read back."""

    make: Callable[[], Sink]
    read: Callable[[Path], Rows]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate_sinks(monkeypatch, tmp_path, interval=0.02)


@pytest.fixture(scope="module")
def server() -> Iterator[wandb_server.Server]:
    """A server of W&B's that its library, which looks up the address once, knows alone."""
    with wandb_server.serve() as server:
        yield server
    wandb.teardown()


@pytest.fixture
def on_line(server: wandb_server.Server, monkeypatch: pytest.MonkeyPatch) -> wandb_server.Server:
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    if wandb.setup().settings.base_url != server.url:
        wandb.teardown()
    return server


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The tracker that a test names."""
    if request.param == "wandb on line":
        yield Store(WandbSink, request.getfixturevalue("on_line").read)
        return
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    if request.param == "mlflow":
        shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    yield {
        "csv": Store(CsvSink, read_csv),
        "tensorboard": Store(TensorBoardSink, read_tensorboard),
        "wandb": Store(WandbSink, read_wandb),
        "mlflow": Store(lambda: MLflowSink(uri), lambda folder: read_mlflow(uri, folder)),
    }[request.param]


def read_mlflow(uri: str, folder: Path) -> Rows:
    """Return the newest points of a run, each under the name of metrics.jsonl."""
    client, run_id = MlflowClient(uri), (folder / "mlflow_run_id").read_text()
    rows: Rows = {}
    for name in client.get_run(run_id).data.metrics:
        for point in sorted(client.get_metric_history(run_id, name), key=lambda point: point.timestamp):
            if point.step:
                rows.setdefault(point.step, {})[name] = point.value
    return dict(sorted(rows.items()))


def play(part: Part, run: RunConfig, sinks: dict[str, Sink]) -> None:
    """Do what a process of the run does."""
    tracker = Jsonl(sinks)
    if not part.end:
        Summary(FINISHED).write(run.folder)
        tracker.send_rest(run)
        return
    tracker.count = sum(step <= part.begin for step in read_metrics(run.folder))
    state = begin(tracker, run, part.begin)
    log_until(tracker, state, part.end, part.factor, part.every)
    if part.rollback:
        wait_until_sent(tracker)
        state.progress.step = part.rollback
        log_until(tracker, state, part.end + 1, part.factor + 1)
    if part.is_killed:
        wait_until_sent(tracker)
        kill(tracker)
    else:
        tracker.finish(FINISHED, {"steps": part.end})


CHEAP = ("csv", "tensorboard")
TELLING = ("other numbers", "a rollback", "left out, and added once it is finished")
CASES = [
    pytest.param(name, history, marks=() if name in CHEAP or history in TELLING else pytest.mark.slow)
    for name in (*CHEAP, "wandb", "wandb on line", "mlflow")
    for history in HISTORIES
]


@pytest.mark.parametrize(("store", "history"), CASES, indirect=["store"])
def test_a_tracker_has_the_numbers_of_metrics_jsonl(
    store: Store, history: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow, which deletes no point, has the right one last, and says which are of steps that there are no longer."""
    for number, part in enumerate(HISTORIES[history]):
        run = make_run(tmp_path, resumed=number > 0 and part.begin > 0)
        kind = store.make()
        play(part, run, {kind.name: kind} if part.tracked else {})
    rows = store.read(run.folder)
    if kind.name == "mlflow":
        expected = read_metrics(run.folder)
        rest = {(key, step) for step, row in rows.items() for key in row if key not in expected.get(step, {})}
        rest -= {("train/loss", 5)}  # not finite
        told = [record.getMessage() for record in caplog.records if "MLflow deletes no point" in record.getMessage()]
        assert bool(rest) == bool(told)
        assert all(f"{key} at step {step}" in told[-1] for key, step in rest)
        rows = {step: {k: v for k, v in row.items() if (k, step) not in rest} for step, row in rows.items()}
    assert_same(rows, run.folder)
    assert not list(run.folder.glob(f".{kind.name}_unsent"))


KEPT = {"other numbers": False, "the same numbers again": True}  # is the run in W&B the one that it was?


@pytest.mark.parametrize("history", KEPT)
def test_wandb_keeps_a_run_that_repeats_its_numbers(
    history: str, tmp_path: Path, on_line: wandb_server.Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The other way the old one stays as it was: a warning says so, and it names the new one."""
    ids, run = list[str](), make_run(tmp_path)
    for number, part in enumerate(HISTORIES[history]):
        play(part, make_run(tmp_path, resumed=number > 0), {"wandb": WandbSink()})
        ids.append(json.loads((run.folder / "wandb" / "run.json").read_text())["id"])
    assert (ids[0] == ids[1]) == KEPT[history]
    assert on_line.runs[ids[0]].summary.get("continued_as") == (None if KEPT[history] else ids[1])
    assert ("all of the run goes on as" in caplog.text) == (not KEPT[history])


def test_what_was_off_line_first_is_on_line_later(
    tmp_path: Path, on_line: wandb_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as first:
        first.setenv("WANDB_MODE", "offline")
        play(Part(0, 6, is_killed=True), make_run(tmp_path), {"wandb": WandbSink()})
    run = make_run(tmp_path, resumed=True)
    assert len(list(run.folder.glob("wandb/offline-run-*"))) == 1
    play(Part(4, 8), run, {"wandb": WandbSink()})
    assert_same(on_line.read(run.folder), run.folder)
    assert not list(run.folder.glob("wandb/offline-run-*")), "it would be sent over what is there"


@pytest.mark.slow
def test_the_line_that_a_resumed_offline_run_ends_with_sends_all_of_it(
    tmp_path: Path, on_line: wandb_server.Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as first:
        first.setenv("WANDB_MODE", "offline")
        play(Part(0, 6), make_run(tmp_path), {"wandb": WandbSink()})
        play(Part(4, 9, factor=2), run := make_run(tmp_path, resumed=True), {"wandb": WandbSink()})
    words = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("W&B"))
    assert words[:2] == ["wandb", "sync"]
    subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, timeout=60, cwd=tmp_path)  # it writes there
    assert_same(on_line.read(run.folder), run.folder)


@pytest.mark.parametrize("name", ["disabled", "dryrun"])
def test_the_modes_of_wandb_that_send_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a login."""
    monkeypatch.setenv("WANDB_MODE", name)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    play(Part(0, 3), run := make_run(tmp_path), {"wandb": WandbSink(), "csv": CsvSink()})
    assert len(list(run.folder.glob("wandb/offline-run-*"))) == (name == "dryrun")
    assert (run.folder / "wandb").exists() == (name == "dryrun")
    assert not list(run.folder.glob(".*_unsent"))
    assert_same(read_csv(run.folder), run.folder)


def test_a_new_run_in_wandb_that_fails_to_open_is_tried_again(
    tmp_path: Path, on_line: wandb_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is away for a moment, just when the run has taken steps back."""
    play(Part(0, 6), make_run(tmp_path), {"wandb": WandbSink(mode="online")})
    begin_run, failures = WandbSink._begin, [False, True, True]

    def fail(sink: WandbSink) -> None:
        if failures and failures.pop(0):
            raise ConnectionError("nobody there")
        begin_run(sink)

    monkeypatch.setattr(WandbSink, "_begin", fail)
    play(Part(3, 8, factor=2), run := make_run(tmp_path, resumed=True), {"wandb": WandbSink(mode="online")})
    assert_same(on_line.read(run.folder), run.folder)
    assert not failures
