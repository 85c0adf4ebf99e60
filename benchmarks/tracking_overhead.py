"""What trackers cost a run: 10,000 steps of a small model with each of them, and with all at once, against tracker=none.

    python -m benchmarks.tracking_overhead [--steps 10000] [--pairs 3] [--trackers mlflow,csv,tensorboard,wandb,all]

All sides train the same weights on the same samples, log every 10 steps and evaluate every 25, as the defaults do. They
run in turn. The time is a whole run's: from before the tracker's start until every number is in its store. Importing the
libraries and creating an empty store come before: they happen once, not once a run. W&B is offline.
"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from benchmarks import harness, models
from research.contracts import contract
from research.data.modular import modular
from research.files.wandb_files import read_rows
from research.run_dir import RunConfig
from research.tracking.csv import CSV_FILE, CsvSink
from research.tracking.jsonl import FINISHED, Jsonl, Tracker
from research.tracking.mlflow import MLflowSink
from research.tracking.sink import Sink
from research.tracking.tensorboard import TensorBoardSink
from research.tracking.wandb import WandbSink
from research.training.trainer import Trainer

DATA = modular(p=23)
LOG_EVERY = 10
NAMES = ("mlflow", "csv", "tensorboard", "wandb")
BOUNDS = {**{f"{name}/none": 1.05 for name in (*NAMES, "all")}, "lost": 0}


def make_sinks(choice: str, uri: str) -> dict[str, Sink]:
    """Return the sinks of a choice, which is the name of one or `all`."""
    makers: dict[str, Callable[[], Sink]] = {
        "mlflow": lambda: MLflowSink(uri),
        "csv": CsvSink,
        "tensorboard": TensorBoardSink,
        "wandb": lambda: WandbSink(mode="offline"),
    }
    return {name: makers[name]() for name in (NAMES if choice == "all" else [choice])}


@contract
def train(tracker: Tracker, folder: Path, steps: int) -> float:
    """Return the seconds of one run."""
    parts = models.build_parts(DATA, 32, 1, 2)
    start = time.perf_counter()
    tracker.start(RunConfig("run", "overhead", folder, {"steps": steps}, [], {}))
    trainer = Trainer(steps, batch_size=64, eval_every=25, log_every=LOG_EVERY, device="cpu")
    progress = models.fit(trainer, parts, DATA, tracker).progress
    with redirect_stdout(None):  # drop the lines that say where to look
        tracker.finish(FINISHED, {"steps": progress.step, "best": progress.best, "metrics": progress.metrics})
    return time.perf_counter() - start


def count_lost(sinks: dict[str, Sink], folder: Path, steps: int) -> Counter[str]:
    """Return how many log points each sink lacks, as far as their stores are read back here."""
    points, lost = steps // LOG_EVERY, Counter[str]()
    for name, sink in sinks.items():
        if isinstance(sink, MLflowSink):
            lost[name] = points - len(sink.client.get_metric_history(sink.mlflow_run_id, "train/loss"))
        elif isinstance(sink, CsvSink):
            rows = (folder / CSV_FILE).read_text(encoding="utf-8").splitlines()[1:]
            lost[name] = points - sum(int(row.partition(",")[0]) % LOG_EVERY == 0 for row in rows)
        elif isinstance(sink, WandbSink):
            lost[name] = points - sum(row["step"] % LOG_EVERY == 0 for row in read_rows([sink.file]).values())
    return lost


@contract
def main(steps: int, pairs: int, trackers: list[str]) -> harness.Results:
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as root:
        uri, lost = f"sqlite:///{root}/mlflow.db", Counter[str]()

        def run(choice: str) -> float:
            folder, sinks = Path(tempfile.mkdtemp(dir=root)), make_sinks(choice, uri)
            seconds = train(Jsonl(sinks), folder, steps)
            lost.update(count_lost(sinks, folder, steps))
            return seconds

        for choice in trackers:  # libraries and stores are there before
            train(Jsonl(make_sinks(choice, uri)), Path(tempfile.mkdtemp(dir=root)), 20)
        arms: dict[str, Callable[[], float]] = {choice: partial(run, choice) for choice in trackers}
        arms["none"] = lambda: train(Tracker(), Path(root), steps)
        times = harness.run_interleaved(arms, pairs, warm_up=0)
    results = harness.report("tracker", times, {"none": times["none"]}, "seconds", width=11)
    names = ", ".join(f"{number} in {name}" for name, number in lost.items() if number)
    print(f"{lost.total()} log points are missing{names and f': {names}'}")
    return results | {"lost": lost.total()}


if __name__ == "__main__":
    choices = harness.take_choices("tracker", (*NAMES, "all"))
    harness.run(main, __doc__, BOUNDS, steps=harness.take_count(10_000, minimum=10), pairs=3, trackers=choices)
