"""What MLflow costs a run: 10,000 steps of a small model with tracker=mlflow against the same with tracker=none.

    python benchmarks/tracking_overhead.py [--steps 10000] [--pairs 3]

Both sides train the same weights on the same samples, log every 10 steps and judge every 25, as the defaults do; the
order within a pair changes from pair to pair. The time is a whole run's: from before the tracker's start until every
number is in the store. Importing mlflow and creating an empty store come before: they happen once, not once a run.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn
from torch.optim import AdamW

from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.run_dir import RunConfig
from research.tracking.jsonl import FINISHED, Tracker
from research.tracking.mlflow import MLflow
from research.training.trainer import Trainer

BOUNDS = {"mlflow/none": 1.05}
DATA = modular(p=23)


def train(tracker: Tracker, folder: Path, steps: int) -> float:
    """Seconds of one run."""
    torch.manual_seed(0)
    model = Transformer(DATA.shape, dim=32, depth=1, heads=2, linear=nn.Linear)
    optimizer = from_base(model, partial(AdamW, fused=True), lr=1e-3)
    folder.mkdir(parents=True)
    begun = time.perf_counter()
    tracker.start(RunConfig("run", "overhead", folder, {"steps": steps}, [], {}))
    trainer = Trainer(steps, batch_size=64, eval_every=25, log_every=10, device="cpu")
    state = trainer.fit(model, optimizer, constant, last_token, DATA, [tracker])
    with redirect_stdout(None):  # where the run is kept interests nobody here
        tracker.finish(FINISHED, {"steps": state.progress.step, "best": state.progress.best, "metrics": state.progress.metrics})
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        uri = f"sqlite:///{root}/mlflow.db"
        train(MLflow(uri), Path(root, "first"), 100)
        ratios, kept = [], 0
        for pair in range(args.pairs):
            times: dict[str, float] = {}
            for kind in ("none", "mlflow") if pair % 2 else ("mlflow", "none"):
                tracker = MLflow(uri) if kind == "mlflow" else Tracker()
                times[kind] = train(tracker, Path(root, f"{kind}-{pair}"), args.steps)
                if isinstance(tracker, MLflow):
                    assert tracker.run_id
                    kept += len(tracker.client.get_metric_history(tracker.run_id, "train/loss"))
            ratios.append(times["mlflow"] / times["none"])
            print(
                f"pair {pair}: mlflow {times['mlflow']:.2f} s, none {times['none']:.2f} s, ratio {ratios[-1]:.3f}", flush=True
            )
    expected = args.pairs * (args.steps // 10)
    print(f"{kept} of {expected} logged losses are in the store")
    print(json.dumps({"mlflow/none": round(statistics.median(ratios), 4), "lost": expected - kept, "bounds": BOUNDS}))


if __name__ == "__main__":
    main()
