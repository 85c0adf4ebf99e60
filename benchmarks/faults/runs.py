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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import read_lines, wait_for
from saves import NO_DISK, Row, fill_disk, mount_small_disk

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model=bitnet", "optim=grokfast", "model.dim=32", "model.heads=2", "model.depth=1", "model.dropout=0.1", "data.p=23",
         "batch_size=16", "trainer.device=cpu", "trainer.log_every=1", "target=null", "name=faults"]  # fmt: skip
PHASES = {  # what a run spends most of its time with
    "start-up": ["trainer.steps=600"],  # a while more: the signal must not come after the end where the machine was faster
    "compiling": ["trainer.steps=600", "trainer.compile=true"],
    "steps": ["trainer.steps=600", "eval_every=100000"],
    "evaluations": ["trainer.steps=90", "eval_every=1", "callbacks.checkpoint.every=1000"],
    "saves": ["trainer.steps=90", "eval_every=100000", "callbacks.checkpoint.every=1"],
}
KILL_PHASES, TERM_PHASES = ("steps", "evaluations"), tuple(PHASES)


@dataclass
class Workspace:
    """Where runs write, and the environment that they have."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        own = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled"),
            **self.environment,
        }
        command = [sys.executable, str(ROOT / "train.py"), *arguments, f"out={self.folder / 'out'}"]
        return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finish(self, *arguments: str) -> tuple[int, str]:
        """Exit code and what was printed."""
        process = self.start(*arguments)
        told, _ = process.communicate(timeout=600)
        return process.returncode, told

    def find_metrics(self) -> Path:
        """metrics.jsonl of the only run; a path that is not there before it began."""
        return next(iter(self.folder.glob("out/faults/*/metrics.jsonl")), self.folder / "none")

    def read_result(self) -> tuple[Any, list[dict[str, Any]]]:
        """The weights in which the only run has ended, and its numbers without those of the clock."""
        records = [json.loads(line) for line in read_lines(self.find_metrics())]
        kept = [{k: v for k, v in record.items() if k != "seconds" and not k.startswith("perf/")} for record in records]
        return json.loads((self.find_metrics().parent / "summary.json").read_text())["weights_sha256"], kept


def interrupt_run(phase: str, signum: signal.Signals, times: int) -> Row:
    """The signal comes at a random moment of a run that does little else; then the same command goes on with resume=auto.

    It has survived if it ends in the same weights and the same metrics.jsonl as a run that was left alone.
    """
    row = Row(f"{'kill -9' if signum == signal.SIGKILL else signum.name} in {phase}", "grokbit")
    arguments, codes = [*SMALL, *PHASES[phase], "tracker=jsonl"], (-signum, 143 if signum == signal.SIGTERM else -signum)
    with tempfile.TemporaryDirectory() as folder:
        whole = Workspace(Path(folder))
        begun = time.monotonic()
        process = whole.start(*arguments)
        wait_for(lambda: read_lines(whole.find_metrics()))
        first, expected = time.monotonic() - begun, process.wait() or whole.read_result()
        lasted = time.monotonic() - begun - first
        before = phase in ("start-up", "compiling")  # the first step
        for turn in range(times):
            place = Workspace(whole.folder / f"{turn}")
            shutil.rmtree(place.folder, ignore_errors=True)
            process = place.start(*arguments)
            if before:
                time.sleep(first * (turn + random.random()) / times)
            else:
                steps = int(0.9 * len(expected[1]) * (turn + random.random()) / times)
                wait_for(lambda place=place, steps=steps: len(read_lines(place.find_metrics())) > steps)  # type: ignore[misc]
                time.sleep(random.uniform(0, lasted / len(expected[1])))
            process.send_signal(signum)
            told, _ = process.communicate(timeout=120)
            ended = process.returncode in codes
            code, later = place.finish(*arguments, "resume=auto")
            right = code == 0 and place.read_result() == expected
            if not (ended and right):
                row.remark = find_line(later if code else f"exit code {process.returncode}: {told}", place.folder, "rror")
            row.count("survived" if ended and right else "error" if not ended or code else "wrong")
    return row


def run_twice() -> Row:
    """A second run on a folder is refused while the first lives, and harms nothing."""
    row = Row("two runs on one folder", "grokbit")
    arguments = [*SMALL, *PHASES["steps"], "tracker=jsonl"]
    with tempfile.TemporaryDirectory() as folder:
        whole, place = Workspace(Path(folder) / "whole"), Workspace(Path(folder) / "twice")
        whole.finish(*arguments)
        process = place.start(*arguments)
        run = wait_for(lambda: read_lines(place.find_metrics()) and place.find_metrics().parent)
        for more in ("resume=auto", f"hydra.run.dir={run}"):
            code, told = place.finish(*arguments, more)
            row.remark = find_line(told, run, "another")
            refused = code and any(words in told for words in ("being written by another", "another run is writing"))
            row.count("survived" if refused and process.poll() is None else "wrong")
        process.communicate()
        row.count("survived" if place.read_result() == whole.read_result() else "wrong")
    return row


def run_without_space(read_only: bool) -> Row:
    """A run whose disk is full, or becomes read-only: it ends clearly, and goes on once it can write again."""
    row = Row("read-only folder" if read_only else "full disk in a run", "grokbit")
    arguments = [*SMALL, *PHASES["saves"], "tracker=jsonl"]
    with tempfile.TemporaryDirectory() as folder, mount_small_disk(20) as disk:
        if disk is None:
            row.remark = NO_DISK
            return row
        whole, place = Workspace(Path(folder)), Workspace(disk)
        whole.finish(*arguments)
        process = place.start(*arguments)
        wait_for(lambda: len(read_lines(place.find_metrics())) > 10)
        if read_only:
            process.send_signal(signal.SIGSTOP)
            process.terminate()  # it has files open for writing: it ends first
            process.send_signal(signal.SIGCONT)
            process.communicate()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            code, told = place.finish(*arguments, "resume=auto")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        else:
            fill_disk(disk)
            told, _ = process.communicate(timeout=120)
            code = process.returncode
            (disk / "filler").unlink()
        words = "cannot be written to (read-only" if read_only else "No space left on device"
        clear = code == (2 if read_only else 1) and "Traceback" not in told and words in told
        row.remark = find_line(told, disk, words)
        code, _ = place.finish(*arguments, "resume=auto")
        row.count("wrong" if code or place.read_result() != whole.read_result() else "survived" if clear else "error")
    return row


def run_without_store(for_good: bool) -> Row:
    """MLflow's server is killed while a run logs. It comes back on the same address some seconds later, or never."""
    from mlflow.tracking import MlflowClient

    row = Row(f"MLflow's server gone {'for good' if for_good else 'for a while'}", "grokbit")
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store = f"sqlite:///{folder}/mlflow.db"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                   "--backend-store-uri", store]  # fmt: skip

        def serve() -> subprocess.Popen[bytes]:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            server = subprocess.Popen(command, cwd=folder, start_new_session=True, **quiet)  # type: ignore[call-overload]
            wait_for(lambda: is_listening(port))
            return server  # type: ignore[no-any-return]

        server = serve()
        place = Workspace(Path(folder), {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"})
        try:
            process = place.start(*SMALL, *PHASES["steps"], "trainer.steps=3000")
            wait_for(lambda: len(read_lines(place.find_metrics())) > 100)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            if not for_good:
                time.sleep(5)
                server = serve()
            told, _ = process.communicate(timeout=600)
            steps = [json.loads(line)["step"] for line in read_lines(place.find_metrics())]
            whole = process.returncode == 0 and steps == list(range(1, 3001))
            if for_good:
                row.remark = "a warning says where every metric is"
                row.count("survived" if whole and "did not take all of this run" in told else "wrong")
            else:
                client = MlflowClient(store)
                note = (place.find_metrics().parent / "mlflow_run_id").read_text().strip()
                there = [m.step for m in client.get_metric_history(note, "train/loss")]
                row.remark = f"{len(there)} of 3000 points arrived"
                row.count("survived" if whole and there == steps else "lost")
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    return row


def find_line(output: str, folder: Path, text: str) -> str:
    """The line with those words."""
    return next(
        (f"says: {line.strip()}".replace(str(folder), "FOLDER")[:100] for line in output.splitlines() if text in line), ""
    )


def is_listening(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
