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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ["trainer=debug", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "trainer.device=cpu"]


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
    command = [sys.executable, str(ROOT / "train.py"), *arguments, f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
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
