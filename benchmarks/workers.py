"""Many workers on one study: is each trial run once, and by one worker alone?

    python -m benchmarks.workers [--storage journal postgresql] [--workers 8] [--trials 200]

A sweep of a small application, with all its workers on this machine. The evidence is what they leave: the trials in the
study, the folders, and the logs of the workers. PostgreSQL runs as a server of this program, which ends with it; redis and
grpc may be given too.
"""

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks import harness, servers
from research.tracking.optuna_storage import get_storage

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


def start_storage(storage: str, folder: str) -> AbstractContextManager[str]:
    """Start an empty storage; its URL is for a with block. That raises NotInstalledError where no server is installed."""
    if storage == "postgresql":
        return servers.start_postgresql()
    if storage == "redis":
        return servers.start_redis()
    if storage == "grpc":
        return servers.start_grpc_proxy(f"sqlite:///{folder}/study.db")
    return nullcontext(f"journal://{folder}/study.journal")


def sweep(folder: Path, url: str, workers: int, trials: int) -> tuple[float, str]:
    """Return the seconds of a sweep, and all its output."""
    (folder / "app.py").write_text(APP)
    (folder / "config.yaml").write_text(CONFIG)
    settings = [f"hydra.sweeper.{setting}" for setting in (f"storage={url}", f"workers={workers}", f"n_trials={trials}")]
    start = time.perf_counter()
    process = harness.run_python("app.py", "-m", *settings, folder=folder, check=False)
    seconds = time.perf_counter() - start
    logs = [file.read_text() for file in sorted(folder.glob("sweeps/many/worker-*.log"))]
    failure = f"\nError: the sweep ended with {process.returncode}" if process.returncode else ""
    return seconds, "".join([*logs, process.stdout, failure])


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


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_argument("--storage", nargs="+", choices=("journal", "postgresql", "redis", "grpc"))
    parser.add_count("--workers", 8)
    parser.add_count("--trials", 200)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    table = harness.Table("storage", "workers", "trials", "seconds", "trials/s", *BOUNDS, width=12)
    for storage in args.storage or ("journal", "postgresql"):
        try:
            with tempfile.TemporaryDirectory() as folder, start_storage(storage, folder) as url:
                seconds, output = sweep(Path(folder), url, args.workers, args.trials)
                counts = count_faults(Path(folder), url, args.trials, output)
        except servers.NotInstalledError as error:
            table.skip(storage, str(error))
            continue
        results[storage] = {"seconds": seconds, "trials/s": args.trials / seconds, **counts}
        cells = (args.workers, args.trials, f"{seconds:.1f}", f"{args.trials / seconds:.1f}", *counts.values())
        table.add(storage, *map(str, cells))
    harness.finish(results, BOUNDS)


if __name__ == "__main__":
    main()
