"""What MLflow costs a run: 10,000 steps of a small model with tracker=mlflow against the same with tracker=none.

    python -m benchmarks.tracking_overhead [--steps 10000] [--pairs 3]

Both sides train the same weights on the same samples, log every 10 steps and evaluate every 25, as the defaults do. They
run in turn. The time is a whole run's: from before the tracker's start until every number is in the store. Importing mlflow
and creating an empty store come before: they happen once, not once a run.
"""

import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks import harness, models
from research.data.modular import modular
from research.run_dir import RunConfig
from research.tracking.jsonl import FINISHED, Tracker
from research.tracking.mlflow import MLflow
from research.training.trainer import Trainer

BOUNDS = {"mlflow/none": 1.05, "lost": 0}
DATA = modular(p=23)


def train(tracker: Tracker, root: str, steps: int) -> float:
    """Return the seconds of one run."""
    parts, folder = models.build_parts(DATA, 32, 1, 2), Path(tempfile.mkdtemp(dir=root))
    start = time.perf_counter()
    tracker.start(RunConfig("run", "overhead", folder, {"steps": steps}, [], {}))
    trainer = Trainer(steps, batch_size=64, eval_every=25, log_every=10, device="cpu")
    progress = models.fit(trainer, parts, DATA, tracker).progress
    with redirect_stdout(None):  # drop the line that names the run's page
        tracker.finish(FINISHED, {"steps": progress.step, "best": progress.best, "metrics": progress.metrics})
    return time.perf_counter() - start


def main(steps: int, pairs: int) -> harness.Results:
    with tempfile.TemporaryDirectory() as root:
        uri, stored = f"sqlite:///{root}/mlflow.db", list[int]()
        train(MLflow(uri), root, 100)

        def run_with_mlflow() -> float:
            tracker = MLflow(uri)
            seconds = train(tracker, root, steps)
            assert tracker.run_id
            stored.append(len(tracker.client.get_metric_history(tracker.run_id, "train/loss")))
            return seconds

        arms = {"mlflow": run_with_mlflow, "none": lambda: train(Tracker(), root, steps)}
        times = harness.run_interleaved(arms, pairs, warm_up=0)
    results = harness.report("tracker", times, {"none": times["none"]}, "seconds", width=10)
    expected = pairs * (steps // 10)
    print(f"{sum(stored)} of {expected} logged losses are in the store")
    return results | {"lost": expected - sum(stored)}


if __name__ == "__main__":
    harness.run(main, __doc__, BOUNDS, steps=harness.take_count(10_000, minimum=10), pairs=3)
