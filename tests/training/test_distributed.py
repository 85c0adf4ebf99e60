"""Two processes as a launcher starts them, over gloo: one global batch, the same losses, exact resume."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from program import ROOT, Fork, run, run_ranks, start_torchrun, wait_for_run

SMALL = ["model=transformer", "model.dim=32", "model.heads=2", "data.p=11", "batch_size=16", "tracker=jsonl", "target=null",
         "trainer.log_every=1", "trainer.eval_every=5", "trainer.device=cpu"]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint"]


def make_command(tmp_path: Path, *arguments: str) -> list[str]:
    return [str(ROOT / "train.py"), *SMALL, *arguments, f"out={tmp_path / 'out'}"]


def make_torchrun_command(tmp_path: Path, *arguments: str) -> list[str]:
    return [*TORCHRUN, "localhost:0", *make_command(tmp_path, *arguments)]


def train(tmp_path: Path, processes: int, *arguments: str) -> list[str]:
    """What each process says."""
    argv, environment = make_command(tmp_path, *arguments), {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = run_ranks(argv, tmp_path, environment) if processes == 2 else [run(argv, tmp_path, environment)]
    for done in ended:
        assert done.returncode == 0, done.stdout + done.stderr
    return [done.stdout for done in ended]


def find_folder(tmp_path: Path, name: str) -> Path:
    (only,) = (tmp_path / "out" / name).iterdir()
    return only


def read_losses(tmp_path: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (find_folder(tmp_path, name) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train/loss"] for line in lines]


def read_summary(tmp_path: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((find_folder(tmp_path, name) / "summary.json").read_text()))


@pytest.fixture(scope="module")
def single_process_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four steps of one process."""
    place = tmp_path_factory.mktemp("alone")
    train(place, 1, "name=alone", "steps=24")
    return place


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_are_one_run(single_process_run: Path, tmp_path: Path, how: str) -> None:
    """20 steps within two units in the last place; stopped and resumed by two: the same bits; by one: the same samples."""
    whole = train(tmp_path, 2, f"trainer={how}", "name=whole", "steps=24")
    assert f"2 processes, {how} over gloo" in whole[0]
    assert ["best val/acc" in said for said in whole] == [True, False], "only rank 0 speaks"
    mine, theirs = read_losses(single_process_run, "alone"), read_losses(tmp_path, "whole")
    for a, b in zip(mine[:20], theirs[:20], strict=True):
        assert abs(a - b) <= 2 * 2.0 ** (math.floor(math.log2(a)) - 23)
    train(tmp_path, 2, f"trainer={how}", "name=part", "steps=24", "callbacks.checkpoint.every=7", "trainer.steps=14")
    shutil.copytree(tmp_path / "out" / "part", tmp_path / "out" / "one")
    train(tmp_path, 2, f"trainer={how}", "name=part", "steps=24", f"resume={find_folder(tmp_path, 'part')}")
    assert read_losses(tmp_path, "part") == theirs
    assert read_summary(tmp_path, "part")["weights_sha256"] == read_summary(tmp_path, "whole")["weights_sha256"]
    train(tmp_path, 1, "name=one", "steps=24", f"resume={find_folder(tmp_path, 'one')}")
    assert read_losses(tmp_path, "one") == pytest.approx(mine, rel=1e-4)
    assert not list(tmp_path.glob("*.log")), "the other processes write nowhere"
    if how == "ddp":
        again = train(tmp_path, 2, f"trainer={how}", "name=whole", "steps=24", "resume=auto")
        assert "finished already" in again[0], "and none of the processes waits for another"


