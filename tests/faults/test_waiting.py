"""Row D23: whatever waits says after two seconds for what, a signal ends it at once, and nothing is left behind."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import mlflow.tracking  # noqa: F401  (a signal while it is imported would leave half of it to later tests)
import pytest

from research.cli import announce_wait
from research.kernels import build
from research.preflight.program import explain_errors
from research.run_dir import RunConfig
from research.signals import Stopped, watch
from research.tracking import mlflow_store
from research.tracking.mlflow import MLflow
from research.tracking.storage import FileLock


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
    assert (os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("20", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    mlflow_store.connect("http://127.0.0.1:9")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
