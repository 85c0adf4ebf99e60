"""Many workers on one study: whether each trial is run once, and by one of them alone.

    python benchmarks/workers.py [--storage journal postgresql] [--workers 8] [--trials 200]

A sweep of a small application, its workers all on this machine, told from what they leave: the trials in the study, the
folders, and the workers' logs. PostgreSQL is one of this program's own, gone with it; redis and grpc may be given too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import servers

BOUNDS = {"lost": 0, "twice": 0, "errors": 0}
APP = """
import hydra

@hydra.main(config_path=".", config_name="config", version_base="1.3")
def main(cfg):
    return cfg.x**2 + cfg.y**2

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults: [_self_, override hydra/sweeper: grokbit]
x: 0.0
y: 0.0
hydra:
  output_subdir: null
  hydra_logging: {root: {level: WARNING}}
  sweeper:
    params: {x: "interval(-5.0, 5.0)", y: "interval(-5.0, 5.0)"}
    study_name: many
    home: sweeps
    plots: false
"""


def start_storage(storage: str, folder: Path, stack: ExitStack) -> str:
    """The URL of a storage with nothing in it. Raises NotInstalledError."""
    if storage in ("postgresql", "redis"):
        return stack.enter_context({"postgresql": servers.start_postgresql, "redis": servers.start_redis}[storage]())
    if storage == "grpc":
        return stack.enter_context(servers.start_grpc_proxy(f"sqlite:///{folder}/study.db"))
    return f"journal://{folder}/study.journal"


def sweep(folder: Path, url: str, workers: int, trials: int) -> tuple[float, str]:
    """Seconds of a sweep, and all that was said."""
    (folder / "app.py").write_text(APP)
    (folder / "config.yaml").write_text(CONFIG)
    settings = [f"storage={url}", f"workers={workers}", f"n_trials={trials}"]
    command = [sys.executable, "app.py", "-m", *(f"hydra.sweeper.{each}" for each in settings)]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    logs = [file.read_text() for file in sorted(folder.glob("sweeps/many/worker-*.log"))]
    failed = f"\nError: the sweep ended with {done.returncode}" if done.returncode else ""
    return time.perf_counter() - begun, "".join([*logs, done.stdout, done.stderr, failed])


def count_faults(folder: Path, url: str, trials: int, output: str) -> dict[str, int]:
    """What is missing, what was run twice, and what went wrong."""
    import optuna

    from research.tracking import optuna_storage

    study = optuna.load_study(study_name="many", storage=optuna_storage.get_storage(url))
    complete = [each for each in study.trials if each.state == optuna.trial.TrialState.COMPLETE]
    folders = {int(path.name) for path in folder.glob("sweeps/many/*") if path.name.isdecimal()}
    there = {each.number for each in complete} & folders & set(range(trials))
    settings = {tuple(each.params.values()) for each in complete}
    wrong = [line for line in output.splitlines() if any(word in line for word in ("Error", "Traceback", "failed", "died"))]
    print("".join(f"    {line}\n" for line in wrong[:20]), end="")
    again = len(complete) - len(settings) + sum("tries" in each.user_attrs for each in study.trials)
    return {"lost": trials - len(there), "twice": again, "errors": len(wrong) + len(study.trials) - len(complete)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="+", choices=("journal", "postgresql", "redis", "grpc"))
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--trials", type=int, default=200)
    args = parser.parse_args()
    told: dict[str, dict[str, float]] = {}
    print(f"{'storage':<12}{'workers':>8}{'trials':>8}{'seconds':>10}{'trials/s':>10}{'lost':>6}{'twice':>6}{'errors':>8}")
    for storage in args.storage or ("journal", "postgresql"):
        with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
            try:
                url = start_storage(storage, Path(place), stack)
            except servers.NotInstalledError as error:
                print(f"{storage:<12}{error}")
                continue
            seconds, said = sweep(Path(place), url, args.workers, args.trials)
            counts = count_faults(Path(place), url, args.trials, said)
        rate = args.trials / seconds
        row = f"{storage:<12}{args.workers:>8}{args.trials:>8}{seconds:>10.1f}{rate:>10.1f}"
        print(f"{row}{counts['lost']:>6}{counts['twice']:>6}{counts['errors']:>8}", flush=True)
        told[storage] = {"seconds": round(seconds, 1), "trials/s": round(rate, 2), **counts}
    print(json.dumps(told | {"bounds": BOUNDS}))


if __name__ == "__main__":
    main()
