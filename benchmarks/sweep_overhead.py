"""What a sweeper costs between two trials, and what a batch barrier costs: ours against the published hydra-optuna-sweeper.

    python -m benchmarks.sweep_overhead [--trials 30] [--rounds 5] [--skewed 12] [--peer DIR]

The objective is trivial and records when it begins and ends. The time between two trials is the sweeper's, Hydra's
composition of the next configuration included. The published plugin has its study in memory, ours has its journal on the
disk. Both sides run in turn. Of skewed trials every fourth takes six times as long: with two workers, against two at a time
and a barrier.

The published plugin needs Optuna 2; it runs beside ours from a folder of its own:

    pip install --no-deps --target DIR hydra-optuna-sweeper==1.3.0
"""

import statistics
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks import harness

BOUNDS = {"ours/published": 1.0, "workers/barrier": 0.8}
APP = """
import os, time, hydra

@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    start = time.time()
    number = hydra.core.hydra_config.HydraConfig.get().job.num
    time.sleep(cfg.pause * (6 if number % 4 == 0 else 1))
    with open(cfg.times, "a") as file:
        file.write(f"{start} {time.time()} {os.getpid()}\\n")
    return cfg.x**2 + cfg.y**2

main()
"""
CONFIG = "x: 0.0\ny: 0.0\npause: 0.0\ntimes: times.txt\n"
SPACE = ["-m", "x=interval(-5.0,5.0)", "y=interval(-5.0,5.0)", "hydra.sweeper.sampler.seed=1"]


class Side(NamedTuple):
    """One sweeper, the folder that it is imported from, and its settings."""

    name: str
    path: Path
    settings: tuple[str, ...]

    def measure_gaps(self, folder: Path, *more: str) -> tuple[list[float], float]:
        """Run a sweep in one process. Return the seconds between its trials, and from the first start to the last end."""
        times, script = folder / "times.txt", folder / "app.py"
        script.write_text(APP.replace("config_path=None", f'config_path="{folder}"'))
        (folder / "config.yaml").write_text(CONFIG)
        times.unlink(missing_ok=True)
        dirs = [f"hydra.sweep.dir={folder}/{self.name}-{time.time_ns()}", f"times={times}"]
        variables = {"PYTHONPATH": str(self.path), "PYTHONWARNINGS": "ignore"}
        harness.run_python(str(script), *SPACE, *self.settings, *dirs, *more, folder=folder, variables=variables)
        rows = sorted(tuple(map(float, line.split())) for line in times.read_text().splitlines())
        return [after[0] - before[1] for before, after in pairwise(rows)], max(row[1] for row in rows) - rows[0][0]


def compare_skewed(folder: Path, ours: Side, trials: int) -> float:
    """Return the time of two workers without a barrier over that of batches of two in two processes."""
    size = (f"hydra.sweeper.n_trials={trials}", "pause=1.0")
    _, free = ours.measure_gaps(folder, *size, "hydra.sweeper.workers=2")
    _, barrier = ours.measure_gaps(folder, *size, "hydra.sweeper.n_jobs=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    print(f"skewed     {free:.1f} s with two workers, {barrier:.1f} s in batches of two ({trials} trials, every fourth of 6 s)")
    return free / barrier


def main() -> None:
    parser = harness.Parser(__doc__)
    parser.add_count("--trials", 30, "at least 4", 4)
    parser.add_count("--rounds", 5)
    parser.add_count("--skewed", 12, "trials of the second part; 0 leaves it out", 0)
    parser.add_argument("--peer", type=Path, help="the folder of the published plugin")
    args = parser.parse_args()
    sides = [Side("ours", harness.ROOT, ("hydra/sweeper=grokbit", "hydra/sweeper/sampler=tpe"))]
    if args.peer and (args.peer / "hydra_plugins" / "hydra_optuna_sweeper").exists():
        sides.append(Side("published", args.peer.absolute(), ("hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1")))
    else:
        print("the published plugin: pip install --no-deps --target DIR hydra-optuna-sweeper==1.3.0, then --peer DIR")
    ratios, medians = dict[str, float](), dict[str, float]()
    with tempfile.TemporaryDirectory() as root:
        arms = {side.name: partial(side.measure_gaps, Path(root), f"hydra.sweeper.n_trials={args.trials}") for side in sides}
        for name, sweeps in harness.run_interleaved(arms, args.rounds, warm_up=0).items():
            # The first two gaps of a sweep hold imports and the creation of the study.
            gaps = [gap for all_gaps, _ in sweeps for gap in all_gaps[2:]]
            medians[name] = statistics.median(gaps)
            print(f"{name:<10} {1e3 * medians[name]:6.1f} ms between two trials (median of {len(gaps)})")
        if len(sides) == 2:
            ratios["ours/published"] = medians["ours"] / medians["published"]
        if args.skewed:
            ratios["workers/barrier"] = compare_skewed(Path(root), sides[0], args.skewed)
    harness.finish(ratios, BOUNDS)


if __name__ == "__main__":
    main()
