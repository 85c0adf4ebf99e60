"""What MLflow costs a run: 10,000 steps of a small model with tracker=mlflow against the same with tracker=none.

    python -m benchmarks.tracking_overhead [--steps 10000] [--pairs 3]

Both sides train the same weights on the same samples, log every 10 steps and evaluate every 25, as the defaults do. They
run in turn. The time is a whole run's: from before the tracker's start until every number is in the store. Importing mlflow
and creating an empty store come before: they happen once, not once a run.
"""

import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks import harness
from research.data.modular import modular
from research.losses import last_token
from research.models.transformer import Transformer
from research.optim.param_groups import from_base
from research.optim.schedules import constant
from research.run_dir import RunConfig
from research.tracking.jsonl import FINISHED, Tracker
from research.tracking.mlflow import MLflow
from research.training.trainer import Trainer

BOUNDS = {"mlflow/none": 1.05, "lost": 0}
DATA = modular(p=23)


def train(tracker: Tracker, folder: Path, steps: int) -> float:
    """Return the seconds of one run."""
    torch.manual_seed(0)
    model = Transformer(DATA.shape, dim=32, depth=1, heads=2, linear=nn.Linear)
    fused_adamw: partial[Any] = partial(AdamW, fused=True)
    optimizer = from_base(model, fused_adamw, lr=1e-3)
    folder.mkdir(parents=True)
    start = time.perf_counter()
    tracker.start(RunConfig("run", "overhead", folder, {"steps": steps}, [], {}))
    trainer = Trainer(steps, batch_size=64, eval_every=25, log_every=10, device="cpu")
    state = trainer.fit(trainer.setup(model, optimizer, constant, last_token, DATA, [tracker]))
    with redirect_stdout(None):  # drop the line that names the run's page
        tracker.finish(FINISHED, {"steps": state.progress.step, "best": state.progress.best, "metrics": state.progress.metrics})
    return time.perf_counter() - start


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--steps", type=harness.make_count_parser(10), default=10_000)
    parser.add_argument("--pairs", type=harness.make_count_parser(1), default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        uri, stored = f"sqlite:///{root}/mlflow.db", list[int]()
        train(MLflow(uri), Path(root, "first"), 100)

        def run_with_mlflow() -> float:
            tracker = MLflow(uri)
            seconds = train(tracker, Path(root, f"mlflow-{len(stored)}"), args.steps)
            assert tracker.run_id
            stored.append(len(tracker.client.get_metric_history(tracker.run_id, "train/loss")))
            return seconds

        def run_without() -> float:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                return train(Tracker(), Path(folder, "none"), args.steps)

        times = harness.run_interleaved({"mlflow": run_with_mlflow, "none": run_without}, args.pairs, warm_up=0)
    ratio = harness.compare(times["mlflow"], times["none"])
    table = harness.Table("tracker", "seconds", width=10)
    for name, seconds in times.items():
        table.add(name, ", ".join(f"{value:.2f}" for value in seconds))
    expected = args.pairs * (args.steps // 10)
    print(f"mlflow over none: {ratio.median:.3f}; {sum(stored)} of {expected} logged losses are in the store")
    harness.finish({"mlflow/none": ratio.median, "lost": expected - sum(stored)}, BOUNDS)


if __name__ == "__main__":
    main()
