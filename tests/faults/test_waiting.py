"""Row 23: whatever waits says after two seconds for what, a signal ends it at once, and nothing is left behind."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from fitting import make_state
from mlflow import tracking as _tracking  # noqa: F401  (a signal during its import would leave half of it to later tests)
from program import TINY, Fork, start_run
from servers import FAULTS, Server, serve
from torch import nn

from research import signals
from research.cli import announce_wait
from research.data.modular import modular
from research.kernels import build
from research.preflight.program import explain_errors
from research.run_dir import RunConfig, Summary
from research.signals import Stopped, watch
from research.sweep import pruning
from research.sweep.pruning import Pruning
from research.sweep.trial import Trial
from research.tracking import mlflow_store, optuna_storage, sink
from research.tracking.history import read_records
from research.tracking.journal import Journal
from research.tracking.jsonl import FINISHED, STOPPED
from research.tracking.mlflow import MLflow
from research.tracking.storage import FileLock

UNSENT = ".mlflow_unsent"
LOSSES = {step: 1 / step for step in (1, 2, 3)}


@pytest.fixture(autouse=True)
def trust_stores() -> Iterator[None]:
    """Each test as in a process of its own, in which no store has been silent yet."""
    yield
    sink.silent_stores.clear()


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
        while fails_at == step and (tracker.delivery.records or not server.has_run or "train/loss" not in server.points):
            time.sleep(0.05)
        if fails_at == step:
            server.fault = fault
    Summary(FINISHED, steps=3).write(run.folder)
    return run


FAST = (("500", 0), ("hangs", 1), ("drops", 3))
CASES = [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in product(FAULTS, (0, 1, 3))]


@pytest.mark.parametrize(("fault", "fails_at"), CASES)
def test_a_server_that_fails_ends_no_run_late_and_gets_the_rest_later(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
    fails_at: int,
) -> None:
    monkeypatch.setattr(sink, "BATCH_INTERVAL", 0.1)
    tracker = MLflow(server.uri)
    run = log_steps(server, tracker, tmp_path, fault, fails_at)
    tracker.sink.patience, started = 0.4, time.monotonic()
    tracker.finish(FINISHED, {"steps": 3})
    assert time.monotonic() - started < 6
    message = capsys.readouterr().err
    assert f"MLflow at {server.uri} did not take all of this run" in message
    assert "resume=RUN" in message
    assert {record["step"]: record["train/loss"] for record in read_records(run.folder / "metrics.jsonl")} == LOSSES
    server.fault = 0.0
    MLflow(server.uri).send_rest(run)
    assert server.points["train/loss"] == LOSSES
    assert (server.status, server.tags["status"]) == (FINISHED, FINISHED)
    assert not (run.folder / UNSENT).exists()


def test_a_server_that_answers_slowly_loses_nothing(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of the run takes longer than any answer may."""
    tracker = MLflow(server.uri)
    log_steps(server, tracker, tmp_path, 0.3, 0)
    tracker.sink.patience, started = 2.0, time.monotonic()
    tracker.finish(FINISHED, {"steps": 3})
    assert time.monotonic() - started > tracker.sink.patience
    assert (server.points["train/loss"], server.status) == (LOSSES, FINISHED)
    assert "View run" not in capsys.readouterr().out  # MLflow's own line has the address with its password


def test_a_signal_ends_the_wait_for_a_server_at_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = MLflow(server.uri)
    run = log_steps(server, tracker, tmp_path, "hangs", 0)
    with send_signal(2.3) as seen:
        started = time.monotonic()
        tracker.finish(FINISHED, {"steps": 3})
        assert time.monotonic() - started < 8
        assert seen.signum == signal.SIGTERM
    assert capsys.readouterr().err.startswith(f"waiting for MLflow at {server.uri}\nwarning: ")
    assert (run.folder / UNSENT).exists()


def test_a_stopped_run_waits_less(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "SIGNAL_TIMEOUT", 0.2)
    tracker = MLflow(server.uri)
    log_steps(server, tracker, tmp_path, "hangs", 0)
    with watch() as seen:
        seen.signum, started = signal.SIGTERM, time.monotonic()
        tracker.finish(STOPPED, {"steps": 3})
    assert time.monotonic() - started < 6


@contextmanager
def send_signal(seconds: float, signum: int = signal.SIGTERM) -> Iterator[signals.Watch]:
    """Send a signal to this process after so many seconds, unless the block ends before; handle it as a run does."""
    timer = threading.Timer(seconds, os.kill, [os.getpid(), signum])
    with watch() as seen:
        timer.start()
        try:
            yield seen
        finally:
            timer.cancel()
            timer.join()


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
        with send_signal(0.3), pytest.raises(Stopped):
            tracker.start(run)
    assert time.monotonic() - started < 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.lock", "run"]


def test_sigterm_ends_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, source = tmp_path / "cc", tmp_path / "x.c"
    compiler.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {tmp_path / 'pid'}\nwait\n")  # as gcc, whose work cc1 does
    compiler.chmod(0o755)
    source.write_text("int x;")
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("WORLD_SIZE", " ")  # as if it were not set
    started = time.monotonic()
    with send_signal(0.5), pytest.raises(Stopped):
        build.build_cached(source, tmp_path / "cache")
    assert time.monotonic() - started < 5
    assert not list((tmp_path / "cache").iterdir())
    assert has_ended(int((tmp_path / "pid").read_text()))


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, within a second."""
    for _ in range(20):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":  # init has not seen it yet
            return True
        time.sleep(0.05)
    return False


def test_of_several_processes_none_leaves_the_others_for_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler ends, the process goes on to the next safe point."""
    compiler, source = tmp_path / "cc", tmp_path / "x.c"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o755)
    source.write_text("int x;")
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with send_signal(0.3) as seen, pytest.raises(subprocess.SubprocessError, match="stopped by SIGTERM"):
        build.build_cached(source, tmp_path / "cache")
    assert seen.signum == signal.SIGTERM


