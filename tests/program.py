"""The program as a user starts it: a process of its own, with folders and a store of its own."""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from select import select
from typing import Any

from research.training.manifest import MANIFEST_FILE, read_manifest

ROOT = Path(__file__).resolve().parents[1]
TINY = ["trainer=debug", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "trainer.device=cpu"]

FORK_SERVER = """
import gc, json, os, runpy, sys, warnings
import matplotlib.backends.backend_agg, mlflow.store.tracking.sqlalchemy_store, optuna, sklearn.datasets, torch._dynamo
import research.report.report, research.run, research.tracking.mlflow

gc.collect()
gc.freeze()  # or else half of a run's time goes into looking for garbage among what was imported
for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
warnings._processoptions(filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")))
for number, path in enumerate((os.devnull, *asked["said"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
sys.argv, sys.orig_argv = asked["argv"], [sys.executable, *asked["argv"]]  # workers are started as the program was
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")  # what ends it ends the process, as it would the program
"""
IDLE_SERVERS: list[subprocess.Popen[str]] = []


def start_fork_server() -> subprocess.Popen[str]:
    """A process that has imported what the program will: to import it again for each run would be most of the tests' time."""
    if IDLE_SERVERS:
        return IDLE_SERVERS.pop()
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", FORK_SERVER], text=True, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(process.kill)
    return process


class Fork:
    """A program that runs in a fork, with the part of Popen's interface that tests need."""

    def __init__(self, argv: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.argv, self.server = argv, start_fork_server()
        self.folder = Path(tempfile.mkdtemp(prefix="grokbit-"))
        self.output_paths = [self.folder / name for name in ("stdout", "stderr")]
        asked = {"argv": argv, "cwd": str(cwd), "env": env, "said": [str(path) for path in self.output_paths]}
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        self.pid = int(self.read_line(60))
        self.returncode: int | None = None

    def read_line(self, timeout: float) -> str:
        assert self.server.stdout
        if not select([self.server.stdout], [], [], timeout)[0]:
            self.server.kill()
            raise AssertionError(f"it runs for more than {timeout} s: {self.argv}")
        return self.server.stdout.readline()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """What it wrote on its two outputs, once it has ended."""
        self.returncode = int(self.read_line(timeout))
        IDLE_SERVERS.append(self.server)
        out, err = (path.read_text() for path in self.output_paths)
        shutil.rmtree(self.folder)
        return out, err


def run(argv: list[str], cwd: Path, env: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """subprocess.run for a program of this repository."""
    fork = Fork(argv, cwd, env)
    out, err = fork.communicate(timeout)
    assert fork.returncode is not None
    return subprocess.CompletedProcess(argv, fork.returncode, out, err)


def run_ranks(argv: list[str], cwd: Path, env: dict[str, str]) -> list[subprocess.CompletedProcess[str]]:
    """Two processes of one run, as a launcher would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = env | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda rank: run(argv, cwd, both | {"RANK": rank, "LOCAL_RANK": rank}), "01"))


@cache
def create_empty_store() -> Path:
    """An MLflow store with nothing in it: to make one takes seconds, to copy one does not."""
    from mlflow.tracking import MlflowClient

    path = Path(tempfile.mkdtemp(prefix="grokbit-")) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    assert len(MlflowClient(f"sqlite:///{path}").search_experiments()) == 1
    return path


def make_environment(tmp_path: Path) -> dict[str, str]:
    if not (tmp_path / "mlflow.db").exists():
        shutil.copy(create_empty_store(), tmp_path / "mlflow.db")
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}


def train(tmp_path: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    argv = [str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    done = run(argv, tmp_path, make_environment(tmp_path))
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def read_summaries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((tmp_path / "out").rglob("summary.json"))]


def forget_configurations(run: Path) -> None:
    """Let config.yaml count, as in a run of version 1, whose checkpoints do not know their configuration."""
    for checkpoint in (run / "checkpoints").iterdir():
        manifest = replace(read_manifest(checkpoint), config={})
        (checkpoint / MANIFEST_FILE).write_text(manifest.to_json())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "crc32") and not k.startswith("perf/")} for line in found]


def start_run(tmp_path: Path, *arguments: str, **variables: str) -> Fork:
    """A run under way; `more` are variables of its environment."""
    return Fork(
        [str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"], tmp_path, make_environment(tmp_path) | variables
    )


def wait_for_run(tmp_path: Path, name: str, steps: int) -> Path:
    """The folder of a run under way, once it has logged so many steps."""
    for _ in range(600):
        for file in (tmp_path / "out" / name).glob("*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= steps:
                return file.parent
        time.sleep(0.1)
    raise AssertionError("the run did not begin")
