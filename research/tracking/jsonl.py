"""Trackers that need no database: none, and metrics.jsonl with one JSON object a log point."""

from typing import Any, TextIO

from research.run_dir import RunConfig, replace_text
from research.tracking import history
from research.tracking.history import METRICS_FILE, Lines
from research.training.state import Callback, State

KILLED, FAILED, FINISHED, STOPPED, PRUNED = "KILLED", "FAILED", "FINISHED", "STOPPED", "PRUNED"


class Tracker(Callback):
    """Record nothing. `start` is called before anything is built, `finish` after everything, also after a failure."""

    checkpoint_name = "Tracker"  # whichever it is: a run that is resumed may have another one
    run_id: str | None = None
    state: State | None = None  # set once the run has been built

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

    A checkpoint holds the newest lines: a run that is resumed gets back what the file has lost meanwhile.
    """

    file: TextIO | None = None
    last_step = 0  # the newest step in the file
    count = 0  # lines in the file
    resumed = False  # from a checkpoint of its own

    def __init__(self) -> None:
        self.backup: Lines = {}  # the newest lines

    def start(self, run: RunConfig) -> None:
        self.path, self.resumed = run.folder / METRICS_FILE, run.resumed
        self.file = self.path.open("a", buffering=1, encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        self.backup = history.select_backup(self.backup)
        return {"lines": self.count, "newest": "".join(self.backup.values())} if self.file else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, lines = state["lines"], state["newest"].splitlines(keepends=True)
        self.backup = {history.parse_line(line)[0]: line for line in lines}

    def on_start(self, state: State) -> None:
        super().on_start(state)
        if not self.resumed:
            self.backup, self.count = {}, 0  # those of the run that this one branches off
        self._truncate_after(state.progress.step - state.progress.eval_pending, self.count)

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

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        if self.file:
            self.file.close()

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
