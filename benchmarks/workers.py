"""Many workers on one study: is each trial run once, and by one worker alone?

    python -m benchmarks.workers [--storage journal postgresql] [--workers 8] [--trials 200]

A sweep of a small application, with all its workers on this machine. The evidence is what they leave: the trials in the
study, the folders, and the logs of the workers. PostgreSQL runs as a server of this program, which ends with it; redis and
grpc may be given too.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness, servers
from benchmarks.sweep_overhead import run_sweep
from research.tracking.optuna_storage import get_storage

BOUNDS = {"lost": 0, "twice": 0, "errors": 0}
SETTINGS = ["hydra/sweeper=grokbit", "hydra.sweeper.study_name=many", "hydra.sweeper.home=sweeps", "hydra.sweeper.plots=false"]
QUIET = ["hydra.output_subdir=null", "hydra.hydra_logging.root.level=WARNING"]


def sweep(folder: Path, url: str, workers: int, trials: int) -> tuple[float, str]:
    """Return the seconds of a sweep, and all its output."""
    size = [f"hydra.sweeper.storage={url}", f"hydra.sweeper.workers={workers}", f"hydra.sweeper.n_trials={trials}"]
    start = time.perf_counter()
    code, output = run_sweep(folder, *SETTINGS, *QUIET, *size, check=False)
    seconds = time.perf_counter() - start
    logs = [file.read_text() for file in sorted(folder.glob("sweeps/many/worker-*.log"))]
    failure = f"\nError: the sweep ended with {code}" if code else ""
    return seconds, "".join([*logs, output, failure])


def count_faults(folder: Path, url: str, trials: int, output: str) -> dict[str, int]:
    """Count the trials that are missing, those that ran twice, and the errors; print the lines with errors."""
    import optuna

    study = optuna.load_study(study_name="many", storage=get_storage(url))
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    folders = {int(path.name) for path in folder.glob("sweeps/many/*") if path.name.isdecimal()}
    intact = {trial.number for trial in complete} & folders & set(range(trials))
    settings = {tuple(trial.params.values()) for trial in complete}
    wrong = [line for line in output.splitlines() if any(word in line for word in ("Error", "Traceback", "failed", "died"))]
    print("".join(f"    {line}\n" for line in wrong[:20]), end="")
    repeated = len(complete) - len(settings) + sum("tries" in trial.user_attrs for trial in study.trials)
    return {"lost": trials - len(intact), "twice": repeated, "errors": len(wrong) + len(study.trials) - len(complete)}


def main(storage: list[str], workers: int, trials: int) -> harness.Results:
    results: dict[str, Any] = {}
    table = harness.Table("storage", "workers", "trials", "seconds", "trials/s", *BOUNDS, width=12)
    for kind in storage:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                with servers.STORAGES[kind](folder) as url:
                    seconds, output = sweep(folder, url, workers, trials)
                    counts = count_faults(folder, url, trials, output)
            except servers.NotInstalledError as error:
                table.add(kind, f"    {error}")
                continue
        results[kind] = {"seconds": seconds, "trials/s": trials / seconds, **counts}
        table.add(kind, workers, trials, f"{seconds:.1f}", f"{trials / seconds:.1f}", *counts.values())
    return results


if __name__ == "__main__":
    storages = {"nargs": "+", "choices": servers.STORAGES, "default": ["journal", "postgresql"]}
    harness.run(main, __doc__, BOUNDS, storage=storages, workers=8, trials=200)
