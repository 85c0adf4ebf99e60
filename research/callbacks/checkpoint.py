"""When to save, and what to keep."""

import logging
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from research import checkpoint, processes, snapshot
from research.callback import Callback, State
from research.folder import checkpoints
from research.ranges import Count
from research.when import higher_is_better

log = logging.getLogger(__name__)


class Checkpoint(Callback):
    """Saves at each best evaluation, every `every` steps and at the end, also where a signal asked for it.

    Keeps the last `keep_last` and the best `keep_best` by the monitored metric, and the last one from before numbers were
    not finite. An old one goes only once the new one is committed. With `background` a thread writes a copy while the
    training goes on.
    """

    saves = True

    def __init__(
        self,
        every: Count | None = None,  # steps
        keep_last: Count = 1,
        keep_best: Count = 1,
        background: bool = False,
    ) -> None:
        self.every, self.keep_last, self.keep_best = every, keep_last, keep_best
        self.pool = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.writing: Future[None] | None = None
        self.values: dict[int, float] = {}  # the monitored metric at each step that was saved and judged
        self.task = ""  # what they are of
        self.saved = -1  # the step of the last one

    def state_dict(self) -> dict[str, Any]:
        return {"values": dict(self.values), "task": self.task}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.task = dict(state["values"]), state["task"]

    def on_start(self, state: State) -> None:
        if self.task != state.task:
            self.values, self.task = {}, state.task
        self.saved = state.first if state.first else -1
        if self.pool and state.sharded:
            log.warning("callbacks.checkpoint.background=true: a model that is spread is written by all processes in the loop")
        if state.folder and state.folder.exists() and processes.rank() == 0:
            checkpoint.clean(state.folder / "checkpoints")

    def on_step(self, state: State) -> None:
        if state.improved or (self.every and state.step % self.every == 0):
            self._save(state)

    def on_end(self, state: State) -> None:
        try:
            if not state.error and state.step != self.saved:
                self._save(state)
        finally:
            self.settle()

    def _save(self, state: State) -> None:
        if state.folder is None or (state.unsure is not None and bool(state.unsure)) or not snapshot.sound(state):
            return  # the next step, or the next log point, will tell of numbers that are not finite
        self.settle()
        self.saved = state.step
        if math.isfinite(state.logged.get(state.monitor, math.nan)):
            self.values[state.step] = state.logged[state.monitor]
        whole, root = snapshot.take(state), state.folder / "checkpoints"
        keep = set(self._kept(root, state))
        if self.pool and not state.sharded:
            whole = replace(whole, tensors=snapshot.copied(whole.tensors), state=snapshot.copied(whole.state))
            self.writing = self.pool.submit(self._commit, root, whole, keep)
        else:
            self._commit(root, whole, keep)

    def _kept(self, root: Path, state: State) -> Iterator[int]:
        """The steps whose checkpoints stay, this one among them."""
        there = sorted({*checkpoints(root.parent), state.step}, reverse=True)
        yield from (step for step in there if step > state.step)  # of a run that went back: replaced when it comes there
        yield from [step for step in there if step <= state.step][: self.keep_last]
        sign = -1 if higher_is_better(state.monitor) else 1
        judged = [step for step in self.values if step in there]
        yield from sorted(judged, key=lambda step: (sign * self.values[step], step))[: self.keep_best]
        yield state.safe

    @staticmethod
    def _commit(root: Path, whole: checkpoint.Snapshot, keep: set[int]) -> None:
        if (metrics := root.parent / "metrics.jsonl").exists():
            checkpoint.sync(metrics)  # a run that goes on from here needs what came before
        checkpoint.commit(root, whole)
        if processes.rank() == 0:
            for step, path in checkpoints(root.parent).items():
                if step not in keep:
                    shutil.rmtree(path.rename(path.with_name(f".draft-{path.name}")))

    def settle(self) -> None:
        """Until the last one is committed; what went wrong there is raised here."""
        if self.writing:
            writing, self.writing = self.writing, None
            writing.result()
