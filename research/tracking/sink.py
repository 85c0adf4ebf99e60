"""A sink: where the numbers of a run go besides metrics.jsonl. A new one is a class of these methods, and a yaml."""

import importlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from research.run_dir import RunConfig
from research.training.state import State


class Record(NamedTuple):
    """What a run logs at a step, as in a line of metrics.jsonl."""

    step: int
    timestamp: int  # ms since 1970
    seconds: float  # of training
    metrics: Mapping[str, float]

    @property
    def finite(self) -> dict[str, float]:
        """The numbers that are finite: metrics.jsonl has null for any other."""
        return {key: value for key, value in self.metrics.items() if math.isfinite(value)}


class Sink:
    """Do nothing with what a run logs. A thread calls the methods from `open` on, in this order: no step waits for them.

    A method that raises is called again, with the same arguments, until it works or the run no longer waits for it. What a
    sink has not received by the end is sent from metrics.jsonl later: a resumed run sends its whole history again.
    """

    name = "sink"  # of its marker in a run folder, and of its thread
    title = "the sink"  # in messages
    patience = 15.0  # seconds without an answer, after which a run ends without it
    max_numbers = 1000  # in one call of `log`
    is_append_only = False  # True: where a run may roll back it gets the steps of a checkpoint, which none repeats
    mlflow_run_id: str | None = None  # of the run in MLflow, for summary.json
    state: State | None = None  # once the run has been built
    first_step = 0  # at which this process began

    @property
    def address(self) -> str:
        """Where the numbers go, without a password."""
        return self.title

    @property
    def answered(self) -> float:
        """The time, of the monotonic clock, at which the last call has ended; a call that takes long may move it."""
        return self.ended

    def prepare(self, run: RunConfig) -> None:
        """Import what is needed, in the main thread: an import in a thread can deadlock with one there.

        Raise ValueError where the sink can never work.
        """
        self.run, self.ended = run, time.monotonic()

    def open(self) -> None:
        """Begin the run, or continue it."""

    def describe(self, state: State) -> None:
        """Say of the run what is known once it has been built."""

    def rewind(self, step: int) -> None:
        """Forget what was logged after a step: what comes next repeats those steps."""

    def log(self, records: Sequence[Record]) -> None:
        """Log the numbers of some steps. At its return they survive a kill of this process."""

    def close(self, status: str, summary: dict[str, Any]) -> None:
        """End the run."""

    def describe_end(self) -> str:
        """Return what a finished run prints: where to look; empty for nothing."""
        return ""


def find_weights(folder: Path, step: int) -> Path | None:
    """Return the weights of a run's checkpoint, as the best one; None where it is not there."""
    path = folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
    return path if path.exists() else None


def import_extra(library: str) -> Any:
    """Return the library that a sink needs. Raise ValueError with the extra of pyproject.toml that installs it."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ValueError(describe_extra(library)) from error


def describe_extra(library: str) -> str:
    """Return the message of an extra, called as its library, that is not installed."""
    return f"tracker={library} needs {library}, which is not installed\npip install -e '.[{library}]'"
