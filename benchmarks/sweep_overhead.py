"""What a sweeper costs between two trials, and what a batch barrier costs: ours against the published hydra-optuna-sweeper.

    python -m benchmarks.sweep_overhead [--trials 30] [--rounds 5] [--skewed 12] [--peer DIR]

The objective is trivial and records when it begins and ends. The time between two trials is the sweeper's, Hydra's
composition of the next configuration included. Our study has its journal on the disk. The published plugin has its study in
memory; it needs Optuna 2, so it runs from a folder of its own: pip install --no-deps --target DIR hydra-optuna-sweeper==1.3.0

Of the skewed trials every fourth takes six times as long: with two workers, against two at a time and a barrier. With 0 of
them this part is left out.
"""

import statistics
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import harness
from research.contracts import contract

BOUNDS = {"ours/published": 1.0, "workers/barrier": 0.8}
OURS = ["hydra/sweeper=grokbit", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.seed=1"]
PUBLISHED = ["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
APP = """
import os, time, hydra

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    start = time.time()
    number = hydra.core.hydra_config.HydraConfig.get().job.num
    time.sleep(cfg.pause * (6 if number % 4 == 0 else 1))
    with open(cfg.times, "a") as file:
        file.write(f"{start} {time.time()} {os.getpid()}\\n")
    return cfg.x**2 + cfg.y**2

if __name__ == "__main__":
    main()
"""
CONFIG = "x: 0.0\ny: 0.0\npause: 0.0\ntimes: ???\n"


@contract
def run_sweep(folder: Path, *overrides: str, **settings: Any) -> tuple[int, str]:
    """Run a sweep of a small application in `folder`; return its exit code and output. `settings` are those of run_python."""
    (folder / "app.py").write_text(APP)
    (folder / "config.yaml").write_text(CONFIG)
    space = ["x=interval(-5.0,5.0)", "y=interval(-5.0,5.0)", f"times={folder}/times.txt"]
    return harness.run_python("app.py", "-m", *space, *overrides, folder=folder, **settings)


def measure_gaps(root: Path, plugins: Path, *overrides: str) -> tuple[list[float], float]:
    """Run a sweep in one process. Return the seconds between its trials, and from the first start to the last end."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        variables = {"PYTHONPATH": str(plugins), "PYTHONWARNINGS": "ignore"}
        run_sweep(Path(folder), f"hydra.sweep.dir={folder}/sweep", *overrides, variables=variables)
        lines = Path(folder, "times.txt").read_text().splitlines()
    rows = sorted(tuple(map(float, line.split())) for line in lines)
    return [after[0] - before[1] for before, after in pairwise(rows)], max(row[1] for row in rows) - rows[0][0]


def compare_skewed(root: Path, trials: int) -> float:
    """Return the time of two workers without a barrier over that of batches of two in two processes."""
    measure = partial(measure_gaps, root, harness.ROOT, *OURS, f"hydra.sweeper.n_trials={trials}", "pause=1.0")
    _, free = measure("hydra.sweeper.workers=2")
    _, barrier = measure("hydra.sweeper.n_jobs=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    print(f"skewed     {free:.1f} s with two workers, {barrier:.1f} s in batches of two ({trials} trials, every fourth of 6 s)")
    return free / barrier


@contract
def main(trials: int, rounds: int, skewed: int, peer: Path | None) -> harness.Results:
    sides, ratios, medians = {"ours": (harness.ROOT, OURS)}, dict[str, float](), dict[str, float]()
    if peer and (peer / "hydra_plugins" / "hydra_optuna_sweeper").exists():
        sides["published"] = peer.absolute(), PUBLISHED
    else:
        print("the published plugin: pip install --no-deps --target DIR hydra-optuna-sweeper==1.3.0, then --peer DIR")
    with tempfile.TemporaryDirectory() as name:
        root, size = Path(name), f"hydra.sweeper.n_trials={trials}"
        arms = {side: partial(measure_gaps, root, plugins, *settings, size) for side, (plugins, settings) in sides.items()}
        for side, sweeps in harness.run_interleaved(arms, rounds, warm_up=0).items():
            # The first two gaps of a sweep hold imports and the creation of the study.
            gaps = [gap for all_gaps, _ in sweeps for gap in all_gaps[2:]]
            medians[side] = statistics.median(gaps)
            print(f"{side:<10} {1e3 * medians[side]:6.1f} ms between two trials (median of {len(gaps)})")
        if len(sides) == 2:
            ratios["ours/published"] = medians["ours"] / medians["published"]
        if skewed:
            ratios["workers/barrier"] = compare_skewed(root, skewed)
    return ratios


if __name__ == "__main__":
    trials, skewed = harness.take_count(30, minimum=4), harness.take_count(12, minimum=0)
    peer = {"type": Path, "help": "the folder of the published plugin"}
    harness.run(main, __doc__, BOUNDS, trials=trials, rounds=5, skewed=skewed, peer=peer)
