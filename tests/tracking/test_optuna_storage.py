"""Studies in each kind of storage, shared by processes and machines; other launchers; servers that do not answer."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import optuna
import pytest
from program import ROOT, TINY, make_environment, run
from sweeping import run_sweep

from benchmarks import servers
from research.tracking import optuna_storage

DOCS = (ROOT / "docs" / "scaling-sweeps.md").read_text()
POSTGRESQL, REDIS, GRPC = (pytest.param(kind, marks=pytest.mark.slow) for kind in ("postgresql", "redis", "grpc"))
KINDS = ("journal", "sqlite", POSTGRESQL, REDIS, GRPC)
SPACE = ["x=interval(-5.0,5.0)", "hydra.sweeper.study_name=shared"]
Opener = Callable[[str], str]


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    """Return the URL of an empty storage of a kind; its server ends with the test."""
    with ExitStack() as running:

        def open_storage(kind: str) -> str:
            try:
                return running.enter_context(servers.STORAGES[kind](tmp_path))
            except servers.NotInstalledError as error:
                pytest.skip(str(error))

        yield open_storage
        optuna_storage._connect_storage.cache_clear()


def count_states(url: str, name: str = "shared") -> Counter[str]:
    """How the trials of a study have ended."""
    optuna_storage._connect_storage.cache_clear()
    study = optuna.load_study(study_name=name, storage=optuna_storage.get_storage(url))
    return Counter(trial.state.name for trial in study.trials)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_continues_to_its_total(tmp_path: Path, opener: Opener, kind: str) -> None:
    url = opener(kind)
    arguments = [*SPACE, f"hydra.sweeper.storage={url}", "hydra.sweeper.home=sweeps"]
    run_sweep(tmp_path, *arguments, "hydra.sweeper.n_trials=4")
    assert "resumed after 4" in run_sweep(tmp_path, *arguments, "hydra.sweeper.n_trials=6")
    assert count_states(url) == {"COMPLETE": 6}
    assert {path.name for path in (tmp_path / "sweeps" / "shared").iterdir() if path.name.isdecimal()} == set("012345")


@pytest.mark.parametrize("kind", ["journal", POSTGRESQL])
def test_workers_run_each_trial_once(kind: str) -> None:
    """benchmarks/workers.py has the numbers for more of them."""
    small = ["--storage", kind, "--workers", "4", "--trials", "12"]
    done = run([str(ROOT / "benchmarks" / "workers.py"), *small], ROOT, dict(os.environ))
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout.splitlines()[-1])
    if kind not in numbers:
        pytest.skip(next(line for line in done.stdout.splitlines() if "apt-get" in line))
    assert {key: numbers[kind][key] for key in numbers["bounds"]} == numbers["bounds"], done.stdout


@pytest.mark.parametrize("kind", ["journal", POSTGRESQL])
def test_machines_join_by_the_same_command(tmp_path: Path, opener: Opener, kind: str) -> None:
    """They start with an empty storage and share nothing else; a late one may have nothing left to do."""
    url = opener(kind)
    machines = [tmp_path / name for name in ("a", "b", "c")]
    for machine in machines:
        machine.mkdir()
    arguments = [*SPACE, f"hydra.sweeper.storage={url}", "hydra.sweeper.home=sweeps", "hydra.sweeper.n_trials=12"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda machine: run_sweep(machine, *arguments), machines))
    assert count_states(url)["COMPLETE"] == 12
    lines = [line for file in tmp_path.glob("*/times.txt") for line in file.read_text().splitlines()]
    assert set(Counter(line.split()[0] for line in lines).values()) == {2}, "one line at a trial's start and one at its end"


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_trials_of_a_launcher_are_pruned(tmp_path: Path, launcher: str) -> None:
    """In the launcher's own processes, which connect to the study by themselves."""
    pruner = ["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=1"]
    first = "hydra.sweeper.enqueue=[{x: 0.0},{x: 1.0},{x: 4.0},{x: 3.0}]"  # the launcher has two at once: the last are worse
    storage = f"hydra.sweeper.storage=journal://{tmp_path}/study.journal"
    run_sweep(tmp_path, *SPACE, *pruner, first, storage, f"hydra/launcher={launcher}", "hydra.sweeper.n_trials=4", steps=3)
    assert count_states(f"journal://{tmp_path}/study.journal") == {"COMPLETE": 2, "PRUNED": 2}
    processes = {line.split()[2] for line in (tmp_path / "times.txt").read_text().splitlines()}
    assert len(processes) >= 2


