"""What pruning saves: the study of conf/sweep/digits.yaml with hyperband and without, over seeds.

    python -m benchmarks.pruning [--seeds 5] [--trials 24]

Both sides use the same sampler with the same seed. Compared are the steps of all trials together, and the best validation
accuracy of the trials that ran to their end, in percentage points.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from research.run_dir import read_json

BOUNDS = {"steps": 1 / 3, "lost points": 0.5}


def run_study(folder: Path, seed: int, trials: int, pruner: str) -> tuple[int, float]:
    """Return the steps of all trials, and the best value of those that were not pruned."""
    command = [sys.executable, str(harness.ROOT / "train.py"), "sweep=digits", f"seed={seed}", "tracker=none", f"out={folder}",
               f"hydra/sweeper/pruner={pruner}", f"hydra.sweeper.study_name={pruner}-{seed}", "hydra.sweeper.plots=false",
               f"hydra.sweeper.n_trials={trials}", "trainer.device=cpu", "callbacks.checkpoint.every=null", "-m"]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    runs = [read_json(path) for path in (folder / "digits" / f"{pruner}-{seed}").glob("*/summary.json")]
    return sum(run["steps"] for run in runs), max(run["value"] for run in runs if run["status"] == "FINISHED")


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--seeds", type=harness.make_count_parser(1), default=5)
    parser.add_argument("--trials", type=harness.make_count_parser(1), default=24)
    args = parser.parse_args()
    shares, lost = [], []
    table = harness.Table("seed", "steps, all", "hyperband", "share", "best, all", "hyperband", width=6)
    with tempfile.TemporaryDirectory() as name:
        for seed in range(args.seeds):
            steps, best = run_study(Path(name), seed, args.trials, "none")
            pruned_steps, pruned_best = run_study(Path(name), seed, args.trials, "hyperband")
            shares.append(pruned_steps / steps)
            lost.append(100 * (best - pruned_best))
            table.add(f"{seed}", f"{steps:,}", f"{pruned_steps:,}", f"{shares[-1]:.3f}", f"{best:.4f}", f"{pruned_best:.4f}")
    results = {"steps": statistics.mean(shares), "lost points": statistics.mean(lost)}
    print(f"Hyperband took {results['steps']:.3f} of the steps (mean over seeds).")
    print(f"It lost {results['lost points']:.2f} points (mean over seeds), at most {max(lost):.2f}.")
    harness.finish(results, BOUNDS)


if __name__ == "__main__":
    main()
