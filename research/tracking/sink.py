"""A sink: where the numbers of a run go besides metrics.jsonl, and the thread that brings them: no training step waits.

A new sink is a class of `Sink`'s methods, and a yaml.
"""

import importlib
import logging
import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from research.cli import announce_wait, first_line, print_message
from research.contracts import contract
from research.options.finetuning import get_digest, get_kind, is_frozen
from research.rules import check_extra, enforce
from research.run_dir import RunConfig, list_checkpoints
from research.signals import watch
from research.tracking import history
from research.training.state import State

WEIGHTS_FILE, AVERAGE_FILE = "model.safetensors", "average.safetensors"  # of a checkpoint
BATCH_INTERVAL = 2.0  # seconds between deliveries
SIGNAL_TIMEOUT = 3.0  # seconds without an answer, after which a run that a signal has ended ends without it
MAX_PAUSE = 5.0  # seconds between two attempts
silent_stores = set[str]()  # those that the last run has waited for in vain: the next one gives them less time
log = logging.getLogger(__name__)


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
    trace: str | None = None  # what it leaves in a run folder: once that is deleted, it is sent the whole run again
    patience = 15.0  # seconds without an answer, after which a run ends without it
    max_numbers = 1000  # in one call of `log`
    is_off = False  # after `prepare`: the environment says that it is to do nothing
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

    @contract
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


@contract
def read_history(path: Path) -> list[Record]:
    """Return what metrics.jsonl has. Its last line is as old as the file, each other one older by the training between."""
    lines = list(history.read_records(path))
    begun = path.stat().st_mtime - lines[-1].get("seconds", 0.0) if lines else 0.0
    return [make_record(line, begun + line.get("seconds", 0.0)) for line in lines]


@contract
def make_record(line: Mapping[str, Any], time_s: float) -> Record:
    """Return a line of metrics.jsonl, of a time in seconds since 1970, as sinks get it: without what it leaves empty."""
    metrics = {key: value for key, value in line.items() if key not in ("step", "seconds") and value is not None}
    return Record(line["step"], int(time_s * 1000), line.get("seconds", 0.0), metrics)


@contextmanager
@contract
def open_weights(run: RunConfig, step: int) -> Iterator[tuple[Path, dict[str, Any]] | None]:
    """Yield a file model.safetensors of a checkpoint's weights as they were evaluated, and what they are.

    None where there is no such checkpoint, or its weights are sharded.
    """
    folder = list_checkpoints(run.folder).get(step)
    if not folder or not (file := folder / WEIGHTS_FILE).exists():
        yield None
        return
    with tempfile.TemporaryDirectory() as draft:
        if is_averaged := (folder / AVERAGE_FILE).exists():
            file = Path(draft, WEIGHTS_FILE)
            save_file(load_file(folder / WEIGHTS_FILE) | load_file(folder / AVERAGE_FILE), file)
        yield file, describe_weights(run.config, step, is_averaged)


def describe_weights(config: Mapping[str, Any], step: int, is_averaged: bool) -> dict[str, Any]:
    """Return what a checkpoint's weights are, for people and for programs: of adapters also which base they belong to."""
    facts: dict[str, Any] = {"step": step, "averaged": is_averaged}
    text = f"the {'averaged ' if is_averaged else ''}weights of step {step}, as they were evaluated"
    if is_frozen(config):
        kind = get_kind(config)
        base = config["finetune"].get("base") or config["model"].get("folder")
        facts |= {"finetune": kind, "base": base, "base_digest": get_digest(config)}
        text += f"; adapters alone (finetune={kind}), beside the base {base} with the digest {get_digest(config)}"
    return {"description": text} | facts


@contract
def import_extra(library: str) -> Any:
    """Return the library that a sink needs. Raise ValueError where its extra, called as the library, is not installed."""
    enforce(check_extra(f"tracker={library}", library, library))
    return importlib.import_module(library)


@contract
class Delivery:
    """A sink, and what it has not received yet."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.records: deque[Record] = deque()  # that are not logged yet
        self.last_step = 0  # that was logged
        self.is_sent = False  # the sink has the whole run
        self.finishing, self.over, self.error = threading.Event(), threading.Event(), ""
        self.outcome: tuple[str, dict[str, Any]] = ("", {})
        self.thread = threading.Thread(target=self._deliver, name=sink.name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.thread.start()

    def begin_end(self, status: str, summary: dict[str, Any]) -> None:
        """Let the thread deliver the rest and end the run."""
        self.outcome = status, summary
        self.finishing.set()

    def wait_until_sent(self, begun: float) -> bool:
        """Return True once the sink has the run, False where it does not answer, or a signal comes meanwhile."""
        with announce_wait(self.sink.address), watch() as signals, suppress(KeyboardInterrupt):
            count, is_brief = signals.count, bool(signals.signum) or self.sink.address in silent_stores
            patience = SIGNAL_TIMEOUT if is_brief else self.sink.patience
            while self.thread.is_alive() and signals.count == count:
                if time.monotonic() > max(begun, self.sink.answered) + patience:
                    break
                self.thread.join(0.1)
        self.over.set()
        (silent_stores.discard if self.is_sent else silent_stores.add)(self.sink.address)
        return self.is_sent

    def warn(self, path: Path) -> None:
        """Say that the sink lacks a part of the run."""
        note = f"did not take all of this run ({self.error or 'no answer'}); every metric is in {path}"
        print_message(f"warning: {self.sink.address} {note}\nthe same settings with resume=RUN send the rest")

    # What follows runs in the thread.

    def _deliver(self) -> None:
        """Log the records every BATCH_INTERVAL, and once more when the run finishes."""
        with suppress(TimeoutError):
            self._retry_until_done(self.sink.open)
            is_last = has_state = False
            while not is_last:
                is_last = self.finishing.wait(BATCH_INTERVAL)
                if self.sink.state and not has_state:  # as soon as it is built: a run that is killed later has it too
                    self._retry_until_done(partial(self.sink.describe, self.sink.state))
                    has_state = True
                while batch := self._take_batch():
                    if batch[0].step <= self.last_step:
                        self._retry_until_done(partial(self.sink.rewind, batch[0].step - 1))
                    self._retry_until_done(partial(self.sink.log, batch))
                    self.last_step = batch[-1].step
            self._retry_until_done(partial(self.sink.close, *self.outcome))
            self.is_sent = True

    def _take_batch(self) -> list[Record]:
        """Return the next records: as many as a call may have, with rising steps."""
        batch, count = list[Record](), 0
        while self.records and (not batch or self.records[0].step > batch[-1].step):
            count += len(self.records[0].metrics)
            if batch and count > self.sink.max_numbers:
                break
            batch.append(self.records.popleft())
        return batch

    def _retry_until_done(self, action: Callable[[], None]) -> None:
        """Repeat a call until it works. Raise TimeoutError once the run no longer waits for it."""
        pause = 0.0
        while not self.over.wait(pause):
            try:
                action()
                self.error, self.sink.ended = "", time.monotonic()
                return
            except BaseException as error:  # of many kinds, SystemExit too: none of them may end the training, or this thread
                log.log(logging.INFO if self.error else logging.WARNING, "%s: %s", self.sink.title, error)
                self.error = first_line(error)
            pause = min(2 * pause + 0.2, MAX_PAUSE)
        raise TimeoutError
