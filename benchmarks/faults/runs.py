"""Faults of a whole run, started as a user starts it: signals and kill -9 in each of its phases, a store that is gone."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.children import read_lines, wait_for
from benchmarks.faults.saves import NO_DISK, Row, fill_disk, mount_small_disk
from benchmarks.harness import ROOT
from benchmarks.servers import find_free_port
from research.run_dir import read_json

SMALL = ["model=bitnet", "optim=grokfast", "model.dim=32", "model.heads=2", "model.depth=1", "model.dropout=0.1", "data.p=23",
         "batch_size=16", "trainer.device=cpu", "trainer.log_every=1", "target=null", "name=faults"]  # fmt: skip
PHASES = {  # a phase and the settings that make it most of a run
    # Many steps, so that the signal never comes after the end, even if the machine became faster.
    "start-up": ["trainer.steps=600"],
    "compiling": ["trainer.steps=600", "trainer.compile=true"],
    "steps": ["trainer.steps=600", "eval_every=100000"],
    "evaluations": ["trainer.steps=90", "eval_every=1", "callbacks.checkpoint.every=1000"],
    "saves": ["trainer.steps=90", "eval_every=100000", "callbacks.checkpoint.every=1"],
}
KILL_PHASES, TERM_PHASES = ("steps", "evaluations"), tuple(PHASES)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and not k.startswith("perf/")} for line in lines]


@dataclass
class Workspace:
    """The folder that runs write to, and their environment."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        compiled = {"TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled")}
        env = {**os.environ, "OMP_NUM_THREADS": "1", **compiled, **self.environment}
        command = [sys.executable, str(ROOT / "train.py"), *arguments, f"out={self.folder / 'out'}"]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, *arguments: str) -> tuple[int, str]:
        """Run to the end. Return the exit code and the output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def find_metrics(self) -> Path:
        """Return the metrics.jsonl of the only run; before it starts, a path that does not exist."""
        return next(iter(self.folder.glob("out/faults/*/metrics.jsonl")), self.folder / "none")

    def has_steps(self, count: int) -> bool:
        """Return true once the only run has logged more than so many steps."""
        return len(read_lines(self.find_metrics())) > count

    def read_result(self) -> tuple[Any, list[dict[str, Any]]]:
        """Return the digest of the final weights of the only run, and its metrics without timings."""
        folder = self.find_metrics().parent
        return read_json(folder / "summary.json")["weights_sha256"], read_metrics(folder)


def interrupt_run(phase: str, signum: signal.Signals, times: int) -> Row:
    """Send the signal at a random moment of a phase; then run the same command with resume=auto.

    The run survived if it ends with the same weights and the same metrics.jsonl as an undisturbed run.
    """
    row = Row(f"{'kill -9' if signum == signal.SIGKILL else signum.name} in {phase}", "grokbit")
    arguments, codes = [*SMALL, *PHASES[phase], "tracker=jsonl"], (-signum, 143 if signum == signal.SIGTERM else -signum)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Workspace(Path(folder))
        start = time.monotonic()
        process = undisturbed.start(*arguments)
        wait_for(lambda: read_lines(undisturbed.find_metrics()))
        first_seconds = time.monotonic() - start
        process.wait()
        expected = undisturbed.read_result()
        step_seconds = (time.monotonic() - start - first_seconds) / len(expected[1])
        for number in range(times):
            workspace, moment = Workspace(undisturbed.folder / f"{number}"), (number + random.random()) / times
            shutil.rmtree(workspace.folder, ignore_errors=True)
            process = workspace.start(*arguments)
            if phase in ("start-up", "compiling"):  # before the first step
                time.sleep(first_seconds * moment)
            else:
                wait_for(partial(workspace.has_steps, int(0.9 * len(expected[1]) * moment)))
                time.sleep(random.uniform(0, step_seconds))
            process.send_signal(signum)
            output, _ = process.communicate(timeout=120)
            ended = process.returncode in codes
            code, later = workspace.finish(*arguments, "resume=auto")
            right = code == 0 and workspace.read_result() == expected
            if not (ended and right):
                row.remark = find_line(later if code else f"exit code {process.returncode}: {output}", workspace.folder, "rror")
            row.count("survived" if ended and right else "error" if not ended or code else "wrong")
    return row


def run_undisturbed(arguments: list[str]) -> tuple[Any, list[dict[str, Any]]]:
    """Return the result of a run that nothing happens to."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.finish(*arguments)
        return workspace.read_result()


