"""Row 12: what is printed never ends a training, and a closed terminal saves: streams closed, full or of another encoding."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from program import ROOT, TINY, Fork, make_environment, start_run, wait_for_run

from research import signals

OWN = ["tracker=none", "name=run", *TINY]
# Streams as a shell leaves them, before train.py runs.
LAUNCHER = """
import os, runpy, sys
sys.argv = sys.argv[1:]
case = sys.argv.pop(1)
pipe = os.pipe()
for fd, name in enumerate(("stdin", "stdout", "stderr")):
    if case == "closed":
        os.close(fd)
        setattr(sys, name, None)
    elif fd and case == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), fd)
    elif fd and case == "broken pipe":
        os.dup2(pipe[1], fd)
    elif fd and case == "read-only":
        os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
    if fd and case != "closed":
        setattr(sys, name, open(fd, "w", closefd=False))
os.closerange(3, 64)
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("case", ["closed", "full", "broken pipe", "read-only"])
def test_a_run_finishes_whatever_becomes_of_its_streams(case: str, tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text(LAUNCHER)
    argv = [str(tmp_path / "launch.py"), str(ROOT / "train.py"), case, *OWN, f"out={tmp_path / 'out'}"]
    fork = Fork(argv, tmp_path, make_environment(tmp_path))
    assert fork.communicate() == ("", "")
    assert fork.returncode == 0
    (folder,) = (tmp_path / "out" / "run").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "FINISHED"
    # No file of the run has taken a descriptor of the streams, and so their words.
    assert sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".") == [
        *("config.yaml", "env.json"),
        *(["git.diff"] if (folder / "git.diff").exists() else []),
        *("overrides.txt", "summary.json", "train.log"),
    ]
    assert "Console" not in (folder / "train.log").read_text()


def test_words_appear_in_an_encoding_without_the_characters_and_a_width_of_nothing(tmp_path: Path) -> None:
    argv = [str(ROOT / "train.py"), *OWN, f"out='{tmp_path}/Läufe'"]
    command = [sys.executable, *argv]
    own = make_environment(tmp_path) | {"PYTHONIOENCODING": "ascii", "COLUMNS": "0"}
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120, check=True)
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert lines["folder"].startswith(f"{tmp_path}/L\\xe4ufe/run/")
    assert {"run", "model", "data", "time"} <= lines.keys()
    (summary,) = (tmp_path / "Läufe" / "run").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "FINISHED"


def run_protected(code: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """Run a few lines behind `protect_streams()`."""
    code = f"import os, sys; from research.cli import protect_streams, print_message; protect_streams(); {code}"
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    own |= options.pop("env", {})  # type: ignore[call-overload]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", code], env=own, timeout=60, check=False, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("width", ["0", "-1", "", "²", "x", "3", "99999999999999999999", "٣٠"])
def test_a_width_that_cannot_be_is_no_width(width: str) -> None:
    done = run_protected("print('COLUMNS' in os.environ, 'LINES' in os.environ)", env={"COLUMNS": width, "LINES": width})
    assert done.stdout == b"False False\n"


def test_a_width_that_can_be_stays() -> None:
    assert run_protected("print(os.environ['COLUMNS'])", env={"COLUMNS": "132"}).stdout == b"132\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_every_name_of_a_folder_can_be_printed(encoding: str) -> None:
    """Bytes that are no text come out as they are; characters that the encoding lacks come out escaped."""
    text = "a é \udcff … 😀 \ud800"
    done = run_protected(f"print({text!r})", env={"PYTHONIOENCODING": encoding})
    words = done.stdout.split()
    assert (done.returncode, len(words)) == (0, 6), done.stderr
    for word, printed in zip(text.split(), words, strict=True):
        try:
            expected = word.encode(encoding)
        except UnicodeEncodeError:
            expected = b"\xff" if word == "\udcff" else word.encode("ascii", "backslashreplace")
        assert printed == expected


def test_one_stream_that_fails_silences_no_other() -> None:
    with Path("/dev/full").open("w") as full:
        done = run_protected("print('a', flush=True); print_message('b'); print('c'); sys.exit(3)", stdout=full)
    assert (done.returncode, done.stderr) == (3, b"b\n")


def test_a_log_on_a_full_disk_prints_no_traceback() -> None:
    log = "import logging; logging.getLogger().addHandler(logging.FileHandler('/dev/full')); logging.error('a')"
    done = run_protected(f"{log}; print('b')")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"b\n", b"")


def test_a_result_on_a_full_disk_is_a_failure() -> None:
    """--cfg prints what other programs read: unlike words for people it must not be cut off in silence."""
    with Path("/dev/full").open("w") as full:
        own = [sys.executable, "train.py", "--cfg", "job"]
        assert subprocess.run(own, cwd=ROOT, stdout=full, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode == 1


def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    run = start_run(tmp_path, "tracker=jsonl", "name=run", *TINY, "trainer.steps=100000", "trainer.log_every=1")
    folder = wait_for_run(tmp_path, "run", 3)
    run.send_signal(signal.SIGHUP)
    run.communicate()
    summary = json.loads((folder / "summary.json").read_text())
    assert (run.returncode, summary["status"]) == (129, "STOPPED")
    assert (folder / "checkpoints" / f"step-{summary['steps']:08d}" / "manifest.json").exists()


def test_nohup_stays_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.watch() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            watch.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)]
)
def test_exit_codes(signum: signal.Signals, code: int) -> None:
    with signals.watch() as watch:
        os.kill(os.getpid(), signum)
        with pytest.raises(signals.Stopped) as stopped:
            watch.check()
    assert signals.get_exit_code(stopped.value.signum) == code
