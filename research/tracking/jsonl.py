"""Trackers: none, and metrics.jsonl with one JSON object a log point, which any number of sinks get too."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from research.cli import print_message
from research.contracts import contract
from research.files.locks import lock
from research.run_dir import RunConfig, read_summary, replace_text
from research.tracking import history
from research.tracking.history import METRICS_FILE, Lines
from research.tracking.sink import Delivery, Record, Sink, make_record, read_history
from research.training.state import Callback, State

KILLED, FAILED, FINISHED, STOPPED, PRUNED = "KILLED", "FAILED", "FINISHED", "STOPPED", "PRUNED"


def find_markers(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the files in a run folder that say that the sink of a name lacks a part of the run, and that it has had all."""
    return folder / f".{name}_unsent", folder / f".{name}_sent"


def mark_unsent(folder: Path, names: Iterable[str]) -> None:
    """Mark the sinks of these names, until each has been sent the whole run."""
    with suppress(OSError):  # the disk is full
        for name in names:
            find_markers(folder, name)[0].touch()


def mark_sent(folder: Path, name: str) -> None:
    """Mark the sink of a name as one that has been sent the whole run."""
    unsent, sent = find_markers(folder, name)
    with suppress(OSError):
        sent.touch()
        unsent.unlink(missing_ok=True)


def list_sent(folder: Path) -> list[str]:
    """Return the names of the sinks that have been sent a run, whichever this process has."""
    return [path.name.removeprefix(".").removesuffix("_sent") for path in folder.glob(".*_sent")]


def lacks_run(folder: Path, sink: Sink) -> bool:
    """Return whether a sink lacks a part of a finished run, or has never had any of it."""
    unsent, sent = find_markers(folder, sink.name)
    return unsent.exists() or not (folder / sink.trace if sink.trace else sent).exists()


class Tracker(Callback):
    """Record nothing. `start` is called before anything is built, `finish` after everything, also after a failure."""

    checkpoint_name = "Tracker"  # whichever it is: a run that is resumed may have another one
    state: State | None = None  # set once the run has been built

    @property
    def run_id(self) -> str | None:
        """The id of the run in MLflow."""
        return None

    @contract
    def on_start(self, state: State) -> None:
        self.state = state

    def start(self, run: RunConfig) -> None:
        """Begin the record of a run."""

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """End the record. `status` is FINISHED, PRUNED, STOPPED, FAILED or KILLED."""

    def send_rest(self, run: RunConfig) -> None:
        """Send what a store lacks of a run that is finished."""


class Jsonl(Tracker):
    """Write metrics.jsonl, which has each step once: a resume or a rollback first removes the steps that will be repeated.

    A checkpoint holds the newest lines: a run that is resumed gets back what the file has lost meanwhile. Each sink gets, by
    a thread of its own, what the file gets. `uri` is MLflow's, for the yaml of its sink to refer to: it is not read here.
    """

    file: TextIO | None = None
    last_step = 0  # the newest step in the file
    count = 0  # lines in the file
    resumed = False  # from a checkpoint of its own

    def __init__(self, sinks: Mapping[str, Sink] | None = None, uri: str | None = None) -> None:
        self.backup: Lines = {}  # the newest lines
        self.deliveries = [Delivery(sink) for sink in (sinks or {}).values()]

    @property
    def run_id(self) -> str | None:
        return next((sink.mlflow_run_id for sink in self.sinks if sink.mlflow_run_id), None)

    @property
    def sinks(self) -> list[Sink]:
        return [delivery.sink for delivery in self.deliveries]

    @contract
    def start(self, run: RunConfig) -> None:
        """Open the file, and let each sink begin. Raise ValueError for one that can never work."""
        for sink in self.sinks:
            sink.prepare(run)
        self.deliveries = [delivery for delivery in self.deliveries if not delivery.sink.is_off]
        mark_unsent(run.folder, (sink.name for sink in self.sinks))
        self.run, self.path, self.resumed = run, run.folder / METRICS_FILE, run.resumed
        self.file = self.path.open("a", buffering=1, encoding="utf-8")
        for delivery in self.deliveries:
            delivery.start()

    def state_dict(self) -> dict[str, Any]:
        self.backup = history.select_backup(self.backup)
        return {"lines": self.count, "newest": "".join(self.backup.values())} if self.file else {}

    @contract
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, lines = state["lines"], state["newest"].splitlines(keepends=True)
        self.backup = {history.parse_line(line)[0]: line for line in lines}

    @contract
    def on_start(self, state: State) -> None:
        super().on_start(state)
        if not self.resumed:
            self.backup, self.count = {}, 0  # those of the run that this one branches off
        self._truncate_after(state.progress.step - state.progress.eval_pending, self.count)
        if self.file:  # sinks of an earlier process lack what this one logs
            mark_unsent(self.run.folder, list_sent(self.run.folder))
        for delivery in self.deliveries:
            delivery.sink.first_step, delivery.sink.state = state.first_step, state
        if self.resumed:
            self._send_history()  # first what an earlier process of this run logged and may not have delivered

    def on_step(self, state: State) -> None:
        if not (state.logged and self.file):
            return
        state.require_folder()
        if state.progress.step <= self.last_step:
            self._truncate_after(state.progress.step - 1)
        record = {"step": state.progress.step, "seconds": round(state.progress.seconds, 3), **state.logged}
        line = history.format_line(record)
        self.file.write(line)
        self.last_step, self.count = state.progress.step, self.count + 1
        self.backup[self.last_step] = line
        self._send(make_record(record, time.time()))

    @contract
    def finish(self, status: str, summary: dict[str, Any]) -> None:
        if not self.file:
            return  # a sink could not be opened
        self.file.close()
        begun = time.monotonic()
        for delivery in self.deliveries:
            delivery.begin_end(status, summary)
        for delivery in self.deliveries:
            if not delivery.wait_until_sent(begun):
                delivery.warn(self.path)
                continue
            mark_sent(self.run.folder, delivery.sink.name)
            if status == FINISHED and not self.run.in_sweep and (text := delivery.sink.describe_end()):
                print(f"{delivery.sink.title:<16} {text}")  # a sweep has a line of its own

    @contract
    def send_rest(self, run: RunConfig) -> None:
        summary = read_summary(run.folder)
        self.deliveries = [item for item in self.deliveries if lacks_run(run.folder, item.sink)]
        if not (summary and self.deliveries):
            return
        try:
            with lock(run.folder):
                self.start(run)
                self._send_history()
                self.finish(summary.status, asdict(summary))
        except (ValueError, OSError) as error:  # the run itself is whole
            print_message(f"warning: {error}")

    def _send_history(self) -> None:
        for record in read_history(self.path) if self.deliveries else ():
            self._send(record)

    def _send(self, record: Record) -> None:
        for delivery in self.deliveries:
            delivery.records.append(record)

    def _truncate_after(self, step: int, count: int = 0) -> None:
        """Remove the lines of later steps, and get back damaged ones: `count` remain. The file is replaced in one rename."""
        self.last_step = step
        if self.file is None:
            return
        backup = {saved: line for saved, line in self.backup.items() if saved <= step}
        lines = history.recover_lines(self.path, backup, count, step)
        text = "".join(lines.values())
        is_shared = self.path.is_symlink() or self.path.stat().st_nlink > 1  # with a copy of this folder, made by links
        if is_shared or self.path.read_text(encoding="utf-8", errors="replace") != text:
            self.file.close()
            replace_text(self.path, text)
            self.file = self.path.open("a", buffering=1, encoding="utf-8")
        self.backup, self.count = history.select_backup(lines), len(lines)
