"""Faults of a whole run, started as a user starts it: signals, kill -9, a power cut, disks, streams, a store that is gone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness, servers
from benchmarks.faults.disks import cut_power, fill_disk, mount_image, mount_small_disk
from benchmarks.faults.results import Row
from benchmarks.harness import wait_for
from research.contracts import contract
from research.run_dir import list_checkpoints, read_json

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
JSONL = "tracker=jsonl"
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGHUP: 129}
CLOSE = ["-c", "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]


@contract
@dataclass
class Workspace:
    """A folder that runs write to, their overrides, and their environment."""

    folder: Path
    overrides: list[str]
    variables: dict[str, str] = field(default_factory=dict)

    def start(self, *more: str, launcher: Sequence[str] = (), stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start a run; `launcher` are arguments of Python that come before those of the run."""
        variables = {"TORCHINDUCTOR_CACHE_DIR": f"{self.folder}/compiled", **self.variables}
        command = [*launcher, "train.py", *SMALL, *self.overrides, *more, f"out={self.folder}/out"]
        return harness.start_python(*command, variables=variables, stdout=stdout)

    def finish(self, *more: str) -> tuple[int, str]:
        """Run to the end. Return the exit code and the output."""
        process = self.start(*more)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def get_run(self) -> Path:
        """Return the folder of the only run; before it logs, one that does not exist."""
        return next(self.folder.glob("out/faults/*/metrics.jsonl"), self.folder / "none" / "none").parent

    def read_metrics(self) -> list[str]:
        """Return the lines of metrics.jsonl of the only run; none before it logs."""
        path = self.get_run() / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_steps(self, count: int) -> None:
        """Return once the only run has logged more than so many steps."""
        wait_for(lambda: len(self.read_metrics()) > count)

    def read_result(self) -> tuple[str, list[dict[str, Any]]]:
        """Return the digest of the final weights of the only run, and its metrics without what depends on the clock."""
        lines, of_clock = [json.loads(line) for line in self.read_metrics()], ("seconds", "crc32")
        metrics = [{k: v for k, v in line.items() if k not in of_clock and not k.startswith("perf/")} for line in lines]
        return read_json(self.get_run() / "summary.json")["weights_sha256"], metrics


@contract
def interrupt_run(phase: str, signum: signal.Signals, times: int) -> Row:
    """Send the signal at a random moment of a phase; then run the same command with resume=auto.

    The run survived if it ends with the same weights and the same metrics.jsonl as an undisturbed run.
    """
    row = Row(f"{'kill -9' if signum == signal.SIGKILL else signum.name} in {phase}")
    codes, overrides = (-signum, EXIT_CODES[signum]), [*PHASES[phase], JSONL]
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Workspace(Path(folder), overrides)
        start = time.monotonic()
        process = undisturbed.start()
        undisturbed.wait_for_steps(0)
        first_seconds = time.monotonic() - start
        process.wait()
        expected = undisturbed.read_result()
        step_seconds = (time.monotonic() - start - first_seconds) / len(expected[1])
        for number in range(times):
            workspace, moment = Workspace(Path(folder, f"{number}"), overrides), (number + random.random()) / times
            process = workspace.start()
            if phase in ("start-up", "compiling"):  # before the first step
                time.sleep(first_seconds * moment)
            else:
                workspace.wait_for_steps(int(0.9 * len(expected[1]) * moment))
                time.sleep(random.uniform(0, step_seconds))
            process.send_signal(signum)
            output, _ = process.communicate(timeout=120)
            code, later = workspace.finish("resume=auto")
            ended, right = process.returncode in codes, code == 0 and workspace.read_result() == expected
            if not (ended and right):
                row.remark = find_line(later if code else f"exit code {process.returncode}: {output}", workspace.folder, "rror")
            row.count("survived" if ended and right else "error" if not ended or code else "wrong")
    return row


@contract
def run_undisturbed(overrides: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return the result of a run that nothing happens to."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), overrides)
        workspace.finish()
        return workspace.read_result()


@contract
def run_twice() -> Row:
    """Start a second run on a folder: it is refused while the first runs, and damages nothing."""
    row, overrides = Row("two runs on one folder"), [*PHASES["steps"], JSONL]
    expected = run_undisturbed(overrides)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), overrides)
        process = workspace.start()
        workspace.wait_for_steps(0)
        run = workspace.get_run()
        for more in ("resume=auto", f"hydra.run.dir={run}"):
            code, output = workspace.finish(more)
            row.remark = find_line(output, run, "another")
            refused = code and any(f"another {writer} is writing" in output for writer in ("process", "run"))
            row.count("survived" if refused and process.poll() is None else "wrong")
        process.communicate()
        row.count("survived" if workspace.read_result() == expected else "wrong")
    return row