def run_twice() -> Row:
    """Start a second run on a folder: it is refused while the first runs, and damages nothing."""
    row = Row("two runs on one folder", "grokbit")
    arguments = [*SMALL, *PHASES["steps"], "tracker=jsonl"]
    expected = run_undisturbed(arguments)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        process = workspace.start(*arguments)
        run = wait_for(lambda: read_lines(workspace.find_metrics()) and workspace.find_metrics().parent)
        for more in ("resume=auto", f"hydra.run.dir={run}"):
            code, output = workspace.finish(*arguments, more)
            row.remark = find_line(output, run, "another")
            refused = code and any(words in output for words in ("being written by another", "another run is writing"))
            row.count("survived" if refused and process.poll() is None else "wrong")
        process.communicate()
        row.count("survived" if workspace.read_result() == expected else "wrong")
    return row


def run_without_space(read_only: bool) -> Row:
    """Fill the disk of a run, or make it read-only: the run ends with a clear message, and resumes once it can write."""
    row = Row("read-only folder" if read_only else "full disk in a run", "grokbit")
    arguments = [*SMALL, *PHASES["saves"], "tracker=jsonl"]
    with mount_small_disk(20) as disk:
        if disk is None:
            row.remark = NO_DISK
            return row
        expected, workspace = run_undisturbed(arguments), Workspace(disk)
        process = workspace.start(*arguments)
        wait_for(partial(workspace.has_steps, 10))
        if read_only:
            process.send_signal(signal.SIGSTOP)
            process.terminate()  # files open for writing would forbid the remount
            process.send_signal(signal.SIGCONT)
            process.communicate()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            code, output = workspace.finish(*arguments, "resume=auto")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        else:
            fill_disk(disk)
            output, _ = process.communicate(timeout=120)
            code = process.returncode
            (disk / "filler").unlink()
        words = "cannot be written to (read-only" if read_only else "No space left on device"
        clear = code == (2 if read_only else 1) and "Traceback" not in output and words in output
        row.remark = find_line(output, disk, words)
        code, _ = workspace.finish(*arguments, "resume=auto")
        row.count("wrong" if code or workspace.read_result() != expected else "survived" if clear else "error")
    return row


@contextmanager
def serve_mlflow(folder: str, port: int) -> Iterator[None]:
    """Run MLflow's server; at the end kill it with all its processes."""
    args = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
    ]
    command, drop = [sys.executable, "-m", "mlflow", "server", *args], subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=drop, stderr=drop) as server:
        try:
            wait_for(lambda: is_listening(port))
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def run_without_store(for_good: bool) -> Row:
    """Kill MLflow's server while a run logs. It comes back at the same address some seconds later, or never."""
    from mlflow.tracking import MlflowClient

    row, port = Row(f"MLflow's server gone {'for good' if for_good else 'for a while'}", "grokbit"), find_free_port()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
        with serve_mlflow(folder, port):
            process = workspace.start(*SMALL, *PHASES["steps"], "trainer.steps=3000")
            wait_for(partial(workspace.has_steps, 100))
        time.sleep(0 if for_good else 5)
        with nullcontext() if for_good else serve_mlflow(folder, port):
            output, _ = process.communicate(timeout=600)
        steps = [json.loads(line)["step"] for line in read_lines(workspace.find_metrics())]
        complete = process.returncode == 0 and steps == list(range(1, 3001))
        if for_good:
            row.remark = "a warning says where every metric is"
            row.count("survived" if complete and "did not take all of this run" in output else "wrong")
        else:
            run_id = (workspace.find_metrics().parent / "mlflow_run_id").read_text().strip()
            history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run_id, "train/loss")
            row.remark = f"{len(history)} of 3000 points arrived"
            row.count("survived" if complete and [point.step for point in history] == steps else "lost")
    return row


def find_line(output: str, folder: Path, text: str) -> str:
    """Return the first line of the output with that text; empty if there is none."""
    lines = [line.strip() for line in output.splitlines() if text in line]
    return f"says: {lines[0]}".replace(str(folder), "FOLDER")[:100] if lines else ""


def is_listening(port: int) -> bool:
    """Return true if a server listens on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