@pytest.mark.slow  # the next one sends signals without torchrun, whose processes import all anew
def test_a_signal_to_one_process_ends_both_and_saves(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(make_torchrun_command(tmp_path, "name=long", "steps=100000"), cwd=tmp_path, env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    for _ in range(600):
        time.sleep(0.1)
        if any(file.stat().st_size > 0 for file in (tmp_path / "out").rglob("metrics.jsonl")):
            break
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGUSR1)
    told, _ = process.communicate(timeout=60)
    assert read_summary(tmp_path, "long")["status"] == "STOPPED", told
    steps = read_summary(tmp_path, "long")["steps"]
    assert (find_folder(tmp_path, "long") / "checkpoints" / f"step-{steps:08d}").exists()


@pytest.mark.parametrize(("signum", "code", "receivers"), [(signal.SIGTERM, 143, [1]), (signal.SIGHUP, 129, [0, 1])])
def test_both_save_and_end_with_the_code_of_the_signal(tmp_path: Path, signum: int, code: int, receivers: list[int]) -> None:
    """A closed terminal tells both processes, a scheduler perhaps one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = make_command(tmp_path, "name=long", "steps=100000")
    forks = [Fork(command, tmp_path, {**os.environ, **variables, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    folder = wait_for_run(tmp_path, "long", 2)
    for receiver in receivers:
        forks[receiver].send_signal(signum)
    messages = ["".join(fork.communicate(timeout=60)) for fork in forks]
    assert [fork.returncode for fork in forks] == [code, code], messages
    summary = read_summary(tmp_path, "long")
    assert summary["status"] == "STOPPED"
    assert (folder / "checkpoints" / f"step-{summary['steps']:08d}" / "manifest.json").exists()


def test_a_save_that_fails_in_one_process_ends_both(tmp_path: Path) -> None:
    """The folder of the checkpoints is gone; the process that does not write to it waits for no one."""
    command = make_command(tmp_path, "trainer=fsdp", "name=long", "steps=100000", "callbacks.checkpoint.every=20")
    process = start_torchrun(command, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"})
    folder = wait_for_run(tmp_path, "long", 2) / "checkpoints"
    while not folder.is_file():  # a save may make it anew meanwhile
        with suppress(FileNotFoundError):
            folder.rename(tmp_path / f"aside {time.monotonic()}")
        with suppress(IsADirectoryError):
            folder.write_text("in the way")
    output = "".join(process.communicate(timeout=100))
    assert process.returncode != 0
    assert "checkpoints" in output
    assert read_summary(tmp_path, "long")["status"] == "FAILED"


SRUN = """#!/bin/sh
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & tasks="$tasks $!"; done
echo $tasks > tasks
code=0
for task in $tasks; do wait $task || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo localhost; fi
"""


@pytest.mark.slow
def test_the_job_for_slurm_is_requeued_and_resumes(tmp_path: Path) -> None:
    """The script of the documentation, word for word but for the size of the model; srun and scontrol are stand-ins."""
    (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL)
    small = " ".join([*SMALL, "steps=300", f"out={tmp_path / 'out'}"])
    (tmp_path / "job").write_text(script.replace("train.py model=bitnet", f"{ROOT / 'train.py'} {small}"))
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "here", "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(
        ["bash", "job"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for _ in range(600):
        time.sleep(0.1)
        if any(file.stat().st_size > 0 for file in (tmp_path / "out").rglob("metrics.jsonl")):
            break
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    told, _ = job.communicate(timeout=60)
    assert job.returncode == 143, told
    assert (tmp_path / "requeued").read_text() == "4711\n"
    stopped = read_summary(tmp_path, "modular")
    assert stopped["status"] == "STOPPED"
    again = subprocess.run(["bash", "job"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(read_losses(tmp_path, "modular")) == 300 > stopped["steps"]
    assert "2 processes, ddp over gloo" in again.stdout


@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_what_was_not_started_is_reported(tmp_path: Path, how: str) -> None:
    """accelerate launch --cpu --num_processes 2 starts one process: the run says so and ends."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    arguments = [str(ROOT / "train.py"), *SMALL, f"trainer={how}", f"out={tmp_path / 'out'}"]
    done = run([*launch, *arguments], tmp_path, dict(os.environ))
    assert done.returncode != 0
    assert "this is one process" in done.stderr
    assert "torchrun --nproc-per-node 2 train.py" in done.stderr
    assert not (tmp_path / "out").exists()
