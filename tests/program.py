"""The program as a user starts it: a process of its own, with folders and a store of its own."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from select import select
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ["trainer=debug", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "trainer.device=cpu"]

FORKING = """
import json, os, runpy, sys
import matplotlib.backends.backend_agg, mlflow.store.tracking.sqlalchemy_store, optuna, sklearn.datasets, torch._dynamo
import research.report, research.run, research.tracking

for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(asked["cwd"])
os.environ.clear()
os.environ.update(asked["env"])
for number, path in enumerate((os.devnull, *asked["paths"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
sys.argv = asked["argv"]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")  # what ends it ends the process, as it would the program
"""


@cache
def forking() -> subprocess.Popen[str]:
    """A process that has imported what the program will: to import it again for each run would be most of the tests' time."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", FORKING], text=True, env=own, **pipes)
    atexit.register(process.kill)
    return process


def forked(asked: dict[str, Any]) -> int:
    """The exit code of a program that was run in a fork."""
    server = forking()
    assert server.stdin
    print(json.dumps(asked), file=server.stdin, flush=True)
    if not select([server.stdout], [], [], 300)[0]:
        server.kill()
        forking.cache_clear()
        raise AssertionError(f"it runs for more than five minutes: {asked['argv']}")
    assert server.stdout
    return int(server.stdout.readline())


@cache
def empty_store() -> Path:
    """An MLflow store with nothing in it: to make one takes seconds, to copy one does not."""
    from mlflow.tracking import MlflowClient

    path = Path(tempfile.mkdtemp(prefix="grokbit-")) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    assert len(MlflowClient(f"sqlite:///{path}").search_experiments()) == 1
    return path


def environment(tmp_path: Path) -> dict[str, str]:
    if not (tmp_path / "mlflow.db").exists():
        shutil.copy(empty_store(), tmp_path / "mlflow.db")
    return {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}


def train(tmp_path: Path, *arguments: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
    argv = [str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/stdout", f"{folder}/stderr"]
        code = forked({"argv": argv, "cwd": str(tmp_path), "env": environment(tmp_path), "paths": paths})
        done = subprocess.CompletedProcess(argv, code, *(Path(path).read_text() for path in paths))
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def summaries(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted((tmp_path / "out").rglob("summary.json"))]


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and not k.startswith("perf/")} for line in found]


def started(tmp_path: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """A run under way; `more` are variables of its environment."""
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    own, pipes = environment(tmp_path) | more, {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=tmp_path, env=own, text=True, **pipes)


def once(tmp_path: Path, name: str, steps: int) -> Path:
    """The folder of a run under way, once it has logged so many steps."""
    for _ in range(600):
        for file in (tmp_path / "out" / name).glob("*/metrics.jsonl"):
            if len(file.read_text().splitlines()) >= steps:
                return file.parent
        time.sleep(0.1)
    raise AssertionError("the run did not begin")
