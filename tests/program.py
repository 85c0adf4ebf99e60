"""The program as a user starts it: a process of its own, with folders and a store of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY = ["trainer=debug", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "trainer.device=cpu"]


def environment(tmp_path: Path) -> dict[str, str]:
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
