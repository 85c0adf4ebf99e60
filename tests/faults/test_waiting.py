"""Row D23: whatever waits says after two seconds for what, a signal ends it at once, and nothing is left behind."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow.tracking
import pytest
from fitting import make_state
from servers import FAULTS, Server, serve
from torch import nn

from research.cli import announce_wait
from research.data.modular import modular
from research.kernels import build
from research.preflight.program import explain_errors
from research.run_dir import RunConfig, Summary
from research.signals import Stopped, watch
from research.tracking import mlflow, mlflow_store
from research.tracking.history import read_records
from research.tracking.jsonl import FINISHED, STOPPED
from research.tracking.mlflow import UNSENT_FILE, MLflow
from research.tracking.storage import FileLock

LOSSES = {step: 1 / step for step in (1, 2, 3)}


@pytest.fixture(autouse=True)
def trust_stores() -> Iterator[None]:
    """Each test as in a process of its own, in which no store has been silent yet."""
    yield
    mlflow.silent_stores.clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve(tmp_path) as server:
        yield server


def log_steps(server: Server, tracker: MLflow, folder: Path, fault: str | float, fails_at: int) -> RunConfig:
    """Log three steps; from one of them on, the server has a fault. At step 0 it has it from the start."""
    run = RunConfig("x", "study", folder / "run", {}, [], {})
    run.folder.mkdir()
    state = make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4)
    if fails_at == 0:
        server.fault = fault
    tracker.start(run)
    tracker.on_start(state)
    state.start_clock()
    for step, loss in LOSSES.items():
        state.advance()
        state.log({"train/loss": loss})
        tracker.on_step(state)
        while fails_at == step and (tracker.points or not server.has_run or "train/loss" not in server.points):
            time.sleep(0.05)
        if fails_at == step:
            server.fault = fault
    Summary(FINISHED, steps=3).write(run.folder)
    return run


@pytest.mark.parametrize("fails_at", [0, 1, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_ends_no_run_late_and_gets_the_rest_later(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    fails_at: int,
) -> None:
    monkeypatch.setattr(mlflow, "BATCH_INTERVAL", 0.1)
    tracker = MLflow(server.uri)
    run = log_steps(server, tracker, tmp_path, fault, fails_at)
    tracker.patience, started = 0.4, time.monotonic()
    tracker.finish(FINISHED, {"steps": 3})
    assert time.monotonic() - started < 1.5
    message = capsys.readouterr().err
    assert f"MLflow at {server.uri} did not take all of this run" in message
    assert "resume=RUN" in message
    assert {record["step"]: record["train/loss"] for record in read_records(run.folder / "metrics.jsonl")} == LOSSES
    server.fault = 0.0
    MLflow(server.uri).send_rest(run)
    assert server.points["train/loss"] == LOSSES
    assert (server.status, server.tags["status"]) == (FINISHED, FINISHED)
    assert not (run.folder / UNSENT_FILE).exists()


def test_a_server_that_answers_slowly_loses_nothing(server: Server, tmp_path: Path) -> None:
    """The end of the run takes longer than any answer may."""
    tracker = MLflow(server.uri)
    log_steps(server, tracker, tmp_path, 0.15, 0)
    tracker.patience, started = 0.6, time.monotonic()
    tracker.finish(FINISHED, {"steps": 3})
    assert time.monotonic() - started > tracker.patience
    assert (server.points["train/loss"], server.status) == (LOSSES, FINISHED)


def test_a_signal_ends_the_wait_for_a_server_at_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = MLflow(server.uri)
    run = log_steps(server, tracker, tmp_path, "hangs", 0)
    with watch() as signals:  # as a run has
        timer, started = send_sigterm(2.3), time.monotonic()
        tracker.finish(FINISHED, {"steps": 3})
        assert time.monotonic() - started < 3.3
        assert signals.signum == signal.SIGTERM
    timer.join()
    assert capsys.readouterr().err.startswith(f"waiting for MLflow at {server.uri}\nwarning: ")
    assert (run.folder / UNSENT_FILE).exists()


def test_a_stopped_run_waits_less(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "SIGNAL_TIMEOUT", 0.2)
    tracker = MLflow(server.uri)
    log_steps(server, tracker, tmp_path, "hangs", 0)
    with watch() as signals:
        signals.signum, started = signal.SIGTERM, time.monotonic()
        tracker.finish(STOPPED, {"steps": 3})
    assert time.monotonic() - started < 1


def send_sigterm(seconds: float) -> threading.Timer:
    """Send SIGTERM to this process after so many seconds."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGTERM])
    timer.start()
    return timer


def test_only_what_takes_long_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    with announce_wait("nothing", 0.5):
        pass
    with announce_wait("a friend", 0.05):
        time.sleep(0.3)
    assert capsys.readouterr().err == "waiting for a friend\n"


def test_a_held_lock_is_named_and_taken_once_it_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mlflow.lock"
    with path.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        release = threading.Timer(2.5, fcntl.flock, [holder, fcntl.LOCK_UN])
        release.start()
        with FileLock(path):
            release.join()
    assert capsys.readouterr().err == f"waiting for another process, which holds {path}\n"


def test_sigterm_ends_the_wait_for_a_store(tmp_path: Path) -> None:
    """The store's lock is held: the run that waits has not begun, and leaves no store."""
    run = RunConfig("x", "study", tmp_path / "run", {}, [], {})
    run.folder.mkdir()
    with (tmp_path / "mlflow.lock").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        started, tracker = time.monotonic(), MLflow(f"sqlite:///{tmp_path / 'mlflow.db'}")
        with watch():  # as a run has
            timer = send_sigterm(0.3)
            with pytest.raises(Stopped):
                tracker.start(run)
        timer.join()
    assert time.monotonic() - started < 30  # MLflow's import comes first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.lock", "run"]


def test_sigterm_ends_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, source = tmp_path / "cc", tmp_path / "x.c"
    compiler.write_text(f"#!/bin/sh\necho $$ > {tmp_path / 'pid'}\nexec sleep 60\n")
    compiler.chmod(0o755)
    source.write_text("int x;")
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    started = time.monotonic()
    with watch():
        timer = send_sigterm(0.5)
        with pytest.raises(Stopped):
            build.build_cached(source, tmp_path / "cache")
    timer.join()
    assert time.monotonic() - started < 5
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_stop_before_anything_began_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as end, explain_errors():
        raise Stopped(signal.SIGTERM)
    assert (end.value.code, capsys.readouterr().err) == (143, "stopped by SIGTERM\n")


def test_requests_to_a_server_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIMEOUT", "MAX_RETRIES"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "")
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}")
    mlflow_store.connect("http://127.0.0.1:9")
    assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("15", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    mlflow_store.connect("http://127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
