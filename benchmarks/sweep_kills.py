"""One study whose sweeper and workers are killed with SIGKILL at random moments, each time begun again by the same command.

    python benchmarks/sweep_kills.py [--kills 30] [--trials 100] [--workers 2] [--seed 0]

Told at the end: whether every trial is accounted for, none was run twice to its end, the total is exact, no run in MLflow is
left RUNNING, and no folder holds two runs. Each trial trains a small network for some seconds, with pruning.
"""

import argparse
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
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from research.run_dir import read_json
from research.tracking.optuna_storage import get_storage

ROOT = Path(__file__).resolve().parents[1]
SIZE = ["model=bitmlp", "data=digits", "trainer.device=cpu", "steps=120", "eval_every=10", "callbacks.checkpoint.every=20"]
STUDY = ["-m", "lr=tag(log,interval(1e-4,1e-1))", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.seed=1",
         "hydra/sweeper/pruner=median", "hydra.sweeper.study_name=kills", "hydra.sweeper.plots=false",
         "hydra.sweeper.max_retries=1000"]  # fmt: skip


def start_sweep(folder: Path, trials: int, workers: int) -> subprocess.Popen[bytes]:
    """The same command every time."""
    own = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "OMP_NUM_THREADS": "1"}
    size = [f"hydra.sweeper.n_trials={trials}", f"hydra.sweeper.workers={workers}", f"out={folder / 'out'}"]
    with (folder / "output.log").open("ab") as output:
        command = [sys.executable, str(ROOT / "train.py"), *SIZE, *STUDY, *size]
        return subprocess.Popen(command, cwd=folder, env=own, stdout=output, stderr=subprocess.STDOUT)


def list_processes(pid: int) -> list[int]:
    """A process and its children."""
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [pid, *map(int, told.stdout.split())]


def run_campaign(folder: Path, kills: int, trials: int, workers: int, rng: random.Random) -> Counter[str]:
    """Kill until the number is reached, then let the study come to its end."""
    killed: Counter[str] = Counter()
    process = start_sweep(folder, trials, workers)
    while killed.total() < kills:
        time.sleep(rng.uniform(0.3, 6.0))
        if process.poll() is not None:
            break  # the study is over: too few trials for so many kills
        members = list_processes(process.pid)
        victim = rng.choice(members)
        os.kill(victim, signal.SIGKILL)
        killed["the sweeper" if victim == process.pid else "a worker"] += 1
        if victim == process.pid:
            process.wait()
            for orphan in members[1:] if rng.random() < 0.5 else []:  # as a machine that goes down takes them all
                os.kill(orphan, signal.SIGKILL)
                killed["a worker"] += 1
            process = start_sweep(folder, trials, workers)
    if (code := process.wait()) or (code := start_sweep(folder, trials, workers).wait()):
        raise RuntimeError(f"the study ended with {code}: {(folder / 'output.log').read_text()[-3000:]}")
    return killed


def check_study(folder: Path, trials: int) -> dict[str, Any]:
    """What became of the study, each number with what it should be."""
    import optuna

    sweep = folder / "out" / "digits" / "kills"
    study = optuna.load_study(study_name="kills", storage=get_storage(f"journal://{sweep / 'study.journal'}"))
    states = Counter(trial.state.name for trial in study.trials)
    told = [json.loads(line) for line in (sweep / "study.journal").read_text().splitlines()]
    ends = Counter(line["trial_id"] for line in told if line.get("op_code") == 6 and line.get("state") in (1, 2, 3))
    runs = [read_json(sweep / str(t.number) / "summary.json") for t in study.trials]
    steps = [[json.loads(line)["step"] for line in (sweep / str(t.number) / "metrics.jsonl").read_text().splitlines()]
             for t in study.trials]  # fmt: skip
    with sqlite3.connect(folder / "mlflow.db") as store:
        left = store.execute("select count(*) from runs where status = 'RUNNING'").fetchone()[0]
        kept = store.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
    return {
        "trials": (len(study.trials), trials),
        "ended": (states["COMPLETE"] + states["PRUNED"], trials),
        "ended twice": (sum(count > 1 for count in ends.values()), 0),
        "without a summary": (sum(run.get("status") not in ("FINISHED", "PRUNED") for run in runs), 0),
        "steps told twice": (sum(len(found) != len(set(found)) for found in steps), 0),
        "runs in MLflow": (kept, trials),
        "left RUNNING in MLflow": (left, 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        killed = run_campaign(Path(name), args.kills, args.trials, args.workers, random.Random(args.seed))
        found = check_study(Path(name), args.trials)
    print(f"killed: {', '.join(f'{count} times {who}' for who, count in killed.items())}")
    for what, (value, wanted) in found.items():
        print(f"{what:<24} {value:>4}, should be {wanted}")
    wrong = [what for what, (value, wanted) in found.items() if value != wanted]
    if killed.total() < args.kills:
        wrong.append(f"the study was over after {killed.total()} kills: give more --trials")
    print(json.dumps({"kills": killed.total(), "wrong": wrong, "bounds": {"wrong": []}}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
