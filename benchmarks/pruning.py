"""What pruning saves: the study of conf/sweep/digits.yaml with hyperband and without, over seeds.

    python -m benchmarks.pruning [--seeds 5] [--trials 24]

Both sides use the same sampler with the same seed. Compared are the steps of all trials together, and the best validation
accuracy of the trials that ran to their end, in percentage points.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks import harness
from research.contracts import contract
from research.run_dir import read_json

BOUNDS = {"steps": 1 / 3, "lost points": 0.5}


def run_study(folder: Path, seed: int, trials: int, pruner: str) -> tuple[int, float]:
    """Return the steps of all trials, and the best value of those that were not pruned."""
    study = [f"hydra/sweeper/pruner={pruner}", f"hydra.sweeper.study_name={pruner}-{seed}", f"hydra.sweeper.n_trials={trials}"]
    off = ["tracker=none", "hydra.sweeper.plots=false", "callbacks.checkpoint.every=null", "trainer.device=cpu"]
    harness.run_python("train.py", "-m", "sweep=digits", f"seed={seed}", f"out={folder}", *study, *off)
    runs = [read_json(path) for path in (folder / "digits" / f"{pruner}-{seed}").glob("*/summary.json")]
    return sum(run["steps"] for run in runs), max(run["value"] for run in runs if run["status"] == "FINISHED")


@contract
def main(seeds: int, trials: int) -> harness.Results:
    shares, lost = [], []
    table = harness.Table("seed", "steps, all", "hyperband", "share", "best, all", "hyperband", width=6)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            steps, best = run_study(Path(folder), seed, trials, "none")
            pruned_steps, pruned_best = run_study(Path(folder), seed, trials, "hyperband")
            shares.append(pruned_steps / steps)
            lost.append(100 * (best - pruned_best))
            table.add(f"{seed}", f"{steps:,}", f"{pruned_steps:,}", f"{shares[-1]:.3f}", f"{best:.4f}", f"{pruned_best:.4f}")
    print(f"Means over the seeds are in the last line. Hyperband lost at most {max(lost):.2f} points.")
    return {"steps": statistics.mean(shares), "lost points": statistics.mean(lost)}


if __name__ == "__main__":
    harness.run(main, __doc__, BOUNDS, seeds=5, trials=24)