@contract
def run_without_space(read_only: bool) -> Row:
    """Fill the disk of a run, or make it read-only: the run ends with a clear message, and resumes once it can write."""
    row, overrides = Row("read-only folder" if read_only else "full disk in a run"), [*PHASES["saves"], JSONL]
    with mount_small_disk(row, 20) as disk:
        if disk is None:
            return row
        expected, workspace = run_undisturbed(overrides), Workspace(disk, overrides)
        process = workspace.start()
        workspace.wait_for_steps(10)
        if read_only:
            process.send_signal(signal.SIGSTOP)
            process.terminate()  # files open for writing would forbid the remount
            process.send_signal(signal.SIGCONT)
            process.communicate()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            code, output = workspace.finish("resume=auto")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        else:
            fill_disk(disk)
            output, _ = process.communicate(timeout=120)
            code = process.returncode
            (disk / "filler").unlink()
        expected_code, words = (2, "cannot be written to (read-only") if read_only else (1, "No space left on device")
        clear = code == expected_code and "Traceback" not in output and words in output
        row.remark = find_line(output, disk, words)
        code, _ = workspace.finish("resume=auto")
        row.count("wrong" if code or workspace.read_result() != expected else "survived" if clear else "error")
    return row


@contract
def cut_power_in_run(times: int) -> Row:
    """Cut the power of a run's disk at random moments; the same command goes on there, in the same folder, to the same end."""
    row, overrides = Row("power cut in a run"), [*PHASES["saves"], JSONL]
    expected = run_undisturbed(overrides)
    with tempfile.TemporaryDirectory() as folder, mount_image(row, image := Path(folder, "image"), 64) as disk:
        if disk is None:
            return row
        workspace = Workspace(disk, overrides)
        process = workspace.start()
        for number in range(times):
            workspace.wait_for_steps(3 + int(0.8 * len(expected[1]) * (number + random.random()) / times))
            time.sleep(random.uniform(0, 0.1))
            process.send_signal(signal.SIGSTOP)
            saved = sorted(list_checkpoints(workspace.get_run()))[-2]  # the newest may be there and not yet said to be saved
            with cut_power(row, image) as after:
                row.count(classify_run(Workspace(after, overrides), row, saved, expected, "resume=auto")[0])
            process.send_signal(signal.SIGCONT)
        process.communicate()
    return row


@contract
def classify_run(workspace: Workspace, row: Row, saved: int, expected: Any, *more: str) -> tuple[str, str]:
    """Run a command that should go on from step `saved` or later to a known end. Return the outcome and the output."""
    code, output = workspace.finish(*more)
    resumed = re.search(r"resumed +at step ([\d,]+)", output)
    if code:
        outcome = "error"
    elif not resumed or int(resumed[1].replace(",", "")) < saved:
        outcome = "lost"
    else:
        outcome = "survived" if workspace.read_result() == expected else "wrong"
    if outcome != "survived":
        row.remark = find_line(output, workspace.folder, "rror" if code else "resume") or outcome
    return outcome, output


def run_without_terminal() -> Row:
    """Let a run print to a stream that is closed, full, or read by nobody: it has to finish, to the same end."""
    row, overrides, launcher = Row("stdout closed or full"), [*PHASES["steps"], JSONL], dict[str, list[str]](closed=CLOSE)
    expected = run_undisturbed(overrides)
    for kind in ("closed", "full", "broken pipe"):
        with tempfile.TemporaryDirectory() as folder:
            workspace, stdout = Workspace(Path(folder), overrides), os.open("/dev/full", os.O_WRONLY)
            if kind == "broken pipe":
                end, stdout = os.pipe()
                os.close(end)
            process = workspace.start(launcher=launcher.get(kind, []), stdout=stdout)
            os.close(stdout)
            row.count("error" if process.wait() else "survived" if workspace.read_result() == expected else "wrong")
    return row


@contract
def run_without_store(for_good: bool) -> Row:
    """Kill MLflow's server while a run logs. It comes back at the same address some seconds later, or never."""
    from mlflow.tracking import MlflowClient

    row, port = Row(f"MLflow's server gone {'for good' if for_good else 'for a while'}"), servers.find_free_port()
    with tempfile.TemporaryDirectory() as name:
        store, variables = f"sqlite:///{name}/mlflow.db", {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        listen = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store]
        serve = partial(servers.start_server, port, sys.executable, "-m", "mlflow", "server", *listen)
        workspace = Workspace(Path(name), [*PHASES["steps"], "trainer.steps=3000"], variables)
        with serve():
            process = workspace.start()
            workspace.wait_for_steps(100)
        time.sleep(0 if for_good else 5)
        with nullcontext() if for_good else serve():
            output, _ = process.communicate(timeout=600)
        steps = [json.loads(line)["step"] for line in workspace.read_metrics()]
        complete = process.returncode == 0 and steps == list(range(1, 3001))
        if for_good:
            row.remark = "a warning says where every metric is"
            row.count("survived" if complete and "did not take all of this run" in output else "wrong")
        else:
            run_id = (workspace.get_run() / "mlflow_run_id").read_text().strip()
            history = MlflowClient(store).get_metric_history(run_id, "train/loss")
            row.remark = f"{len(history)} of 3000 points arrived"
            row.count("survived" if complete and [point.step for point in history] == steps else "lost")
    return row


@contract
def find_line(output: str, folder: Path, text: str) -> str:
    """Return the first line of the output with that text, without its time and logger; empty if there is none."""
    lines = [" ".join(re.sub(r"^(\[[^]]*\])+( - )?", "", line).split()) for line in output.splitlines() if text in line]
    return f"says: {lines[0]}".replace(str(folder), "FOLDER")[:100] if lines else ""
