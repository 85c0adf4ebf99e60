"""What pruning saves: the study of conf/sweep/digits.yaml with hyperband and without, over seeds.

    python benchmarks/pruning.py [--seeds 5] [--trials 24]

Both sides ask the same sampler with the same seed. Told are the steps of all trials together and the best validation
accuracy of the trials that ran to their end, in points of a hundred.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from research.run_dir import read_json

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = {"steps": 1 / 3, "lost points": 0.5}


def run_study(folder: Path, seed: int, trials: int, pruner: str) -> tuple[int, float]:
    """Steps of all trials, and the best value of those that were not pruned."""
    command = [sys.executable, str(ROOT / "train.py"), "sweep=digits", f"seed={seed}", "tracker=none", f"out={folder}",
               f"hydra/sweeper/pruner={pruner}", f"hydra.sweeper.study_name={pruner}-{seed}", "hydra.sweeper.plots=false",
               f"hydra.sweeper.n_trials={trials}", "trainer.device=cpu", "callbacks.checkpoint.every=null", "-m"]  # fmt: skip
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    runs = [read_json(path) for path in (folder / "digits" / f"{pruner}-{seed}").glob("*/summary.json")]
    return sum(run["steps"] for run in runs), max(run["value"] for run in runs if run["status"] == "FINISHED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    args = parser.parse_args()
    shares, lost = [], []
    print("seed   steps, all   hyperband   share   best, all   hyperband")
    with tempfile.TemporaryDirectory() as name:
        for seed in range(args.seeds):
            (steps, best), (fewer, found) = (run_study(Path(name), seed, args.trials, each) for each in ("none", "hyperband"))
            shares.append(fewer / steps)
            lost.append(100 * (best - found))
            print(f"{seed:>4}   {steps:>10,}   {fewer:>9,}   {shares[-1]:>5.3f}   {best:>9.4f}   {found:>9.4f}", flush=True)
    told = {"steps": round(statistics.mean(shares), 4), "lost points": round(statistics.mean(lost), 4)}
    lost_told = f"lost {told['lost points']:.2f} points (at most {max(lost):.2f})"
    print(f"hyperband took {told['steps']:.3f} of the steps and {lost_told}, means over seeds")
    print(json.dumps({**told, "bounds": BOUNDS}))


if __name__ == "__main__":
    main()