def test_sigterm_ends_the_wait_for_a_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study.journal")
    with journal.lock.path.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with send_signal(0.2), pytest.raises(Stopped):
            journal.append_logs([{"op_code": 0}])
    assert not journal.path.read_bytes()
    journal.append_logs([{"op_code": 0}])
    assert journal.path.read_bytes()


def test_sigterm_ends_the_wait_for_a_database_and_the_training_is_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step whose report nobody takes goes on: the run ends at its next safe point."""
    monkeypatch.setattr(pruning, "UNSAID", 0.1)
    free, callback = threading.Event(), Pruning()
    callback.trial = Trial(None, SimpleNamespace(set_trial_intermediate_value=lambda *_: free.wait()), 0)
    state = make_state(nn.Linear(2, 2), data=modular(p=5), steps=100, batch_size=4)
    state.start_clock()
    state.advance()
    state.log({"val/acc": 0.5})
    started = time.monotonic()
    with send_signal(2.3) as seen:
        callback.on_step(state)
    assert (time.monotonic() - started < 10, seen.signum) == (True, signal.SIGTERM)
    free.set()
    assert not state.stop
    assert capsys.readouterr().err == "waiting for the study's storage\n"


def test_a_report_does_not_wait_again_for_a_silent_server(server: Server, tmp_path: Path) -> None:
    server.fault = "hangs"
    sink.silent_stores.add(f"MLflow at {server.uri}")
    with pytest.raises(ConnectionError, match="did not answer"), mlflow_store.connect_briefly(server.uri) as client:
        client.get_run("r")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_report_at_once(server: Server, signum: int) -> None:
    server.fault, started = "hangs", time.monotonic()
    with send_signal(0.5, signum), pytest.raises(Stopped), mlflow_store.connect_briefly(server.uri) as client:
        client.get_run("r")
    assert time.monotonic() - started < 8


def test_a_redis_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("redis")
    monkeypatch.setattr(optuna_storage, "SERVER_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Exception, match="Timeout") as failure:
        optuna_storage.get_storage(f"redis://127.0.0.1:{server.getsockname()[1]}/0").get_all_studies()
    assert optuna_storage.is_storage_unreachable(failure.value)


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


def start_beside(server: Server, folder: Path, *more: str) -> Fork:
    """Start a run of three steps that logs to a server."""
    return start_run(folder, *TINY, "trainer.steps=3", "callbacks.checkpoint.every=1", *more, MLFLOW_TRACKING_URI=server.uri)


def wait_for_summary(folder: Path) -> Path:
    """Return the run folder once its training is over."""
    for _ in range(600):
        if found := [*folder.glob("out/*/*/summary.json")]:
            return found[0].parent
        time.sleep(0.1)
    raise AssertionError("the run did not end")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_while_a_run_waits_for_its_server(server: Server, tmp_path: Path, signum: int, code: int) -> None:
    """The run is whole."""
    server.fault = "hangs"
    process = start_beside(server, tmp_path)
    run = wait_for_summary(tmp_path)
    time.sleep(0.5)  # until it waits
    process.send_signal(signum)
    started = time.monotonic()
    _, errors = process.communicate()
    assert (process.returncode, time.monotonic() - started < 10) == (code, True)  # the interpreter's own end is among it
    assert "did not take all of this run (no answer)" in errors
    assert json.loads((run / "summary.json").read_text())["status"] == FINISHED
    assert (run / "checkpoints" / "step-00000003" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_dead_server_costs_a_short_run_seconds(server: Server, tmp_path: Path, fault: str) -> None:
    """The same settings with resume= send what the server lacks."""
    server.fault = fault
    process = start_beside(server, tmp_path)
    run, started = wait_for_summary(tmp_path), time.monotonic()
    _, errors = process.communicate()
    assert (process.returncode, time.monotonic() - started < 20) == (0, True)
    assert f"waiting for MLflow at {server.uri}\nwarning: MLflow at {server.uri} did not take" in errors
    server.fault = 0.0
    again = start_beside(server, tmp_path, f"resume={run}")
    output, _ = again.communicate()
    assert (again.returncode, "finished already" in output) == (0, True)
    sent = server.points["train/loss"]
    assert sent == {record["step"]: record["train/loss"] for record in read_records(run / "metrics.jsonl")}
    assert len(sent) == 3
    assert server.status == FINISHED
    assert not (run / UNSENT).exists()


@pytest.mark.slow
def test_sigterm_ends_a_sweep_that_waits_for_its_turn(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    with (folder / ".turn").open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        process = start_run(tmp_path, *TINY, "tracker=jsonl", f"hydra.sweep.dir={folder}", "-m", "seed=0,1")
        while not (folder / "study.json").exists():
            time.sleep(0.1)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        _, errors = process.communicate()
    assert time.monotonic() - started < 5
    assert process.returncode == 143, errors
    assert f"waiting for another process, which holds {folder / '.turn'}\n" in errors
    assert not [*(folder / ".alive").iterdir()]
