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
from research.contracts import contract
from research.tracking.optuna_storage import get_storage

BOUNDS = {"lost": 0, "twice": 0, "errors": 0}
SETTINGS = ["hydra/sweeper=grokbit", "hydra.sweeper.study_name=many", "hydra.sweeper.home=sweeps", "hydra.sweeper.plots=false"]
QUIET = ["hydra.output_subdir=null", "hydra.hydra_logging.root.level=WARNING"]


@contract
def sweep(folder: Path, url: str, workers: int, trials: int) -> dict[str, float]:
    """Return the speed of a sweep, and how many trials are missing, ran twice, or failed; print the lines with errors."""
    import optuna

    size = [f"hydra.sweeper.storage={url}", f"hydra.sweeper.workers={workers}", f"hydra.sweeper.n_trials={trials}"]
    start = time.perf_counter()
    code, output = run_sweep(folder, *SETTINGS, *QUIET, *size, check=False)
    seconds = time.perf_counter() - start
    lines = [f"Error: the sweep ended with {code}"] * bool(code) + output.splitlines()
    for file in folder.glob("sweeps/many/worker-*.log"):
        lines += file.read_text().splitlines()
    study = optuna.load_study(study_name="many", storage=get_storage(url))
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    folders = {int(path.name) for path in folder.glob("sweeps/many/*") if path.name.isdecimal()}
    intact = {trial.number for trial in complete} & folders & set(range(trials))
    settings = {tuple(trial.params.values()) for trial in complete}
    wrong = [line for line in lines if any(word in line for word in ("Error", "Traceback", "failed", "died"))]
    print("".join(f"    {line}\n" for line in wrong[:20]), end="")
    repeated = len(complete) - len(settings) + sum("tries" in trial.user_attrs for trial in study.trials)
    faults = {"lost": trials - len(intact), "twice": repeated, "errors": len(wrong) + len(study.trials) - len(complete)}
    return {"seconds": seconds, "trials/s": trials / seconds, **faults}


@contract
def main(storage: list[str], workers: int, trials: int) -> harness.Results:
    results: dict[str, Any] = {}
    table = harness.Table("storage", "workers", "trials", "seconds", "trials/s", *BOUNDS, width=12)
    for kind in storage:
        try:
            with tempfile.TemporaryDirectory() as folder, servers.STORAGES[kind](Path(folder)) as url:
                results[kind] = sweep(Path(folder), url, workers, trials)
        except servers.NotInstalledError as error:
            table.add(kind, f"    {error}")
        else:
            seconds, speed, *faults = results[kind].values()
            table.add(kind, workers, trials, f"{seconds:.1f}", f"{speed:.1f}", *faults)
    return results


if __name__ == "__main__":
    storages = {"nargs": "+", "choices": servers.STORAGES, "default": ["journal", "postgresql"]}
    harness.run(main, __doc__, BOUNDS, storage=storages, workers=8, trials=200)
