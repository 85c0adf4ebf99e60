"""Keeps the best and the last checkpoint of a run."""

import shutil
from pathlib import Path

from research import checkpoint
from research.callback import Callback, State


class Checkpoint(Callback):
    """Saves at each best evaluation and at the end; an old one goes only once the new one is committed."""

    def __init__(self) -> None:
        self.kept: Path | None = None

    def on_step(self, state: State) -> None:
        if state.improved:
            self._save(state)

    def on_end(self, state: State) -> None:
        if not state.error and state.step > state.first and state.best.get("step") != state.step:
            best, self.kept = self.kept, None  # the best one stays beside the last
            self._save(state)
            self.kept = best

    def _save(self, state: State) -> None:
        if state.folder is None:
            return
        new = checkpoint.save(state.folder / "checkpoints", state.step, state.model, state.optimizer, state.best, state.task)
        if self.kept and self.kept != new:
            shutil.rmtree(self.kept)
        self.kept = new
