"""Trackers that need no database: none, and metrics.jsonl with one JSON object a log point."""

import json
import logging
import math
from typing import Any, TextIO

from research.run_dir import RunConfig, replace_nonfinite, replace_text
from research.training.state import Callback, State

log = logging.getLogger(__name__)
KILLED, FAILED, FINISHED, STOPPED, PRUNED = "KILLED", "FAILED", "FINISHED", "STOPPED", "PRUNED"


class Tracker(Callback):
    """Record nothing. `start` is called before anything is built, `finish` after everything, also after a failure."""

    run_id: str | None = None
    state: State | None = None  # set once the run has been built

    def on_start(self, state: State) -> None:
        self.state = state

    def start(self, run: RunConfig) -> None:
        """Begin the record of a run."""

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """End the record. `status` is FINISHED, PRUNED, STOPPED, FAILED or KILLED."""


class Jsonl(Tracker):
    """Write metrics.jsonl, which has each step once: a resume or a rollback first removes the steps that will be repeated."""

    file: TextIO | None = None
    last_step = 0  # the newest step in the file

    def start(self, run: RunConfig) -> None:
        self.path = run.folder / "metrics.jsonl"
        self.file = self.path.open("a", buffering=1)

    def on_start(self, state: State) -> None:
        super().on_start(state)
        self._truncate_after(state.progress.step - state.progress.eval_pending)

    def on_step(self, state: State) -> None:
        if not (state.logged and self.file):
            return
        if state.progress.step <= self.last_step:
            self._truncate_after(state.progress.step - 1)
        record = {"step": state.progress.step, "seconds": round(state.progress.seconds, 3), **replace_nonfinite(state.logged)}
        self.file.write(json.dumps(record) + "\n")
        self.last_step = state.progress.step

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        if self.file:
            self.file.close()

    def _truncate_after(self, step: int) -> None:
        """Remove the lines of later steps, and one that a kill has left incomplete. The file is replaced in one rename."""
        self.last_step = step
        if self.file is None:
            return
        lines = self.path.read_text(errors="replace").splitlines(keepends=True)
        retained = [line for number, line in enumerate(lines, start=1) if self._parse_step(number, line) <= step]
        if len(retained) < len(lines):
            self.file.close()
            replace_text(self.path, "".join(retained))
            self.file = self.path.open("a", buffering=1)

    def _parse_step(self, number: int, line: str) -> float:
        """Return the step of a metrics line; for a damaged line log a warning and return infinity, so that it is removed."""
        try:
            return int(json.loads(line)["step"]) if line.endswith("\n") else math.inf
        except (ValueError, KeyError, TypeError):
            log.warning("%s: line %d is damaged and was removed", self.path, number)
            return math.inf