def test_an_incomplete_last_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    arguments = [*SPACE, f"hydra.sweeper.storage=journal://{file}", "hydra.sweeper.home=sweeps"]
    run_sweep(tmp_path, *arguments, "hydra.sweeper.n_trials=2")
    complete = file.read_bytes()
    file.write_bytes(complete + b'{"op_code":4,"worker_id":"' * 3)
    run_sweep(tmp_path, *arguments, "hydra.sweeper.n_trials=4")
    assert file.read_bytes().startswith(complete)
    assert [json.loads(line)["op_code"] for line in file.read_bytes().splitlines()]
    assert count_states(f"journal://{file}") == {"COMPLETE": 4}


REFUSED = (
    "sweeper.storage=postgresql://somebody:***@127.0.0.1:1/x cannot be used: (psycopg2.OperationalError) connection to server"
)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://somebody:secret@127.0.0.1:1/x", REFUSED),
        ("redis://127.0.0.1:1/0", "Connection refused"),
        ("postgresql://somewhere/x", "psycopg2 is not installed; pip install -e '.[postgres]'"),
    ],
)
def test_a_storage_that_is_not_there_is_reported_in_one_line(tmp_path: Path, url: str, words: str) -> None:
    own, argv = (
        make_environment(tmp_path),
        [str(ROOT / "train.py"), *TINY, "-m", "lr=1e-3,3e-4", f"hydra.sweeper.storage={url}"],
    )
    if "not installed" in words:  # in a process of its own, which imports this module instead of the driver
        (tmp_path / "psycopg2.py").write_text("raise ImportError('No module named psycopg2')")
        command, own["PYTHONPATH"] = [sys.executable, *argv, "out=out"], f"{tmp_path}:{ROOT}"
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=100)
    else:
        done = run([*argv, "out=out"], tmp_path, own)
    assert done.returncode == 1
    assert words in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 3, done.stderr
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("study.db", "it is none of journal://FILE sqlite:///FILE"),
        ("journal://", "it is none of journal://FILE sqlite:///FILE"),
        ("oracel://host/name", "it is none of journal://FILE sqlite:///FILE"),
        ("grpc://host", "give its host and its port, as grpc://HOST:13000"),
        ("grpc://127.0.0.1:1", "no proxy has answered at 127.0.0.1:1 within 0.2 s"),
        ("mysql://host/name", "its driver is not installed"),
    ],
)
def test_a_wrong_url_is_reported(monkeypatch: pytest.MonkeyPatch, url: str, words: str) -> None:
    monkeypatch.setattr(optuna_storage, "SERVER_TIMEOUT", 0.2)
    with pytest.raises((ValueError, ConnectionError), match=re.escape(words)):
        optuna_storage.get_storage(url)


@pytest.mark.parametrize(("module", "url", "extra"), [("redis", "redis://h:1/0", "redis"), ("grpc", "grpc://h:1", "grpc")])
def test_a_missing_driver_is_named(tmp_path: Path, module: str, url: str, extra: str) -> None:
    """In a process of its own: Optuna imports redis once and for all."""
    (tmp_path / f"{module}.py").write_text("raise ImportError('it is not there')")
    own = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", f"from research.tracking.optuna_storage import get_storage; get_storage({url!r})"]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=100)
    assert f"is not installed; pip install -e '.[{extra}]'" in done.stderr


SCONTROL = """#!/bin/sh
echo "$2" >> requeued
"""
SRUN = """#!/bin/sh
"$@" & echo $! > task
wait $!
"""


@pytest.mark.slow
def test_the_array_for_slurm_is_requeued_and_resumes(tmp_path: Path) -> None:
    """The script of the documentation, word for word but for the size; srun and scontrol are stand-ins."""
    (script,) = re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL)
    small = " ".join([*TINY[1:], "tracker=jsonl", "target=null", "steps=100", "eval_every=25", "hydra.sweeper.lease=4"])
    script = script.replace("train.py", f"{ROOT / 'train.py'} {small}").replace("/shared", str(tmp_path))
    script = re.sub(r"n_trials=\d+", "n_trials=2", script)
    (tmp_path / "job").write_text(script)
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    own = make_environment(tmp_path) | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    with (tmp_path / "output").open("wb") as output:
        job = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=own, stdout=output, stderr=output)
    for _ in range(600):
        time.sleep(0.1)
        if list((tmp_path / "outputs").rglob("metrics.jsonl")):
            break
    os.kill(int((tmp_path / "task").read_text()), signal.SIGUSR1)
    assert job.wait(60) in (138, 143), (tmp_path / "output").read_text()
    assert (tmp_path / "requeued").read_text() == "4711\n"
    again = subprocess.run(["bash", "job"], cwd=tmp_path, env=own, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr
    (folder,) = (tmp_path / "outputs").glob("*/lr")
    assert count_states(f"journal://{folder}/study.journal", "lr") == {"COMPLETE": 2}
