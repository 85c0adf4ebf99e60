"""One study whose sweeper and workers are killed with SIGKILL at random moments; the same command starts it each time.

    python -m benchmarks.sweep_kills [--kills 30] [--trials 100] [--workers 2] [--seed 0]

At the end it checks that every trial is accounted for, none ran twice to its end, and the total is exact; that no run in
MLflow is still RUNNING, and that no folder holds two runs. Each trial trains a small network for some seconds, with pruning.
It exits with 1 where a check fails.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import harness
from research.contracts import contract
from research.run_dir import read_json
from research.tracking.optuna_storage import get_storage

DEFAULTS = {"kills": 30, "trials": 100, "workers": 2, "seed": 0}
RUN = ["model=bitmlp", "data=digits", "trainer.device=cpu", "steps=120", "eval_every=10", "callbacks.checkpoint.every=20"]
STUDY = ["-m", "lr=tag(log,interval(1e-4,1e-1))", "hydra/sweeper/sampler=tpe", "hydra/sweeper/pruner=median"]
SETTINGS = ["sampler.seed=1", "study_name=kills", "plots=false", "max_retries=1000"]


def start_sweep(folder: Path, trials: int, workers: int) -> subprocess.Popen[str]:
    """Start the study, or continue it: the command is the same."""
    settings = [f"hydra.sweeper.{setting}" for setting in (*SETTINGS, f"n_trials={trials}", f"workers={workers}")]
    command = [str(harness.ROOT / "train.py"), *RUN, *STUDY, *settings, f"out={folder / 'out'}"]
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    with (folder / "output.log").open("ab") as output:
        return harness.start_python(*command, folder=folder, variables=variables, stdout=output)


def run_campaign(folder: Path, kills: int, trials: int, workers: int, rng: random.Random) -> Counter[str]:
    """Kill so many processes, then let the study end. Return how many of each kind were killed."""
    killed: Counter[str] = Counter()
    process = start_sweep(folder, trials, workers)
    while killed.total() < kills:
        time.sleep(rng.uniform(0.3, 6.0))
        if process.poll() is not None:
            break  # the study has ended: too few trials for so many kills
        ps = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
        children = [int(pid) for pid in ps.stdout.split()]
        victim = rng.choice([process.pid, *children])
        os.kill(victim, signal.SIGKILL)
        killed["the sweeper" if victim == process.pid else "a worker"] += 1
        if victim == process.pid:
            process.wait()
            # Half of the time the workers die too, as when a machine goes down.
            for orphan in children if rng.random() < 0.5 else []:
                os.kill(orphan, signal.SIGKILL)
                killed["a worker"] += 1
            process = start_sweep(folder, trials, workers)
    if (code := process.wait()) or (code := start_sweep(folder, trials, workers).wait()):
        raise RuntimeError(f"the study ended with {code}: {(folder / 'output.log').read_text()[-3000:]}")
    return killed


def check_study(folder: Path, trials: int) -> dict[str, tuple[int, int]]:
    """Return what became of the study: each number with the one expected."""
    import optuna

    sweep = folder / "out" / "digits" / "kills"
    study = optuna.load_study(study_name="kills", storage=get_storage(f"journal://{sweep / 'study.journal'}"))
    states = Counter(trial.state.name for trial in study.trials)
    records = [json.loads(line) for line in (sweep / "study.journal").read_text().splitlines()]
    # Operation 6 of Optuna's journal sets a state; 1, 2 and 3 are COMPLETE, PRUNED and FAIL.
    ends = Counter(line["trial_id"] for line in records if line.get("op_code") == 6 and line.get("state") in (1, 2, 3))
    summaries = [read_json(sweep / str(trial.number) / "summary.json") for trial in study.trials]
    metrics = [(sweep / str(trial.number) / "metrics.jsonl").read_text().splitlines() for trial in study.trials]
    steps = [[json.loads(line)["step"] for line in lines] for lines in metrics]
    with sqlite3.connect(folder / "mlflow.db") as store:
        running = store.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0]
        stored = store.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    return {
        "trials": (len(study.trials), trials),
        "ended": (states["COMPLETE"] + states["PRUNED"], trials),
        "ended twice": (sum(count > 1 for count in ends.values()), 0),
        "without a summary": (sum(summary.get("status") not in ("FINISHED", "PRUNED") for summary in summaries), 0),
        "steps logged twice": (sum(len(numbers) != len(set(numbers)) for numbers in steps), 0),
        "runs in MLflow": (stored, trials),
        "still RUNNING in MLflow": (running, 0),
    }


@contract
def main(kills: int, trials: int, workers: int, seed: int) -> harness.Results:
    with tempfile.TemporaryDirectory() as name:
        killed = run_campaign(Path(name), kills, trials, workers, random.Random(seed))
        checks = check_study(Path(name), trials)
    print(f"killed: {', '.join(f'{count} times {kind}' for kind, count in killed.items())}")
    table = harness.Table("check", "result", "expected")
    for title, (value, expected) in checks.items():
        table.add(title, value, expected)
    wrong = [title for title, (value, expected) in checks.items() if value != expected]
    if killed.total() < kills:
        wrong.append(f"the study ended after {killed.total()} kills: give more --trials")
    return {"kills": killed.total(), "wrong": wrong}


if __name__ == "__main__":
    options = {name: harness.take_count(number, minimum=0) for name, number in DEFAULTS.items()}
    sys.exit(bool(harness.run(main, __doc__, {"wrong": []}, **options)["wrong"]))
